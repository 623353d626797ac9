//! What is posted to a server: a message, or several at once (revision 2025-03-26).

use std::fmt;

use onlyonce_core::Key;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::canonical_json::{NotCanonical, Pointer, canonicalize};
use crate::key::KeyError;

/// The method of a call.
const CALL: &str = "tools/call";
/// What differs between a call and its retry: the id, and what is said beside the call (a progress
/// token, a trace, the key itself).
const BESIDE: [&str; 2] = ["/id", "/params/_meta"];

/// Messages that are posted at once.
const MOST_MESSAGES: usize = 1_000;
/// Bytes of an id as JSON. It is compared with those of answers, which are not held.
pub(super) const LONGEST_ID: usize = 256;

/// What cannot be read as every server reads it, so that it may be a call to one of them.
#[derive(Debug, thiserror::Error)]
pub enum NotAMessage {
    /// It is not JSON that all read alike.
    #[error("the message is not JSON that all read alike: {0}")]
    NotJson(#[from] NotCanonical),
    /// Two readers do not agree on it.
    #[error("the message is not JSON that all read alike: {0}")]
    NotAlike(#[from] serde_json::Error),
    /// The id of a call is of a kind that no id is.
    #[error(
        "the id of a call is neither a string nor a whole number, or has more than {LONGEST_ID} bytes"
    )]
    NoId,
    /// Two requests that are posted at once have one id.
    #[error("two requests have the same id")]
    SameId,
    /// The name of a tool is no text.
    #[error("the name of a tool is no string")]
    NoName,
    /// A key that is no text.
    #[error("the key in _meta is no string")]
    KeyNotText,
    /// A key that cannot be one.
    #[error("the key in _meta cannot be read: {0}")]
    Key(#[from] KeyError),
}

/// What is posted.
#[derive(Debug)]
pub struct Posted {
    /// The id of the request, as JSON; `None` of what is none, and of several.
    pub id: Option<Box<str>>,
    /// Whether it asks for the list of tools.
    pub lists_tools: bool,
    /// The calls in it, where there are any.
    pub calls: Option<Calls>,
}

/// The calls that are posted at once: one, but in a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Calls {
    /// The tools that are called.
    pub tools: Vec<Box<str>>,
    /// The ids of all requests, as JSON.
    pub ids: Vec<Box<str>>,
    /// Whether one of the calls has no id: it gets no answer.
    pub is_unanswered: bool,
    /// Whether they are several messages in a list. Then their ids are part of what they are.
    pub is_batch: bool,
    /// The key that the call names in its `_meta`.
    pub key: Option<Key>,
    /// The progress token, as JSON.
    pub token: Option<Box<str>>,
    /// What makes two calls the same call, in canonical JSON.
    pub identity: Vec<u8>,
}

impl Posted {
    /// Reads `body`, where `key_names` are the members of `_meta` that a key may stand in, and what
    /// `ignored` points at is no part of a call.
    pub fn read(
        body: &[u8],
        key_names: &[Box<str>],
        ignored: &[Pointer],
    ) -> Result<Self, NotAMessage> {
        let is_batch = body.trim_ascii_start().starts_with(b"[");
        let beside = BESIDE.iter().filter_map(|text| Pointer::parse(text).ok());
        let ignored: Vec<_> = match is_batch {
            true => Vec::new(),
            false => beside.chain(ignored.iter().cloned()).collect(),
        };
        // Reads all of it, and refuses members that come twice.
        let identity = canonicalize(body, &ignored)?;
        let messages = Messages::read(body)?;
        let calls: Vec<_> = messages.iter().filter(|one| one.is(CALL)).collect();
        Ok(Self {
            id: match messages.as_slice() {
                [message] if !is_batch => message.id().ok().flatten(),
                _ => None,
            },
            lists_tools: messages.iter().any(|one| one.is("tools/list")),
            calls: match calls.as_slice() {
                [] => None,
                calls => Some(Calls::of(calls, &messages, key_names, is_batch, identity)?),
            },
        })
    }
}

impl Calls {
    fn of(
        calls: &[&Message<'_>],
        messages: &[Message<'_>],
        key_names: &[Box<str>],
        is_batch: bool,
        identity: Vec<u8>,
    ) -> Result<Self, NotAMessage> {
        let requests = messages.iter().filter(|message| message.method.is_some());
        let ids: Vec<_> = requests.map(Message::id).collect::<Result<_, _>>()?;
        let ids: Vec<_> = ids.into_iter().flatten().collect();
        let mut sorted: Vec<_> = ids.iter().collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(NotAMessage::SameId);
        }
        let mut tools = Vec::new();
        let mut meta = None;
        for call in calls {
            let [name, beside] = members(call.params, ["name", "_meta"])?;
            let name = name.map(|name| serde_json::from_str::<Value>(name.get()));
            let Some(Value::String(name)) = name.transpose()? else {
                return Err(NotAMessage::NoName);
            };
            tools.push(name.into());
            meta = beside.filter(|_| !is_batch);
        }
        let [token] = members(meta, ["progressToken"])?;
        let mut key = None;
        for name in key_names {
            let [named] = members(meta, [&**name])?;
            key = key.or(named);
        }
        Ok(Self {
            tools,
            ids,
            is_unanswered: calls.iter().any(|call| call.id.is_none()),
            is_batch,
            key: key.map(key_in).transpose()?,
            token: token.and_then(text_of),
            identity,
        })
    }
}

/// What counts of a message. Nothing else of it is kept: a tree of all that a caller may send takes a hundred
/// times the bytes that it was sent in.
struct Message<'a> {
    id: Option<&'a RawValue>,
    method: Option<Box<str>>,
    params: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    /// Of one message; of what is no object, one without anything.
    fn of(message: &'a RawValue) -> Result<Self, serde_json::Error> {
        let [id, method, params] = members(Some(message), ["id", "method", "params"])?;
        // What is no text is no method of a call.
        let method = method.filter(|method| method.get().starts_with('"'));
        let method = method.map(|method| serde_json::from_str::<String>(method.get()));
        Ok(Self {
            id,
            method: method.transpose()?.map(Into::into),
            params,
        })
    }

    fn is(&self, method: &str) -> bool {
        self.method.as_deref() == Some(method)
    }

    /// The id of a request; `None` of a notification.
    fn id(&self) -> Result<Option<Box<str>>, NotAMessage> {
        match self.id {
            None => Ok(None),
            Some(id) => text_of(id).map(Some).ok_or(NotAMessage::NoId),
        }
    }
}

/// The messages in a body.
struct Messages<'a>(Vec<Message<'a>>);

impl<'a> Messages<'a> {
    fn read(body: &'a [u8]) -> Result<Vec<Message<'a>>, serde_json::Error> {
        match body.trim_ascii_start().first() {
            Some(b'[') => serde_json::from_slice::<Self>(body).map(|messages| messages.0),
            _ => Ok(vec![Message::of(serde_json::from_slice(body)?)?]),
        }
    }
}

impl<'a> Deserialize<'a> for Messages<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'a> Visitor<'a> for Each {
            type Value = Messages<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut messages = Vec::new();
                while let Some(message) = list.next_element::<&RawValue>()? {
                    if messages.len() >= MOST_MESSAGES {
                        let why = format_args!("it is a list of more than {MOST_MESSAGES}");
                        return Err(de::Error::custom(why));
                    }
                    messages.push(Message::of(message).map_err(de::Error::custom)?);
                }
                Ok(Messages(messages))
            }
        }

        deserializer.deserialize_seq(Each)
    }
}

/// The members `names` of `json`, as far as it is an object and has them.
fn members<'a, const N: usize>(
    json: Option<&'a RawValue>,
    names: [&str; N],
) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    struct Wanted<'n, const N: usize>([&'n str; N]);

    impl<'a, const N: usize> Visitor<'a> for Wanted<'_, N> {
        type Value = [Option<&'a RawValue>; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = [None; N];
            while let Some(name) = map.next_key::<String>()? {
                match self.0.iter().position(|wanted| **wanted == *name) {
                    Some(place) => found[place] = Some(map.next_value()?),
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(found)
        }
    }

    match json {
        Some(json) if json.get().starts_with('{') => {
            serde_json::Deserializer::from_str(json.get()).deserialize_map(Wanted(names))
        }
        _ => Ok([None; N]),
    }
}

/// A string or a whole number, as JSON: they are typed, `1` is not `"1"`.
fn text_of(json: &RawValue) -> Option<Box<str>> {
    if json.get().len() > LONGEST_ID {
        return None;
    }
    match serde_json::from_str(json.get()).ok()? {
        text @ Value::String(_) => Some(text.to_string().into()),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            Some(number.to_string().into())
        }
        _ => None,
    }
}

fn key_in(json: &RawValue) -> Result<Key, NotAMessage> {
    let text: String = serde_json::from_str(json.get()).map_err(|_| NotAMessage::KeyNotText)?;
    Ok(Key::new(&text).map_err(KeyError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "dev.onlyonce/idempotency-key";

    fn read(body: &str) -> Result<Posted, NotAMessage> {
        Posted::read(body.as_bytes(), &[NAMES.into()], &[])
    }

    fn calls(body: &str) -> Calls {
        read(body).unwrap().calls.unwrap()
    }

    fn call(id: &str, arguments: &str, meta: &str) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"pay","arguments":{arguments},"_meta":{meta}}}}}"#
        )
    }

    #[test]
    fn what_is_no_call_is_told_from_one() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"method":"tools/call"}}"#,
            r#"{"method":["tools/call"]}"#,
            "[]",
            "1",
        ] {
            let posted = read(body).unwrap();
            assert!(posted.calls.is_none() && !posted.lists_tools, "{body}");
        }
        let list = read(r#"{"jsonrpc":"2.0","id":"l","method":"tools/list"}"#).unwrap();
        assert!(list.lists_tools);
        assert_eq!(list.id.as_deref(), Some("\"l\""));
    }

    #[test]
    fn a_call_has_its_name_its_typed_id_its_key_and_its_token() {
        let meta = format!(r#"{{"{NAMES}":"k-1","progressToken":7}}"#);
        let one = calls(&call("1", "{}", &meta));
        assert_eq!(one.tools, ["pay".into()]);
        assert_eq!(one.ids, ["1".into()]);
        assert_eq!(one.key.as_ref().map(Key::as_str), Some("k-1"));
        assert_eq!(one.token.as_deref(), Some("7"));
        assert!(!one.is_batch);
        assert_eq!(calls(&call("\"1\"", "{}", "{}")).ids, ["\"1\"".into()]);
        let notification = r#"{"method":"tools/call","params":{"name":"pay"}}"#;
        assert!(calls(notification).ids.is_empty() && calls(notification).is_unanswered);
    }

    #[test]
    fn a_call_is_the_same_whatever_its_id_and_what_stands_beside_it() {
        let one = calls(&call("1", r#"{"a":1,"b":[1.0]}"#, r#"{"progressToken":1}"#));
        let other = calls(&call(
            "\"x\"",
            r#"{ "b": [1], "a": 1e0 }"#,
            r#"{"traceparent":"00"}"#,
        ));
        assert_eq!(one.identity, other.identity);
        let reworded = calls(&call("1", r#"{"a":2,"b":[1.0]}"#, "{}"));
        assert_ne!(one.identity, reworded.identity);
        let pointer = Pointer::parse("/params/arguments/a").unwrap();
        let ignoring = |body: &str| {
            let posted = Posted::read(body.as_bytes(), &[], std::slice::from_ref(&pointer));
            posted.unwrap().calls.unwrap().identity
        };
        assert_eq!(
            ignoring(&call("1", r#"{"a":1}"#, "{}")),
            ignoring(&call("2", r#"{"a":2}"#, "{}"))
        );
    }

    #[test]
    fn a_batch_with_a_call_is_one_call_with_all_ids() {
        let body = format!(
            r#" [{},{{"jsonrpc":"2.0","id":"p","method":"ping"}},{{"jsonrpc":"2.0","id":9,"result":{{}}}}]"#,
            call("1", "{}", r#"{"progressToken":7}"#)
        );
        let batch = calls(&body);
        assert!(batch.is_batch && batch.token.is_none());
        assert_eq!(batch.ids, ["1".into(), "\"p\"".into()]);
        let other = calls(&body.replace("\"id\":1", "\"id\":2"));
        assert_ne!(batch.identity, other.identity);
    }

    /// A number that no double holds was JSON to the one reader and none to the other, and so the message was
    /// taken for no call: it passed without a claim, with a key or without.
    #[test]
    fn i01_a_call_with_a_number_of_any_size_is_a_call() {
        let digits = "9".repeat(400);
        for number in ["1e999", "-1e400", &digits, "1e-999", "0.1e99999"] {
            for arguments in [
                format!("{{\"x\":{number}}}"),
                format!("{{\"x\":[{{\"y\":{number}}}]}}"),
            ] {
                assert_eq!(calls(&call("1", &arguments, "{}")).tools, ["pay".into()]);
                let batch = format!("[{}]", call("1", &arguments, "{}"));
                assert_eq!(calls(&batch).tools, ["pay".into()]);
            }
        }
        // Beside the call too.
        let body = call("1", "{}", "{}").replacen('{', "{\"x\":1e999,", 1);
        assert_eq!(calls(&body).tools, ["pay".into()]);
        let one = calls(&call("1", r#"{"x":1e999}"#, "{}")).identity;
        let other = calls(&call("1", r#"{"x":1e998}"#, "{}")).identity;
        assert_ne!(one, other);
    }

    /// Whatever the canonical walk takes, either is a call or is seen to be none: nothing that has the method
    /// is passed because a second reader stumbles.
    #[test]
    fn i01_no_call_is_lost_between_two_readers() {
        for odd in [
            "\"\\ud800\"",
            "\"\\u0000\"",
            "-0",
            "1E+2",
            "1e18446744073709551616",
            "\"\u{7f}\"",
        ] {
            let body = call("1", &format!("{{\"x\":{odd}}}"), "{}");
            let is_call = |posted: Posted| posted.calls.is_some();
            assert!(
                read(&body).is_ok_and(is_call) || read(&body).is_err(),
                "{odd}"
            );
        }
        let escaped = call("1", "{}", "{}").replace("\"method\"", "\"m\\u0065thod\"");
        assert_eq!(calls(&escaped).tools, ["pay".into()]);
        let escaped = call("1", "{}", "{}").replace("tools/call", "tools\\/c\\u0061ll");
        assert_eq!(calls(&escaped).tools, ["pay".into()]);
    }

    #[test]
    fn i15_of_a_message_no_more_is_kept_than_what_counts() {
        let many = format!("[{}1]", "1,".repeat(MOST_MESSAGES));
        assert!(read(&many).is_err());
        let elements = "{\"a\":1},".repeat(100_000);
        let body = format!("{{\"method\":\"x\",\"params\":[{elements}1]}}");
        assert!(read(&body).unwrap().calls.is_none());
    }

    #[test]
    fn what_servers_may_read_in_two_ways_is_refused() {
        for body in [
            "",
            "{",
            r#"{"method":"ping","method":"tools/call"}"#,
            r#"{"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"method":"tools/call","id":1.5,"params":{"name":"a"}}"#,
            r#"{"method":"tools/call","id":null,"params":{"name":"a"}}"#,
            r#"[{"method":"tools/call","id":1,"params":{"name":"a"}},{"method":"ping","id":1}]"#,
            &format!(
                r#"{{"method":"tools/call","id":"{}","params":{{"name":"a"}}}}"#,
                "x".repeat(300)
            ),
            r#"{"method":"tools/call","id":1,"params":{"name":1}}"#,
            r#"{"method":"tools/call","id":1}"#,
            &call("1", "{}", &format!(r#"{{"{NAMES}":1}}"#)),
            &call("1", "{}", &format!(r#"{{"{NAMES}":""}}"#)),
        ] {
            assert!(read(body).is_err(), "{body}");
        }
    }
}
