//! The growing recording of one live operation, as its readers share it.
//!
//! The body is cut into chunks of one size. Chunks that are full go to the store; the newest bytes
//! stay in memory, where readers that keep up find them, and a reader that falls behind reads whole
//! chunks back. What is not in the store yet is never dropped from memory.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use onlyonce_core::{
    Head, HeaderBlock,
    planted::{Bug, planted},
};

use crate::Kind;

/// More pieces than this between two chunks are copied into one: each costs a few words and may
/// keep a whole read buffer alive.
const PIECES_MAX: usize = 256;

#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    pub(crate) head: Option<(Head, Kind)>,
    pub(crate) trailers: HeaderBlock,
    /// How long the whole body will be, where the response said so.
    declared: Option<u64>,
    /// Bytes recorded so far.
    len: u64,
    /// Bytes that readers may see before the end is durable (I3).
    visible: u64,
    /// Bytes in full chunks that the store has.
    spilled: u64,
    pieces: VecDeque<Piece>,
    /// Bytes in `pieces`.
    held: usize,
    /// Pieces after `spilled`.
    unspilled_pieces: usize,
}

#[derive(Clone, Debug)]
struct Piece {
    start: u64,
    bytes: Bytes,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What a reader finds at its position.
pub(crate) enum Found {
    /// These bytes.
    Bytes(Bytes),
    /// Bytes that only the store has.
    InStore,
    /// Nothing yet that may be seen.
    Nothing,
}

impl Recording {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes in full chunks that the store has.
    pub(crate) fn in_chunks(&self) -> u64 {
        self.spilled
    }

    pub(crate) fn declared(&self) -> Option<u64> {
        self.declared
    }

    pub(crate) fn kind(&self) -> Option<Kind> {
        self.head.as_ref().map(|(_, kind)| *kind)
    }

    /// Bytes in memory.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn set_head(&mut self, head: Head, kind: Kind) {
        if let Some(len) = declared_len(&head) {
            self.declare(len);
        }
        self.head = Some((head, kind));
    }

    /// A client that was told the length takes the last byte for the end. So the piece that
    /// completes a declared length stays unseen until the record is durable (I3).
    pub(crate) fn declare(&mut self, len: u64) {
        self.declared = Some(len);
        self.visible = self.visible.min(len.saturating_sub(1));
    }

    /// Bytes that still fit into the current chunk.
    pub(crate) fn room(&self, chunk_size: usize) -> usize {
        chunk_size.saturating_sub(self.unspilled())
    }

    fn unspilled(&self) -> usize {
        usize::try_from(self.len - self.spilled).unwrap_or(usize::MAX)
    }

    /// Appends a piece that must not cross the end of the current chunk.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let before = self.len;
        self.len += bytes.len() as u64;
        self.held += bytes.len();
        self.unspilled_pieces += 1;
        self.pieces.push_back(Piece {
            start: before,
            bytes,
        });
        self.visible = match self.declared {
            Some(declared) if self.len >= declared && !planted(Bug::EndBeforeRecord) => {
                self.visible.max(before.min(declared.saturating_sub(1)))
            }
            _ => self.len,
        };
        if self.unspilled_pieces > PIECES_MAX {
            let chunk = self.current_chunk();
            self.replace_current(chunk);
        }
    }

    /// The current chunk in one block of its own, that keeps no read buffer alive. Empty where the
    /// body is.
    pub(crate) fn current_chunk(&self) -> Bytes {
        let mut chunk = BytesMut::with_capacity(self.unspilled());
        let from = self.pieces.len() - self.unspilled_pieces;
        for piece in self.pieces.range(from..) {
            chunk.put_slice(&piece.bytes);
        }
        chunk.freeze()
    }

    fn replace_current(&mut self, chunk: Bytes) {
        self.pieces
            .truncate(self.pieces.len() - self.unspilled_pieces);
        self.unspilled_pieces = usize::from(!chunk.is_empty());
        if !chunk.is_empty() {
            self.pieces.push_back(Piece {
                start: self.spilled,
                bytes: chunk,
            });
        }
    }

    /// The number of the current chunk in the store's numbering.
    pub(crate) fn current_number(&self, chunk_size: usize) -> u32 {
        u32::try_from(self.spilled / chunk_size as u64).unwrap_or(u32::MAX)
    }

    /// The store has the current chunk: its bytes may leave memory beyond `memory` bytes.
    pub(crate) fn spilled(&mut self, chunk: Bytes, memory: usize) {
        self.replace_current(chunk);
        self.spilled = self.len;
        self.unspilled_pieces = 0;
        while self.held > memory
            && let Some(piece) = self.pieces.pop_front()
        {
            self.held -= piece.bytes.len();
        }
    }

    /// Puts a whole body in place at once; it fits into one chunk.
    pub(crate) fn whole(&mut self, head: Head, body: Bytes, trailers: HeaderBlock) {
        self.head = Some((head, Kind::Executed));
        self.trailers = trailers;
        if !body.is_empty() {
            self.push(body);
        }
    }

    /// What there is at `position`; `ended` says that the end is durable and all may be seen.
    pub(crate) fn at(&self, position: u64, ended: bool) -> Found {
        let end = if ended { self.len } else { self.visible };
        if position >= end {
            return Found::Nothing;
        }
        let Some(piece) = self.piece_at(position) else {
            return Found::InStore;
        };
        let from = cut(position - piece.start);
        let to = cut(end - piece.start).min(piece.bytes.len());
        Found::Bytes(piece.bytes.slice(from..to))
    }

    fn piece_at(&self, position: u64) -> Option<&Piece> {
        if position < self.pieces.front()?.start {
            return None;
        }
        // A reader that keeps up stands at the newest piece.
        if let Some(last) = self.pieces.back()
            && position >= last.start
        {
            return Some(last);
        }
        let index = self.pieces.partition_point(|piece| piece.end() <= position);
        self.pieces.get(index)
    }
}

/// An offset inside a piece, which is never longer than memory.
fn cut(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// What the head says of the length of the body, in bytes. Of a 204 or 304 it says nothing: they
/// have none (RFC 9110, 8.6).
pub(crate) fn declared_len(head: &Head) -> Option<u64> {
    if matches!(head.status, 204 | 304) {
        return None;
    }
    head.headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(b"content-length"))
        .and_then(|(_, value)| std::str::from_utf8(value).ok()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_seen(recording: &Recording, ended: bool) -> Vec<u8> {
        let mut seen = Vec::new();
        while let Found::Bytes(bytes) = recording.at(seen.len() as u64, ended) {
            assert!(!bytes.is_empty());
            seen.extend_from_slice(&bytes);
        }
        seen
    }

    #[test]
    fn i03_the_piece_that_completes_a_declared_length_stays_unseen() {
        let mut recording = Recording::default();
        recording.declare(6);
        recording.push(Bytes::from_static(b"abc"));
        assert_eq!(all_seen(&recording, false), b"abc");
        recording.push(Bytes::from_static(b"def"));
        assert_eq!(all_seen(&recording, false), b"abc");
        assert_eq!(all_seen(&recording, true), b"abcdef");
    }

    #[test]
    fn i03_the_last_byte_stays_unseen_even_where_an_empty_piece_follows_it() {
        let mut recording = Recording::default();
        recording.push(Bytes::from_static(b"abc"));
        recording.declare(3);
        recording.push(Bytes::new());
        assert_eq!(all_seen(&recording, false), b"ab");
    }

    #[test]
    fn many_small_pieces_become_one_and_read_the_same() {
        let mut recording = Recording::default();
        let body: Vec<u8> = (0..1_000u32).map(|n| n as u8).collect();
        for byte in &body {
            recording.push(Bytes::copy_from_slice(&[*byte]));
        }
        assert!(recording.pieces.len() <= PIECES_MAX + 1);
        assert_eq!(all_seen(&recording, false), body);
        assert_eq!(recording.current_chunk(), body);
    }

    #[test]
    fn i15_spilled_bytes_leave_memory_and_the_newest_stay() {
        let mut recording = Recording::default();
        for number in 0..10u32 {
            assert_eq!(recording.current_number(4), number);
            recording.push(Bytes::from(vec![number as u8; 3]));
            recording.push(Bytes::from(vec![number as u8; 1]));
            assert_eq!(recording.room(4), 0);
            let chunk = recording.current_chunk();
            recording.spilled(chunk, 8);
            assert!(recording.held() <= 8);
        }
        assert!(matches!(recording.at(31, false), Found::InStore));
        assert!(matches!(recording.at(32, false), Found::Bytes(bytes) if bytes == vec![8; 4]));
    }

    #[test]
    fn i03_the_last_byte_stays_unseen_where_the_length_is_told_after_the_bytes() {
        let mut recording = Recording::default();
        recording.push(Bytes::from_static(b"abc"));
        recording.push(Bytes::from_static(b"def"));
        recording.declare(6);
        assert_eq!(all_seen(&recording, false), b"abcde");
        assert_eq!(all_seen(&recording, true), b"abcdef");
    }

    #[test]
    fn i15_so_many_pieces_stand_side_by_side_and_one_more_makes_them_one() {
        let mut recording = Recording::default();
        for _ in 0..PIECES_MAX {
            recording.push(Bytes::from_static(b"x"));
        }
        assert_eq!(recording.pieces.len(), PIECES_MAX);
        recording.push(Bytes::from_static(b"x"));
        assert_eq!(recording.pieces.len(), 1);
    }
}
