//! A recorded answer for a retry that has another id than the request that was executed.
//!
//! Nothing changes but what ties the answer to its request: the id of the answer itself, and the token of
//! its progress notifications, which are left out where the retry has asked for none. Where id and token
//! are those of the request that was executed, every byte stays. Of an event stream, the requests that the
//! server made of its client meanwhile are left out of what is over: they are answered already.

use std::ops::Range;

use super::events::{Part, Splitter};
use super::scan::{Mark, Scanner, Slot, are_equal};

/// How much of a message is held until it is known what it is. A longer one is an answer if it has named
/// no method by then, and passes as it is otherwise.
const MAX_HELD: usize = 64 * 1024;

/// What the answer is to be tied to, as JSON texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The id of the retry.
    pub id: Box<str>,
    /// The progress token of the retry.
    pub token: Option<Box<str>>,
}

/// What becomes of the requests that a server makes of its client within an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// They are passed on: the answer still runs, and may wait for theirs.
    Keep,
    /// They are left out: the answer is over.
    LeaveOut,
}

/// Rewrites one answer, as it passes.
#[derive(Debug)]
pub struct Rewriter {
    retry: Retry,
    /// The id of the request that was executed, where it is known. Answers to others stay what they are.
    executed: Option<Box<str>>,
    requests: Requests,
    /// Of an event stream.
    events: Option<Splitter>,
    scanner: Scanner,
    manner: Manner,
    /// Of a message of which it is not known what it is; or of an id that has begun.
    held: Vec<u8>,
    /// Where in `held` values stand.
    values: Vec<(Slot, Range<usize>)>,
    /// Where in `held` a value has begun.
    begun: Option<(Slot, usize)>,
    /// Whether the last event was left out, and nothing has come after it.
    left_out: bool,
}

/// What becomes of the current message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Manner {
    /// That is not known yet.
    #[default]
    Open,
    /// It is an answer, and has the retry's id.
    Answer,
    /// It stays as it is.
    Other,
}

impl Rewriter {
    /// For an event stream where `is_stream`, else for one JSON text.
    pub fn new(
        retry: Retry,
        executed: Option<Box<str>>,
        is_stream: bool,
        requests: Requests,
    ) -> Self {
        Self {
            retry,
            executed,
            requests,
            events: is_stream.then(Splitter::default),
            scanner: Scanner::default(),
            manner: Manner::default(),
            held: Vec::new(),
            values: Vec::new(),
            begun: None,
            left_out: false,
        }
    }

    /// Takes the next bytes, and gives what becomes of what came so far.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + self.held.len());
        for byte in bytes {
            let part = self.events.as_mut().map(|events| events.byte(*byte));
            if part == Some(Part::Tail) && self.left_out {
                continue;
            }
            self.left_out = false;
            match part {
                None | Some(Part::Data) => self.data(*byte, &mut out),
                Some(Part::EndOfData) => {
                    // The next line of data, if there is one, goes on behind a line feed.
                    self.scan(b'\n', &mut out);
                    self.put(*byte, &mut out);
                }
                Some(Part::EndOfEvent) => {
                    self.put(*byte, &mut out);
                    self.end_message(&mut out);
                }
                // A sign of life is not held back.
                Some(Part::Comment | Part::Tail) if self.held.is_empty() => out.push(*byte),
                Some(Part::Comment | Part::Tail | Part::Framing) => self.put(*byte, &mut out),
            }
        }
        out
    }

    /// What is left at the end of the answer.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.events {
            None => self.end_message(&mut out),
            // An event that no empty line ends is none.
            Some(_) => out.append(&mut self.held),
        }
        out
    }

    fn data(&mut self, byte: u8, out: &mut Vec<u8>) {
        let mark = self.scan(byte, out);
        self.put(byte, out);
        if let Mark::Ends(slot) = mark {
            self.end_value(slot, out);
        }
        if self.manner == Manner::Open && self.scanner.is_response() {
            self.decide(Manner::Answer, out);
        }
    }

    /// Follows where values begin, and where they ended before this byte.
    fn scan(&mut self, byte: u8, out: &mut Vec<u8>) -> Mark {
        let mark = self.scanner.byte(byte);
        match mark {
            Mark::Begins(slot) => {
                let counts = match self.manner {
                    Manner::Open => true,
                    Manner::Answer => slot == Slot::Id,
                    Manner::Other => false,
                };
                self.begun = counts.then_some((slot, self.held.len()));
            }
            Mark::Ended(slot) => self.end_value(slot, out),
            Mark::Ends(_) | Mark::Nothing => {}
        }
        mark
    }

    fn end_value(&mut self, slot: Slot, out: &mut Vec<u8>) {
        let Some((_, start)) = self.begun.take_if(|(begun, _)| *begun == slot) else {
            return;
        };
        self.values.push((slot, start..self.held.len()));
        if self.manner == Manner::Answer {
            self.release(Some(Slot::Id), out);
        }
    }

    /// Passes a byte on, or holds it where it is not known yet what becomes of it.
    fn put(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.manner != Manner::Open && self.begun.is_none() {
            return out.push(byte);
        }
        self.held.push(byte);
        if self.held.len() > MAX_HELD {
            let manner = match self.scanner.method() {
                [] => Manner::Answer,
                _ => Manner::Other,
            };
            self.decide(manner, out);
        }
    }

    fn decide(&mut self, manner: Manner, out: &mut Vec<u8>) {
        self.manner = manner;
        self.begun = None;
        let replaced = match manner {
            Manner::Answer => Some(Slot::Id),
            Manner::Open | Manner::Other => None,
        };
        self.release(replaced, out);
    }

    fn end_message(&mut self, out: &mut Vec<u8>) {
        if self.manner == Manner::Open {
            self.end_open_message(out);
        }
        self.release(None, out);
        self.scanner = Scanner::default();
        self.manner = Manner::Open;
        self.begun = None;
    }

    /// A message that is whole, and no answer.
    fn end_open_message(&mut self, out: &mut Vec<u8>) {
        let is_request = !self.scanner.method().is_empty() && self.scanner.has_id();
        let is_progress = self.scanner.method() == b"notifications/progress";
        let has_token = self.values.iter().any(|(slot, _)| *slot == Slot::Token);
        self.left_out = match (is_request, is_progress && has_token) {
            (true, _) => self.requests == Requests::LeaveOut,
            (false, true) => self.retry.token.is_none(),
            (false, false) => false,
        };
        if self.left_out {
            self.held.clear();
            self.values.clear();
        } else if is_progress && !is_request {
            self.release(Some(Slot::Token), out);
        }
    }

    /// Passes on what is held, with the values of the slot `replaced` being those of the retry.
    fn release(&mut self, replaced: Option<Slot>, out: &mut Vec<u8>) {
        let mut from = 0;
        for (slot, range) in self.values.drain(..) {
            let of_retry = match slot {
                Slot::Id => Some(&self.retry.id),
                Slot::Token => self.retry.token.as_ref(),
            };
            let own = &self.held[range.clone()];
            let is_meant = replaced == Some(slot)
                && (slot == Slot::Token
                    || self
                        .executed
                        .as_ref()
                        .is_none_or(|id| are_equal(own, id.as_bytes())));
            if let Some(of_retry) = of_retry.filter(|_| is_meant) {
                out.extend_from_slice(&self.held[from..range.start]);
                out.extend_from_slice(match are_equal(own, of_retry.as_bytes()) {
                    true => own,
                    false => of_retry.as_bytes(),
                });
                from = range.end;
            }
        }
        out.extend_from_slice(&self.held[from..]);
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(id: &str, token: Option<&str>) -> Retry {
        Retry {
            id: id.into(),
            token: token.map(Into::into),
        }
    }

    /// What becomes of an answer; the same wherever it is cut in two, and byte by byte.
    #[track_caller]
    fn rewritten(answer: &str, retry: &Retry, is_stream: bool, requests: Requests) -> String {
        let made = |pieces: &[&[u8]]| {
            let mut rewriter = Rewriter::new(retry.clone(), None, is_stream, requests);
            let mut out: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| rewriter.push(piece))
                .collect();
            out.extend(rewriter.finish());
            String::from_utf8(out).unwrap()
        };
        let bytes = answer.as_bytes();
        let whole = made(&[bytes]);
        for cut in 0..=bytes.len() {
            assert_eq!(made(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
        }
        let each: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(made(&each), whole);
        whole
    }

    #[track_caller]
    fn stream(events: &str, to: &Retry) -> String {
        rewritten(events, to, true, Requests::Keep)
    }

    #[test]
    fn a_json_answer_gets_the_id_of_the_retry_wherever_it_stands() {
        for (answer, expected) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"id":1,"text":"\"id\":1"}]}}"#,
                r#"{"jsonrpc":"2.0","id":"b-2","result":{"content":[{"id":1,"text":"\"id\":1"}]}}"#,
            ),
            (
                "{\n  \"result\": {\"id\": 7},\n  \"jsonrpc\": \"2.0\",\n  \"id\": \"a\"\n}\n",
                "{\n  \"result\": {\"id\": 7},\n  \"jsonrpc\": \"2.0\",\n  \"id\": \"b-2\"\n}\n",
            ),
            (
                r#"{"id":-5 ,"error":{"code":-32603,"message":"x"},"jsonrpc":"2.0"}"#,
                r#"{"id":"b-2" ,"error":{"code":-32603,"message":"x"},"jsonrpc":"2.0"}"#,
            ),
            (r#"{"id":1}"#, r#"{"id":1}"#),
            ("no JSON", "no JSON"),
            ("", ""),
        ] {
            let to = retry("\"b-2\"", None);
            assert_eq!(rewritten(answer, &to, false, Requests::Keep), expected);
        }
    }

    const STREAM: &str = concat!(
        ": hello\n\n",
        "id: 1\ndata:\n\n",
        "event: message\r\nid: 2\r\ndata: {\"method\":\"notifications/progress\",\"params\":",
        "{\"progressToken\":4,\"progress\":1},\"jsonrpc\":\"2.0\"}\r\n\r\n",
        "data: {\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"elicitation/create\",\"params\":{}}\r\r",
        "data: {\"method\":\"notifications/message\",\"params\":{\"data\":4}}\n\n",
        "event: message\ndata: {\"jsonrpc\":\"2.0\",\ndata: \"id\":4\ndata: ,\"result\":{\"id\":4}}\n\n",
        ": bye\n\n",
    );

    #[test]
    fn a_stream_for_the_same_request_stays_byte_for_byte() {
        assert_eq!(stream(STREAM, &retry("4", Some("4"))), STREAM);
        let escaped = "data: {\"id\":\"\\u0061\",\"result\":{}}\n\n";
        assert_eq!(stream(escaped, &retry("\"a\"", None)), escaped);
    }

    #[test]
    fn a_stream_for_another_request_has_its_id_and_its_token_and_nothing_else_changes() {
        let expected = STREAM
            .replace("\"progressToken\":4", "\"progressToken\":\"t\"")
            .replace("\"id\":4\ndata:", "\"id\":11\ndata:");
        assert_eq!(stream(STREAM, &retry("11", Some("\"t\""))), expected);
    }

    #[test]
    fn progress_that_the_retry_did_not_ask_for_is_left_out() {
        let start = STREAM.find("event: message\r\n").unwrap();
        let end = STREAM.find("data: {\"jsonrpc\"").unwrap();
        let expected = [&STREAM[..start], &STREAM[end..]]
            .concat()
            .replace("\"id\":4\ndata:", "\"id\":11\ndata:");
        assert_eq!(stream(STREAM, &retry("11", None)), expected);
    }

    #[test]
    fn requests_of_the_server_are_left_out_of_what_is_over() {
        let start = STREAM.find("data: {\"jsonrpc\"").unwrap();
        let end = STREAM
            .find("data: {\"method\":\"notifications/message\"")
            .unwrap();
        let expected = [&STREAM[..start], &STREAM[end..]].concat();
        let to = retry("4", Some("4"));
        assert_eq!(rewritten(STREAM, &to, true, Requests::LeaveOut), expected);
    }

    /// Each answer of a stream got the id of the retry, an error for somebody else too: a client that retried
    /// took that for its own.
    #[test]
    fn i04_an_answer_to_another_request_keeps_its_id() {
        let foreign = "data: {\"id\":\"other\",\"error\":{\"code\":-32602}}\n\n";
        let own = "data: {\"result\":{},\"id\":1}\n\n";
        let both = format!("{foreign}{own}");
        let executed = Some("1".into());
        let mut rewriter = Rewriter::new(retry("2", None), executed, true, Requests::Keep);
        let out = rewriter.push(both.as_bytes());
        let expected = format!("{foreign}{}", own.replace("\"id\":1", "\"id\":2"));
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_number_is_not_its_text() {
        let event = "data: {\"id\":1,\"result\":{}}\n\n";
        let expected = "data: {\"id\":\"1\",\"result\":{}}\n\n";
        assert_eq!(stream(event, &retry("\"1\"", None)), expected);
    }

    #[test]
    fn an_answer_of_any_length_is_rewritten_and_not_held() {
        let long = "x".repeat(3 * MAX_HELD);
        for answer in [
            format!("{{\"id\":1,\"result\":\"{long}\"}}"),
            format!("{{\"result\":\"{long}\",\"id\":1}}"),
            format!("{{\"other\":\"{long}\",\"id\":1,\"result\":1}}"),
        ] {
            let event = format!("data: {answer}\n\n");
            for (text, is_stream) in [(&answer, false), (&event, true)] {
                let mut rewriter =
                    Rewriter::new(retry("22", None), None, is_stream, Requests::Keep);
                let mut out = Vec::new();
                for piece in text.as_bytes().chunks(1000) {
                    out.extend(rewriter.push(piece));
                    assert!(rewriter.held.len() <= MAX_HELD);
                }
                out.extend(rewriter.finish());
                let expected = text.replace("\"id\":1", "\"id\":22");
                assert!(out == expected.as_bytes(), "{is_stream}");
            }
        }
    }

    #[test]
    fn a_long_request_of_the_server_passes_as_it_is() {
        let long = "x".repeat(2 * MAX_HELD);
        let event = format!(
            "data: {{\"id\":1,\"method\":\"sampling/createMessage\",\"params\":\"{long}\"}}\n\n"
        );
        let next = "data: {\"id\":1,\"result\":{}}\n\n";
        let mut rewriter = Rewriter::new(retry("2", None), None, true, Requests::LeaveOut);
        let out = rewriter.push(format!("{event}{next}").as_bytes());
        assert!(out == format!("{event}{}", next.replace('1', "2")).as_bytes());
    }
}
