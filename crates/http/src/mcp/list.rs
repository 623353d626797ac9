//! What tools a server declares, read out of an answer to `tools/list` as it passes.

use serde_json::Value;

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
}

impl ListReader {
    /// Of an event stream where `is_stream`, else of one JSON text.
    pub fn new(is_stream: bool) -> Self {
        Self {
            events: is_stream.then(Splitter::default),
            message: Vec::new(),
            declared: Vec::new(),
            is_too_long: false,
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

    /// The tools that are left at its end.
    pub fn finish(mut self) -> Vec<Declared> {
        if self.events.is_none() {
            self.end_message();
        }
        self.declared
    }

    fn keep(&mut self, byte: u8) {
        self.is_too_long |= self.message.len() >= MAX_LIST;
        if !self.is_too_long {
            self.message.push(byte);
        }
    }

    fn end_message(&mut self) {
        let message = std::mem::take(&mut self.message);
        if std::mem::take(&mut self.is_too_long) {
            return;
        }
        let message = serde_json::from_slice::<Value>(&message).unwrap_or_default();
        let tools = message["result"]["tools"].as_array();
        self.declared
            .extend(tools.into_iter().flatten().filter_map(declared));
    }
}

fn declared(tool: &Value) -> Option<Declared> {
    let says = |hint| tool["annotations"][hint] == Value::Bool(true);
    Some(Declared {
        name: tool["name"].as_str()?.into(),
        may_repeat: says("readOnlyHint") || says("idempotentHint"),
    })
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
        let declared = reader.finish();
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

    #[test]
    fn what_is_no_list_declares_nothing() {
        for answer in ["", "{}", "[]", "no JSON", r#"{"error":{"code":1}}"#] {
            assert_eq!(read(answer, false), "");
        }
        let long = LIST.replace("\"plain\"", &format!("\"{}\"", "x".repeat(MAX_LIST)));
        assert_eq!(read(&long, false), "");
    }
}
