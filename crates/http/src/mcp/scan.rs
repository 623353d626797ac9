//! One JSON-RPC message, byte by byte: what kind it is, and where the values stand that tie it to a
//! request.
//!
//! It holds a name or a short value, never a message. Of what is no JSON it says anything, and breaks
//! nothing.

use super::message::LONGEST_ID;
use crate::canonical_json::canonicalize;

/// Longer names and values are none that count.
const MAX_TEXT: usize = 256;
/// The same of an id, which may have each character escaped.
const MAX_ID: usize = 6 * LONGEST_ID;

/// A value that ties a message to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// `/id`.
    Id,
    /// `/params/progressToken`.
    Token,
}

/// What a byte begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Nothing,
    /// It is the first of this value.
    Begins(Slot),
    /// It is the last of this value.
    Ends(Slot),
    /// The byte before it was the last of this value.
    Ended(Slot),
}

/// What is known of a message by now.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    depth: usize,
    /// Of the containers at depth 1 and 2: what comes next in them.
    next: [Next; 2],
    /// The member of the message that its scanner stands in.
    member: Member,
    /// The member of that member.
    inner: Member,
    string: Option<InString>,
    /// What the scalar value is wanted as that has begun.
    wanted: Option<Wanted>,
    /// A name, or the wanted value.
    text: Vec<u8>,
    found: Found,
}

#[derive(Debug, Default)]
struct Found {
    /// As JSON.
    id: Option<Vec<u8>>,
    has_method: bool,
    has_result: bool,
    has_error: bool,
    /// Whether a member that counts came twice: readers do not agree on it.
    is_ambiguous: bool,
    is_over: bool,
    method: Vec<u8>,
    code: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Name,
    Value,
    /// A comma, or the end.
    End,
    /// Anything: it is an array.
    Item,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Member {
    #[default]
    Other,
    Id,
    Method,
    Params,
    Error,
    Code,
    Token,
}

#[derive(Clone, Copy, Debug)]
struct InString {
    is_name: bool,
    is_escaped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Slot(Slot),
    Method,
    Code,
}

impl Scanner {
    /// Whether it looks like the answer to a request by now: it has a `result` or an `error`.
    pub(super) fn is_response(&self) -> bool {
        self.found.has_result || self.found.has_error
    }

    /// The id, as JSON, of the request that it is the answer to. `None` of what is none, whatever it looks
    /// like: what has a method asks for something.
    pub(super) fn answers(&self) -> Option<&[u8]> {
        let found = &self.found;
        let is_answer = self.is_response() && !found.has_method && !found.is_ambiguous;
        found.id.as_deref().filter(|_| is_answer && found.is_over)
    }

    /// Whether it has a `result`.
    pub(super) fn has_result(&self) -> bool {
        self.found.has_result
    }

    /// Whether it is whole.
    pub(super) fn is_over(&self) -> bool {
        self.found.is_over
    }

    /// Whether it has an id.
    pub(super) fn has_id(&self) -> bool {
        self.found.id.is_some()
    }

    /// Its method, empty where it has none.
    pub(super) fn method(&self) -> &[u8] {
        &self.found.method
    }

    /// The code of its error.
    pub(super) fn code(&self) -> Option<i64> {
        self.found.code
    }

    /// Takes the next byte, and says what that begins or ends.
    pub(super) fn byte(&mut self, byte: u8) -> Mark {
        if let Some(string) = self.string {
            return self.in_string(string, byte);
        }
        let delimits = matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
        let mark = match self.wanted {
            Some(_) if !delimits => {
                self.keep(byte);
                return Mark::Nothing;
            }
            Some(wanted) => self.end_value(wanted, Mark::Ended),
            None => Mark::Nothing,
        };
        match byte {
            b'"' => self.begin_string(),
            b'{' | b'[' => {
                self.open(byte == b'{');
                mark
            }
            b'}' | b']' => {
                self.close();
                mark
            }
            b',' => {
                self.next_member();
                mark
            }
            b':' => {
                if self.next() == Some(Next::Name) {
                    self.set_next(Next::Value);
                }
                mark
            }
            b' ' | b'\t' | b'\r' | b'\n' => mark,
            _ => self.begin_value(byte),
        }
    }

    fn in_string(&mut self, string: InString, byte: u8) -> Mark {
        let closes = byte == b'"' && !string.is_escaped;
        self.string = Some(InString {
            is_escaped: byte == b'\\' && !string.is_escaped,
            ..string
        });
        if !closes {
            if string.is_name || self.wanted.is_some() {
                self.keep(byte);
            }
            return Mark::Nothing;
        }
        self.string = None;
        if string.is_name {
            self.end_name();
            return Mark::Nothing;
        }
        match self.wanted {
            Some(wanted) => {
                if wanted == Wanted::Slot(Slot::Id) {
                    self.text = [b"\"", self.text.as_slice(), b"\""].concat();
                }
                self.end_value(wanted, Mark::Ends)
            }
            None => Mark::Nothing,
        }
    }

    fn begin_string(&mut self) -> Mark {
        let is_name = self.next() == Some(Next::Name);
        self.string = Some(InString {
            is_name,
            is_escaped: false,
        });
        self.text.clear();
        match is_name {
            true => Mark::Nothing,
            false => self.begin(),
        }
    }

    /// A number, `true`, `false` or `null`.
    fn begin_value(&mut self, byte: u8) -> Mark {
        self.text.clear();
        let mark = self.begin();
        if self.wanted.is_some() {
            self.keep(byte);
        }
        mark
    }

    fn begin(&mut self) -> Mark {
        if self.next() != Some(Next::Value) {
            return Mark::Nothing;
        }
        self.set_next(Next::End);
        self.wanted = match (self.depth, self.member, self.inner) {
            (1, Member::Id, _) => Some(Wanted::Slot(Slot::Id)),
            (1, Member::Method, _) => Some(Wanted::Method),
            (2, Member::Params, Member::Token) => Some(Wanted::Slot(Slot::Token)),
            (2, Member::Error, Member::Code) => Some(Wanted::Code),
            _ => None,
        };
        match self.wanted {
            Some(Wanted::Slot(slot)) => Mark::Begins(slot),
            _ => Mark::Nothing,
        }
    }

    fn end_value(&mut self, wanted: Wanted, mark: impl Fn(Slot) -> Mark) -> Mark {
        self.wanted = None;
        let text = std::mem::take(&mut self.text);
        match wanted {
            Wanted::Slot(slot) => {
                if slot == Slot::Id {
                    self.found.is_ambiguous |= self.found.id.is_some();
                    self.found.id = Some(text);
                }
                return mark(slot);
            }
            Wanted::Method => self.found.method = unescaped(text),
            Wanted::Code => {
                let text = std::str::from_utf8(&text).unwrap_or_default();
                self.found.is_ambiguous |= self.found.code.is_some();
                self.found.code = text.parse().ok();
            }
        }
        Mark::Nothing
    }

    fn end_name(&mut self) {
        let name = unescaped(std::mem::take(&mut self.text));
        if self.depth == 2 {
            self.inner = match name.as_slice() {
                b"code" => Member::Code,
                b"progressToken" => Member::Token,
                _ => Member::Other,
            };
            return;
        }
        self.member = match name.as_slice() {
            b"id" => Member::Id,
            b"method" => Member::Method,
            b"params" => Member::Params,
            b"error" => Member::Error,
            _ => Member::Other,
        };
        let found = &mut self.found;
        let seen = match name.as_slice() {
            b"method" => &mut found.has_method,
            b"result" => &mut found.has_result,
            b"error" => &mut found.has_error,
            _ => return,
        };
        found.is_ambiguous |= std::mem::replace(seen, true);
    }

    fn open(&mut self, is_object: bool) {
        if self.next() == Some(Next::Value) {
            self.set_next(Next::End);
        }
        self.depth += 1;
        self.set_next(match is_object {
            true => Next::Name,
            false => Next::Item,
        });
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.found.is_over |= self.depth == 0;
    }

    fn next_member(&mut self) {
        if self.next() == Some(Next::End) {
            self.set_next(Next::Name);
        }
    }

    /// What comes next in the container that we are right in, as far as that counts.
    fn next(&self) -> Option<Next> {
        self.next.get(self.depth.checked_sub(1)?).copied()
    }

    fn set_next(&mut self, next: Next) {
        let place = self.depth.checked_sub(1);
        if let Some(place) = place.and_then(|place| self.next.get_mut(place)) {
            *place = next;
        }
    }

    fn keep(&mut self, byte: u8) {
        let most = match self.wanted {
            Some(Wanted::Slot(_)) => MAX_ID,
            _ => MAX_TEXT,
        };
        if self.text.len() < most {
            self.text.push(byte);
        }
    }
}

/// Whether two JSON texts mean the same: `1` is not `"1"`, and `"a"` is `"\u0061"`.
pub(super) fn are_equal(one: &[u8], other: &[u8]) -> bool {
    one == other
        || canonicalize(one, &[])
            .is_ok_and(|one| canonicalize(other, &[]).is_ok_and(|other| one == other))
}

/// The text of a JSON string, without its quotes.
fn unescaped(text: Vec<u8>) -> Vec<u8> {
    if !text.contains(&b'\\') {
        return text;
    }
    let quoted = [b"\"", text.as_slice(), b"\""].concat();
    serde_json::from_slice::<String>(&quoted).map_or(text, String::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that are marked, each behind its slot.
    fn marked(message: &str) -> (Vec<(Slot, &str)>, Scanner) {
        let (mut found, mut begun) = (Vec::new(), 0);
        let mut scanner = Scanner::default();
        for (at, byte) in message.bytes().enumerate() {
            match scanner.byte(byte) {
                Mark::Nothing => {}
                Mark::Begins(_) => begun = at,
                Mark::Ends(slot) => found.push((slot, &message[begun..=at])),
                Mark::Ended(slot) => found.push((slot, &message[begun..at])),
            }
        }
        (found, scanner)
    }

    #[test]
    fn the_id_of_a_message_is_found_and_no_other() {
        for (message, id) in [
            (r#"{"jsonrpc":"2.0","id":17,"result":{"id":1}}"#, "17"),
            (r#"{"result":{"a":[{"id":1}]},"id":"a\"b"}"#, r#""a\"b""#),
            ("{ \"id\" : 5\n, \"result\" : { } }", "5"),
            (r#"{"\u0069d":-1,"result":{}}"#, "-1"),
            (
                r#"{"x":"\"id\":3","y":"\\","id":4,"error":{"code":1}}"#,
                "4",
            ),
            (r#"{"x":"{","id":null}"#, "null"),
        ] {
            let (found, scanner) = marked(message);
            assert_eq!(found, [(Slot::Id, id)], "{message}");
            assert!(scanner.has_id() && scanner.is_over(), "{message}");
        }
        for message in [
            r#"{"params":{"id":1}}"#,
            r#"[{"id":1}]"#,
            r#"{"id":{"id":1}}"#,
            r#""id":1"#,
        ] {
            assert_eq!(marked(message).0, [], "{message}");
        }
    }

    #[test]
    fn a_progress_token_is_found_where_a_notification_has_it() {
        let message = r#"{"method":"notifications/progress","params":{"progress":1,"progressToken":"t","_meta":{"progressToken":2}}}"#;
        let (found, scanner) = marked(message);
        assert_eq!(found, [(Slot::Token, "\"t\"")]);
        assert_eq!(scanner.method(), b"notifications/progress");
        assert!(!scanner.has_id() && !scanner.is_response());
        let elsewhere = r#"{"result":{"progressToken":1},"params":[{"progressToken":1}]}"#;
        assert_eq!(marked(elsewhere).0, []);
    }

    #[test]
    fn answers_and_errors_are_told_apart() {
        let (_, error) =
            marked(r#"{"id":1,"error":{"data":{"code":5},"code":-32602,"message":"code"}}"#);
        assert!(error.is_response());
        assert_eq!(error.code(), Some(-32602));
        let (_, result) = marked(r#"{"id":1,"result":{"code":-32602,"error":{"code":1}}}"#);
        assert!(result.is_response());
        assert_eq!(result.code(), None);
        let (_, request) = marked(r#"{"id":1,"method":"ping","params":{"result":1}}"#);
        assert!(!request.is_response());
        let (_, batch) = marked(r#"[{"id":1,"result":{}}]"#);
        assert!(!batch.is_response() && batch.is_over());
    }

    #[test]
    fn an_answer_tells_whom_it_answers_and_what_asks_for_something_answers_nobody() {
        for (message, id) in [
            (r#"{"id":1,"result":{}}"#, Some("1")),
            (r#"{"error":{"code":1},"id":"a\"b"}"#, Some(r#""a\"b""#)),
            (r#"{"id":null,"error":{"code":1}}"#, Some("null")),
            (r#"{"error":{"code":1}}"#, None),
            (r#"{"id":1,"error":{"code":1},"method":"x"}"#, None),
            (r#"{"method":"","id":1,"result":1}"#, None),
            (r#"{"id":1,"id":2,"result":1}"#, None),
            (r#"{"id":1,"error":{"code":1,"code":2}}"#, None),
            (r#"{"id":1,"error":{"code":1},"error":{}}"#, None),
            (r#"{"id":1,"result":{}"#, None),
            (r#"{"id":{"id":1},"result":{}}"#, None),
        ] {
            let (_, scanner) = marked(message);
            let answers = scanner.answers().map(|id| std::str::from_utf8(id).unwrap());
            assert_eq!(answers, id, "{message}");
        }
    }

    #[test]
    fn nothing_long_is_held() {
        let mut scanner = Scanner::default();
        for byte in "{\"method\":\"".bytes().chain([b'm'; 100_000]) {
            scanner.byte(byte);
        }
        assert!(scanner.text.capacity() <= 2 * MAX_TEXT);
    }
}
