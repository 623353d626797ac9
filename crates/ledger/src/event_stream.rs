//! Messages of `application/vnd.amazon.eventstream`, as they pass.
//!
//! Each is a prelude (length of all, length of the headers, CRC-32 of these two), headers, a payload,
//! and the CRC-32 of all that came before it; numbers are big-endian.

use crc32fast::Hasher;

use crate::sse::Part;

const PRELUDE: usize = 12;
const CRC: usize = 4;
/// Headers of a message that are longer are not looked at.
const MAX_HEADERS: usize = 8 << 10;
/// Longer messages do not exist: the format's own limit is 24 MiB of payload.
const MAX_MESSAGE: u32 = 25 << 20;

/// What cannot be a message: a length or a checksum is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Where one reader of messages stands.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    at: At,
    /// What has to be there as a whole before it means something, as far as it came.
    held: Vec<u8>,
    crc: Hasher,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    #[default]
    Prelude,
    Headers {
        left: usize,
        is_held: bool,
        payload: usize,
    },
    Payload {
        left: usize,
    },
    Crc,
}

impl Messages {
    /// Takes the next bytes, and hands on what they hold.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        mut part: impl FnMut(Part<'_>),
    ) -> Result<(), Malformed> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = match self.at {
                At::Prelude => self.prelude(rest)?,
                At::Headers {
                    left,
                    is_held,
                    payload,
                } => {
                    let used = left.min(rest.len());
                    self.crc.update(&rest[..used]);
                    if is_held {
                        self.held.extend_from_slice(&rest[..used]);
                    }
                    self.at = At::Headers {
                        left: left - used,
                        is_held,
                        payload,
                    };
                    used
                }
                At::Payload { left } => {
                    let used = left.min(rest.len());
                    self.crc.update(&rest[..used]);
                    part(Part::Data(&rest[..used]));
                    self.at = At::Payload { left: left - used };
                    used
                }
                At::Crc => self.hold(rest, CRC),
            };
            rest = &rest[used..];
            self.step(&mut part)?;
        }
        Ok(())
    }

    /// Whether the last message is whole.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.at, At::Prelude) && self.held.is_empty()
    }

    fn hold(&mut self, bytes: &[u8], wanted: usize) -> usize {
        let used = bytes.len().min(wanted - self.held.len());
        self.held.extend_from_slice(&bytes[..used]);
        used
    }

    fn prelude(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let used = self.hold(bytes, PRELUDE);
        if self.held.len() < PRELUDE {
            return Ok(used);
        }
        let (length, headers) = (number(&self.held[0..]), number(&self.held[4..]));
        self.crc = Hasher::new();
        self.crc.update(&self.held[..8]);
        if self.crc.clone().finalize() != number(&self.held[8..]) || length > MAX_MESSAGE {
            return Err(Malformed);
        }
        self.crc.update(&self.held[8..]);
        self.held.clear();
        let (length, left) = (to_usize(length)?, to_usize(headers)?);
        let payload = length.checked_sub(PRELUDE + CRC);
        self.at = At::Headers {
            left,
            is_held: left <= MAX_HEADERS,
            payload: payload
                .and_then(|rest| rest.checked_sub(left))
                .ok_or(Malformed)?,
        };
        Ok(used)
    }

    /// Goes on where a part of the message is over, which an empty one is at once.
    fn step(&mut self, part: &mut impl FnMut(Part<'_>)) -> Result<(), Malformed> {
        if let At::Headers {
            left: 0, payload, ..
        } = self.at
        {
            if let Some(name) = event_name(&self.held) {
                part(Part::Name(name));
            }
            self.held.clear();
            self.at = At::Payload { left: payload };
        }
        if let At::Payload { left: 0 } = self.at {
            self.at = At::Crc;
        }
        if matches!(self.at, At::Crc) && self.held.len() == CRC {
            if self.crc.clone().finalize() != number(&self.held) {
                return Err(Malformed);
            }
            self.held.clear();
            self.at = At::Prelude;
            part(Part::End);
        }
        Ok(())
    }
}

/// The type of the event, out of the headers.
fn event_name(headers: &[u8]) -> Option<&str> {
    let mut rest = headers;
    while !rest.is_empty() {
        let name = take_prefixed(&mut rest, 1)?;
        let kind = *take(&mut rest, 1)?.first()?;
        let value = match kind {
            0 | 1 => take(&mut rest, 0),
            2 => take(&mut rest, 1),
            3 => take(&mut rest, 2),
            4 => take(&mut rest, 4),
            5 | 8 => take(&mut rest, 8),
            6 | 7 => take_prefixed(&mut rest, 2),
            9 => take(&mut rest, 16),
            _ => None,
        }?;
        if name == b":event-type" && kind == 7 {
            return std::str::from_utf8(value).ok();
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

/// What follows its own length, a number of `size` bytes.
fn take_prefixed<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let length = take(rest, size)?;
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    take(rest, length)
}

/// The number that stands at the start of `bytes`, which has four.
fn number(bytes: &[u8]) -> u32 {
    bytes[..4]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn to_usize(number: u32) -> Result<usize, Malformed> {
    usize::try_from(number).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &[u8], payload: &[u8]) -> Vec<u8> {
        let length = PRELUDE + headers.len() + payload.len() + CRC;
        let mut bytes = (length as u32).to_be_bytes().to_vec();
        bytes.extend((headers.len() as u32).to_be_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        bytes.extend(headers);
        bytes.extend(payload);
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        bytes
    }

    fn text_header(name: &str, value: &str) -> Vec<u8> {
        let mut bytes = vec![name.len() as u8];
        bytes.extend(name.as_bytes());
        bytes.push(7);
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(value.as_bytes());
        bytes
    }

    fn read(bytes: &[u8], size: usize) -> Result<(String, bool), Malformed> {
        let mut messages = Messages::default();
        let mut all = String::new();
        for piece in bytes.chunks(size) {
            messages.push(piece, |part| match part {
                Part::Name(name) => all.push_str(&format!("<{name}>")),
                Part::Data(data) => all.push_str(&String::from_utf8_lossy(data)),
                Part::End => all.push('|'),
            })?;
        }
        Ok((all, messages.is_whole()))
    }

    #[test]
    fn messages_are_read_however_they_are_cut() {
        let mut headers = text_header(":message-type", "event");
        headers.extend([1, b'a', 0, 1, b'b', 4, 0, 0, 0, 1, 1, b'c', 6, 0, 1, 0xff]);
        headers.extend(text_header(":event-type", "metadata"));
        let mut bytes = message(&headers, b"{\"a\":1}");
        bytes.extend(message(&[], b""));
        bytes.extend(message(&vec![0; MAX_HEADERS + 1], b"x"));
        for size in (1..100).chain([bytes.len()]) {
            assert_eq!(
                read(&bytes, size),
                Ok(("<metadata>{\"a\":1}||x|".into(), true)),
                "{size}"
            );
        }
        for end in [1, 20, 90, bytes.len() - 1] {
            assert!(!read(&bytes[..end], 7).unwrap().1, "{end}");
        }
    }

    #[test]
    fn a_wrong_byte_is_noticed() {
        let bytes = message(&text_header(":event-type", "metadata"), b"{\"a\":1}");
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(read(&wrong, 5), Err(Malformed), "byte {at}");
        }
        // Lengths that do not fit, under the right checksum.
        for (length, headers) in [(15, 0_u32), (20, 5), (u32::MAX, 0), (16, u32::MAX)] {
            let mut wrong = u32::to_be_bytes(length).to_vec();
            wrong.extend(headers.to_be_bytes());
            wrong.extend(crc32fast::hash(&wrong).to_be_bytes());
            assert_eq!(read(&wrong, 5), Err(Malformed), "{length} {headers}");
        }
    }
}
