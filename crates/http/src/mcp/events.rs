//! Server-sent events (WHATWG HTML section 9.2.6), byte by byte: which bytes are data, and where an event
//! ends.

/// Longer than any field name that counts, with a byte order mark before it.
const MAX_NAME: usize = 8;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// What a byte of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Of the data of the current event.
    Data,
    /// The end of a line of data.
    EndOfData,
    /// Of a comment, its end included.
    Comment,
    /// The end of the empty line that ends an event.
    EndOfEvent,
    /// A line feed of the same line end as the carriage return before it.
    Tail,
    /// Anything else of an event.
    Framing,
}

/// Where one reader of an event stream stands.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    at: At,
    /// The name of the field, as far as it came.
    name: Vec<u8>,
    after_return: bool,
    /// Whether an event has begun.
    is_within: bool,
    has_ids: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Name,
    /// After the colon of `data`: one space does not count.
    Space,
    Data,
    Comment,
    Other,
}

impl Splitter {
    /// Takes the next byte, and says what it is.
    pub(super) fn byte(&mut self, byte: u8) -> Part {
        let follows_return = std::mem::take(&mut self.after_return);
        match byte {
            b'\n' if follows_return => Part::Tail,
            b'\n' | b'\r' => {
                self.after_return = byte == b'\r';
                self.end_line()
            }
            _ => self.within_line(byte),
        }
    }

    /// Whether no event has begun that is not over.
    pub(super) fn is_between(&self) -> bool {
        !self.is_within && self.name.is_empty()
    }

    /// Whether an event had an id: a client can ask for what comes after it.
    pub(super) fn has_ids(&self) -> bool {
        self.has_ids
    }

    fn within_line(&mut self, byte: u8) -> Part {
        match self.at {
            At::Name if byte == b':' && self.name().is_empty() => {
                self.at = At::Comment;
                Part::Comment
            }
            At::Name => {
                self.is_within = true;
                if byte == b':' {
                    self.at = self.field();
                } else if self.name.len() <= MAX_NAME {
                    self.name.push(byte);
                }
                Part::Framing
            }
            At::Space => {
                self.at = At::Data;
                match byte {
                    b' ' => Part::Framing,
                    _ => Part::Data,
                }
            }
            At::Data => Part::Data,
            At::Comment => Part::Comment,
            At::Other => Part::Framing,
        }
    }

    /// The field has its name.
    fn field(&mut self) -> At {
        match self.name() {
            b"data" => At::Space,
            b"id" => {
                self.has_ids = true;
                At::Other
            }
            _ => At::Other,
        }
    }

    fn end_line(&mut self) -> Part {
        if self.at == At::Name && !self.name().is_empty() {
            // A field without a colon has an empty value.
            self.at = self.field();
        }
        let part = match self.at {
            At::Name => {
                self.is_within = false;
                Part::EndOfEvent
            }
            At::Space | At::Data => Part::EndOfData,
            At::Comment => Part::Comment,
            At::Other => Part::Framing,
        };
        self.at = At::Name;
        self.name.clear();
        part
    }

    fn name(&self) -> &[u8] {
        self.name
            .strip_prefix(BYTE_ORDER_MARK)
            .unwrap_or(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of each event, with a `|` where it ends.
    fn read(stream: &str) -> String {
        let mut splitter = Splitter::default();
        let mut all = Vec::new();
        for byte in stream.bytes() {
            match splitter.byte(byte) {
                Part::Data => all.push(byte),
                Part::EndOfData => all.push(b'\n'),
                Part::EndOfEvent => all.push(b'|'),
                Part::Comment | Part::Tail | Part::Framing => {}
            }
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn data_is_told_from_all_else_whatever_ends_the_lines() {
        for (stream, data) in [
            ("data: a\n\n", "a\n|"),
            ("data:a\r\n\r\n", "a\n|"),
            ("data: a\r\rdata:  b\r\r", "a\n| b\n|"),
            ("event: message\nid: 7\ndata: a\ndata: b\n\n", "a\nb\n|"),
            (": data: a\n\ndata\n\n", "|\n|"),
            ("\u{feff}data: a\n\n", "a\n|"),
            ("database: a\nDATA: b\n\n", "|"),
            ("data: a: b\n\n", "a: b\n|"),
        ] {
            assert_eq!(read(stream), data, "{stream:?}");
        }
    }

    #[test]
    fn between_events_is_told_from_within_one() {
        let mut splitter = Splitter::default();
        for (bytes, between) in [
            ("", true),
            (": ping\n", true),
            ("d", false),
            ("ata: a\n", false),
            ("\n", true),
            ("id: 1\n", false),
            ("\r\n", true),
        ] {
            for byte in bytes.bytes() {
                splitter.byte(byte);
            }
            assert_eq!(splitter.is_between(), between, "after {bytes:?}");
        }
        assert!(splitter.has_ids());
    }
}
