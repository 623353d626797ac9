//! The key of a request.
//!
//! A key comes as a structured-field string (`"k-1"`, RFC 9651 section 3.3.3) or as the bare text
//! that everyone sends today (`k-1`, or a bare UUID): the two are the same key. Whatever else a
//! structured field could be (a list, a byte sequence, a token with parameters) is refused, since
//! two readers of it would not agree on what the key is.

use http::{HeaderMap, HeaderName};
use onlyonce_core::planted::{Bug, planted};
use onlyonce_core::{Fingerprint, Key, OperationId, Scope};
use sfv::{BareItem, Item, List, Parser};

use crate::secret::{HashKeys, hex_128, update_prefixed};

/// Why the key of a request cannot be read. Always answered with 400 `key-malformed`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// More than one header line names the action, be they equal or not.
    #[error("{}, and one request has one key", sent_twice(.first, .second))]
    Twice {
        /// The header of the first one found.
        first: HeaderName,
        /// The header of the second one found.
        second: HeaderName,
    },
    /// Several values in one header line.
    #[error("the header holds a list, and one request has one key")]
    List,
    /// It opens with a quote and is no structured-field string.
    #[error("it opens with a double quote but is not a well-formed structured-field string")]
    BrokenString,
    /// A structured-field value of a kind that is no key.
    #[error("it is a structured-field {kind}, and a key is a string or plain text")]
    WrongKind {
        /// What it is.
        kind: &'static str,
    },
    /// Bare text with a character that only a quoted key may have, or none.
    #[error(
        "the character {character:?} at position {position} cannot stand in a key without quotes"
    )]
    NotPlain {
        /// The character.
        character: char,
        /// Byte offset of the character.
        position: usize,
    },
    /// A control character. The connection is closed, since a peer that lets one through may frame
    /// other things wrongly too.
    #[error("there is a control character at position {position}")]
    Control {
        /// Byte offset of the character.
        position: usize,
    },
    /// Empty, too long, or not visible ASCII.
    #[error(transparent)]
    Invalid(#[from] onlyonce_core::KeyError),
}

impl KeyError {
    /// Whether the connection is to be closed after the answer.
    pub fn closes_connection(&self) -> bool {
        matches!(self, Self::Control { .. })
    }
}

/// The key of a request with these `headers`, where `names` are the headers that a key may come
/// in. `None` when there is none of them.
///
/// Read it before hop-by-hop headers are taken away: `Connection: idempotency-key` must not make a
/// keyed request an unkeyed one.
pub fn key_of(headers: &HeaderMap, names: &[HeaderName]) -> Result<Option<Key>, KeyError> {
    let mut found: Option<(&HeaderName, &[u8])> = None;
    for name in names {
        for value in headers.get_all(name) {
            if let Some((first, _)) = found {
                return Err(KeyError::Twice {
                    first: first.clone(),
                    second: name.clone(),
                });
            }
            found = Some((name, value.as_bytes()));
        }
    }
    found.map(|(_, value)| parse_key(value)).transpose()
}

/// The key that the header value `value` holds.
pub fn parse_key(value: &[u8]) -> Result<Key, KeyError> {
    let value = trim_optional_white_space(value);
    if let Some(position) = value.iter().position(u8::is_ascii_control) {
        return Err(KeyError::Control { position });
    }
    let Ok(text) = str::from_utf8(value) else {
        let position = value.iter().position(|byte| !byte.is_ascii()).unwrap_or(0);
        return Err(onlyonce_core::KeyError::NotVisibleAscii { position }.into());
    };
    if text.starts_with('"') {
        quoted(text)
    } else {
        bare(text)
    }
}

/// A key for a request that came without one, where the route derives it: equal for equal requests
/// of one tenant on one route within the same span of time.
///
/// `span` numbers the spans (time divided by the route's `derived_window`), so that a caller can
/// also ask for the span before.
pub fn derived_key(
    keys: &HashKeys,
    tenant: &str,
    route: &str,
    fingerprint: &Fingerprint,
    span: u64,
) -> Key {
    let mut hasher = blake3::Hasher::new_keyed(&keys.derived_key);
    update_prefixed(&mut hasher, tenant.as_bytes());
    update_prefixed(&mut hasher, route.as_bytes());
    hasher.update(fingerprint.as_bytes());
    hasher.update(&span.to_le_bytes());
    Key::new(&format!("derived-{}", hex_128(&hasher.finalize())))
        .expect("forty letters, digits and a dash are a key")
}

/// The key under which the operation `id` does its part `name` elsewhere: the same in every execution of
/// the operation, another one for every part, and for the next operation under its caller's key: whoever
/// remembers the part for longer than the operation's window must not take that one's for a retry.
pub fn key_for_part(keys: &HashKeys, id: OperationId, name: &str) -> Key {
    part_key(keys, [&*id.to_string(), name])
}

/// As [`key_for_part`], where an operation that was never committed leaves no id behind: the same for
/// every operation under this key, also after the window of the one before.
pub fn key_for(keys: &HashKeys, scope: &Scope, key: &Key, name: &str) -> Key {
    let (tenant, namespace) = (&*scope.tenant, &*scope.namespace);
    part_key(keys, [tenant, namespace, key.as_str(), name])
}

fn part_key<const N: usize>(keys: &HashKeys, parts: [&str; N]) -> Key {
    let mut hasher = blake3::Hasher::new_keyed(&keys.step);
    for part in parts {
        update_prefixed(&mut hasher, part.as_bytes());
    }
    Key::new(&format!("part-{}", hex_128(&hasher.finalize())))
        .expect("letters, digits and a dash are a key")
}

/// The key of a call that names none: what it is called by within its session. `ids` are the JSON texts of
/// the ids of what was posted at once. A session's name opens it, so only a hash of it is ever kept (I16).
pub fn call_key<'a>(
    keys: &HashKeys,
    session: &[u8],
    ids: impl IntoIterator<Item = &'a str>,
) -> Key {
    let mut hasher = blake3::Hasher::new_keyed(&keys.call);
    update_prefixed(&mut hasher, session);
    for id in ids {
        update_prefixed(&mut hasher, id.as_bytes());
    }
    Key::new(&format!("call-{}", hex_128(&hasher.finalize())))
        .expect("letters, digits and a dash are a key")
}

fn quoted(text: &str) -> Result<Key, KeyError> {
    if planted(Bug::QuotesKept) {
        return Ok(Key::new(text)?);
    }
    match Parser::new(text).parse::<Item>() {
        Ok(item) => match &item.bare_item {
            BareItem::String(string) => Ok(Key::new(string.as_str())?),
            _ => Err(KeyError::BrokenString),
        },
        Err(_) if Parser::new(text).parse::<List>().is_ok() => Err(KeyError::List),
        Err(_) => Err(KeyError::BrokenString),
    }
}

fn bare(text: &str) -> Result<Key, KeyError> {
    if let Some(position) = text
        .bytes()
        .position(|b| matches!(b, b' ' | b'"' | b',' | b';'))
    {
        return Err(match text.as_bytes()[position] {
            b',' => KeyError::List,
            other => KeyError::NotPlain {
                character: char::from(other),
                position,
            },
        });
    }
    match structured_kind(text) {
        Some(kind) => Err(KeyError::WrongKind { kind }),
        None => Ok(Key::new(text)?),
    }
}

/// What kind of structured-field item `text` is, when it is one that no client means as a key.
/// Tokens and numbers are what clients do mean: their text is the key.
fn structured_kind(text: &str) -> Option<&'static str> {
    match text.as_bytes().first()? {
        b'(' => Some("inner list"),
        b':' | b'?' | b'@' => match Parser::new(text).parse::<Item>().ok()?.bare_item {
            BareItem::ByteSequence(_) => Some("byte sequence"),
            BareItem::Boolean(_) => Some("boolean"),
            BareItem::Date(_) => Some("date"),
            _ => None,
        },
        _ => None,
    }
}

fn sent_twice(first: &HeaderName, second: &HeaderName) -> String {
    if first == second {
        format!("{first} was sent more than once")
    } else {
        format!("{first} and {second} were both sent")
    }
}

/// RFC 9110 section 5.6.3.
fn trim_optional_white_space(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NAME: &str = "idempotency-key";

    fn key(value: &str) -> Result<Key, KeyError> {
        parse_key(value.as_bytes())
    }

    fn read(values: &[&str]) -> Result<Option<Key>, KeyError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        key_of(&headers, &[HeaderName::from_static(NAME)])
    }

    #[test]
    fn hostile_001_and_002_no_header_is_no_key() {
        assert_eq!(read(&[]), Ok(None));
    }

    #[test]
    fn hostile_003_an_empty_key_is_refused() {
        let empty = Err(onlyonce_core::KeyError::Empty.into());
        assert_eq!(key(""), empty);
        assert_eq!(key("\"\""), empty);
    }

    #[test]
    fn hostile_004_white_space_alone_is_refused() {
        assert_eq!(key("  \t "), Err(onlyonce_core::KeyError::Empty.into()));
        assert!(key("\"   \"").is_err());
    }

    #[test]
    fn hostile_005_one_character_is_a_key() {
        assert_eq!(key("k").unwrap().as_str(), "k");
        assert_eq!(key("0").unwrap().as_str(), "0");
    }

    #[test]
    fn hostile_006_and_007_the_limit_is_255_characters_after_unquoting() {
        let longest = "k".repeat(255);
        assert_eq!(key(&longest).unwrap().as_str(), longest);
        assert_eq!(key(&format!("\"{longest}\"")).unwrap().as_str(), longest);
        let too_long = Err(onlyonce_core::KeyError::TooLong { len: 256 }.into());
        assert_eq!(key(&"k".repeat(256)), too_long);
        assert_eq!(key(&format!("\"{}\"", "k".repeat(256))), too_long);
    }

    #[test]
    fn hostile_009_two_headers_with_the_same_value_are_refused() {
        assert!(matches!(read(&["k", "k"]), Err(KeyError::Twice { .. })));
    }

    #[test]
    fn hostile_010_two_headers_with_different_values_are_refused() {
        assert!(matches!(read(&["a", "b"]), Err(KeyError::Twice { .. })));
    }

    #[test]
    fn two_keys_are_told_by_the_headers_that_they_came_in() {
        let [one, other] = ["idempotency-key", "paypal-request-id"].map(HeaderName::from_static);
        let text = |first: &HeaderName, second: &HeaderName| {
            let (first, second) = (first.clone(), second.clone());
            KeyError::Twice { first, second }.to_string()
        };
        assert_eq!(
            text(&one, &one),
            "idempotency-key was sent more than once, and one request has one key"
        );
        assert_eq!(
            text(&one, &other),
            "idempotency-key and paypal-request-id were both sent, and one request has one key"
        );
    }

    #[test]
    fn hostile_010_two_headers_of_different_names_are_refused() {
        let names = [
            HeaderName::from_static(NAME),
            HeaderName::from_static("paypal-request-id"),
        ];
        let mut headers = HeaderMap::new();
        headers.insert("paypal-request-id", HeaderValue::from_static("p-1"));
        assert_eq!(key_of(&headers, &names), Ok(Some(Key::new("p-1").unwrap())));
        headers.insert(NAME, HeaderValue::from_static("p-1"));
        assert_eq!(
            key_of(&headers, &names),
            Err(KeyError::Twice {
                first: names[0].clone(),
                second: names[1].clone(),
            })
        );
    }

    #[test]
    fn hostile_011_a_list_in_one_header_is_refused() {
        for list in ["a,b", "a, b", "a,", ",", "\"a\", \"b\"", "\"a\",b"] {
            assert_eq!(key(list), Err(KeyError::List), "{list}");
        }
        assert!(matches!(key("(a)"), Err(KeyError::WrongKind { .. })));
    }

    #[test]
    fn hostile_012_quoted_and_bare_are_one_key() {
        for text in ["k", "k-1", "8e03978e-40d5-43e8-bc93-6894a57f9324", "123"] {
            assert_eq!(key(text), key(&format!("\"{text}\"")), "{text}");
            assert_eq!(key(text).unwrap().as_str(), text);
        }
        assert_eq!(key("  k-1\t"), key("k-1"));
    }

    #[test]
    fn hostile_013_an_open_quote_is_refused() {
        for text in ["\"k", "\"", "\"k\\\"", "\"k\"x", "\"k\\"] {
            assert_eq!(key(text), Err(KeyError::BrokenString), "{text}");
        }
        for text in ["k\"", "a\"b\""] {
            assert!(
                matches!(key(text), Err(KeyError::NotPlain { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn hostile_014_non_ascii_is_refused() {
        assert!(key("k\u{e9}").is_err());
        assert!(key("\"k\u{e9}\"").is_err());
        assert_eq!(
            parse_key(b"k\xff"),
            Err(onlyonce_core::KeyError::NotVisibleAscii { position: 1 }.into())
        );
    }

    #[test]
    fn hostile_015_control_characters_are_refused_and_close() {
        for text in ["a\0b", "a\rb", "a\nb", "a\tb", "\"a\tb\"", "a\x7f"] {
            let error = key(text).unwrap_err();
            assert!(matches!(error, KeyError::Control { .. }), "{text:?}");
            assert!(error.closes_connection());
        }
        assert!(!key("a,b").unwrap_err().closes_connection());
    }

    #[test]
    fn hostile_016_another_case_is_another_key() {
        assert_ne!(key("Key").unwrap(), key("key").unwrap());
    }

    #[test]
    fn hostile_017_what_looks_like_code_is_opaque() {
        for text in [
            "../../etc/passwd",
            "'OR'1'='1",
            "1'/**/UNION/**/SELECT--",
            "*3$3SET",
            "*",
            "[a-z]?{x}",
            "%00%0d%0a",
            "a\\b",
            "a:b/c@d#e&f=g+h",
            "-1",
            "1.5",
            ":not-base64",
            "@name",
            "?what",
        ] {
            assert_eq!(key(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn hostile_018_parameters_of_a_string_are_ignored_and_escapes_undone() {
        assert_eq!(key("\"k\";a=1"), key("k"));
        assert_eq!(key("\"k\"; a; b=\"x\""), key("k"));
        assert_eq!(key(r#""a\"b\\c""#).unwrap().as_str(), r#"a"b\c"#);
        assert_eq!(key("\"a,b;c\"").unwrap().as_str(), "a,b;c");
        assert_eq!(key("\"k\";"), Err(KeyError::BrokenString));
    }

    #[test]
    fn hostile_018_other_structured_fields_are_refused_unless_plain() {
        for text in [":YWJj:", "::", "?1", "?0", "@1659578233"] {
            assert!(
                matches!(key(text), Err(KeyError::WrongKind { .. })),
                "{text}"
            );
        }
        for text in ["k;a=1", "1;a", "%\"x\""] {
            assert!(
                matches!(key(text), Err(KeyError::NotPlain { .. })),
                "{text}"
            );
        }
        for text in ["token", "*token", "a:b/c", "42", "4.2"] {
            assert_eq!(key(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_derived_key_depends_on_all_that_it_is_derived_from() {
        let keys = HashKeys::from_secret(&[1; 32]);
        let print = Fingerprint::from_bytes([2; 32]);
        let key = derived_key(&keys, "t", "r", &print, 7);
        assert_eq!(key, derived_key(&keys, "t", "r", &print, 7));
        let others = [
            derived_key(&HashKeys::from_secret(&[9; 32]), "t", "r", &print, 7),
            derived_key(&keys, "u", "r", &print, 7),
            derived_key(&keys, "t", "s", &print, 7),
            derived_key(&keys, "tr", "", &print, 7),
            derived_key(&keys, "t", "r", &Fingerprint::from_bytes([3; 32]), 7),
            derived_key(&keys, "t", "r", &print, 8),
        ];
        assert!(others.iter().all(|other| *other != key));
    }

    #[test]
    fn a_key_for_a_part_is_the_operations_own() {
        let keys = HashKeys::from_secret(&[1; 32]);
        let of = |tenant: &str, namespace: &str, key: &str, name: &str| {
            let scope = Scope {
                tenant: tenant.into(),
                namespace: namespace.into(),
            };
            key_for(&keys, &scope, &Key::new(key).unwrap(), name)
        };
        let charge = of("t", "n", "k", "charge");
        assert_eq!(charge, of("t", "n", "k", "charge"));
        let others = [
            of("u", "n", "k", "charge"),
            of("t", "m", "k", "charge"),
            of("t", "n", "l", "charge"),
            of("t", "n", "k", "refund"),
            of("tn", "", "k", "charge"),
        ];
        assert!(others.iter().all(|other| *other != charge));
    }

    #[test]
    fn i04_a_key_for_a_part_is_that_of_one_operation_alone() {
        // Two operations that followed each other under one key had one, and a service that remembers
        // longer than the window gave the second one the answer of the first.
        let keys = HashKeys::from_secret(&[1; 32]);
        let [first, second] = [[1; 16], [2; 16]].map(OperationId::from_bytes);
        let charge = key_for_part(&keys, first, "charge");
        assert_eq!(charge, key_for_part(&keys, first, "charge"));
        assert_ne!(charge, key_for_part(&keys, second, "charge"));
        assert_ne!(charge, key_for_part(&keys, first, "refund"));
    }

    /// The string cases of httpwg/structured-field-tests, where they are present.
    #[test]
    fn published_structured_field_strings_are_read_as_keys() {
        let Some(folder) = crate::shared_data("structured-fields") else {
            return;
        };
        let mut cases = 0;
        for file in ["string.json", "string-generated.json"] {
            let text = std::fs::read_to_string(folder.join(file)).unwrap();
            let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            for case in &list {
                let raw: Vec<&str> = case["raw"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|line| line.as_str().unwrap())
                    .collect();
                cases += 1;
                let [raw] = raw[..] else {
                    // Several lines are one header to RFC 9651, and two keys to us.
                    assert!(read(&raw).is_err(), "{}", case["name"]);
                    continue;
                };
                let expected = case["expected"][0].as_str().filter(|text| {
                    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
                });
                match expected {
                    Some(expected) => {
                        assert_eq!(key(raw).unwrap().as_str(), expected, "{}", case["name"]);
                    }
                    // A single-quoted string is no structured field, but plain text to us.
                    None if raw == "'foo'" => assert_eq!(key(raw).unwrap().as_str(), raw),
                    None => assert!(key(raw).is_err(), "{}", case["name"]),
                }
            }
        }
        assert!(cases > 200, "{cases} cases");
    }

    /// The item cases of httpwg/structured-field-tests, where they are present: numbers with spaces around
    /// them. HTTP itself takes those away (RFC 9110 section 5.5), and what is left is bare text to us.
    #[test]
    fn published_structured_field_items_are_read_as_bare_text() {
        let Some(folder) = crate::shared_data("structured-fields") else {
            return;
        };
        let text = std::fs::read_to_string(folder.join("item.json")).unwrap();
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for case in &list {
            let raw = case["raw"][0].as_str().unwrap();
            match raw.trim_matches([' ', '\t']) {
                "" => assert!(key(raw).is_err(), "{}", case["name"]),
                bare => assert_eq!(key(raw).unwrap().as_str(), bare, "{}", case["name"]),
            }
        }
        assert!(list.len() >= 5, "{} cases", list.len());
    }

    #[test]
    fn calls_of_one_session_are_told_apart_by_their_typed_ids() {
        let keys = HashKeys::from_secret(&[1; 32]);
        let key =
            |session: &str, ids: &[&str]| call_key(&keys, session.as_bytes(), ids.iter().copied());
        assert_eq!(key("s", &["1"]), key("s", &["1"]));
        let others = [
            key("s", &["1"]),
            key("s", &["\"1\""]),
            key("s", &["1", "2"]),
            key("s", &["12"]),
            key("t", &["1"]),
            key("s1", &[]),
        ];
        let different: std::collections::HashSet<_> = others.iter().map(Key::as_str).collect();
        assert_eq!(different.len(), others.len());
    }
}
