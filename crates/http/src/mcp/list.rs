//! What tools a server declares, read out of an answer to `tools/list` as it passes.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::events::{Part, Splitter};

/// A longer answer is not read.
const MAX_LIST: usize = 4 << 20;

/// One tool, as its server declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: Box<str>,
    /// Whether a call may run again without harm: it is declared read-only or idempotent.
    pub may_repeat: bool,
}

/// Reads one answer.
#[derive(Debug)]
pub struct ListReader {
    /// Of an event stream.
    events: Option<Splitter>,
    /// The current message.
    message: Vec<u8>,
    declared: Vec<Declared>,
    is_too_long: bool,
    is_unreadable: bool,
}

impl ListReader {
    /// Of an event stream where `is_stream`, else of one JSON text.
    pub fn new(is_stream: bool) -> Self {
        Self {
            events: is_stream.then(Splitter::default),
            message: Vec::new(),
            declared: Vec::new(),
            is_too_long: false,
            is_unreadable: false,
        }
    }

    /// Takes the next bytes.
    pub fn see(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.events.as_mut().map(|events| events.byte(*byte)) {
                None | Some(Part::Data) => self.keep(*byte),
                Some(Part::EndOfData) => self.keep(b'\n'),
                Some(Part::EndOfEvent) => self.end_message(),
                Some(Part::Comment | Part::Tail | Part::Framing) => {}
            }
        }
    }

    /// The tools that it has declared by now, and that were not taken yet.
    pub fn take(&mut self) -> Vec<Declared> {
        std::mem::take(&mut self.declared)
    }

    /// Whether a part of it cannot be read: what was declared before may be declared otherwise there.
    pub fn is_unreadable(&self) -> bool {
        self.is_unreadable
    }

    /// Its end has come: what is left can be taken.
    pub fn finish(&mut self) {
        if self.events.is_none() {
            self.end_message();
        }
    }

    fn keep(&mut self, byte: u8) {
        self.is_too_long |= self.message.len() >= MAX_LIST;
        if !self.is_too_long {
            self.message.push(byte);
        }
    }

    fn end_message(&mut self) {
        let message = std::mem::take(&mut self.message);
        let is_too_long = std::mem::take(&mut self.is_too_long);
        if message.trim_ascii().is_empty() {
            return;
        }
        match serde_json::from_slice::<Message>(&message) {
            Ok(message) if !is_too_long => {
                let tools = message.result.and_then(|result| result.tools);
                self.declared
                    .extend(tools.into_iter().flatten().filter_map(Tool::declared));
            }
            _ => self.is_unreadable = true,
        }
    }
}

/// What counts of a message. (Nothing else is kept of it.)
#[derive(Deserialize)]
struct Message {
    result: Option<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    tools: Option<Vec<Tool>>,
}

#[derive(Deserialize)]
struct Tool {
    name: Option<Text>,
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Annotations {
    read_only_hint: Option<Hint>,
    idempotent_hint: Option<Hint>,
}

/// A text, or something else where one belongs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Text(Box<str>),
    Other(IgnoredAny),
}

/// The same of `true` and `false`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Hint {
    Says(bool),
    Other(IgnoredAny),
}

impl Tool {
    fn declared(self) -> Option<Declared> {
        let says = |hint: Option<Hint>| matches!(hint, Some(Hint::Says(true)));
        let may_repeat = self.annotations.is_some_and(|annotations| {
            says(annotations.read_only_hint) || says(annotations.idempotent_hint)
        });
        match self.name? {
            Text::Text(name) => Some(Declared { name, may_repeat }),
            Text::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[
        {"name":"look","annotations":{"readOnlyHint":true}},
        {"name":"set","annotations":{"readOnlyHint":false,"idempotentHint":true}},
        {"name":"charge","annotations":{"readOnlyHint":"true"}},{"name":"plain"},{"title":"x"}]}}"#;

    fn read(answer: &str, is_stream: bool) -> String {
        let mut reader = ListReader::new(is_stream);
        answer
            .as_bytes()
            .chunks(7)
            .for_each(|piece| reader.see(piece));
        reader.finish();
        let declared = reader.take();
        let named: Vec<_> = declared
            .iter()
            .map(|tool| format!("{}={}", tool.name, tool.may_repeat))
            .collect();
        named.join(" ")
    }

    #[test]
    fn tools_are_read_out_of_a_json_answer_and_out_of_a_stream() {
        let expected = "look=true set=true charge=false plain=false";
        assert_eq!(read(LIST, false), expected);
        let data: Vec<_> = LIST.lines().map(|line| format!("data: {line}\n")).collect();
        let stream = format!(
            "data: {{\"method\":\"ping\"}}\n\n: x\n\n{}\n",
            data.concat()
        );
        assert_eq!(read(&stream, true), expected);
    }

    /// A number that no double holds made the list no list, and what a list before it had declared harmless
    /// stayed so.
    #[test]
    fn i01_a_list_that_cannot_be_read_is_known_to_be_one() {
        let odd = LIST.replace("{\"title\":\"x\"}", "{\"inputSchema\":{\"maximum\":1e999}}");
        assert_eq!(read(&odd, false), read(LIST, false));
        let is_unreadable = |answer: &str, is_stream| {
            let mut reader = ListReader::new(is_stream);
            reader.see(answer.as_bytes());
            reader.finish();
            reader.is_unreadable()
        };
        assert!(!is_unreadable(LIST, false) && !is_unreadable("id: 1\ndata:\n\n", true));
        assert!(is_unreadable(&LIST[..LIST.len() - 2], false));
        assert!(is_unreadable("data: {\n\n", true));
        let twice = r#"{"result":{"tools":[{"name":"a","name":"b"}]}}"#;
        assert!(is_unreadable(twice, false));
    }

    #[test]
    fn what_is_no_list_declares_nothing() {
        for answer in ["", "{}", r#"{"error":{"code":1}}"#, r#"{"result":{}}"#] {
            assert_eq!(read(answer, false), "");
        }
        for answer in [
            "[]",
            "no JSON",
            r#"{"result":1}"#,
            r#"{"result":{"tools":[1]}}"#,
        ] {
            assert_eq!(read(answer, false), "");
        }
        let long = LIST.replace("\"plain\"", &format!("\"{}\"", "x".repeat(MAX_LIST)));
        assert_eq!(read(&long, false), "");
    }
}
