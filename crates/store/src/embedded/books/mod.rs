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
//! writes what waits as one block, syncs it once, and then adds it to the sums in memory. A block says
//! up to which batch of the log everything is in the books, so that an entry is booked exactly once: at
//! a start, what the log holds behind that batch waits again. Until then its segments stay.
//!
//! Sums are what the blocks add up to, and nothing else. The snapshot spares a start from adding all of
//! them up again; it is written when what came since is as large as it.
//!
//! A write that fails may have reached the disk. So the block is written again to a new file, and that
//! one's header says that it begins with that block: what the former file holds of it does not count.

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

/// Entries that are booked at once, up to the end of a batch of the log. Each time is a sync, which those of the log
/// wait for; and whoever reads an entry unpacks what was booked with it, up to 4 MiB.
const MOST_BOOKED: usize = 16_000;
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
    rows: Rows,
    /// Up to which batch of the log everything is in the books with it.
    booked: u64,
    more: bool,
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
        let (header, spot) = self.write(&mut writer, &taken, sealer)?;
        // Until here it was tried again, whatever happened; from here on it never is.
        writer.taken = None;
        self.shelf.lock().add(&spot, &header, &taken.rows);
        let booked = Booked {
            entries: taken.rows.entries.len() as u64,
            more: taken.more,
            oldest: taken.rows.entries.span().map(|(since, _)| since),
        };
        self.backlog
            .fetch_sub(booked.entries as usize, Ordering::Relaxed);
        self.settled.fetch_max(header.booked, Ordering::AcqRel);
        if writer.unsaved > writer.snapshot.max(LEAST_UNSAVED) {
            self.save(&mut writer, sealer);
        }
        Ok(booked)
    }

    /// Whole batches that wait. Where there are none, notes that everything is booked; an empty block
    /// says so too where that `matters`.
    fn take(&self, matters: bool) -> Option<Taken> {
        let mut waiting = self.waiting.lock();
        let mut rows = Rows::default();
        let mut booked = waiting.committed;
        while let Some((seq, entries)) = waiting.batches.pop_front() {
            rows.entries.append(&entries);
            if rows.entries.len() >= MOST_BOOKED && !waiting.batches.is_empty() {
                booked = seq;
                break;
            }
        }
        let postings = std::mem::take(&mut waiting.postings).into_iter();
        rows.postings = postings
            .map(|((_, account), (at, sums))| Posting { at, account, sums })
            .collect();
        let more = !waiting.batches.is_empty();
        drop(waiting);
        if rows.is_empty() && !matters {
            self.settled.fetch_max(booked, Ordering::AcqRel);
            return None;
        }
        Some(Taken { rows, booked, more })
    }

    /// Writes a block, durable when it returns; where it stands then.
    fn write(
        &self,
        writer: &mut Writer,
        taken: &Taken,
        sealer: Option<&Sealer>,
    ) -> Result<(BlockHeader, Spot), StoreError> {
        let (since, until) = taken.rows.span();
        let header = BlockHeader {
            block: writer.next_block,
            entry: writer.next_entry,
            entries: taken.rows.entries.len() as u32,
            postings: taken.rows.postings.len() as u32,
            booked: taken.booked,
            since,
            until,
        };
        let day = Grain::Day.period(Timestamp::from_millis(until));
        let is_over = |open: &Open| {
            open.len >= LARGE_FILE || (until > 0 && open.day.is_some_and(|held| held < day))
        };
        let mut open = match writer.file.take().filter(|open| !is_over(open)) {
            Some(open) => open,
            None => self.begin_file(writer).map_err(unavailable)?,
        };
        let mut bytes = BytesMut::new();
        block::put(&mut bytes, open.number, &header, &taken.rows, sealer)?;
        let written = open.file.write_all_at(&bytes, open.len);
        if let Err(error) = written.and_then(|()| open.file.sync_data()) {
            // Nothing more goes to this file. Where it holds no block, it is made anew.
            if open.len == FILE_HEADER as u64 {
                writer.next_file = open.number;
            }
            return Err(unavailable(error));
        }
        let spot = Spot {
            file: open.number,
            offset: open.len,
            len: bytes.len() as u64,
        };
        open.len += spot.len;
        if until > 0 {
            open.day = open.day.max(Some(day));
        }
        writer.file = Some(open);
        writer.next_block += 1;
        writer.next_entry += u64::from(header.entries);
        writer.booked = header.booked;
        writer.unsaved += spot.len;
        Ok((header, spot))
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
