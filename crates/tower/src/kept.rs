//! A request that is kept beside its operation, so that somebody else can continue it.
//!
//! No credential is kept (I16): of the headers only those that are named here and those that the rules
//! compare, and a request with something like a credential in its query is not kept at all.

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE,
    COOKIE, PROXY_AUTHORIZATION,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use onlyonce_core::{Fingerprint, HeaderBlock, Key, Scope};

use crate::doing::Recorded;
use crate::keyed::path_of;

/// In the extensions of a request that a completer sends: which operation it continues.
#[derive(Clone, Debug)]
pub(crate) struct Continued {
    pub(crate) scope: Scope,
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
}

const METHOD: &str = "onlyonce-kept-method";
const TARGET: &str = "onlyonce-kept-target";

static KEPT: [HeaderName; 5] = [
    ACCEPT,
    ACCEPT_LANGUAGE,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_TYPE,
];

/// Headers that are never kept, whatever the rules compare.
static CREDENTIALS: [HeaderName; 6] = [
    AUTHORIZATION,
    COOKIE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("api-key"),
];

/// Names of parameters that may be credentials.
const SECRET_PARAMETERS: [&str; 12] = [
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "auth",
    "code",
    "key",
    "password",
    "secret",
    "sig",
    "signature",
    "token",
];

/// The request, as it is kept. `None` where it holds what must not be.
pub(crate) fn keep(head: &Parts, body: &Bytes, compared: &[HeaderName]) -> Option<Recorded> {
    let query = head.uri.query();
    if query.is_some_and(has_secret) {
        tracing::warn!(
            "a request is not kept, since its query may hold a credential; nobody can continue it"
        );
        return None;
    }
    let mut target = path_of(head).to_owned();
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    let line = [
        (METHOD.as_bytes(), head.method.as_str().as_bytes()),
        (TARGET.as_bytes(), target.as_bytes()),
    ];
    let kept = |name: &HeaderName| {
        (KEPT.contains(name) || compared.contains(name)) && !CREDENTIALS.contains(name)
    };
    let headers = head.headers.iter().filter(|(name, _)| kept(name));
    let headers = headers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    Some(Recorded {
        headers: HeaderBlock::pack(line.into_iter().chain(headers)).ok()?,
        body: body.clone(),
    })
}

fn has_secret(query: &str) -> bool {
    query.split('&').any(|pair| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        // An encoded name is not looked into: it may be any.
        name.contains('%') || SECRET_PARAMETERS.contains(&&*name.to_ascii_lowercase())
    })
}

/// The request that was kept. `None` where it is none.
pub(crate) fn request_of<B: From<Bytes>>(kept: &Recorded) -> Option<Request<B>> {
    let mut request = Request::new(B::from(kept.body.clone()));
    for (name, value) in kept.headers.iter() {
        if name == METHOD.as_bytes() {
            *request.method_mut() = Method::from_bytes(value).ok()?;
        } else if name == TARGET.as_bytes() {
            *request.uri_mut() = Uri::try_from(value).ok()?;
        } else {
            let name = HeaderName::from_bytes(name).ok()?;
            let value = HeaderValue::from_bytes(value).ok()?;
            request.headers_mut().append(name, value);
        }
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str) -> Parts {
        let request = Request::post(uri)
            .header("authorization", "Bearer secret-1")
            .header("cookie", "session=secret-2")
            .header("x-api-key", "secret-3")
            .header("x-custom", "secret-4")
            .header("x-plan", "gold")
            .header("content-type", "application/json")
            .body(())
            .expect("a request");
        request.into_parts().0
    }

    #[test]
    fn i16_no_credential_of_a_request_is_kept() {
        let compared = ["x-plan", "authorization"].map(HeaderName::from_static);
        let body = Bytes::from_static(b"{}");
        let kept = keep(&parts("/reports?month=10"), &body, &compared).expect("it is kept");
        assert!(!String::from_utf8_lossy(kept.headers.as_bytes()).contains("secret"));
        let again: Request<Bytes> = request_of(&kept).expect("a request");
        assert_eq!(again.method(), Method::POST);
        assert_eq!(again.uri(), "/reports?month=10");
        assert_eq!(again.headers()["x-plan"], "gold");
        assert_eq!(again.headers()["content-type"], "application/json");
        assert_eq!(again.body(), &body);
        for uri in ["/x?access_token=s", "/x?a=1&KEY=s", "/x?%6bey=s"] {
            assert!(keep(&parts(uri), &body, &compared).is_none(), "{uri}");
        }
    }
}
