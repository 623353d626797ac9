//! What is executed elsewhere than behind a route: by a worker, or in a transaction of the caller's.
//!
//! Its input and its result are JSON, and it is recorded as a request with such a body and the answer to it.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use onlyonce_core::{Fingerprint, Head, HeaderBlock};

use crate::{BodyRule, FingerprintBuilder, FingerprintRules, HashKeys, Problem, RequestIdentity};

/// The route that such records carry.
pub const ROUTE: &str = "work";
/// Their method. No keyed request has it: see [`is_reserved`].
pub const METHOD: &str = "WORK";

/// The methods that records carry of what came by no request: of workers, of commands, of functions, of
/// steps.
const RESERVED: [&str; 4] = [METHOD, "EXEC", "RUN", "STEP"];

/// Whether a keyed request must not have this method, since its record would pass for one of those that came
/// by no request.
pub fn is_reserved(method: &Method) -> bool {
    RESERVED.contains(&method.as_str())
}

/// What a keyed request with such a method is told.
pub fn reserved(method: &Method) -> Problem {
    Problem::BadRequest {
        why: format!("the method {method} is that of operations which come by no request").into(),
    }
}

/// What makes two of them the same one: the input, as canonical JSON (RFC 8785) where it can be made that.
pub fn fingerprint(keys: &HashKeys, input: &[u8]) -> Fingerprint {
    let rules = FingerprintRules {
        body: BodyRule::Json { ignore: Vec::new() },
        ..FingerprintRules::default()
    };
    let json = HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, json)]);
    fingerprint_of(keys, (ROUTE, METHOD, "/v1/work"), &headers, &rules, input)
}

/// The fingerprint of `what` is to be done: `of` is the route, the method and the path that stand for it.
pub fn fingerprint_of(
    keys: &HashKeys,
    of: (&str, &str, &str),
    headers: &HeaderMap,
    rules: &FingerprintRules,
    what: &[u8],
) -> Fingerprint {
    let (upstream, method, path) = of;
    let identity = RequestIdentity {
        method: &Method::from_bytes(method.as_bytes()).unwrap_or_default(),
        upstream,
        path,
        query: None,
        headers,
    };
    let mut fingerprint = FingerprintBuilder::new(keys, &identity, rules);
    fingerprint.body_chunk(what);
    fingerprint.finish()
}

/// What a result is recorded as.
pub fn result_head() -> Head {
    let json: [(&[u8], &[u8]); 1] = [(b"content-type", b"application/json")];
    Head {
        status: 200,
        headers: HeaderBlock::pack(json).unwrap_or_default(),
    }
}
