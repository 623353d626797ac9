//! Reading the log back.
//!
//! A sealed segment has a catalog, and that is all that is read of it. The last one or two have
//! none after a crash and are read themselves. What a power cut can do is tear the last batch, and
//! nobody was told of what that batch holds; any other damage is damage, and then each key is kept
//! as unknown, or, where not even the keys are known any more, the store does not open.

use std::collections::HashSet;

use bytes::Bytes;
use onlyonce_core::{
    Address,
    planted::{Bug, planted},
};

use super::{
    OpenError,
    body::{self, Described},
    books::{Kept, Row},
    catalog::{Catalog, Item, What},
    index::Place,
    layout::{self, BATCH_HEADER, FLAG_UNREADABLE, SEGMENT_HEADER, Seed, Seeds},
};
use crate::seal::Sealer;

/// What is needed to read entries.
pub struct Reading<'a> {
    pub secret: &'a [u8; 32],
    pub seeds: Seeds,
    pub sealer: Option<&'a Sealer>,
    /// Up to which batch there is nothing left for the books.
    pub settled: u64,
}

/// A segment as it was read.
#[derive(Debug, Default)]
pub struct Scanned {
    pub catalog: Catalog,
    /// Bytes from its start that hold something.
    pub used: u32,
    /// Whether something in it was damaged, other than by tearing its end.
    pub damaged: bool,
    /// What is to come into the books, by batch.
    pub kept: Vec<(u64, Kept)>,
}

impl Reading<'_> {
    /// Reads segment `segment` whose bytes are `bytes`, and whose first batch is `first_seq`.
    /// `next_seq` is the first batch of the segment after it, if there is one.
    pub fn scan(
        &self,
        segment: u32,
        bytes: &Bytes,
        first_seq: u64,
        next_seq: Option<u64>,
    ) -> Result<Scanned, OpenError> {
        let mut scanned = Scanned {
            used: SEGMENT_HEADER as u32,
            ..Scanned::default()
        };
        scanned.catalog.last_seq = first_seq - 1;
        let seed = self.seeds.of_segment(segment);
        let mut at = SEGMENT_HEADER.min(bytes.len());
        loop {
            let seq = scanned.catalog.last_seq + 1;
            let extent = Extent::of(seed, seq, bytes, at);
            let Some(batch) = self.batch(segment, seq, bytes, &extent, &mut scanned.catalog.latest)
            else {
                // Not even the keys of this batch are all known.
                if extent.is_followed || next_seq.is_some_and(|next| seq < next) {
                    return Err(OpenError::Damaged {
                        segment,
                        offset: at as u32,
                    });
                }
                return Ok(scanned);
            };
            scanned.damaged |= batch.is_damaged && (extent.is_followed || next_seq.is_some());
            scanned.catalog.items.extend(batch.items);
            if !batch.kept.is_empty() {
                scanned.kept.push((seq, batch.kept));
            }
            scanned.catalog.last_seq = seq;
            scanned.used = batch.end as u32;
            at = batch.end;
            if at >= bytes.len() || next_seq == Some(seq + 1) {
                return Ok(scanned);
            }
        }
    }

    /// Reads the batch within `extent`; `None` where there is none, or where it is not known whose
    /// records are in it.
    fn batch(
        &self,
        segment: u32,
        seq: u64,
        bytes: &Bytes,
        extent: &Extent,
        latest: &mut u64,
    ) -> Option<Batch> {
        let seed = self.seeds.of_segment(segment);
        let within = &bytes[extent.start..extent.end];
        let trailer = match extent.entries_end {
            Some(entries_end) => layout::read_trailer(seed, seq, within)
                .map(|records| (records, entries_end - extent.start, within.len())),
            None => layout::find_trailer(seed, seq, within),
        };
        let entries_end = match (&trailer, extent.entries_end) {
            (_, Some(end)) => Some(end),
            (Some((_, start, _)), None) => Some(extent.start + start),
            (None, None) => None,
        };

        let mut batch = Batch {
            items: Vec::new(),
            kept: Kept::default(),
            is_damaged: false,
            end: extent.end,
        };
        let mut at = extent.start + BATCH_HEADER;
        let stop = entries_end.unwrap_or(extent.end);
        let mut is_chained = true;
        loop {
            let rest = bytes.get(at..stop).unwrap_or_default();
            let Some(entry) = layout::read_entry(seed, rest) else {
                // A damaged head does not say where the next entry stands. Without a trailer it would
                // not be known whose records are missing, and then nothing of the batch counts.
                let next = trailer
                    .as_ref()
                    .and_then(|_| layout::find_entry(seed, rest));
                let Some(further) = next else { break };
                at += further;
                is_chained = false;
                continue;
            };
            let place = Place {
                segment,
                offset: at as u32,
                len: entry.len as u32,
            };
            let body_at = at + layout::ENTRY_HEADER;
            let whole = entry.body.map(|_| bytes.slice(body_at..at + entry.len));
            let Described {
                what,
                latest: time,
                entry: completed,
            } = self.describe(&entry.head, whole);
            if let Some(entry) = completed.filter(|_| seq > self.settled) {
                batch.kept.push(&Row::of(&entry));
            }
            batch.is_damaged |= entry.body.is_none();
            *latest = (*latest).max(time);
            batch.items.push(Item {
                address: entry.head.address,
                place,
                what,
            });
            at += entry.len;
        }

        if is_chained && entries_end == Some(at) {
            batch.is_damaged |= trailer.is_none();
            return Some(batch);
        }
        batch.is_damaged = true;
        let (records, _, end) = trailer?;
        batch.end = extent.start + end;
        let known: HashSet<Address> = batch
            .items
            .iter()
            .filter(|item| matches!(item.what, What::Record(_) | What::Unreadable))
            .map(|item| item.address)
            .collect();
        // The batch's head stands for them: what takes no room in its segment would be forgotten with it.
        let place = Place {
            segment,
            offset: extent.start as u32,
            len: BATCH_HEADER as u32,
        };
        batch.items.extend(
            records
                .into_iter()
                .filter(|address| !known.contains(address))
                .map(|address| Item {
                    address,
                    place,
                    what: What::Unreadable,
                }),
        );
        Some(batch)
    }

    fn describe(&self, head: &layout::EntryHead, body: Option<Bytes>) -> Described {
        let unreadable = match head.kind {
            // Whose chunk or attempt it was is unknown, and then it is missing when it is wanted.
            layout::Kind::Chunk | layout::Kind::Attempt | layout::Kind::Removal => What::Lost,
            layout::Kind::Record if planted(Bug::CorruptAsAbsent) => What::Lost,
            layout::Kind::Record => What::Unreadable,
        };
        let only = |what| Described {
            what,
            latest: 0,
            entry: None,
        };
        if head.flags & FLAG_UNREADABLE != 0 {
            return only(What::Unreadable);
        }
        body.and_then(|body| {
            let body = body::open(self.sealer, head, body).ok()?;
            body::describe(head, body, self.secret).ok()
        })
        .unwrap_or(only(unreadable))
    }
}

struct Batch {
    items: Vec<Item>,
    kept: Kept,
    is_damaged: bool,
    end: usize,
}

/// Where a batch lies.
struct Extent {
    start: usize,
    end: usize,
    /// Where its entries end, if its header tells.
    entries_end: Option<usize>,
    /// Whether a later batch follows: then this one was whole once.
    is_followed: bool,
}

impl Extent {
    /// The batch `seq` that should start at `start`.
    fn of(seed: Seed, seq: u64, bytes: &[u8], start: usize) -> Self {
        let stated = layout::read_batch_header(seed, &bytes[start..])
            .filter(|header| header.seq == seq && start + header.len() <= bytes.len());
        let from = stated.map_or(start + 1, |header| start + header.len());
        let rest = bytes.get(from..).unwrap_or_default();
        // The next batch stands right behind this one, unless its own header is damaged; then a
        // later one still tells that this one is not the last.
        let follower = layout::find_batch_headers(seed, rest)
            .find(|(_, header)| header.seq > seq)
            .map(|(at, header)| (from + at, header.seq));
        let end = match (stated, follower) {
            (Some(header), _) => start + header.len(),
            (None, Some((at, next))) if next == seq + 1 => at,
            (None, _) => bytes.len(),
        };
        Self {
            start,
            end,
            entries_end: stated.map(|header| start + BATCH_HEADER + header.entries_len),
            is_followed: follower.is_some(),
        }
    }
}
