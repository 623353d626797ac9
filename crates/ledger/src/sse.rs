//! Server-sent events (WHATWG HTML section 9.2.6), as they pass.

use memchr::memchr2;

/// A name longer than this is not looked at.
const MAX_NAME: usize = 128;
/// Enough for a byte order mark and the longest field that counts.
const MAX_FIELD: usize = 8;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// What there is in a stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// The name of the current event. It may come before or after the event's data.
    Name(&'a str),
    /// A piece of the data of the current event.
    Data(&'a [u8]),
    /// The event is over.
    End,
}

/// Where one reader of an event stream stands.
#[derive(Debug, Default)]
pub(crate) struct Events {
    at: At,
    /// The name of the field, or of the event, as far as it came.
    text: Vec<u8>,
    /// Whether the line is the first.
    is_past_first_line: bool,
    /// Whether the last byte was a carriage return: a line feed after it is of the same line end.
    after_return: bool,
    /// Whether the event has a line.
    has_line: bool,
    /// Whether the event has data.
    has_data: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Field,
    /// After the colon of a field: one space does not count.
    Data {
        after_colon: bool,
    },
    Name {
        after_colon: bool,
    },
    /// A comment, or a field that nobody wants.
    Other,
}

impl Events {
    /// Takes the next bytes, and hands on what they hold.
    pub(crate) fn push(&mut self, bytes: &[u8], mut part: impl FnMut(Part<'_>)) {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let follows_return = std::mem::take(&mut self.after_return);
            let used = match (byte, self.at) {
                (b'\n', _) if follows_return => 1,
                (b'\n' | b'\r', _) => {
                    self.after_return = byte == b'\r';
                    self.end_line(&mut part);
                    1
                }
                (_, At::Field) => self.field(rest, &mut part),
                (_, At::Data { after_colon } | At::Name { after_colon }) => {
                    self.value(rest, after_colon, &mut part)
                }
                (_, At::Other) => line(rest).len(),
            };
            rest = &rest[used..];
        }
    }

    /// The stream is over: the last event need not be followed by an empty line.
    pub(crate) fn finish(&mut self, mut part: impl FnMut(Part<'_>)) {
        self.end_line(&mut part);
        self.end_line(&mut part);
    }

    fn field(&mut self, bytes: &[u8], part: &mut impl FnMut(Part<'_>)) -> usize {
        let line = line(bytes);
        let colon = line.iter().position(|byte| *byte == b':');
        let name = &line[..colon.unwrap_or(line.len())];
        let kept = name.len().min(MAX_FIELD + 1 - self.text.len());
        self.text.extend_from_slice(&name[..kept]);
        if colon.is_none() {
            return line.len();
        }
        self.begin_value(true, part);
        name.len() + 1
    }

    /// The field has its name.
    fn begin_value(&mut self, after_colon: bool, part: &mut impl FnMut(Part<'_>)) {
        let name = match self.is_past_first_line {
            true => &self.text[..],
            false => without_mark(&self.text),
        };
        self.at = match name {
            b"data" => At::Data { after_colon },
            b"event" => At::Name { after_colon },
            _ => At::Other,
        };
        self.text.clear();
        self.has_line = true;
        if matches!(self.at, At::Data { .. }) && std::mem::replace(&mut self.has_data, true) {
            part(Part::Data(b"\n"));
        }
    }

    fn value(&mut self, bytes: &[u8], after_colon: bool, part: &mut impl FnMut(Part<'_>)) -> usize {
        let line = line(bytes);
        let value = match after_colon {
            true => line.strip_prefix(b" ").unwrap_or(line),
            false => line,
        };
        let after_colon = false;
        if let At::Name { .. } = self.at {
            let kept = value.len().min(MAX_NAME + 1 - self.text.len());
            self.text.extend_from_slice(&value[..kept]);
            self.at = At::Name { after_colon };
        } else {
            if !value.is_empty() {
                part(Part::Data(value));
            }
            self.at = At::Data { after_colon };
        }
        line.len()
    }

    fn end_line(&mut self, part: &mut impl FnMut(Part<'_>)) {
        if self.at == At::Field {
            let is_empty = match self.is_past_first_line {
                true => self.text.is_empty(),
                false => without_mark(&self.text).is_empty(),
            };
            match is_empty {
                true => self.end_event(part),
                // A field without a colon has an empty value.
                false => self.begin_value(false, part),
            }
        }
        if let At::Name { .. } = self.at {
            let name = std::str::from_utf8(&self.text);
            if let Some(name) = name.ok().filter(|name| name.len() <= MAX_NAME) {
                part(Part::Name(name));
            }
        }
        self.text.clear();
        self.at = At::Field;
        self.is_past_first_line = true;
    }

    fn end_event(&mut self, part: &mut impl FnMut(Part<'_>)) {
        if std::mem::take(&mut self.has_line) {
            part(Part::End);
        }
        self.has_data = false;
    }
}

/// `bytes` up to the end of the line.
fn line(bytes: &[u8]) -> &[u8] {
    &bytes[..memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len())]
}

fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &[u8], size: usize) -> String {
        let mut events = Events::default();
        let mut all = String::new();
        let mut data = Vec::new();
        let mut part = |part: Part<'_>| match part {
            Part::Name(name) => all.push_str(&format!("<{name}>")),
            Part::Data(piece) => data.extend_from_slice(piece),
            Part::End => {
                all.push_str(&format!(
                    "{}|",
                    String::from_utf8_lossy(&std::mem::take(&mut data))
                ));
            }
        };
        for piece in stream.chunks(size) {
            events.push(piece, &mut part);
        }
        events.finish(&mut part);
        all
    }

    #[test]
    fn events_are_read_as_the_standard_says_however_they_are_cut() {
        for (stream, events) in [
            ("data: a\n\ndata:b\n\n", "a|b|"),
            ("event: e\ndata: a\n\n", "<e>a|"),
            ("data: a\nevent:e\n\n", "<e>a|"),
            ("data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", "a\nb|c|"),
            ("data: a\r\rdata: b\r\r", "a|b|"),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", "a||"),
            (": comment\n\n:\n\ndata: a\n\n", "||a|"),
            ("data\ndata\n\n", "\n|"),
            (
                "data:  two\nid: 7\nretry: 10\nDATA: x\ndatabase: y\n\n",
                " two|",
            ),
            ("\n\n\n", ""),
            ("data: a", "a|"),
            ("data: a\n", "a|"),
            ("event: e", "<e>|"),
            ("data: a: b\n\n", "a: b|"),
            ("abcdefghijklmnopqrstuvwxyz: a\ndata: b\n\n", "b|"),
        ] {
            for size in 1..=stream.len() {
                assert_eq!(
                    read(stream.as_bytes(), size),
                    events,
                    "{stream:?} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn nothing_long_is_kept() {
        let mut events = Events::default();
        for text in ["x", "event: ", "y", "\ndata: ", "z"] {
            for _ in 0..10_000 {
                events.push(text.as_bytes(), |_| {});
            }
        }
        assert!(events.text.capacity() <= 2 * MAX_NAME);
    }
}
