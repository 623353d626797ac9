//! The key of a request (RFC 9651 section 3.3.3, and bare text).

use http::{HeaderMap, HeaderName, HeaderValue};
use onlyonce_core::Key;
use onlyonce_http::{KeyError, key_of, parse_key};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "key",
    holds: "a header's value is one key or none, the same however it is written",
    run,
    seeds,
    words: &[
        "\"", "\\\"", "\\\\", ";a=1", ",", "(", ":aGk=:", "?1", "@1", " ", "\t",
    ],
};

fn seeds() -> Vec<Vec<u8>> {
    let longest = "k".repeat(Key::MAX_LEN);
    let quoted = format!("\"{longest}\"");
    [
        "k-1",
        "\"k-1\"",
        "\"k-1\";a=1;b=\"c\"",
        "\"a\\\"b\\\\c\"",
        "8e03978e-40d5-43e8-bc93-6894a57f9324",
        "  \"k\"\t",
        "a, b",
        "\"a\", \"b\"",
        "(\"a\")",
        ":aGk=:",
        "?1",
        "@1659578233",
        "123.5",
        "",
        &longest,
        &quoted,
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

fn run(value: &[u8]) {
    let read = parse_key(value);
    // The spaces that HTTP itself takes away change nothing.
    let spaced = [b" \t", value, b"\t "].concat();
    assert_eq!(
        parse_key(&spaced).ok(),
        read.clone().ok(),
        "spaces around it"
    );
    if let Some(text) = plain_string(value) {
        assert_eq!(read.clone().ok(), Key::new(&text).ok(), "a plain string");
    }
    match &read {
        Ok(key) => one_key(key),
        Err(KeyError::Control { .. }) => {}
        Err(error) => assert!(!error.closes_connection(), "{error}"),
    }
    in_headers(value, &read);
}

/// Whatever was taken for a key is the same key in quotes, and bare text is no other key.
fn one_key(key: &Key) {
    let text = key.as_str();
    assert!((1..=Key::MAX_LEN).contains(&text.len()));
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
    let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    assert_eq!(parse_key(quoted.as_bytes()).as_ref(), Ok(key), "in quotes");
    let parameters = format!("{quoted};a;b=2");
    assert_eq!(
        parse_key(parameters.as_bytes()).as_ref(),
        Ok(key),
        "with parameters"
    );
    if let Ok(bare) = parse_key(text.as_bytes())
        && !text.starts_with('"')
    {
        assert_eq!(&bare, key, "without quotes");
    }
}

/// What a header says is what its value says, and two of them are refused.
fn in_headers(value: &[u8], read: &Result<Key, KeyError>) {
    let Ok(value) = HeaderValue::from_bytes(value) else {
        return;
    };
    let name = HeaderName::from_static("idempotency-key");
    let names = [name.clone()];
    let mut headers = HeaderMap::new();
    headers.insert(name.clone(), value.clone());
    let one = key_of(&headers, &names);
    assert_eq!(one, read.clone().map(Some));
    headers.append(name, value);
    assert!(matches!(
        key_of(&headers, &names),
        Err(KeyError::Twice { .. })
    ));
}

/// A reader of its own: the text of `value` where that is a structured-field string and nothing else.
fn plain_string(value: &[u8]) -> Option<String> {
    let mut inside = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?.iter();
    let mut text = String::new();
    while let Some(byte) = inside.next() {
        text.push(char::from(match byte {
            b'\\' => *inside.next().filter(|next| matches!(next, b'"' | b'\\'))?,
            b'"' => return None,
            b' '..=b'~' => *byte,
            _ => return None,
        }));
    }
    Some(text)
}
