//! Which headers pass, and which are recorded.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, SET_COOKIE, TE};
use http::{HeaderMap, HeaderName, HeaderValue};
use onlyonce_core::Key;
use onlyonce_core::planted::{Bug, planted};

use crate::marks::is_ours;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What becomes of a request's headers on their way to the upstream, by route.
#[derive(Clone, Debug, Default)]
pub struct ForwardRules {
    /// The headers that a key may come in. None of them passes, but for the next.
    pub key_headers: Vec<HeaderName>,
    /// The header that the key goes to the upstream in, if any.
    pub forward_key: Option<HeaderName>,
    /// How the key is written there.
    pub key_form: KeyForm,
    /// How the caller's address is told.
    pub forwarded: Forwarded,
}

/// How the key is written to the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyForm {
    /// As it came, where it came under that very name, else its bare text.
    #[default]
    AsItCame,
    /// Its bare text. For routes that resend: an attempt with `"k"` and one with `k` must carry
    /// the very same key upstream (I1).
    Text,
}

/// How the caller's address is told to the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarded {
    /// Not at all, and what the caller itself claims does not pass.
    #[default]
    None,
    /// `X-Forwarded-For`, `-Host` and `-Proto`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The connection that a request came in on.
#[derive(Clone, Copy, Debug)]
pub struct InboundHop<'a> {
    /// The caller's address.
    pub peer: IpAddr,
    /// The host that the caller asked for, with the port where one was given.
    pub host: Option<&'a str>,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// Turns the headers of a request into those that go to the upstream.
///
/// Beside what is of one connection, the length goes (the body is framed anew), the host (it is
/// the upstream's), an expectation (it was met here), and names that only we write.
pub fn to_upstream(
    headers: &mut HeaderMap,
    key: Option<&Key>,
    rules: &ForwardRules,
    inbound: &InboundHop<'_>,
) {
    let key_value = key_to_forward(headers, key, rules);
    let takes_trailers = lists(headers, &TE, "trailers");
    strip_listed(headers);
    strip(headers, |name| {
        is_hop_by_hop(name)
            || is_ours(name)
            || [HOST, CONTENT_LENGTH, EXPECT].contains(name)
            || rules.key_headers.contains(name)
            || is_claim(name, rules.forwarded)
    });
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some((name, value)) = key_value {
        headers.insert(name, value);
    }
    match rules.forwarded {
        Forwarded::None => {}
        Forwarded::XForwarded => add_x_forwarded(headers, inbound),
        Forwarded::Forwarded => add_forwarded(headers, inbound),
    }
}

/// Turns the headers of an upstream's answer into those that go to the caller.
pub fn from_upstream(headers: &mut HeaderMap) {
    strip_listed(headers);
    strip(headers, |name| is_hop_by_hop(name) || is_ours(name));
    say_length_once(headers);
}

/// A length that is said several times, always the same, passes once (RFC 9110 section 8.6).
fn say_length_once(headers: &mut HeaderMap) {
    let said = headers.get_all(CONTENT_LENGTH).iter();
    let mut lengths = said.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let Some(first) = lengths.next().map(<[u8]>::trim_ascii) else {
        return;
    };
    let (mut is_repeated, mut is_same) = (false, true);
    for other in lengths {
        is_repeated = true;
        is_same &= other.trim_ascii() == first;
    }
    if is_repeated
        && is_same
        && let Ok(length) = HeaderValue::from_bytes(first)
    {
        headers.insert(CONTENT_LENGTH, length);
    }
}

/// Of headers that went through [`from_upstream`], those that are recorded, in order, with repeats,
/// as a [`onlyonce_core::HeaderBlock`] takes them.
pub fn recorded(
    headers: &HeaderMap,
    allow_set_cookie: bool,
) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .iter()
        .filter(move |(name, _)| {
            allow_set_cookie || *name != SET_COOKIE || planted(Bug::SetCookieReplayed)
        })
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// Of the trailers of an answer, those that pass and are recorded. A trailer must not say anything
/// about framing, the connection, or a cookie (RFC 9110 section 6.5.1).
pub fn trailers_from_upstream(trailers: &mut HeaderMap) {
    from_upstream(trailers);
    trailers.remove(CONTENT_LENGTH);
    trailers.remove(SET_COOKIE);
}

/// What the OpenAI and Anthropic SDKs say of their own retries.
pub fn sdk_retry_count(headers: &HeaderMap) -> Option<u32> {
    headers
        .get("x-stainless-retry-count")?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Takes out the headers that `Connection` lists: they are of one connection.
fn strip_listed(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
}

/// Takes out the headers that do not pass. It goes through the names that are there: they are
/// few, while to ask for each name that could be there costs a hash apiece, on every message.
fn strip(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| goes(name)).cloned() {
        headers.remove(name);
    }
}

/// Whether a header is of one connection (RFC 9110 section 7.6.1). `Trailer` is not: it announces
/// trailers, which pass.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn key_to_forward(
    headers: &HeaderMap,
    key: Option<&Key>,
    rules: &ForwardRules,
) -> Option<(HeaderName, HeaderValue)> {
    let (key, name) = (key?, rules.forward_key.as_ref()?);
    let came_as = match rules.key_form {
        KeyForm::AsItCame if rules.key_headers.contains(name) => headers.get(name),
        KeyForm::AsItCame | KeyForm::Text => None,
    };
    let value = match came_as {
        Some(value) => value.clone(),
        None => HeaderValue::from_str(key.as_str()).ok()?,
    };
    Some((name.clone(), value))
}

/// Whether the list header `name` has the member `member`.
fn lists(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(member.as_bytes()))
}

/// Whether a header is what a caller claims of its own address, in a form that the gateway does not
/// continue: an upstream would take it for the gateway's word.
fn is_claim(name: &HeaderName, continued: Forwarded) -> bool {
    let x_forwarded = [&X_FORWARDED_FOR, &X_FORWARDED_HOST, &X_FORWARDED_PROTO];
    match continued {
        Forwarded::XForwarded => *name == FORWARDED,
        Forwarded::Forwarded => x_forwarded.contains(&name),
        Forwarded::None => *name == FORWARDED || x_forwarded.contains(&name),
    }
}

fn add_x_forwarded(headers: &mut HeaderMap, inbound: &InboundHop<'_>) {
    append_to_list(
        headers,
        &X_FORWARDED_FOR,
        &inbound.peer.to_canonical().to_string(),
    );
    headers.insert(
        &X_FORWARDED_PROTO,
        HeaderValue::from_static(protocol(inbound)),
    );
    headers.remove(&X_FORWARDED_HOST);
    if let Some(Ok(host)) = inbound.host.map(HeaderValue::from_str) {
        headers.insert(&X_FORWARDED_HOST, host);
    }
}

fn add_forwarded(headers: &mut HeaderMap, inbound: &InboundHop<'_>) {
    // An IPv6 address has to be in brackets and quotes (RFC 7239 section 6).
    let mut element = match inbound.peer.to_canonical() {
        IpAddr::V4(peer) => format!("for={peer}"),
        IpAddr::V6(peer) => format!("for=\"[{peer}]\""),
    };
    if let Some(host) = inbound.host.filter(|host| !host.contains(['"', '\\'])) {
        // Writing to a string cannot fail.
        let _ = write!(element, ";host=\"{host}\"");
    }
    let _ = write!(element, ";proto={}", protocol(inbound));
    append_to_list(headers, &FORWARDED, &element);
}

/// Makes `element` the last of the list in `name`, all of it in one line: upstreams read the last
/// element as the one that the nearest proxy wrote.
fn append_to_list(headers: &mut HeaderMap, name: &HeaderName, element: &str) {
    let mut list = Vec::new();
    for value in headers.get_all(name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name.clone(), value);
    }
}

fn protocol(inbound: &InboundHop<'_>) -> &'static str {
    if inbound.tls { "https" } else { "http" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::key_of;

    const KEY: HeaderName = HeaderName::from_static("idempotency-key");

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn listed(headers: &HeaderMap) -> Vec<(&str, &str)> {
        headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect()
    }

    fn inbound() -> InboundHop<'static> {
        InboundHop {
            peer: [192, 0, 2, 1].into(),
            host: Some("gate:8787"),
            tls: false,
        }
    }

    fn rules(forward_key: Option<HeaderName>) -> ForwardRules {
        ForwardRules {
            key_headers: vec![KEY],
            forward_key,
            ..ForwardRules::default()
        }
    }

    fn sent(fields: &[(&'static str, &'static str)], rules: &ForwardRules) -> HeaderMap {
        let mut headers = headers(fields);
        let key = key_of(&headers, &rules.key_headers).unwrap();
        to_upstream(&mut headers, key.as_ref(), rules, &inbound());
        headers
    }

    #[test]
    fn hostile_047_a_connection_that_lists_the_key_does_not_lose_it() {
        let fields = [
            ("connection", "idempotency-key, x-drop"),
            ("idempotency-key", "k"),
            ("x-drop", "1"),
        ];
        let map = headers(&fields);
        assert!(key_of(&map, &[KEY]).unwrap().is_some());
        let sent = sent(&fields, &rules(Some(KEY)));
        assert_eq!(listed(&sent), [("idempotency-key", "k")]);
    }

    #[test]
    fn a_request_loses_what_is_of_its_connection_or_ours() {
        let sent = sent(
            &[
                ("host", "gate"),
                ("content-length", "5"),
                ("expect", "100-continue"),
                ("connection", "keep-alive, X-One"),
                ("connection", "x-two"),
                ("keep-alive", "timeout=5"),
                ("proxy-authorization", "Basic x"),
                ("te", "gzip, Trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("onlyonce-operation", "op_x"),
                ("x-one", "1"),
                ("x-two", "2"),
                ("authorization", "Bearer sk"),
                ("accept", "a"),
                ("accept", "b"),
            ],
            &rules(None),
        );
        let left = [
            ("accept", "a"),
            ("accept", "b"),
            ("authorization", "Bearer sk"),
            ("te", "trailers"),
        ];
        let mut got = listed(&sent);
        got.sort_unstable();
        assert_eq!(got, left);
    }

    #[test]
    fn the_key_goes_upstream_only_under_the_configured_name() {
        let quoted = [("idempotency-key", "\"k\"")];
        assert!(sent(&quoted, &rules(None)).is_empty());
        assert_eq!(sent(&quoted, &rules(Some(KEY)))[KEY], "\"k\"");
        let other = HeaderName::from_static("paypal-request-id");
        let sent_as_other = sent(&quoted, &rules(Some(other.clone())));
        assert_eq!(listed(&sent_as_other), [("paypal-request-id", "k")]);
        let text = ForwardRules {
            key_form: KeyForm::Text,
            ..rules(Some(KEY))
        };
        assert_eq!(
            sent(&quoted, &text)[KEY],
            sent(&[("idempotency-key", "k")], &text)[KEY]
        );
    }

    #[test]
    fn a_key_that_no_client_sent_goes_upstream_too() {
        let mut headers = HeaderMap::new();
        let key = Key::new("derived-1").unwrap();
        to_upstream(&mut headers, Some(&key), &rules(Some(KEY)), &inbound());
        assert_eq!(headers[KEY], "derived-1");
        let mut unkeyed = HeaderMap::new();
        to_upstream(&mut unkeyed, None, &rules(Some(KEY)), &inbound());
        assert!(unkeyed.is_empty());
    }

    #[test]
    fn the_callers_address_is_told_as_configured() {
        let style = |forwarded| ForwardRules {
            forwarded,
            ..ForwardRules::default()
        };
        let fields = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=203.0.113.9"),
        ];
        let none = sent(&fields, &style(Forwarded::None));
        assert!(none.is_empty(), "a caller's claims passed: {none:?}");
        let x = sent(&fields, &style(Forwarded::XForwarded));
        assert!(!x.contains_key("forwarded"));
        assert_eq!(x["x-forwarded-for"], "203.0.113.9, 192.0.2.1");
        assert_eq!(x["x-forwarded-proto"], "http");
        assert_eq!(x["x-forwarded-host"], "gate:8787");
        let standard = sent(&fields, &style(Forwarded::Forwarded));
        assert!(!standard.contains_key("x-forwarded-for"));
        assert_eq!(
            standard["forwarded"],
            "for=203.0.113.9, for=192.0.2.1;host=\"gate:8787\";proto=http"
        );
        let v6 = InboundHop {
            peer: "2001:db8::1".parse().unwrap(),
            host: None,
            tls: true,
        };
        let mut headers = HeaderMap::new();
        to_upstream(&mut headers, None, &style(Forwarded::Forwarded), &v6);
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";proto=https");
    }

    #[test]
    fn hostile_075_cookies_are_recorded_only_where_allowed() {
        let map = headers(&[("set-cookie", "a=1"), ("etag", "e"), ("set-cookie", "b=2")]);
        let names = |allow| -> Vec<_> { recorded(&map, allow).map(|(name, _)| name).collect() };
        assert_eq!(names(false), [b"etag".as_slice()]);
        assert_eq!(names(true).len(), 3);
    }

    #[test]
    fn a_length_that_is_said_again_passes_once() {
        let passed = |lengths: &[&'static str]| {
            let lengths: Vec<_> = lengths
                .iter()
                .map(|text| ("content-length", *text))
                .collect();
            let mut map = headers(&lengths);
            from_upstream(&mut map);
            let left = map.get_all(CONTENT_LENGTH).iter();
            left.map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        for same in [&["5"][..], &["5", "5"], &["5, 5"], &["5,5", " 5 "]] {
            assert_eq!(passed(same), ["5"], "{same:?}");
        }
        assert_eq!(passed(&["5", "6"]), ["5", "6"]);
        assert_eq!(passed(&[]), [""; 0]);
    }

    #[test]
    fn hostile_076_and_078_an_answer_loses_hop_by_hop_headers_and_our_marks() {
        let mut map = headers(&[
            ("connection", "close, x-hop"),
            ("transfer-encoding", "chunked"),
            ("x-hop", "1"),
            ("onlyonce-status", "executed"),
            ("onlyonce-operation", "op_forged"),
            ("idempotent-replayed", "true"),
            ("trailer", "x-sum"),
            ("content-length", "3"),
        ]);
        from_upstream(&mut map);
        assert_eq!(
            listed(&map),
            [("trailer", "x-sum"), ("content-length", "3")]
        );
    }

    #[test]
    fn hostile_077_order_and_number_of_repeated_headers_are_kept() {
        let map = headers(&[("link", "1"), ("vary", "a"), ("link", "2"), ("link", "1")]);
        let block = onlyonce_core::HeaderBlock::pack(recorded(&map, false)).unwrap();
        let links: Vec<_> = block.iter().filter(|(name, _)| *name == b"link").collect();
        let values: Vec<_> = links.iter().map(|(_, value)| *value).collect();
        assert_eq!(values, [b"1".as_slice(), b"2", b"1"]);
    }

    #[test]
    fn hostile_080_trailers_pass_but_for_what_is_no_trailer() {
        let mut map = headers(&[
            ("grpc-status", "0"),
            ("content-length", "9"),
            ("transfer-encoding", "chunked"),
            ("set-cookie", "a=1"),
            ("onlyonce-status", "executed"),
        ]);
        trailers_from_upstream(&mut map);
        assert_eq!(listed(&map), [("grpc-status", "0")]);
    }
}
