//! What of an HTTP/1 byte stream is framed so that no two readers can disagree about it.
//!
//! hyper frames messages by the same rules, but repairs some of what it should refuse: it drops a
//! Content-Length that stands beside Transfer-Encoding, folds equal lengths into one, and takes a
//! bare line feed for the end of a line. A message that needs repair is one that somebody else may
//! read otherwise (request smuggling), so it is refused here before hyper sees it (I17).

use memchr::memchr;

/// The longest line between two chunks: a size and extensions that nobody reads.
const MAX_CHUNK_LINE: usize = 256;
/// The most bytes of trailers.
const MAX_TRAILER_BYTES: usize = 16 * 1024;
/// The most empty lines before a request line (RFC 9112 section 2.2 asks to ignore some).
const MAX_EMPTY_LINES: u8 = 4;

/// What is wrong with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They are no well-framed message.
    Malformed(&'static str),
    /// The head is larger than its limit, which is named.
    TooLarge(&'static str),
}

/// A fault, and how many of the bytes that it was found in stand before the faulty message part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is wrong.
    pub fault: Fault,
    /// How many of the bytes of this [`Scan::feed`] may be read by others.
    pub sound: usize,
}

/// Where in a message the bytes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Between messages.
    Between,
    /// Inside a head.
    Head,
    /// Inside a body.
    Body,
    /// After a switch of protocols: not looked at any more.
    Blind,
}

/// Follows the framing of one connection.
pub struct Scan {
    state: State,
    /// The start of a line whose end has not come yet.
    line: Vec<u8>,
    head: Head,
    max_head_bytes: usize,
    max_fields: usize,
}

#[derive(Clone, Copy)]
enum State {
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    /// The line end after a chunk's data; how many of its two bytes have come.
    ChunkEnd(u8),
    Trailers(usize),
    Blind,
}

#[derive(Default)]
struct Head {
    begun: bool,
    empty_lines: u8,
    bytes: usize,
    fields: usize,
    http_1_0: bool,
    hosts: u8,
    upgrade: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Scan {
    /// One for a connection. A head of more bytes than `max_head_bytes`, or of more than `max_fields`
    /// fields, is too large.
    pub fn new(max_head_bytes: usize, max_fields: usize) -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            head: Head::default(),
            max_head_bytes,
            max_fields,
        }
    }

    /// One that looks at nothing, for a protocol with other frames.
    pub fn blind() -> Self {
        Self {
            state: State::Blind,
            ..Self::new(0, 0)
        }
    }

    /// Where the bytes that came so far end.
    pub fn place(&self) -> Place {
        match self.state {
            State::Head if self.head.bytes == 0 && self.line.is_empty() => Place::Between,
            State::Head => Place::Head,
            State::Blind => Place::Blind,
            _ => Place::Body,
        }
    }

    /// Takes in the next bytes of the stream. After a fault there is nothing more to take in.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Found> {
        let mut at = 0;
        let mut sound = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let step = match self.state {
                State::Blind => return Ok(()),
                State::Body(left) => Ok(self.skip(rest, left, State::Body, State::Head)),
                State::ChunkData(left) => {
                    Ok(self.skip(rest, left, State::ChunkData, State::ChunkEnd(0)))
                }
                State::ChunkEnd(come) => self.chunk_end(rest[0], come),
                State::Head | State::ChunkSize | State::Trailers(_) => self.line(rest),
            };
            match step {
                Ok(used) => at += used,
                Err(fault) => return Err(Found { fault, sound }),
            }
            // A head counts as sound only as a whole: none of it is to reach hyper otherwise.
            if self.place() != Place::Head {
                sound = at;
            }
        }
        Ok(())
    }

    fn skip(&mut self, rest: &[u8], left: u64, same: fn(u64) -> State, next: State) -> usize {
        let used = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
        let left = left - used as u64;
        self.state = if left == 0 { next } else { same(left) };
        used
    }

    fn chunk_end(&mut self, byte: u8, come: u8) -> Result<usize, Fault> {
        self.state = match (come, byte) {
            (0, b'\r') => State::ChunkEnd(1),
            (1, b'\n') => State::ChunkSize,
            _ => return Err(Fault::Malformed("a chunk is longer than its size")),
        };
        Ok(1)
    }

    fn line(&mut self, rest: &[u8]) -> Result<usize, Fault> {
        let end = memchr(b'\n', rest);
        let used = end.map_or(rest.len(), |end| end + 1);
        self.limit(used)?;
        let Some(end) = end else {
            self.line.extend_from_slice(rest);
            return Ok(used);
        };
        if self.line.is_empty() {
            self.whole_line(&rest[..end])?;
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&rest[..end]);
            self.whole_line(&line)?;
        }
        Ok(used)
    }

    /// Refuses what grows too long, be its line whole or not.
    fn limit(&mut self, more: usize) -> Result<(), Fault> {
        match &mut self.state {
            State::Head => {
                self.head.bytes += more;
                if self.head.bytes > self.max_head_bytes {
                    return Err(Fault::TooLarge("server.max_header_bytes"));
                }
            }
            State::ChunkSize if self.line.len() + more > MAX_CHUNK_LINE => {
                return Err(Fault::Malformed("the line before a chunk is too long"));
            }
            State::Trailers(bytes) => {
                *bytes += more;
                if *bytes > MAX_TRAILER_BYTES {
                    return Err(Fault::TooLarge("16 KiB of trailers"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn whole_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let line = match memchr(b'\r', line) {
            Some(at) if at + 1 == line.len() => &line[..at],
            _ => return Err(Fault::Malformed("a line does not end in CR LF")),
        };
        match self.state {
            State::ChunkSize => self.chunk_size(line),
            State::Trailers(_) => {
                if line.is_empty() {
                    self.state = State::Head;
                    return Ok(());
                }
                field_name(line).map(drop)
            }
            _ if !self.head.begun => self.request_line(line),
            _ if line.is_empty() => self.end_of_head(),
            _ => self.field(line),
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        if line.is_empty() {
            self.head.empty_lines += 1;
            if self.head.empty_lines > MAX_EMPTY_LINES {
                return Err(Fault::Malformed("there is no request line"));
            }
            return Ok(());
        }
        self.head.begun = true;
        self.head.http_1_0 = line.ends_with(b"HTTP/1.0");
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.head.fields += 1;
        if self.head.fields > self.max_fields {
            return Err(Fault::TooLarge("server.max_headers"));
        }
        let colon = field_name(line)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.head.hosts = self.head.hosts.saturating_add(1);
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.head.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.head.length.is_some() {
                    return Err(Fault::Malformed("Content-Length was sent twice"));
                }
                self.head.length = Some(content_length(value.trim_ascii())?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let known = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                if self.head.chunked || !known {
                    return Err(Fault::Malformed("Transfer-Encoding is not chunked, once"));
                }
                self.head.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), Fault> {
        let head = std::mem::take(&mut self.head);
        if head.hosts > 1 {
            return Err(Fault::Malformed("several values of Host were sent"));
        }
        if head.hosts == 0 && !head.http_1_0 {
            return Err(Fault::Malformed("no Host was sent"));
        }
        if head.chunked && head.length.is_some() {
            return Err(Fault::Malformed(
                "both Transfer-Encoding and Content-Length were sent",
            ));
        }
        if head.chunked && head.http_1_0 {
            return Err(Fault::Malformed("HTTP/1.0 has no Transfer-Encoding"));
        }
        self.state = match head {
            _ if head.upgrade => State::Blind,
            _ if head.chunked => State::ChunkSize,
            Head {
                length: Some(length @ 1..),
                ..
            } => State::Body(length),
            _ => State::Head,
        };
        Ok(())
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<(), Fault> {
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        // Fifteen digits are more than any disk holds, and cannot overflow.
        if digits == 0 || digits > 15 {
            return Err(Fault::Malformed("a chunk's size is not a number"));
        }
        let sound = match extension.trim_ascii_start() {
            [] => extension.is_empty(),
            [b';', rest @ ..] => rest.iter().all(|b| matches!(b, b'\t' | b' '..=b'~')),
            _ => false,
        };
        if !sound {
            return Err(Fault::Malformed(
                "what follows a chunk's size is not an extension",
            ));
        }
        let size = size.iter().fold(0_u64, |size, digit| {
            let digit = char::from(*digit).to_digit(16).unwrap_or(0);
            size * 16 + u64::from(digit)
        });
        self.state = match size {
            0 => State::Trailers(0),
            size => State::ChunkData(size),
        };
        Ok(())
    }
}

/// Where the colon after a field's name stands.
fn field_name(line: &[u8]) -> Result<usize, Fault> {
    if line[0] == b' ' || line[0] == b'\t' {
        return Err(Fault::Malformed("a header is folded over two lines"));
    }
    match memchr(b':', line) {
        None | Some(0) => Err(Fault::Malformed("a header has no name and colon")),
        Some(colon) if matches!(line[colon - 1], b' ' | b'\t') => {
            Err(Fault::Malformed("a space stands before a header's colon"))
        }
        Some(colon) => Ok(colon),
    }
}

/// Digits alone (RFC 9110 section 8.6): no sign, no list, no more than 18 of them.
fn content_length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Malformed("Content-Length is not a number"));
    }
    Ok(value
        .iter()
        .fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan() -> Scan {
        Scan::new(1024, 10)
    }

    fn fault(text: &str) -> Option<Fault> {
        let whole = scan().feed(text.as_bytes()).err().map(|found| found.fault);
        let mut bytewise = scan();
        let one_by_one = text
            .as_bytes()
            .iter()
            .find_map(|byte| bytewise.feed(std::slice::from_ref(byte)).err())
            .map(|found| found.fault);
        assert_eq!(whole, one_by_one, "{text:?} read whole and byte by byte");
        whole
    }

    fn head(fields: &str) -> String {
        format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
    }

    #[test]
    fn sound_messages_pass_and_end_where_they_should() {
        for text in [
            head(""),
            head("Content-Length: 5\r\n") + "hello",
            head("Transfer-Encoding: chunked\r\n") + "5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
            "\r\n".to_owned() + &head(""),
            "GET / HTTP/1.0\r\n\r\n".to_owned(),
        ] {
            let mut scan = scan();
            assert_eq!(scan.feed(text.repeat(3).as_bytes()), Ok(()), "{text:?}");
            assert_eq!(scan.place(), Place::Between, "{text:?}");
            assert_eq!(fault(&text), None);
        }
    }

    #[test]
    fn what_two_readers_could_read_otherwise_is_refused() {
        for text in [
            head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            head("Content-Length: 5\r\nContent-Length: 5\r\n"),
            head("Content-Length: +5\r\n"),
            head("Content-Length: 5, 5\r\n"),
            head("Content-Length:\r\n"),
            head("Content-Length : 5\r\n"),
            head("Transfer-Encoding: gzip, chunked\r\n"),
            head("Transfer-Encoding: xchunked\r\n"),
            head("Host: h\r\n"),
            head(" folded\r\n"),
            head("a: b\n"),
            head("a: b\rc\r\n"),
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            head("Transfer-Encoding: chunked\r\n") + "5\nhello\r\n0\r\n\r\n",
            head("Transfer-Encoding: chunked\r\n") + "5\r\nhellooo\r\n0\r\n\r\n",
            head("Transfer-Encoding: chunked\r\n") + "fffffffffffffffff\r\n",
            head("Transfer-Encoding: chunked\r\n") + "-1\r\n",
            head("Transfer-Encoding: chunked\r\n") + "5 x\r\n",
        ] {
            assert!(
                matches!(fault(&text), Some(Fault::Malformed(_))),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_too_large_is_told_from_what_is_malformed() {
        let long = head(&format!("a: {}\r\n", "x".repeat(2000)));
        assert_eq!(
            fault(&long),
            Some(Fault::TooLarge("server.max_header_bytes"))
        );
        let many = head(&"a: b\r\n".repeat(20));
        assert_eq!(fault(&many), Some(Fault::TooLarge("server.max_headers")));
    }

    #[test]
    fn only_what_stands_before_the_faulty_head_is_sound() {
        let sound = head("Content-Length: 5\r\n") + "hello";
        let text = sound.clone() + &head("Content-Length: x\r\n");
        let found = scan().feed(text.as_bytes()).expect_err("a fault");
        assert_eq!(found.sound, sound.len());
    }

    #[test]
    fn after_a_switch_of_protocols_nothing_is_looked_at() {
        let mut scan = scan();
        let text = head("Connection: upgrade\r\nUpgrade: websocket\r\n") + "\0\0\0";
        assert_eq!(scan.feed(text.as_bytes()), Ok(()));
        assert_eq!(scan.place(), Place::Blind);
    }
}
