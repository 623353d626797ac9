//! What is posted to a server: a message, or several at once (revision 2025-03-26).

use onlyonce_core::Key;
use serde_json::{Map, Value};

use crate::canonical_json::{NotCanonical, Pointer, canonicalize};
use crate::key::KeyError;

/// The method of a call.
const CALL: &str = "tools/call";
/// What differs between a call and its retry: the id, and what is said beside the call (a progress
/// token, a trace, the key itself).
const BESIDE: [&str; 2] = ["/id", "/params/_meta"];

/// What cannot be read as every server reads it, so that it may be a call to one of them.
#[derive(Debug, thiserror::Error)]
pub enum NotAMessage {
    /// It is not JSON that all read alike.
    #[error("the message is not JSON that all read alike: {0}")]
    NotJson(#[from] NotCanonical),
    /// The id of a call is of a kind that no id is.
    #[error("the id of a call is neither a string nor a whole number")]
    NoId,
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
        let posted = serde_json::from_slice(body).unwrap_or_default();
        let messages = match &posted {
            Value::Array(messages) => messages.as_slice(),
            message => std::slice::from_ref(message),
        };
        let messages: Vec<_> = messages.iter().filter_map(Value::as_object).collect();
        let is_call = |message: &&Map<String, Value>| method(message) == Some(CALL);
        let calls: Vec<_> = messages.iter().copied().filter(is_call).collect();
        let is = |wanted| {
            messages
                .iter()
                .any(|message| method(message) == Some(wanted))
        };
        Ok(Self {
            id: match messages.as_slice() {
                [message] if !is_batch => id_of(message).ok().flatten(),
                _ => None,
            },
            lists_tools: is("tools/list"),
            calls: match calls.as_slice() {
                [] => None,
                calls => Some(Calls::of(calls, &messages, key_names, is_batch, identity)?),
            },
        })
    }
}

impl Calls {
    fn of(
        calls: &[&Map<String, Value>],
        messages: &[&Map<String, Value>],
        key_names: &[Box<str>],
        is_batch: bool,
        identity: Vec<u8>,
    ) -> Result<Self, NotAMessage> {
        let tool = |call: &&Map<String, Value>| {
            let name = call
                .get("params")
                .and_then(|params| params["name"].as_str());
            name.map(Into::into).ok_or(NotAMessage::NoName)
        };
        let requests = messages.iter().filter(|message| method(message).is_some());
        let ids: Vec<_> = requests.map(|one| id_of(one)).collect::<Result<_, _>>()?;
        let meta = match calls {
            [call] if !is_batch => call.get("params").map(|params| &params["_meta"]),
            _ => None,
        };
        let key = key_names.iter().find_map(|name| meta?.get(&**name));
        Ok(Self {
            tools: calls.iter().map(tool).collect::<Result<_, _>>()?,
            ids: ids.into_iter().flatten().collect(),
            is_batch,
            key: key.map(key_in).transpose()?,
            token: meta.and_then(|meta| text_of(&meta["progressToken"])),
            identity,
        })
    }
}

fn method(message: &Map<String, Value>) -> Option<&str> {
    message.get("method")?.as_str()
}

/// The id of a request; `None` of a notification.
fn id_of(message: &Map<String, Value>) -> Result<Option<Box<str>>, NotAMessage> {
    match message.get("id") {
        None => Ok(None),
        Some(id) => text_of(id).map(Some).ok_or(NotAMessage::NoId),
    }
}

/// A string or a whole number, as JSON: they are typed, `1` is not `"1"`.
fn text_of(value: &Value) -> Option<Box<str>> {
    match value {
        Value::String(_) => Some(value.to_string().into()),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            Some(number.to_string().into())
        }
        _ => None,
    }
}

fn key_in(value: &Value) -> Result<Key, NotAMessage> {
    let text = value.as_str().ok_or(NotAMessage::KeyNotText)?;
    Ok(Key::new(text).map_err(KeyError::from)?)
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
        assert!(calls(notification).ids.is_empty());
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

    #[test]
    fn what_servers_may_read_in_two_ways_is_refused() {
        for body in [
            "",
            "{",
            r#"{"method":"ping","method":"tools/call"}"#,
            r#"{"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"method":"tools/call","id":1.5,"params":{"name":"a"}}"#,
            r#"{"method":"tools/call","id":null,"params":{"name":"a"}}"#,
            r#"{"method":"tools/call","id":1,"params":{"name":1}}"#,
            r#"{"method":"tools/call","id":1}"#,
            &call("1", "{}", &format!(r#"{{"{NAMES}":1}}"#)),
            &call("1", "{}", &format!(r#"{{"{NAMES}":""}}"#)),
        ] {
            assert!(read(body).is_err(), "{body}");
        }
    }
}
