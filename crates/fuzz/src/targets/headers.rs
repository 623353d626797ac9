//! Which headers pass and which are recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue};
use onlyonce_core::{HeaderBlock, Key};
use onlyonce_http::headers::{
    ForwardRules, Forwarded, InboundHop, KeyForm, from_upstream, recorded, to_upstream,
    trailers_from_upstream,
};

use crate::Target;
use crate::input::Input;

pub(crate) const TARGET: Target = Target {
    name: "headers",
    holds: "what is of one connection, a cookie or a mark is not replayed, and all else is, unchanged",
    run,
    seeds,
    words: &[
        "\n",
        ": ",
        "connection: ",
        "set-cookie: a=b\n",
        "keep-alive",
        "te: trailers\n",
        ", ",
        "onlyonce-status: executed\n",
        "idempotent-replayed: true\n",
        "content-length: 5\n",
        "content-length: 5, 5\n",
        "transfer-encoding: chunked\n",
        "upgrade: h2c\n",
        "forwarded: for=1\n",
        "trailer: x\n",
        "x-forwarded-for: 1.2.3.4\n",
        "proxy-authorization: x\n",
        "idempotency-key: k\n",
    ],
};

/// RFC 9110 section 7.6.1, and what proxies agree on.
const OF_ONE_CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

fn seeds() -> Vec<Vec<u8>> {
    [
        "content-type: text/plain\nset-cookie: a=b\nset-cookie: c=d\nx-request-id: 1\n",
        "connection: close, x-a\nx-a: 1\nx-b: 2\nx-b: 3\nx-a: 4\nkeep-alive: timeout=5\n",
        "onlyonce-status: executed\nidempotent-replayed: true\nonlyonce-x: y\nretry-after: 1\n",
        "te: trailers, deflate\nidempotency-key: \"k\"\nhost: h\nexpect: 100-continue\n",
        "forwarded: for=192.0.2.1\nx-forwarded-for: 192.0.2.1\nx-forwarded-host: a\n",
        "content-length: 5\ntransfer-encoding: chunked\ntrailer: grpc-status\ngrpc-status: 0\n",
    ]
    .iter()
    .map(|text| [b"\x05", text.as_bytes()].concat())
    .collect()
}

type Fields = BTreeMap<String, Vec<Vec<u8>>>;

fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let choice = input.byte();
    let headers = read(input.0);
    let before = fields(&headers);
    let listed = listed(&before);

    let stays = |name: &str| {
        !OF_ONE_CONNECTION.contains(&name)
            && !listed.contains(name)
            && !name.starts_with("onlyonce-")
            && name != "idempotent-replayed"
    };
    let mut passed = headers.clone();
    from_upstream(&mut passed);
    let mut expected = only(&before, stays);
    expected
        .entry("content-length".into())
        .and_modify(|lengths| *lengths = once(lengths));
    assert_eq!(fields(&passed), expected, "from the upstream");
    let mut twice = passed.clone();
    from_upstream(&mut twice);
    assert_eq!(fields(&twice), expected, "a second time");
    replayed(&passed, &expected);

    let mut trailers = headers.clone();
    trailers_from_upstream(&mut trailers);
    let in_head = ["content-length", "set-cookie"];
    let expected = only(&before, |name| stays(name) && !in_head.contains(&name));
    assert_eq!(fields(&trailers), expected, "trailers");

    forward(&headers, &before, &listed, choice);
}

/// The one value of a list that has no other, however it is written; else the values.
fn once(values: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let parts: Vec<_> = values
        .join(&b',')
        .split(|byte| *byte == b',')
        .map(|part| part.trim_ascii().to_vec())
        .collect();
    match parts.iter().all(|part| *part == parts[0]) && parts.len() > 1 {
        true => parts[..1].to_vec(),
        false => values.to_vec(),
    }
}

/// The recording holds each field that passes but cookies, in order, and gives it back.
fn replayed(passed: &HeaderMap, expected: &Fields) {
    for cookies in [false, true] {
        let block = HeaderBlock::pack(recorded(passed, cookies)).expect("short fields");
        let block = HeaderBlock::from_bytes(block.as_bytes().clone()).expect("as it was packed");
        let mut read = Fields::new();
        for (name, value) in block.iter() {
            let name = str::from_utf8(name).expect("a header's name").to_owned();
            read.entry(name).or_default().push(value.to_vec());
        }
        let kept = only(expected, |name| cookies || name != "set-cookie");
        assert_eq!(read, kept, "the recording");
    }
}

/// To the upstream goes nothing of the connection, no mark, no key but where it is to go, and all else.
fn forward(headers: &HeaderMap, before: &Fields, listed: &BTreeSet<String>, choice: u8) {
    let key_header = HeaderName::from_static("idempotency-key");
    let key = Key::new("k").expect("a key");
    let forwarded = [Forwarded::None, Forwarded::XForwarded, Forwarded::Forwarded];
    let rules = ForwardRules {
        key_headers: vec![key_header.clone()],
        forward_key: (choice & 1 == 1).then_some(key_header),
        key_form: match choice & 2 {
            0 => KeyForm::AsItCame,
            _ => KeyForm::Text,
        },
        forwarded: forwarded[usize::from(choice >> 2) % 3],
    };
    let hop = InboundHop {
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        host: Some("h"),
        tls: choice & 0x80 != 0,
    };
    let mut sent = headers.clone();
    to_upstream(&mut sent, Some(&key), &rules, &hop);
    let claims = [
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    ];
    let ours = ["host", "content-length", "expect", "idempotency-key", "te"];
    let stays = |name: &str| {
        !OF_ONE_CONNECTION.contains(&name)
            && !listed.contains(name)
            && !name.starts_with("onlyonce-")
            && name != "idempotent-replayed"
            && !ours.contains(&name)
            && !claims.contains(&name)
    };
    let sent = fields(&sent);
    let others = |name: &str| !ours.contains(&name) && !claims.contains(&name);
    assert_eq!(only(&sent, others), only(before, stays), "to the upstream");
    for name in ["host", "content-length", "expect"] {
        assert!(!sent.contains_key(name), "{name} is sent on");
    }
    let keys = sent.get("idempotency-key").map_or(0, Vec::len);
    assert_eq!(keys, usize::from(choice & 1), "keys");
    let told = |name: &str| sent.get(name).map_or(0, Vec::len);
    let of_x = usize::from(rules.forwarded == Forwarded::XForwarded);
    assert_eq!(
        told("forwarded"),
        usize::from(rules.forwarded == Forwarded::Forwarded)
    );
    assert_eq!(told("x-forwarded-for"), of_x);
    assert_eq!(told("x-forwarded-proto"), of_x);
    assert_eq!(told("x-forwarded-host"), of_x);
    assert!(told("te") <= 1);
}

fn read(text: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

fn fields(headers: &HeaderMap) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in headers {
        let values = fields.entry(name.as_str().to_owned()).or_default();
        values.push(value.as_bytes().to_vec());
    }
    fields
}

fn only(fields: &Fields, stays: impl Fn(&str) -> bool) -> Fields {
    let kept = fields.iter().filter(|(name, _)| stays(name));
    kept.map(|(name, values)| (name.clone(), values.clone()))
        .collect()
}

/// What `Connection` says is of this connection.
fn listed(fields: &Fields) -> BTreeSet<String> {
    let values = fields.get("connection").into_iter().flatten();
    values
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|option| String::from_utf8_lossy(option.trim_ascii()).to_ascii_lowercase())
        .collect()
}
