//! The answer to calls, as it passes: whether it is whole, and whether it says that nothing ran.

use super::events::{Part, Splitter};
use super::scan::Scanner;

/// Follows one answer.
#[derive(Debug)]
pub struct Answered {
    /// Of an event stream.
    events: Option<Splitter>,
    scanner: Scanner,
    /// How many answers there are to be.
    wanted: usize,
    answers: usize,
    has_message: bool,
    code: Option<i64>,
}

impl Answered {
    /// Of an event stream where `is_stream`, else of one JSON text; to so many requests.
    pub fn new(is_stream: bool, requests: usize) -> Self {
        Self {
            events: is_stream.then(Splitter::default),
            scanner: Scanner::default(),
            wanted: requests,
            answers: 0,
            has_message: false,
            code: None,
        }
    }

    /// Takes the next bytes.
    pub fn see(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.events.as_mut().map(|events| events.byte(*byte)) {
                None => {
                    self.scanner.byte(*byte);
                    if self.scanner.is_over() {
                        self.code = self.scanner.code();
                    }
                }
                Some(Part::Data) => {
                    self.scanner.byte(*byte);
                    self.has_message = true;
                }
                Some(Part::EndOfData) => {
                    self.scanner.byte(b'\n');
                }
                Some(Part::EndOfEvent) => self.end_message(),
                Some(Part::Comment | Part::Tail | Part::Framing) => {}
            }
        }
    }

    /// Whether the stream has all its answers. A body that is no stream is whole by its framing.
    pub fn is_whole(&self) -> bool {
        self.events.is_none() || self.answers >= self.wanted
    }

    /// Whether a message of the stream is whole.
    pub fn has_begun(&self) -> bool {
        self.has_message && self.events.as_ref().is_some_and(Splitter::is_between)
    }

    /// The code of the error that answers the call, where it is whole.
    pub fn error(&self) -> Option<i64> {
        self.code
    }

    /// Whether a client can ask the server for what comes after the events that it has.
    pub fn is_resumable(&self) -> bool {
        self.events.as_ref().is_some_and(Splitter::has_ids)
    }

    /// Whether it can be told in the stream that it broke off here: its reader waits for an event, and
    /// cannot ask for the rest.
    pub fn takes_an_event(&self) -> bool {
        let is_between = self.events.as_ref().is_some_and(Splitter::is_between);
        is_between && !self.is_resumable() && !self.is_whole()
    }

    fn end_message(&mut self) {
        let scanner = std::mem::take(&mut self.scanner);
        if scanner.is_array() {
            // A batch is answered by one.
            self.answers = self.wanted;
        } else if scanner.is_response() {
            self.answers += 1;
            self.code = scanner.code();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(bytes: &str, is_stream: bool) -> Answered {
        let mut answered = Answered::new(is_stream, 1);
        bytes
            .as_bytes()
            .chunks(3)
            .for_each(|piece| answered.see(piece));
        answered
    }

    const ERROR: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32602}}";
    const RESULT: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"isError\":true}}";

    #[test]
    fn a_stream_is_whole_with_its_answer() {
        let begun = ": ping\n\nid: 1\ndata:\n\n";
        assert!(!after("", true).is_whole());
        assert!(!after(begun, true).has_begun());
        let note = format!("{begun}data: {{\"method\":\"notifications/message\"}}\n\n");
        assert!(after(&note, true).has_begun() && !after(&note, true).is_whole());
        let request = format!("{begun}data: {{\"id\":1,\"method\":\"ping\"}}\n\n");
        assert!(!after(&request, true).is_whole());
        assert!(!after(&format!("{note}data: {RESULT}\n"), true).is_whole());
        assert!(after(&format!("{note}data: {RESULT}\n\n"), true).is_whole());
        assert!(after(&format!("data: [{RESULT}]\n\n"), true).is_whole());
        assert!(after("", false).is_whole());
    }

    #[test]
    fn an_error_is_read_by_its_code() {
        assert_eq!(after(ERROR, false).error(), Some(-32602));
        assert_eq!(after(RESULT, false).error(), None);
        assert_eq!(after(&ERROR[..ERROR.len() - 1], false).error(), None);
        assert_eq!(
            after(&format!("data: {ERROR}\n\n"), true).error(),
            Some(-32602)
        );
        assert_eq!(after(&format!("data: {ERROR}\n"), true).error(), None);
    }

    #[test]
    fn a_break_is_told_where_a_reader_waits_for_an_event_and_cannot_resume() {
        assert!(after("", true).takes_an_event());
        assert!(after(": ping\n\n", true).takes_an_event());
        assert!(!after("data: {", true).takes_an_event());
        let resumable = after("id: 1\ndata:\n\n", true);
        assert!(resumable.is_resumable() && !resumable.takes_an_event());
        assert!(!after(&format!("data: {RESULT}\n\n"), true).takes_an_event());
        assert!(!after("", false).takes_an_event());
    }
}
