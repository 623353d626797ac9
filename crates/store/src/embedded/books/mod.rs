//! The books of the embedded store.
//!
//! ```text
//! book-00000001.dat  what is booked, in blocks, each appended and synced as a whole; see `block`
//! sums               the sums as of some block; see `snapshot`
//! sinks              how far the sinks are; see `sinks`
//! ```
//!
//! A record that completes an operation stands in the log, and its entry follows from it; nothing more
//! is written for it there. Once the batch is synced, its entries wait in memory. [`Ledger::book`]
//! writes what waits as a few blocks, syncs them once, and then adds them to the sums in memory. A block
//! says up to which batch of the log everything is in the books, so that an entry is booked exactly once:
//! at a start, what the log holds behind that batch waits again. Until then its segments stay.
//!
//! Sums are what the blocks add up to, and nothing else. The snapshot spares a start from adding all of
//! them up again; it is written when what came since is as large as it.
//!
//! A write that fails may have reached the disk. So its blocks are written again to a new file, and that
//! one's header says with which block it begins: what the former file holds from there on does not count.

mod block;
mod cells;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod kept;
mod open;
mod read;
mod shelf;
mod sinks;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod trim;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::BytesMut;
use onlyonce_core::{Account, Posting, Sums, Timestamp};
use parking_lot::Mutex;

pub use self::kept::{Kept, Row};
use self::{
    block::{BlockHeader, FILE_HEADER, FileHeader, Rows},
    shelf::Shelf,
};
use super::segment::{create_file, remove_if_there, sync_dir};
use crate::{
    StoreError,
    books::{Booked, Cell, Grain, Sinks, SumsQuery},
    seal::Sealer,
};

/// Entries of a block, up to the end of a batch of the log: whoever reads one unpacks its block.
const BLOCK: usize = 4_000;
/// Entries that are booked with one sync, which those of the log wait for.
const MOST_BOOKED: usize = 64_000;
/// The most entries that may wait: each takes about a quarter of a KiB. Beyond it the store takes no claim.
const MOST_WAITING: usize = 300_000;
/// A file that holds more is followed by the next one.
const LARGE_FILE: u64 = 64 << 20;
/// So many bytes are booked at least before there is another snapshot.
const LEAST_UNSAVED: u64 = 1 << 20;

/// The books of an open store.
pub struct Ledger {
    dir: PathBuf,
    waiting: Mutex<Waiting>,
    /// Entries among them.
    backlog: AtomicUsize,
    /// Held while something is written. Locked before the others.
    writer: Mutex<Writer>,
    shelf: Mutex<Shelf>,
    sinks: Mutex<Sinks>,
    /// Up to which batch of the log there is nothing left to book.
    settled: AtomicU64,
}

/// What is to be booked.
#[derive(Default)]
struct Waiting {
    /// By their batch of the log, in order.
    batches: VecDeque<(u64, Kept)>,
    /// The last batch of the log that is durable.
    committed: u64,
    /// By the hour: what is posted adds up while it waits.
    postings: BTreeMap<(Timestamp, Account), (Timestamp, Sums)>,
}

/// Where the next block goes.
#[derive(Default)]
struct Writer {
    /// The file that is appended to; `None` where the next block begins one.
    file: Option<Open>,
    /// The number of the next file, block and entry.
    next_file: u32,
    next_block: u64,
    next_entry: u64,
    /// Up to which batch of the log everything is in the files.
    booked: u64,
    /// What was taken to be written next, and is not yet.
    taken: Option<Arc<Taken>>,
    /// Bytes booked since the last snapshot, and the size of that.
    unsaved: u64,
    snapshot: u64,
}

struct Open {
    file: File,
    number: u32,
    len: u64,
    /// The day of what it holds; `None` while that is nothing.
    day: Option<Timestamp>,
}

struct Taken {
    /// Of each block its rows, and up to which batch of the log everything is in the books with it.
    blocks: Vec<(Rows, u64)>,
    more: bool,
}

impl Taken {
    /// Appends the blocks to `out`, which comes next in `open`.
    fn put(
        &self,
        out: &mut BytesMut,
        writer: &Writer,
        open: &Open,
        sealer: Option<&Sealer>,
    ) -> Result<Vec<(BlockHeader, Spot)>, StoreError> {
        let (group, mut entry) = (writer.next_block, writer.next_entry);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for ((rows, booked), block) in self.blocks.iter().zip(group..) {
            let (since, until) = rows.span();
            let header = BlockHeader {
                block,
                group,
                entry,
                entries: rows.entries.len() as u32,
                postings: rows.postings.len() as u32,
                booked: *booked,
                since,
                until,
            };
            let start = out.len() as u64;
            block::put(out, open.number, &header, rows, sealer)?;
            let spot = Spot {
                file: open.number,
                offset: open.len + start,
                len: out.len() as u64 - start,
            };
            blocks.push((header, spot));
            entry += u64::from(header.entries);
        }
        Ok(blocks)
    }

    /// The last time in it, in milliseconds; 0 where there is none.
    fn until(&self) -> u64 {
        let untils = self.blocks.iter().map(|(rows, _)| rows.span().1);
        untils.max().unwrap_or(0)
    }
}

impl Ledger {
    /// Takes the entries of a batch of the log that is durable.
    pub fn keep(&self, seq: u64, entries: Kept) {
        self.backlog.fetch_add(entries.len(), Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        waiting.committed = waiting.committed.max(seq);
        if !entries.is_empty() {
            waiting.batches.push_back((seq, entries));
        }
    }

    /// Takes what a start has found in the log.
    pub fn keep_all(&self, kept: Vec<(u64, Kept)>) {
        for (seq, entries) in kept {
            self.keep(seq, entries);
        }
    }

    /// Whether so much waits that nothing more is to be begun.
    pub fn is_behind(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) >= MOST_WAITING
    }

    /// Up to which batch of the log there is nothing left to book.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Takes what is to be added to the sums with the next block.
    pub fn post(&self, postings: Vec<Posting>) {
        let mut waiting = self.waiting.lock();
        for Posting { at, account, sums } in postings {
            let cell = (Grain::Hour.period(at), account);
            let (latest, sum) = waiting.postings.entry(cell).or_default();
            *latest = at.max(*latest);
            sum.merge(&sums);
        }
    }

    pub fn sums(&self, query: &SumsQuery) -> Vec<Cell> {
        self.shelf.lock().cells.tell(query)
    }

    /// Books what waits. `sealed` is the last batch in the segments that are full: a start would read
    /// those again as long as no block says that there is nothing left to book in them. Blocks.
    pub fn book(&self, sealer: Option<&Sealer>, sealed: u64) -> Result<Booked, StoreError> {
        let mut writer = self.writer.lock();
        if writer.taken.is_none() {
            writer.taken = self.take(writer.booked < sealed).map(Arc::new);
        }
        let Some(taken) = writer.taken.clone() else {
            return Ok(Booked::default());
        };
        let written = self.write(&mut writer, &taken, sealer)?;
        // Until here it was tried again, whatever happened; from here on it never is.
        writer.taken = None;
        let mut booked = Booked {
            more: taken.more,
            ..Booked::default()
        };
        for ((rows, _), (header, spot)) in taken.blocks.iter().zip(&written) {
            self.shelf.lock().add(spot, header, rows);
            booked.entries += rows.entries.len() as u64;
            let oldest = rows.entries.span().map(|(since, _)| since);
            booked.oldest = booked.oldest.into_iter().chain(oldest).min();
        }
        self.backlog
            .fetch_sub(booked.entries as usize, Ordering::Relaxed);
        self.settled.fetch_max(writer.booked, Ordering::AcqRel);
        if writer.unsaved > writer.snapshot.max(LEAST_UNSAVED) {
            self.save(&mut writer, sealer);
        }
        Ok(booked)
    }

    /// Whole batches that wait. Where there are none, notes that everything is booked; an empty block
    /// says so too where that `matters`.
    fn take(&self, matters: bool) -> Option<Taken> {
        let mut waiting = self.waiting.lock();
        let mut blocks = Vec::new();
        let mut rows = Rows::default();
        let mut booked = waiting.committed;
        let mut left = MOST_BOOKED;
        while let Some((seq, entries)) = waiting.batches.pop_front() {
            left = left.saturating_sub(entries.len());
            rows.entries.append(&entries);
            if waiting.batches.is_empty() {
                break;
            }
            if left == 0 {
                booked = seq;
                break;
            }
            if rows.entries.len() >= BLOCK {
                blocks.push((std::mem::take(&mut rows), seq));
            }
        }
        let more = !waiting.batches.is_empty();
        let postings = std::mem::take(&mut waiting.postings).into_iter();
        drop(waiting);
        rows.postings = postings
            .map(|((_, account), (at, sums))| Posting { at, account, sums })
            .collect();
        if rows.is_empty() && !matters {
            self.settled.fetch_max(booked, Ordering::AcqRel);
            return None;
        }
        blocks.push((rows, booked));
        Some(Taken { blocks, more })
    }

    /// Writes blocks, durable when it returns; where they stand then.
    fn write(
        &self,
        writer: &mut Writer,
        taken: &Taken,
        sealer: Option<&Sealer>,
    ) -> Result<Vec<(BlockHeader, Spot)>, StoreError> {
        let until = taken.until();
        let day = Grain::Day.period(Timestamp::from_millis(until));
        let is_over = |open: &Open| {
            open.len >= LARGE_FILE || (until > 0 && open.day.is_some_and(|held| held < day))
        };
        let mut open = match writer.file.take().filter(|open| !is_over(open)) {
            Some(open) => open,
            None => self.begin_file(writer).map_err(unavailable)?,
        };
        let mut bytes = BytesMut::new();
        let blocks = taken.put(&mut bytes, writer, &open, sealer)?;
        let written = open.file.write_all_at(&bytes, open.len);
        if let Err(error) = written.and_then(|()| open.file.sync_data()) {
            // Nothing more goes to this file. Where it holds no block, it is made anew.
            if open.len == FILE_HEADER as u64 {
                writer.next_file = open.number;
            }
            return Err(unavailable(error));
        }
        open.len += bytes.len() as u64;
        if until > 0 {
            open.day = open.day.max(Some(day));
        }
        writer.file = Some(open);
        writer.unsaved += bytes.len() as u64;
        for (header, _) in &blocks {
            writer.next_block = header.block + 1;
            writer.next_entry = header.entry + u64::from(header.entries);
            writer.booked = header.booked;
        }
        Ok(blocks)
    }

    /// Makes the next file, durable with its name.
    fn begin_file(&self, writer: &mut Writer) -> io::Result<Open> {
        let number = writer.next_file;
        let header = FileHeader {
            file: number,
            block: writer.next_block,
            entry: writer.next_entry,
            booked: writer.booked,
        };
        let path = file_path(&self.dir, number);
        remove_if_there(&path)?;
        let file = create_file(&path)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        sync_dir(&self.dir)?;
        writer.next_file += 1;
        Ok(Open {
            file,
            number,
            len: FILE_HEADER as u64,
            day: None,
        })
    }

    /// Books all that waits and writes the sums, at the end. Blocks.
    pub fn close(&self, sealer: Option<&Sealer>) -> Result<(), StoreError> {
        while self.book(sealer, 0)?.more {}
        let mut writer = self.writer.lock();
        if writer.unsaved > 0 || writer.booked < self.settled() {
            self.save(&mut writer, sealer);
        }
        Ok(())
    }

    /// Writes the sums. What fails here costs the next start some time, and nothing else.
    fn save(&self, writer: &mut Writer, sealer: Option<&Sealer>) {
        match snapshot::write(&self.dir, self.settled(), writer, &self.shelf, sealer) {
            Ok(len) => (writer.unsaved, writer.snapshot) = (0, len),
            Err(error) => tracing::warn!(%error, "the sums of the books were not written"),
        }
    }
}

/// Where a block stands.
struct Spot {
    file: u32,
    offset: u64,
    len: u64,
}

fn unavailable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("the books cannot be written: {error}"))
}

fn file_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("book-{number:08}.dat"))
}

/// The numbers of the book files in `dir`, in order.
fn numbers(dir: &Path) -> io::Result<Vec<u32>> {
    super::segment::numbered(dir, "book-", ".dat")
}
