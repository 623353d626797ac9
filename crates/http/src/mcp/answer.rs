//! The answer to calls, as it passes: whether it is whole, and whether it says that nothing ran.

use super::events::{Part, Splitter};
use super::scan::{Scanner, are_equal};

/// Follows one answer.
#[derive(Debug)]
pub struct Answered {
    /// Of an event stream.
    events: Option<Splitter>,
    text: Text,
    /// Answers of the current event, which count with its end.
    pending: Vec<Scanner>,
    /// The requests that it answers, by their ids as JSON.
    requests: Vec<(Box<str>, Got)>,
    /// Whether every call among them gets an answer.
    are_answered: bool,
    has_message: bool,
    /// Whether something came that cannot be read, or that answers nobody who asked.
    is_mixed: bool,
}

/// What a request was answered with by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Nothing,
    /// An error with this code.
    Error(Option<i64>),
    /// A result, or more than one answer.
    Result,
}

impl Answered {
    /// Of an event stream where `is_stream`, else of one JSON text; to the requests with these ids, as JSON.
    /// `is_unanswered` says that there is a call beside them that gets no answer.
    pub fn new(is_stream: bool, ids: &[Box<str>], is_unanswered: bool) -> Self {
        Self {
            events: is_stream.then(Splitter::default),
            text: Text::default(),
            pending: Vec::new(),
            requests: ids.iter().map(|id| (id.clone(), Got::Nothing)).collect(),
            are_answered: !is_unanswered,
            has_message: false,
            is_mixed: false,
        }
    }

    /// Takes the next bytes.
    pub fn see(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.events.as_mut().map(|events| events.byte(*byte)) {
                None => self.data(*byte),
                Some(Part::Data) => {
                    self.has_message = true;
                    self.data(*byte);
                }
                Some(Part::EndOfData) => self.data(b'\n'),
                Some(Part::EndOfEvent) => self.end_event(),
                Some(Part::Comment | Part::Tail | Part::Framing) => {}
            }
        }
    }

    /// Whether it has all its answers, and is JSON to its end where it is no stream.
    pub fn is_whole(&self) -> bool {
        let is_text = self.events.is_some() || self.text.is_whole();
        match self.requests.as_slice() {
            [] => is_text || self.text.is_empty(),
            _ => is_text && self.all(|got| got != Got::Nothing),
        }
    }

    /// Whether a message of the stream is whole, and it cannot be any more that all of it says that nothing ran.
    pub fn has_begun(&self) -> bool {
        let is_between = self.events.as_ref().is_some_and(Splitter::is_between);
        let is_refusing = !self.is_mixed
            && !self.all(|got| got != Got::Nothing)
            && self.all(|got| got != Got::Result)
            && self.requests.iter().any(|(_, got)| *got != Got::Nothing);
        self.has_message && is_between && !is_refusing
    }

    /// Whether all calls are answered with an error whose code is one of these, and nothing else came.
    pub fn is_refused(&self, codes: &[i64]) -> bool {
        let is_text = self.events.is_some() || self.text.is_whole();
        let is_refusal = |got| matches!(got, Got::Error(Some(code)) if codes.contains(&code));
        is_text
            && !self.is_mixed
            && self.are_answered
            && !self.requests.is_empty()
            && self.all(is_refusal)
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

    fn all(&self, is: impl Fn(Got) -> bool) -> bool {
        self.requests.iter().all(|(_, got)| is(*got))
    }

    fn data(&mut self, byte: u8) {
        let Some(message) = self.text.byte(byte) else {
            return;
        };
        if self.events.is_none() {
            self.take(&message);
        } else if message.is_response() {
            // More than there can be answer nobody, and are not held.
            match self.pending.len() <= self.requests.len() {
                true => self.pending.push(message),
                false => self.is_mixed = true,
            }
        }
    }

    fn end_event(&mut self) {
        let text = std::mem::take(&mut self.text);
        let answers = std::mem::take(&mut self.pending);
        match text.is_whole() {
            true => answers.iter().for_each(|answer| self.take(answer)),
            false => self.is_mixed |= !text.is_empty(),
        }
    }

    /// Takes in a whole message.
    fn take(&mut self, message: &Scanner) {
        let Some(id) = message.answers() else {
            self.is_mixed |= message.is_response();
            return;
        };
        let got = match message.has_result() {
            true => Got::Result,
            false => Got::Error(message.code()),
        };
        // A server that could not read what was posted does not know whose error that is. Within a stream, it
        // may be anybody's.
        let is_to_all = self.events.is_none() && id == b"null" && !self.text.is_list();
        let mut is_asked_for = false;
        for (request, held) in &mut self.requests {
            if !is_to_all && !are_equal(request.as_bytes(), id) {
                continue;
            }
            is_asked_for = true;
            *held = match (*held, got) {
                (Got::Nothing, got) => got,
                _ => Got::Result,
            };
        }
        self.is_mixed |= !is_asked_for;
    }
}

/// One JSON text: a message, or a list of them.
#[derive(Debug, Default)]
struct Text {
    at: At,
    is_list: bool,
    message: Scanner,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the message, or the list.
    #[default]
    Start,
    Message,
    /// Before an element of the list.
    Element,
    /// Behind an element of the list.
    Comma,
    End,
    /// In what is no message.
    Lost,
}

impl Text {
    /// Takes the next byte; gives the message that it ends.
    fn byte(&mut self, byte: u8) -> Option<Scanner> {
        if self.at == At::Message {
            self.message.byte(byte);
            if !self.message.is_over() {
                return None;
            }
            self.at = match self.is_list {
                true => At::Comma,
                false => At::End,
            };
            return Some(std::mem::take(&mut self.message));
        }
        if byte.is_ascii_whitespace() {
            return None;
        }
        self.at = match (self.at, byte) {
            (At::Start | At::Element, b'{') => {
                self.message.byte(byte);
                At::Message
            }
            (At::Start, b'[') => {
                self.is_list = true;
                At::Element
            }
            (At::Comma, b',') => At::Element,
            (At::Comma, b']') => At::End,
            _ => At::Lost,
        };
        None
    }

    /// Whether it came to its end, and nothing came behind that.
    fn is_whole(&self) -> bool {
        self.at == At::End
    }

    fn is_empty(&self) -> bool {
        self.at == At::Start
    }

    fn is_list(&self) -> bool {
        self.is_list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: [i64; 2] = [-32602, -32600];

    fn after_of(ids: &[&str], bytes: &str, is_stream: bool) -> Answered {
        let ids: Vec<Box<str>> = ids.iter().map(|id| (*id).into()).collect();
        let mut answered = Answered::new(is_stream, &ids, false);
        bytes
            .as_bytes()
            .chunks(3)
            .for_each(|piece| answered.see(piece));
        answered
    }

    fn after(bytes: &str, is_stream: bool) -> Answered {
        after_of(&["1"], bytes, is_stream)
    }

    fn error(id: &str) -> String {
        ERROR.replacen('1', id, 1)
    }

    fn events(messages: &[&str]) -> String {
        let event = |message: &&str| format!("data: {message}\n\n");
        messages.iter().map(event).collect()
    }

    const ERROR: &str = "{\"id\":1,\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32602}}";
    const RESULT: &str = "{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":{\"isError\":true}}";

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
    }

    /// An answer to another id ended the stream, and what came was recorded for good.
    #[test]
    fn i05_an_answer_is_whole_with_the_answers_to_what_was_asked_and_to_nothing_else() {
        let foreign = RESULT.replacen('1', "\"1\"", 1);
        assert!(!after(&events(&[&foreign]), true).is_whole());
        assert!(after(&events(&[&foreign, RESULT]), true).is_whole());
        assert!(!after(&foreign, false).is_whole());
        let escaped = RESULT.replacen('1', "\"\\u0061\"", 1);
        assert!(after_of(&["\"a\""], &escaped, false).is_whole());
        let second = RESULT.replacen('1', "2", 1);
        let both = ["1", "2"];
        assert!(!after_of(&both, &events(&[RESULT, RESULT]), true).is_whole());
        assert!(!after_of(&both, &format!("[{RESULT}]"), false).is_whole());
        assert!(after_of(&both, &events(&[&second, RESULT]), true).is_whole());
        assert!(after_of(&both, &format!(" [{second} , {RESULT}]\n"), false).is_whole());
        assert!(after_of(&both, &events(&[&format!("[{second},{RESULT}]")]), true).is_whole());
    }

    /// A text that was cut within a right Content-Length was recorded.
    #[test]
    fn i05_a_json_answer_that_is_cut_is_not_whole() {
        for cut in 0..RESULT.len() {
            assert!(!after(&RESULT[..cut], false).is_whole(), "at {cut}");
        }
        assert!(after(RESULT, false).is_whole());
        assert!(!after(&format!("{RESULT}{RESULT}"), false).is_whole());
        assert!(!after(&format!("[{RESULT}"), false).is_whole());
        // What asks for no answer may get none.
        assert!(after_of(&[], "", false).is_whole());
    }

    #[test]
    fn an_error_is_read_by_its_code() {
        assert!(after(ERROR, false).is_refused(&CODES));
        assert!(!after(ERROR, false).is_refused(&[-1]));
        assert!(!after(RESULT, false).is_refused(&CODES));
        assert!(!after(&ERROR[..ERROR.len() - 1], false).is_refused(&CODES));
        assert!(after(&events(&[ERROR]), true).is_refused(&CODES));
        assert!(!after(&format!("data: {ERROR}\n"), true).is_refused(&CODES));
        // Who could not read what was posted cannot say whose error it is.
        assert!(after(&error("null"), false).is_refused(&CODES));
        assert!(after_of(&["1", "2"], &error("null"), false).is_refused(&CODES));
    }

    /// Each of these released a call that ran, so that it ran again.
    #[test]
    fn i10_an_error_that_is_not_of_every_call_and_alone_releases_nothing() {
        let noted = ERROR.replacen('{', "{\"method\":\"notifications/message\",", 1);
        for (answer, is_stream) in [
            (events(&[&error("\"other\"")]), true),
            (events(&[&error("null")]), true),
            (events(&[&error("\"1\"")]), true),
            (events(&[&noted]), true),
            (events(&[&noted.replace("\"id\":1,", "")]), true),
            (events(&[ERROR, RESULT]), true),
            (events(&[ERROR, &error("2")]), true),
            (events(&[ERROR, "no JSON"]), true),
            (format!("{ERROR}{RESULT}"), false),
            (format!("[{ERROR},{RESULT}]"), false),
            (format!("[{}]", error("null")), false),
            (error("2"), false),
            (format!("{ERROR} x"), false),
            (ERROR.replace("}}", "},\"result\":{}}"), false),
        ] {
            let answered = after(&answer, is_stream);
            assert!(!answered.is_refused(&CODES), "{answer}");
        }
        let both = ["1", "2"];
        let one = after_of(&both, &events(&[ERROR]), true);
        assert!(
            !one.is_refused(&CODES) && !one.has_begun(),
            "the other may run"
        );
        let second = error("2").replace("-32602", "-32600");
        let all = after_of(&both, &events(&[ERROR, &second]), true);
        assert!(all.is_refused(&CODES) && all.has_begun());
        assert!(after_of(&both, &format!("[{ERROR},{second}]"), false).is_refused(&CODES));
        let ran = after_of(
            &both,
            &events(&[ERROR, &RESULT.replacen('1', "2", 1)]),
            true,
        );
        assert!(!ran.is_refused(&CODES) && ran.has_begun() && ran.is_whole());
        let mut unanswered = Answered::new(false, &["1".into()], true);
        unanswered.see(ERROR.as_bytes());
        assert!(!unanswered.is_refused(&CODES), "of one call nobody hears");
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
