//! The fingerprint: a keyed hash of what makes two requests the same request.
//!
//! Method, upstream, path, query, content type and encoding, the route's listed headers and the
//! body, each with its length before it. The body comes in pieces, so that one that was spooled to
//! disk is never whole in memory.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method};
use mime::Mime;
use onlyonce_core::Fingerprint;
use onlyonce_core::planted::{Bug, planted};

use crate::canonical_json::{self, Pointer};
use crate::multipart::PartHasher;
use crate::query;
use crate::secret::{HashKeys, update_prefixed};

/// A JSON body above this many bytes is compared byte by byte, since canonical JSON has to be built
/// in memory.
pub const MAX_CANONICAL_BYTES: usize = 1 << 20;

/// What of a request enters its fingerprint, by route.
#[derive(Clone, Debug, Default)]
pub struct FingerprintRules {
    /// Headers that count beside content type and encoding.
    pub headers: Vec<HeaderName>,
    /// The query parameter that carries a credential and therefore does not count (Gemini: `key`).
    pub credential_query: Option<String>,
    /// How bodies are compared.
    pub body: BodyRule,
}

/// How bodies are compared.
#[derive(Clone, Debug, Default)]
pub enum BodyRule {
    /// Byte by byte.
    #[default]
    Bytes,
    /// As canonical JSON (RFC 8785) without what these pointers point at. Bodies that are not JSON,
    /// not unambiguous, compressed, or above [`MAX_CANONICAL_BYTES`] are compared byte by byte.
    Json {
        /// Members and elements that do not count.
        ignore: Vec<Pointer>,
    },
}

/// The parts of a request that stand before its body.
#[derive(Clone, Copy, Debug)]
pub struct RequestIdentity<'a> {
    /// The method.
    pub method: &'a Method,
    /// The name of the upstream that the route leads to.
    pub upstream: &'a str,
    /// The path as it came.
    pub path: &'a str,
    /// The query as it came, without the question mark.
    pub query: Option<&'a str>,
    /// The headers as they came.
    pub headers: &'a HeaderMap,
}

/// The fingerprint of something to do that is no request: of its `parts`, in this order.
pub fn fingerprint_of_parts(keys: &HashKeys, parts: &[&[u8]]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_keyed(&keys.part);
    for part in parts {
        update_prefixed(&mut hasher, part);
    }
    Fingerprint::from_bytes(*hasher.finalize().as_bytes())
}

/// Takes the fingerprint of one request while its body comes in.
pub struct FingerprintBuilder<'a> {
    hasher: blake3::Hasher,
    body: Body<'a>,
    body_len: u64,
}

enum Body<'a> {
    Bytes,
    Parts(Box<PartHasher>),
    Json {
        collected: Vec<u8>,
        ignore: &'a [Pointer],
    },
}

impl<'a> FingerprintBuilder<'a> {
    /// Takes in all that stands before the body.
    pub fn new(
        keys: &HashKeys,
        request: &RequestIdentity<'_>,
        rules: &'a FingerprintRules,
    ) -> Self {
        let (hasher, parts) = head(keys, request, rules);
        let body = match (parts, &rules.body) {
            (Some(parts), _) => Body::Parts(parts),
            (None, BodyRule::Json { ignore }) if is_plain_json(request.headers) => Body::Json {
                collected: Vec::new(),
                ignore,
            },
            (None, _) => Body::Bytes,
        };
        Self {
            hasher,
            body,
            body_len: 0,
        }
    }

    /// The same for a body that passes: nothing of it is held, and what `rules` say of JSON does not
    /// count.
    pub fn by_bytes(
        keys: &HashKeys,
        request: &RequestIdentity<'_>,
        rules: &FingerprintRules,
    ) -> FingerprintBuilder<'static> {
        let (hasher, parts) = head(keys, request, rules);
        FingerprintBuilder {
            hasher,
            body: parts.map_or(Body::Bytes, Body::Parts),
            body_len: 0,
        }
    }

    /// Takes in the next piece of the body. Where pieces begin and end does not matter.
    pub fn body_chunk(&mut self, chunk: &[u8]) {
        self.body_len += chunk.len() as u64;
        match &mut self.body {
            Body::Bytes => {
                self.hasher.update(chunk);
            }
            Body::Parts(parts) => parts.update(chunk, &mut self.hasher),
            Body::Json { collected, .. } if self.body_len <= MAX_CANONICAL_BYTES as u64 => {
                collected.extend_from_slice(chunk);
            }
            Body::Json { collected, .. } => {
                self.hasher.update(collected).update(chunk);
                self.body = Body::Bytes;
            }
        }
    }

    /// The fingerprint of the request whose body has been taken in whole.
    pub fn finish(mut self) -> Fingerprint {
        // What the body was taken for stands behind it, with a length: a body that was hashed as
        // bytes never counts as the same as one that was hashed as something else.
        let (kind, len) = match self.body {
            Body::Bytes => (b'b', self.body_len),
            Body::Parts(parts) => (b'p', parts.finish(&mut self.hasher)),
            Body::Json { collected, ignore } => {
                match canonical_json::canonicalize(&collected, ignore) {
                    Ok(canonical) => {
                        self.hasher.update(&canonical);
                        (b'j', canonical.len() as u64)
                    }
                    Err(_) => {
                        self.hasher.update(&collected);
                        (b'b', self.body_len)
                    }
                }
            }
        };
        self.hasher.update(&[kind]).update(&len.to_le_bytes());
        Fingerprint::from_bytes(*self.hasher.finalize().as_bytes())
    }
}

/// What stands before the body, and how it is read where it has parts.
fn head(
    keys: &HashKeys,
    request: &RequestIdentity<'_>,
    rules: &FingerprintRules,
) -> (blake3::Hasher, Option<Box<PartHasher>>) {
    let mut hasher = blake3::Hasher::new_keyed(&keys.fingerprint);
    update_prefixed(&mut hasher, request.method.as_str().as_bytes());
    update_prefixed(&mut hasher, request.upstream.as_bytes());
    update_prefixed(&mut hasher, request.path.as_bytes());
    update_query(&mut hasher, request.query, rules);
    let multipart = single_multipart(request.headers);
    match &multipart {
        Some((mime, _)) => update_without_boundary(&mut hasher, mime),
        None => update_header(&mut hasher, request.headers, &CONTENT_TYPE),
    }
    update_header(&mut hasher, request.headers, &CONTENT_ENCODING);
    for name in &rules.headers {
        update_prefixed(&mut hasher, name.as_str().as_bytes());
        update_header(&mut hasher, request.headers, name);
    }
    (hasher, multipart.map(|(_, parts)| parts))
}

fn update_query(hasher: &mut blake3::Hasher, query: Option<&str>, rules: &FingerprintRules) {
    let counted = match (query, &rules.credential_query) {
        _ if planted(Bug::QueryLeftOut) => None,
        (Some(query), Some(parameter)) => {
            let rest = query::without_parameter(query, parameter);
            // A query that held the credential alone is no query: the same request may carry its
            // credential in a header next time.
            (!rest.is_empty()).then_some(rest)
        }
        (query, _) => query.map(Into::into),
    };
    hasher.update(&[u8::from(counted.is_some())]);
    update_prefixed(hasher, counted.unwrap_or_default().as_bytes());
}

/// The number of values, then each: an absent header is not an empty one.
fn update_header(hasher: &mut blake3::Hasher, headers: &HeaderMap, name: &HeaderName) {
    let values = headers.get_all(name);
    hasher.update(&(values.iter().count() as u64).to_le_bytes());
    for value in values {
        update_prefixed(hasher, value.as_bytes());
    }
}

/// The content type of a multipart body with a usable boundary.
///
/// The boundary does not count, neither in the content type nor in the body. It is drawn at random
/// by whoever encodes the body, and the official OpenAI and Anthropic clients for Python encode a
/// multipart body again for each of their own retries (`_build_request` inside the retry loop; the
/// boundary comes from httpx, 16 random bytes). With it, no retried upload would ever be the same
/// request.
fn single_multipart(headers: &HeaderMap) -> Option<(Mime, Box<PartHasher>)> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = values.next()?.as_bytes();
    let is_multipart = value
        .get(..10)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"));
    if !is_multipart || values.next().is_some() || headers.contains_key(CONTENT_ENCODING) {
        return None;
    }
    let mime: Mime = str::from_utf8(value).ok()?.parse().ok()?;
    let parts = PartHasher::new(mime.get_param(mime::BOUNDARY)?.as_str())?;
    Some((mime, Box::new(parts)))
}

fn update_without_boundary(hasher: &mut blake3::Hasher, mime: &Mime) {
    // No count of header values is ever this large: this is not a list of raw values.
    hasher.update(&u64::MAX.to_le_bytes());
    update_prefixed(hasher, mime.essence_str().as_bytes());
    let params = || mime.params().filter(|(name, _)| *name != mime::BOUNDARY);
    hasher.update(&(params().count() as u64).to_le_bytes());
    for (name, value) in params() {
        update_prefixed(hasher, name.as_str().as_bytes());
        update_prefixed(hasher, value.as_str().as_bytes());
    }
}

/// Whether a body says that it is JSON and is not compressed.
pub fn is_plain_json(headers: &HeaderMap) -> bool {
    let says_json = || {
        let mime: Mime = headers.get(CONTENT_TYPE)?.to_str().ok()?.parse().ok()?;
        Some(mime.subtype() == mime::JSON || mime.suffix() == Some(mime::JSON))
    };
    !headers.contains_key(CONTENT_ENCODING) && says_json() == Some(true)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// A request to vary one thing of.
    #[derive(Clone)]
    struct Request {
        method: Method,
        upstream: &'static str,
        path: &'static str,
        query: Option<&'static str>,
        headers: HeaderMap,
        body: Vec<u8>,
    }

    impl Request {
        fn base() -> Self {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Self {
                method: Method::POST,
                upstream: "openai",
                path: "/v1/chat/completions",
                query: None,
                headers,
                body: br#"{"model":"m","n":1}"#.to_vec(),
            }
        }

        fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
            self.body = body.into();
            self
        }

        fn header(mut self, name: &'static str, value: &str) -> Self {
            self.headers
                .insert(name, HeaderValue::from_str(value).unwrap());
            self
        }

        fn print_in_pieces(&self, rules: &FingerprintRules, piece: usize) -> Fingerprint {
            let identity = RequestIdentity {
                method: &self.method,
                upstream: self.upstream,
                path: self.path,
                query: self.query,
                headers: &self.headers,
            };
            let keys = HashKeys::from_secret(&[5; 32]);
            let mut builder = FingerprintBuilder::new(&keys, &identity, rules);
            self.body
                .chunks(piece)
                .for_each(|chunk| builder.body_chunk(chunk));
            builder.finish()
        }

        fn print(&self, rules: &FingerprintRules) -> Fingerprint {
            self.print_in_pieces(rules, usize::MAX)
        }
    }

    fn bytes() -> FingerprintRules {
        FingerprintRules::default()
    }

    fn json(ignore: &[&str]) -> FingerprintRules {
        FingerprintRules {
            body: BodyRule::Json {
                ignore: ignore.iter().map(|p| Pointer::parse(p).unwrap()).collect(),
            },
            ..FingerprintRules::default()
        }
    }

    #[test]
    fn the_same_request_has_the_same_fingerprint() {
        let request = Request::base();
        assert_eq!(request.print(&bytes()), request.clone().print(&bytes()));
        let other_headers = request.clone().header("x-stainless-retry-count", "1");
        assert_eq!(request.print(&bytes()), other_headers.print(&bytes()));
    }

    #[test]
    fn hostile_019_to_024_whatever_differs_makes_another_fingerprint() {
        let base = Request::base();
        let others = [
            Request {
                method: Method::PUT,
                ..base.clone()
            },
            Request {
                path: "/v1/responses",
                ..base.clone()
            },
            Request {
                query: Some("a=1"),
                ..base.clone()
            },
            Request {
                query: Some(""),
                ..base.clone()
            },
            Request {
                upstream: "openai2",
                ..base.clone()
            },
            base.clone().body(br#"{"model":"m","n":2}"#.to_vec()),
            base.clone().body(br#"{"n":1,"model":"m"}"#.to_vec()),
            base.clone().body(br#"{"model":"m","n":1} "#.to_vec()),
            base.clone().body(Vec::new()),
            base.clone().header("content-type", "text/plain"),
            base.clone().header("content-type", ""),
            base.clone().header("content-encoding", "gzip"),
        ];
        let mut prints = vec![base.print(&bytes())];
        prints.extend(others.iter().map(|other| other.print(&bytes())));
        for (at, print) in prints.iter().enumerate() {
            assert!(!prints[..at].contains(print), "{at}");
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let base = Request::base();
        let one = Request {
            upstream: "ab",
            path: "/c",
            ..base.clone()
        };
        let two = Request {
            upstream: "a",
            path: "b/c",
            ..base
        };
        assert_ne!(one.print(&bytes()), two.print(&bytes()));
    }

    #[test]
    fn the_pieces_of_a_body_do_not_matter() {
        let request = Request::base().body(vec![7; 5000]);
        for rules in [bytes(), json(&[])] {
            let whole = request.print(&rules);
            for piece in [1, 3, 64, 1024, 4999] {
                assert_eq!(request.print_in_pieces(&rules, piece), whole);
            }
        }
    }

    #[test]
    fn listed_headers_count_and_absent_is_not_empty() {
        let rules = FingerprintRules {
            headers: vec![HeaderName::from_static("openai-organization")],
            ..FingerprintRules::default()
        };
        let base = Request::base();
        let empty = base.clone().header("openai-organization", "");
        let acme = base.clone().header("openai-organization", "acme");
        assert_ne!(base.print(&rules), empty.print(&rules));
        assert_ne!(empty.print(&rules), acme.print(&rules));
        assert_eq!(base.print(&bytes()), acme.print(&bytes()));
    }

    #[test]
    fn a_credential_in_the_query_does_not_count() {
        let rules = FingerprintRules {
            credential_query: Some("key".into()),
            ..FingerprintRules::default()
        };
        let with = |query| {
            Request {
                query,
                ..Request::base()
            }
            .print(&rules)
        };
        assert_eq!(with(Some("alt=sse&key=one")), with(Some("key=two&alt=sse")));
        assert_eq!(with(Some("key=one")), with(None));
        assert_ne!(
            with(Some("alt=sse&key=one")),
            with(Some("alt=json&key=one"))
        );
        let without_rule = |query| {
            Request {
                query,
                ..Request::base()
            }
            .print(&bytes())
        };
        assert_ne!(without_rule(Some("key=one")), without_rule(Some("key=two")));
    }

    #[test]
    fn hostile_023_json_in_another_order_is_the_same_only_where_the_route_says_so() {
        let one = Request::base().body(br#"{"a":1,"b":[1.0,"x"]}"#.to_vec());
        let two = Request::base().body(br#"{ "b": [1, "\u0078"], "a": 1e0 }"#.to_vec());
        assert_eq!(one.print(&json(&[])), two.print(&json(&[])));
        assert_ne!(one.print(&bytes()), two.print(&bytes()));
        assert_ne!(
            one.print(&json(&[])),
            Request::base()
                .body(br#"{"a":1,"b":["x",1.0]}"#.to_vec())
                .print(&json(&[]))
        );
    }

    #[test]
    fn ignored_pointers_do_not_count() {
        let rules = json(&["/metadata/sent_at"]);
        let at = |time: &str| {
            let body = format!(r#"{{"n":1,"metadata":{{"sent_at":{time},"user":"u"}}}}"#);
            Request::base().body(body).print(&rules)
        };
        assert_eq!(at("1"), at("2"));
        assert_ne!(at("1"), Request::base().body(r#"{"n":1}"#).print(&rules));
    }

    #[test]
    fn json_that_is_ambiguous_or_none_is_compared_by_bytes() {
        let print = |body: &str| Request::base().body(body).print(&json(&[]));
        for body in [r#"{"a":1,"a":2}"#, r#"{"a":1"#, "", "{} {}", "\"\\ud800\""] {
            assert_eq!(print(body), print(body));
            assert_ne!(print(body), print(&format!("{body} ")), "{body}");
        }
        assert_ne!(print(r#"{"a":1,"a":2}"#), print(r#"{"a":2}"#));
        assert_ne!(
            print(r#"{"n":9007199254740992}"#),
            print(r#"{"n":9007199254740993}"#)
        );
    }

    #[test]
    fn json_rules_leave_other_and_compressed_and_large_bodies_alone() {
        let rules = json(&[]);
        for request in [
            Request::base().header("content-type", "text/plain"),
            Request::base().header("content-encoding", "gzip"),
        ] {
            let print = |body: &str| request.clone().body(body).print(&rules);
            assert_ne!(print("[1]"), print("[ 1]"));
        }
        let long = |space: &str| {
            let body = format!("[{space}\"{}\"]", "x".repeat(MAX_CANONICAL_BYTES));
            Request::base().body(body)
        };
        assert_ne!(long("").print(&rules), long(" ").print(&rules));
        assert_eq!(
            long("").print(&rules),
            long("").print_in_pieces(&rules, 1000)
        );
        let suffix = Request::base().header("content-type", "application/vnd.x+json");
        assert_eq!(
            suffix.clone().body("[1]").print(&rules),
            suffix.body("[ 1]").print(&rules)
        );
    }

    fn upload(boundary: &str, file: &str) -> Request {
        let body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{file}\r\n\
             --{boundary}--\r\n"
        );
        Request::base()
            .header(
                "content-type",
                &format!("multipart/form-data; boundary={boundary}"),
            )
            .body(body)
    }

    #[test]
    fn an_upload_encoded_again_under_another_boundary_is_the_same_request() {
        let one = upload("0f1e2d3c4b5a69788796a5b4c3d2e1f0", "RIFF....");
        let two = upload("Zz-AnotherOne", "RIFF....");
        assert_eq!(one.print(&bytes()), two.print(&bytes()));
        assert_eq!(one.print(&bytes()), two.print(&json(&[])));
        for piece in 1..80 {
            assert_eq!(
                one.print_in_pieces(&bytes(), piece),
                two.print(&bytes()),
                "{piece}"
            );
        }
    }

    #[test]
    fn an_upload_with_another_part_is_another_request() {
        let one = upload("b", "RIFF....");
        assert_ne!(one.print(&bytes()), upload("b", "RIFF...!").print(&bytes()));
        assert_ne!(
            one.print(&bytes()),
            upload("b", "RIFF....\r\n--b\r\n").print(&bytes())
        );
        let related = one
            .clone()
            .header("content-type", "multipart/related; boundary=b");
        assert_ne!(one.print(&bytes()), related.print(&bytes()));
        let charset = one.clone().header(
            "content-type",
            "multipart/form-data; boundary=b; charset=utf-8",
        );
        assert_ne!(one.print(&bytes()), charset.print(&bytes()));
        let compressed = |boundary| upload(boundary, "x").header("content-encoding", "gzip");
        assert_ne!(
            compressed("a").print(&bytes()),
            compressed("b").print(&bytes())
        );
    }

    #[test]
    fn a_multipart_type_without_a_usable_boundary_is_compared_by_bytes() {
        let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
        for content_type in [
            "multipart/form-data",
            "multipart/form-data; boundary=\"\"",
            &long,
        ] {
            let request = upload("b", "x").header("content-type", content_type);
            let other = upload("c", "x").header("content-type", content_type);
            assert_eq!(
                request.print(&bytes()),
                request.print_in_pieces(&bytes(), 7)
            );
            assert_ne!(
                request.print(&bytes()),
                other.print(&bytes()),
                "{content_type}"
            );
        }
    }
}
