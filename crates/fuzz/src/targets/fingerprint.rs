//! Fingerprints, and canonical JSON (RFC 8785) in them.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use onlyonce_core::Fingerprint;
use onlyonce_http::canonical_json::{Pointer, canonicalize};
use onlyonce_http::{BodyRule, FingerprintBuilder, FingerprintRules, HashKeys, RequestIdentity};
use serde_json::Value;

use crate::Target;
use crate::input::{Input, pieces};

pub(crate) const TARGET: Target = Target {
    name: "fingerprint",
    holds: "equal requests have one fingerprint however they come in, and JSON one canonical form",
    run,
    seeds,
    words: &[
        "{",
        "}",
        "[",
        "]",
        "\"a\":",
        "null",
        "1e400",
        "-0",
        "9007199254740993",
        "1.0E-7",
        "\\u20ac",
        "\\ud83d\\ude02",
        "\\ud800",
        "\r\n--b\r\n",
        "--b--",
        "\u{20ac}",
        "\u{fb33}",
    ],
};

/// Two to the 53: from here on not every integer is a double.
const EXACT_END: u64 = 1 << 53;

fn seeds() -> Vec<Vec<u8>> {
    let bodies = [
        "{\"b\":[1,2.50,\"\\u20ac\"],\"a\":{\"\":null,\"1\":true},\"metadata\":{\"at\":1}}",
        "[56,{\"d\":true,\"10\":null,\"1\":[]}]",
        "{\"\u{20ac}\":1,\"\\r\":2,\"\u{fb33}\":3,\"1\":4,\"\u{1f602}\":5,\"\u{80}\":6}",
        "[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001,9007199254740993]",
        "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b\r\n\r\n2\r\n--b--\r\n",
        "no JSON at all",
    ];
    let heads: [&[u8]; 4] = [&[0, 3], &[1, 0], &[2, 7], &[3, 1]];
    let of = |body: &str| heads.map(|head| [head, body.as_bytes()].concat());
    bodies.iter().flat_map(|body| of(body)).collect()
}

fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (kind, cut) = (input.byte(), input.byte());
    let body = input.0;
    canonical(body);
    let rules = FingerprintRules {
        body: match kind & 1 {
            0 => BodyRule::Bytes,
            _ => BodyRule::Json {
                ignore: Pointer::parse("/metadata/at").into_iter().collect(),
            },
        },
        ..FingerprintRules::default()
    };
    let content_type = match kind >> 1 & 3 {
        0 => "application/json",
        1 => "multipart/form-data; boundary=b",
        2 => "application/problem+json; charset=utf-8",
        _ => "text/plain",
    };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let of = |body: &mut dyn Iterator<Item = &[u8]>| fingerprint(&headers, &rules, body);
    let whole = of(&mut std::iter::once(body));
    assert_eq!(of(&mut pieces(body, cut)), whole, "cut in pieces");
    if content_type == "text/plain" {
        let longer = [body, b"."].concat();
        assert_ne!(of(&mut std::iter::once(&longer[..])), whole, "a byte more");
    }
    let ignore = Pointer::parse("/metadata/at")
        .into_iter()
        .collect::<Vec<_>>();
    if kind & 1 == 1
        && content_type.contains("json")
        && let Ok(form) = canonicalize(body, &ignore)
    {
        assert_eq!(
            of(&mut std::iter::once(&form[..])),
            whole,
            "its canonical form"
        );
    }
}

fn fingerprint(
    headers: &HeaderMap,
    rules: &FingerprintRules,
    body: &mut dyn Iterator<Item = &[u8]>,
) -> Fingerprint {
    let request = RequestIdentity {
        method: &Method::POST,
        upstream: "u",
        path: "/v1/charges",
        query: Some("a=1"),
        headers,
    };
    let mut builder = FingerprintBuilder::new(&HashKeys::from_secret(&[1; 32]), &request, rules);
    for piece in body {
        builder.body_chunk(piece);
    }
    builder.finish()
}

/// A canonical form says what the text said, and is its own.
fn canonical(json: &[u8]) {
    let Ok(form) = canonicalize(json, &[]) else {
        return;
    };
    let again = canonicalize(&form, &[]).expect("a canonical form is JSON");
    assert_eq!(again, form, "the canonical form of itself");
    let (Ok(before), Ok(after)) = (
        serde_json::from_slice::<Value>(json),
        serde_json::from_slice::<Value>(&form),
    ) else {
        // A number that no double holds: another reader need not take it.
        return;
    };
    assert!(same(&before, &after), "the form says the same");
    if is_exact(&before) {
        // Another writer puts members into another order, and numbers and escapes otherwise.
        let rewritten = before.to_string();
        let other = canonicalize(rewritten.as_bytes(), &[]).expect("JSON");
        assert_eq!(other, form, "written by another writer");
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        // serde_json reads some numbers as a neighbour of the double that is meant.
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 4.0 * f64::EPSILON * a.abs(),
            _ => false,
        },
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// Whether every number in it is an integer that every reader takes for the same.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => number
            .as_i64()
            .is_some_and(|number| number.unsigned_abs() < EXACT_END),
        Value::Array(values) => values.iter().all(is_exact),
        Value::Object(members) => members.values().all(is_exact),
        _ => true,
    }
}
