//! The decoders of the embedded store's files, for whoever feeds them bytes that no store wrote.

use bytes::{BufMut, Bytes, BytesMut};
use onlyonce_core::{Address, Entry, Posting};

use super::{
    books::fuzzing as books,
    catalog::{Catalog, What},
    layout::{self, EntryHead, Kind, Seeds, SegmentHeader},
    recover::Reading,
};
use crate::pack;

/// The number of the segment, or of the book file, that all of these are about.
const NUMBER: u32 = 1;

/// The format of catalogs that this program writes.
pub const CATALOG_FORMAT: u32 = super::catalog::FORMAT;

/// What a block of the books begins with.
pub const BLOCK_BEGINS: u8 = books::BLOCK_BEGINS;

/// One entry of a segment.
pub struct Written {
    /// Whose record it is.
    pub address: Address,
    /// What stands in it.
    pub body: Bytes,
}

/// What a start finds in a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The addresses of the records in it, readable or not, in order.
    pub records: Vec<Address>,
    /// Bytes from its start that hold something.
    pub used: usize,
    /// Whether something in it was damaged, other than by tearing its end.
    pub is_damaged: bool,
    /// Batches.
    pub batches: u64,
}

/// A segment of these batches of records, in a folder with this secret.
pub fn segment(secret: &[u8; 32], batches: &[Vec<Written>]) -> BytesMut {
    let seed = Seeds::of(secret).of_segment(NUMBER);
    let mut out = BytesMut::from(&layout::segment_header(NUMBER, 1)[..]);
    for (seq, entries) in (1..).zip(batches) {
        let mut batch = BytesMut::new();
        layout::start_batch(&mut batch);
        for entry in entries {
            let head = EntryHead {
                kind: Kind::Record,
                flags: 0,
                address: entry.address,
            };
            layout::put_entry(&mut batch, seed, &head, &entry.body);
        }
        let records: Vec<Address> = entries.iter().map(|entry| entry.address).collect();
        layout::finish_batch(&mut batch, seed, seq, &records);
        out.extend_from_slice(&batch);
    }
    out
}

/// What a start finds in the segment `bytes` of a folder with this secret, where the one after it begins with batch
/// `next`; `None` where it says that the segment is damaged and does not open the store.
pub fn read_segment(secret: &[u8; 32], bytes: &Bytes, next: Option<u64>) -> Option<Found> {
    let SegmentHeader::Ours { first_seq } = layout::read_segment_header(NUMBER, bytes) else {
        return None;
    };
    let reading = Reading {
        secret,
        seeds: Seeds::of(secret),
        sealer: None,
        settled: 0,
    };
    let first = first_seq.clamp(1, u64::MAX / 2);
    let scanned = reading.scan(NUMBER, bytes, first, next).ok()?;
    let is_record = |what: &What| matches!(what, What::Record(_) | What::Unreadable);
    let items = scanned.catalog.items.iter();
    Some(Found {
        records: items
            .filter(|item| is_record(&item.what))
            .map(|item| item.address)
            .collect(),
        used: scanned.used as usize,
        is_damaged: scanned.damaged,
        batches: (scanned.catalog.last_seq + 1) - first,
    })
}

/// A catalog whose bytes before the checksum are `bytes`, read and written again; `None` where it is
/// none.
pub fn catalog_again(bytes: &[u8]) -> Option<BytesMut> {
    let mut whole = BytesMut::from(bytes);
    whole.put_u32(crc32fast::hash(bytes));
    Some(Catalog::decode(NUMBER, whole.freeze())?.encode(NUMBER))
}

/// A block of the books.
pub fn block(entries: &[Entry], postings: Vec<Posting>) -> BytesMut {
    books::block(NUMBER, entries, postings)
}

/// A block of the books as it was found: where it begins and ends, and what it adds to the sums.
pub type Block = (usize, usize, Option<Vec<Posting>>);

/// The blocks in `bytes`.
pub fn blocks(bytes: &Bytes) -> Vec<Block> {
    books::blocks(NUMBER, bytes)
}

/// A posting that was read from bytes.
pub fn posting(bytes: Bytes) -> Option<Posting> {
    books::posting(bytes)
}

/// Whether sums that were read from bytes are the same after they were written and read once more; `None` where they are
/// none.
pub fn sums_stay(bytes: Bytes) -> Option<bool> {
    books::sums_stay(bytes)
}

/// `plain` packed, where that saves something.
pub fn pack(plain: &[u8]) -> Option<Bytes> {
    pack::pack(plain).map(BytesMut::freeze)
}

/// What is packed in `packed`, where it is at most `most` bytes.
pub fn unpack(packed: Bytes, most: usize) -> Option<Bytes> {
    pack::unpack(packed, most).ok()
}
