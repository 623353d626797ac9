//! Entries that wait to be booked.
//!
//! They wait as the bytes that a block will hold of them, many in one buffer: they are made on the threads that
//! serve requests and booked by another one a second later, and memory that changes hands in small pieces
//! costs more than the pieces are worth.

use bytes::{Bytes, BytesMut};
use onlyonce_core::{Entry, Timestamp};

use crate::codec::{self, put_block, take_block};

/// An entry as a block holds it.
pub struct Row {
    at: Timestamp,
    bytes: BytesMut,
}

impl Row {
    pub fn of(entry: &Entry) -> Self {
        let mut bytes = BytesMut::with_capacity(256);
        codec::encode_entry(entry, &mut bytes);
        Self {
            at: entry.at,
            bytes,
        }
    }
}

/// Entries, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// `[length varint][entry]...`.
    bytes: BytesMut,
    count: u32,
    /// The first and the last time at which one of them was completed.
    span: Option<(Timestamp, Timestamp)>,
}

impl Kept {
    /// None, with room for about as much as `other` holds.
    pub fn like(other: &Self) -> Self {
        Self {
            bytes: BytesMut::with_capacity(other.bytes.len()),
            ..Self::default()
        }
    }

    pub fn push(&mut self, row: &Row) {
        put_block(&mut self.bytes, &row.bytes);
        self.count += 1;
        self.widen((row.at, row.at));
    }

    /// Adds those of `other` behind them.
    pub fn append(&mut self, other: &Self) {
        self.bytes.extend_from_slice(&other.bytes);
        self.count += other.count;
        if let Some(span) = other.span {
            self.widen(span);
        }
    }

    fn widen(&mut self, (since, until): (Timestamp, Timestamp)) {
        let (first, last) = self.span.unwrap_or((since, until));
        self.span = Some((first.min(since), last.max(until)));
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// The first and the last time at which one of them was completed.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        self.span
    }

    /// What a block holds of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Each of them.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let mut bytes = Bytes::copy_from_slice(&self.bytes);
        let next = move |_| {
            let row = take_block(&mut bytes, "row").and_then(codec::decode_entry);
            row.unwrap_or_else(|error| unreachable!("what was encoded here: {error}"))
        };
        (0..self.count).map(next)
    }
}

impl<'a> FromIterator<&'a Entry> for Kept {
    fn from_iter<T: IntoIterator<Item = &'a Entry>>(entries: T) -> Self {
        let mut kept = Self::default();
        for entry in entries {
            kept.push(&Row::of(entry));
        }
        kept
    }
}
