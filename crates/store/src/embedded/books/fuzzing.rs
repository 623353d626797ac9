//! The decoders of the books' files; see [`super::super::fuzzing`].

use bytes::{Bytes, BytesMut};
use onlyonce_core::{Entry, Posting};

use super::{
    block::{self, BlockHeader, Rows},
    cells::{Cells, take_posting},
    kept::Kept,
};
use crate::embedded::fuzzing::Block;

pub const BLOCK_BEGINS: u8 = block::BLOCK_MAGIC[0];

pub fn block(file: u32, entries: &[Entry], postings: Vec<Posting>) -> BytesMut {
    let rows = Rows {
        entries: entries.iter().collect::<Kept>(),
        postings,
    };
    let (since, until) = rows.span();
    let header = BlockHeader {
        block: 1,
        group: 1,
        entry: 1,
        entries: rows.entries.len() as u32,
        postings: rows.postings.len() as u32,
        booked: 1,
        since,
        until,
    };
    let mut out = BytesMut::new();
    // Only encryption can fail, and there is none.
    let put = block::put(&mut out, file, &header, &rows, None);
    debug_assert!(put.is_ok());
    out
}

pub fn blocks(file: u32, bytes: &Bytes) -> Vec<Block> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(block) = block::next_block(file, bytes, at) {
        let entries = block.entries(None);
        let postings = block.postings(None).ok().filter(|_| entries.is_ok());
        at = block.end;
        found.push((block.start, block.end, postings));
    }
    found
}

pub fn posting(mut bytes: Bytes) -> Option<Posting> {
    let posting = take_posting(&mut bytes).ok()?;
    bytes.is_empty().then_some(posting)
}

pub fn sums_stay(mut bytes: Bytes) -> Option<bool> {
    let cells = Cells::decode(&mut bytes).ok()?;
    let mut out = BytesMut::new();
    cells.encode(&mut out);
    let again = Cells::decode(&mut out.freeze());
    Some(again.is_ok_and(|again| again == cells))
}
