//! Reading the books back.
//!
//! The snapshot says what all but the last blocks add up to; those behind it are read. What stands at
//! the end of the last file and is not whole was torn, and nobody was told of it: its entries are in the
//! log still, and so are those of what was to become durable with it and stands behind it. A block that is
//! damaged before that is lost, with an error in the log.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
};

use bytes::Bytes;
use onlyonce_core::Timestamp;

use super::{
    Kept, Ledger, Open, Writer,
    block::{self, BlockHeader, FILE_HEADER, Front},
    file_path, numbers,
    shelf::Shelf,
    sinks,
    snapshot::{self, Found},
};
use crate::{
    books::{Grain, Sinks},
    embedded::{OpenError, segment::remove_if_there},
    seal::Sealer,
};

/// The books as far as they are read.
#[derive(Default)]
struct Reading {
    shelf: Shelf,
    next: Writer,
    /// Blocks that were damaged.
    lost: u64,
}

impl Ledger {
    /// Reads the books in `dir`.
    pub fn open(dir: &Path, sealer: Option<&Sealer>) -> Result<Self, OpenError> {
        let at = |error| OpenError::Io {
            path: dir.to_owned(),
            error,
        };
        let mut reading = Reading::default();
        let mut files = numbers(dir).map_err(at)?;
        reading.start(dir, &mut files, sealer)?;
        for (index, &file) in files.iter().enumerate() {
            let bytes = fs::read(file_path(dir, file)).map_err(at)?.into();
            let next = match files.get(index + 1) {
                Some(&next) => front(dir, next)?,
                None => Front::Damaged,
            };
            let is_last = index + 1 == files.len();
            let end = reading.read(file, &bytes, next, sealer)?;
            if is_last && let Some(end) = end {
                reading.next.file = Some(reopen(dir, file, end).map_err(at)?);
            }
        }
        if reading.lost > 0 {
            let lost = reading.lost;
            tracing::error!(
                lost,
                "blocks of the books are damaged; what they held is lost"
            );
        }
        Ok(Self::of(dir, reading, sinks::open(dir, sealer)?))
    }

    fn of(dir: &Path, reading: Reading, sinks: Sinks) -> Self {
        let Reading {
            shelf, mut next, ..
        } = reading;
        if let Some(open) = &mut next.file {
            let in_it = shelf
                .groups
                .iter()
                .filter(|group| group.file == open.number);
            let until = in_it.map(|group| group.until).max().unwrap_or(0);
            open.day = (until > 0).then(|| Grain::Day.period(Timestamp::from_millis(until)));
        }
        Self {
            dir: dir.to_owned(),
            waiting: Default::default(),
            backlog: Default::default(),
            settled: next.booked.into(),
            writer: next.into(),
            shelf: shelf.into(),
            sinks: sinks.into(),
        }
    }

    /// Up to which batch of the log there is nothing left to book, where that ends with batch
    /// `last_seq`: what comes from now on has higher numbers.
    pub fn begin(&self, last_seq: u64) {
        let settled = self.settled();
        if settled > last_seq {
            tracing::error!(
                settled,
                last_seq,
                "the books know of more than the log holds; files of different moments were put together"
            );
            self.settled
                .store(last_seq, std::sync::atomic::Ordering::Release);
            self.writer.lock().booked = last_seq;
        }
        self.keep(last_seq, Kept::default());
    }
}

impl Reading {
    /// Begins with the snapshot, if there is one that fits to `files`; leaves of those what is to be
    /// read.
    fn start(
        &mut self,
        dir: &Path,
        files: &mut Vec<u32>,
        sealer: Option<&Sealer>,
    ) -> Result<(), OpenError> {
        let at = |error| OpenError::Io {
            path: dir.to_owned(),
            error,
        };
        self.next.next_file = files.last().map_or(1, |last| last + 1);
        let snapshot = match snapshot::read(dir, sealer).map_err(at)? {
            Found::Whole(snapshot) => snapshot,
            Found::None => return Ok(()),
            Found::Newer(format) => return Err(newer(format, snapshot::FORMAT)),
        };
        if let Some(last) = snapshot.shelf.groups.back() {
            let len = fs::metadata(file_path(dir, last.file)).map_or(0, |data| data.len());
            if len < last.offset + last.len {
                tracing::error!("the sums are of later books than there are, and are made again");
                return Ok(());
            }
        }
        let first = snapshot.first_file;
        // A crash came between the snapshot and their removal.
        for &dropped in files.iter().filter(|&&file| file < first) {
            remove_if_there(&file_path(dir, dropped)).map_err(at)?;
        }
        let last = snapshot
            .shelf
            .groups
            .back()
            .map_or(first, |group| group.file);
        files.retain(|&file| file >= last);
        self.shelf = snapshot.shelf;
        self.next = Writer {
            next_file: self.next.next_file.max(snapshot.next_file),
            next_block: snapshot.next_block,
            next_entry: snapshot.next_entry,
            booked: snapshot.settled,
            snapshot: snapshot.len,
            ..Writer::default()
        };
        Ok(())
    }

    /// Reads what is new in `file`, whose bytes are `bytes`; where it ends, if more may be written to
    /// it. `next` is the front of the file after it.
    fn read(
        &mut self,
        file: u32,
        bytes: &Bytes,
        next: Front,
        sealer: Option<&Sealer>,
    ) -> Result<Option<u64>, OpenError> {
        let front = block::read_front(file, bytes);
        match front {
            Front::Newer(format) => return Err(newer(format, block::FORMAT)),
            Front::Ours(header) if header.block >= self.next.next_block => {
                self.next.next_block = header.block;
                self.next.next_entry = header.entry;
                self.next.booked = self.next.booked.max(header.booked);
            }
            Front::Ours(_) => {}
            // Without its name on it, nothing more is written there.
            Front::Damaged if bytes.is_empty() => return Ok(None),
            Front::Damaged => self.lost += 1,
        }
        let before = match next {
            Front::Ours(next) => Some(next.block),
            _ => None,
        };
        let read = self.shelf.groups.back().filter(|group| group.file == file);
        let mut end = read.map_or(FILE_HEADER as u64, |group| group.offset + group.len) as usize;
        let mut at = end;
        let mut whole = Vec::new();
        while let Some(found) = block::next_block(file, bytes, at) {
            at = found.end;
            let number = found.header.block;
            let counts = number >= self.next.next_block && before.is_none_or(|end| number < end);
            if counts && found.is_whole() {
                whole.push(found);
            }
        }
        // All before it were synced, so what is missing among them was damaged since.
        let groups = whole.iter().map(|found| found.header.group);
        let durable = groups.chain(before).max().unwrap_or(0);
        for found in whole {
            let missing = found.header.block - self.next.next_block;
            if missing > 0 && self.next.next_block >= durable {
                break;
            }
            self.lost += missing;
            self.add(
                file,
                &found.header,
                found.start..found.end,
                found.postings(sealer),
            );
            end = found.end;
        }
        Ok(matches!(front, Front::Ours(_)).then_some(end as u64))
    }

    fn add(
        &mut self,
        file: u32,
        header: &BlockHeader,
        within: std::ops::Range<usize>,
        postings: Result<Vec<onlyonce_core::Posting>, crate::StoreError>,
    ) {
        let spot = super::Spot {
            file,
            offset: within.start as u64,
            len: within.len() as u64,
        };
        self.shelf.place(&spot, header);
        match postings {
            Ok(postings) => self.shelf.post(postings),
            Err(_) => self.lost += 1,
        }
        self.next.next_block = header.block + 1;
        self.next.next_entry = header.entry + u64::from(header.entries);
        self.next.booked = header.booked;
        self.next.unsaved += spot.len;
    }
}

/// Opens the last file to go on behind `end`. What is torn there is cut off, so that nothing of it is
/// ever found behind what comes next.
fn reopen(dir: &Path, number: u32, end: u64) -> io::Result<Open> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file_path(dir, number))?;
    if file.metadata()?.len() > end {
        file.set_len(end)?;
        file.sync_all()?;
    }
    Ok(Open {
        file,
        number,
        len: end,
        day: None,
    })
}

fn front(dir: &Path, file: u32) -> Result<Front, OpenError> {
    let path = file_path(dir, file);
    let read = || {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; FILE_HEADER];
        let opened = File::open(&path)?;
        let len = usize::try_from(opened.metadata()?.len()).unwrap_or(usize::MAX);
        let len = len.min(FILE_HEADER);
        opened.read_exact_at(&mut bytes[..len], 0)?;
        Ok(block::read_front(file, &bytes[..len]))
    };
    read().map_err(|error| OpenError::Io {
        path: path.clone(),
        error,
    })
}

fn newer(format: u32, known: u32) -> OpenError {
    OpenError::Newer {
        what: "the books",
        format,
        known,
    }
}
