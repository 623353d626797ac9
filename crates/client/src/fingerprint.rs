//! What makes two requests of a caller the same request.

use http::header::HOST;
use http::request::Parts;
use onlyonce_core::Fingerprint;

/// The fingerprint of a request: its method, its URL and its body, each with its length before it.
///
/// Headers are left out, since credentials are rotated and dates move. The server compares what it
/// compares; what this stops is an action's name that is used twice, before anything is sent.
pub(crate) fn fingerprint(head: &Parts, body: &[u8]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("onlyonce-client 1 fingerprint of a request");
    // A URL without a host is one for the host of its header.
    let host = match head.uri.authority() {
        Some(_) => None,
        None => head.headers.get(HOST),
    };
    let host = host.map_or(&b""[..], |host| host.as_bytes());
    let url = head.uri.to_string();
    for part in [head.method.as_str().as_bytes(), host, url.as_bytes(), body] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Fingerprint::from_bytes(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(method: &str, url: &str, host: Option<&str>, body: &str) -> Fingerprint {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        fingerprint(&head, body.as_bytes())
    }

    #[test]
    fn hostile_019_to_022_another_method_url_or_body_is_another_request() {
        let one = of("POST", "http://a/x?y=1", None, "body");
        assert_eq!(of("POST", "http://a/x?y=1", Some("a"), "body"), one);
        for other in [
            of("PUT", "http://a/x?y=1", None, "body"),
            of("POST", "http://b/x?y=1", None, "body"),
            of("POST", "http://a/x", None, "body"),
            of("POST", "http://a/x?y=2", None, "body"),
            of("POST", "http://a/x?y=1", None, "bodz"),
            of("POST", "http://a/x?y=1b", None, "ody"),
        ] {
            assert_ne!(other, one);
        }
        let relative = of("POST", "/x", Some("a"), "");
        assert_ne!(relative, of("POST", "/x", Some("b"), ""));
        assert_ne!(relative, of("POST", "/x", None, ""));
    }
}
