//! What gateways show each other of recordings that grow.
//!
//! Full chunks of a recording are in the store for everybody. The head and the newest bytes are
//! not, until the record is completed: their owner shows them, but only where another gateway
//! follows, so that an operation that nobody joins elsewhere costs nothing more. What is shown is
//! never the truth about an outcome. It may be lost, and then who follows sees the answer later.

use bytes::{Bytes, BytesMut};

/// A part of a recording, as its owner shows it to those who follow on other gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The head, packed as the engine packs it; empty while there is none. It never changes.
    pub head: Bytes,
    /// Where in the body `bytes` begin.
    pub from: u64,
    /// Bytes of the body; may be none.
    pub bytes: Bytes,
    /// Bytes of the body that lie in full chunks, which the store holds: nobody needs to be shown
    /// those any more.
    pub in_chunks: u64,
    /// The owner shows no more: the record tells how the execution ended.
    pub ended: bool,
}

/// How much of a recording was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the head was.
    pub head: bool,
    /// Bytes of the body.
    pub bytes: u64,
}

impl Shown {
    /// Whether there is something in it for those who have seen `seen`.
    pub fn is_news(&self, seen: Seen) -> bool {
        self.ended
            || (!seen.head && !self.head.is_empty())
            || self.in_chunks > seen.bytes
            || (!self.bytes.is_empty() && self.from + self.bytes.len() as u64 > seen.bytes)
    }
}

/// The bytes of a body from `from` on, as far as they lie in `frames` without a gap. Frames come with
/// where they begin, in that order; one that is not needed is not opened.
pub(crate) fn joined<F, E>(
    from: u64,
    frames: impl IntoIterator<Item = (u64, F)>,
    mut open: impl FnMut(u64, F) -> Result<Bytes, E>,
) -> Result<Bytes, E> {
    let mut bytes = BytesMut::new();
    for (start, frame) in frames {
        let Some(known) = (from + bytes.len() as u64).checked_sub(start) else {
            break;
        };
        let frame = open(start, frame)?;
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        bytes.extend_from_slice(frame.get(known..).unwrap_or_default());
    }
    Ok(bytes.freeze())
}
