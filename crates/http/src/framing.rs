//! What of a request's head the gateway does not take, beyond what the HTTP library refuses itself.
//!
//! The library never hands out a message that it could not frame, and messages are written anew
//! and never copied (I17). What is left is what it lets pass and we do not.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Version};

/// Why a head is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Two statements about the length of the body (RFC 9112 section 6.3).
    #[error("both Transfer-Encoding and Content-Length were sent")]
    TwoLengths,
    /// Several lengths (RFC 9112 section 6.3).
    #[error("several values of Content-Length were sent")]
    SeveralContentLengths,
    /// No host (RFC 9112 section 3.2).
    #[error("no Host was sent")]
    NoHost,
    /// Several hosts (RFC 9112 section 3.2).
    #[error("several values of Host were sent")]
    SeveralHosts,
    /// The host of the header is not the one of the target (RFC 9113 section 8.3.1).
    #[error("Host and :authority differ")]
    HostsDiffer,
    /// A tunnel; upstreams are fixed.
    #[error("CONNECT was asked for, and upstreams are fixed in the configuration")]
    Connect,
    /// A whole URL as target, as a forward proxy gets it; upstreams are fixed.
    #[error("the target is a whole URL, and upstreams are fixed in the configuration")]
    AbsoluteForm,
    /// A target that is no path: `*`, or one that a path cannot be read from.
    #[error("the target is not a path")]
    NoPath,
    /// A switch of protocol under a key: what comes after could not be recorded.
    #[error("a switch to another protocol was asked for under a key")]
    UpgradeWithKey,
}

impl FramingError {
    /// Whether the connection is to be closed after the answer: always, but for a switch of
    /// protocol, which is well framed.
    pub fn closes_connection(self) -> bool {
        self != Self::UpgradeWithKey
    }
}

/// Checks the head of a request; `has_key` says whether it carries a key.
pub fn check(head: &Parts, has_key: bool) -> Result<(), FramingError> {
    let headers = &head.headers;
    if head.method == Method::CONNECT {
        return Err(FramingError::Connect);
    }
    check_host(head)?;
    check_target(head)?;
    if count(headers, &CONTENT_LENGTH) > 1 {
        return Err(FramingError::SeveralContentLengths);
    }
    // hyper drops the length where both are sent, and closes the connection after the answer. This
    // is for a library that does not.
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(FramingError::TwoLengths);
    }
    if has_key && headers.contains_key(UPGRADE) {
        return Err(FramingError::UpgradeWithKey);
    }
    Ok(())
}

fn check_host(head: &Parts) -> Result<(), FramingError> {
    let hosts = count(&head.headers, &HOST);
    if hosts > 1 {
        return Err(FramingError::SeveralHosts);
    }
    match head.version {
        Version::HTTP_09 | Version::HTTP_10 => Ok(()),
        Version::HTTP_11 if hosts == 0 => Err(FramingError::NoHost),
        Version::HTTP_11 => Ok(()),
        _ => match (head.uri.authority(), head.headers.get(HOST)) {
            (None, None) => Err(FramingError::NoHost),
            (Some(authority), Some(host))
                if !authority
                    .as_str()
                    .as_bytes()
                    .eq_ignore_ascii_case(host.as_bytes()) =>
            {
                Err(FramingError::HostsDiffer)
            }
            _ => Ok(()),
        },
    }
}

fn check_target(head: &Parts) -> Result<(), FramingError> {
    // HTTP/2 and later carry scheme and authority with every request.
    let is_http_1 = head.version <= Version::HTTP_11;
    if is_http_1 && (head.uri.scheme().is_some() || head.uri.authority().is_some()) {
        return Err(FramingError::AbsoluteForm);
    }
    let is_options_of_the_server = head.method == Method::OPTIONS && head.uri.path() == "*";
    if !head.uri.path().starts_with('/') && !is_options_of_the_server {
        return Err(FramingError::NoPath);
    }
    Ok(())
}

fn count(headers: &HeaderMap, name: &http::HeaderName) -> usize {
    headers.get_all(name).iter().take(2).count()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(method: &str, target: &str, version: Version, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refusal(fields: &[(&str, &str)], has_key: bool) -> Option<FramingError> {
        let mut all = vec![("host", "h")];
        all.extend_from_slice(fields);
        check(&head("POST", "/v1", Version::HTTP_11, &all), has_key).err()
    }

    #[test]
    fn an_ordinary_head_is_taken() {
        assert_eq!(refusal(&[("content-length", "5")], true), None);
        assert_eq!(refusal(&[("transfer-encoding", "chunked")], true), None);
        let h2 = head("POST", "http://h/v1?a=1", Version::HTTP_2, &[]);
        assert_eq!(check(&h2, true), Ok(()));
        let options = head("OPTIONS", "*", Version::HTTP_11, &[("host", "h")]);
        assert_eq!(check(&options, false), Ok(()));
        assert_eq!(
            check(&head("GET", "/", Version::HTTP_10, &[]), false),
            Ok(())
        );
    }

    #[test]
    fn hostile_034_two_statements_of_length_are_refused_and_close() {
        let both = [("content-length", "5"), ("transfer-encoding", "chunked")];
        assert_eq!(refusal(&both, false), Some(FramingError::TwoLengths));
        assert!(FramingError::TwoLengths.closes_connection());
    }

    #[test]
    fn hostile_035_several_content_lengths_are_refused() {
        let twice = [("content-length", "5"), ("content-length", "5")];
        assert_eq!(
            refusal(&twice, false),
            Some(FramingError::SeveralContentLengths)
        );
    }

    #[test]
    fn hostile_042_two_hosts_or_none_are_refused() {
        assert_eq!(
            refusal(&[("host", "h")], false),
            Some(FramingError::SeveralHosts)
        );
        let none = |version| check(&head("GET", "/", version, &[]), false);
        assert_eq!(none(Version::HTTP_11), Err(FramingError::NoHost));
        assert_eq!(none(Version::HTTP_2), Err(FramingError::NoHost));
        let h2 = |host| head("GET", "http://h/", Version::HTTP_2, &[("host", host)]);
        assert_eq!(check(&h2("other"), false), Err(FramingError::HostsDiffer));
        assert_eq!(check(&h2("H"), false), Ok(()));
    }

    #[test]
    fn hostile_043_absolute_form_and_connect_are_refused() {
        let host = [("host", "h")];
        let absolute = head("POST", "http://elsewhere/v1", Version::HTTP_11, &host);
        assert_eq!(check(&absolute, false), Err(FramingError::AbsoluteForm));
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let connect = head("CONNECT", "elsewhere:443", version, &host);
            assert_eq!(check(&connect, false), Err(FramingError::Connect));
        }
    }

    #[test]
    fn hostile_045_a_switch_of_protocol_with_a_key_is_refused() {
        let upgrade = [("upgrade", "websocket"), ("connection", "upgrade")];
        assert_eq!(refusal(&upgrade, true), Some(FramingError::UpgradeWithKey));
        assert_eq!(refusal(&upgrade, false), None);
        assert!(!FramingError::UpgradeWithKey.closes_connection());
    }
}
