//! Opening a data folder.
//!
//! ```text
//! LOCK              held by the one process that has the folder open
//! meta              [magic 8][format u32][sealed u8][secret][crc u32]
//! mark              what the store is marked as, in words; mostly not there
//! seg-00000001.log  the log; see `layout`
//! seg-00000001.idx  what it holds; see `catalog`
//! ```
//!
//! Beside it stand the books; see `books`.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::{
    Address, OperationId, StateName, Timestamp,
    planted::{Bug, planted},
};

use super::{
    Options,
    books::Ledger,
    catalog::{Catalog, Item, What},
    index::{Beside, Index, Slot, SlotState},
    layout::{self, FORMAT, SEGMENT_HEADER, Seeds, SegmentHeader},
    recover::Reading,
    segment::{self, Segment, numbers, sync_dir},
    shard::Shard,
};
use crate::{
    Mark,
    seal::{SealError, Sealer},
};

const META_MAGIC: &[u8; 8] = b"1ONCEDIR";
const META_FORMAT: u32 = 1;
const META_LABEL: &[u8] = b"onlyonce secret";

/// Why a data folder does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the data folder {0} is in use by another process; stop that one, or use another folder"
    )]
    Locked(PathBuf),
    /// It was written by a newer program.
    #[error(
        "{what} in the data folder has format {format}, and this program reads up to {known}; \
         start the newer program again, nothing was changed"
    )]
    Newer {
        /// What was read.
        what: &'static str,
        /// Its format.
        format: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// Its log was written by a program of before the first release.
    #[error(
        "the log in the data folder has format {format}, of before the first release, and this program reads \
         format {FORMAT} alone; keep the folder for the program that wrote it, or begin with an empty one, \
         in which no key is known; nothing was changed"
    )]
    Older {
        /// Its format.
        format: u32,
    },
    /// Something in it is damaged so that it is not known any more which keys were used.
    #[error(
        "segment {segment} of the log is damaged at byte {offset}, and keys that were used may be \
         lost with it; restore the data folder from a copy, nothing was changed"
    )]
    Damaged {
        /// The segment.
        segment: u32,
        /// Where.
        offset: u32,
    },
    /// The file `meta` is missing or damaged, though there are segments.
    #[error(
        "the file {0} is missing or damaged; restore the data folder from a copy, nothing was changed"
    )]
    Meta(PathBuf),
    /// The file `mark` cannot be read.
    #[error(
        "the file {0} is damaged, and it is not known whether the records moved to another store; \
         restore the data folder from a copy, nothing was changed"
    )]
    Mark(PathBuf),
    /// It is encrypted, and not with the keys that are configured.
    #[error(
        "the data folder is encrypted and does not open: {0}; configure the key in store.encryption"
    )]
    Key(#[from] SealError),
    /// The file system refused.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// What was found in a data folder.
pub struct Opened {
    pub lock: File,
    pub secret: [u8; 32],
    pub seeds: Seeds,
    pub mark: Option<Mark>,
    pub sealer: Option<Sealer>,
    pub index: Index,
    pub segments: BTreeMap<u32, Arc<Segment>>,
    pub last_seq: u64,
    /// The latest time that anything stored speaks of.
    pub latest: Timestamp,
    /// The completed records whose recordings are not all there.
    pub broken: Vec<Address>,
    pub ledger: Ledger,
}

/// Opens `dir`, making it where it is not there.
pub fn open(dir: &Path, options: &Options) -> Result<Opened, OpenError> {
    let at = |error| OpenError::Io {
        path: dir.to_owned(),
        error,
    };
    make_dir(dir).map_err(at)?;
    let lock = lock(dir)?;
    let sealer = options.encryption.as_ref().map(Sealer::new).transpose()?;
    let numbers = numbers(dir).map_err(at)?;
    let secret = secret(dir, sealer.as_ref(), numbers.is_empty())?;
    let ledger = Ledger::open(dir, sealer.as_ref())?;

    let mut opened = Opened {
        lock,
        secret,
        seeds: Seeds::of(&secret),
        mark: read_mark(dir)?,
        sealer,
        index: Index::new(),
        segments: BTreeMap::new(),
        last_seq: 0,
        latest: Timestamp::default(),
        broken: Vec::new(),
        ledger,
    };
    opened.read_segments(dir, &numbers)?;
    if opened.segments.is_empty() {
        // All has expired. What comes next must not take the numbers of what is in the books.
        opened.last_seq = opened.ledger.settled();
    }
    opened.ledger.begin(opened.last_seq);
    Ok(opened)
}

/// Makes a store in the data folder `dir` with the secret `secret`, marked as `mark`. Says whether it did:
/// where there is a store already, nothing is changed.
///
/// # Errors
///
/// See [`OpenError`].
pub fn make(
    dir: &Path,
    options: &Options,
    secret: &[u8; 32],
    mark: &Mark,
) -> Result<bool, OpenError> {
    let at = |error| OpenError::Io {
        path: dir.to_owned(),
        error,
    };
    make_dir(dir).map_err(at)?;
    let _lock = lock(dir)?;
    if dir.join("meta").exists() || !numbers(dir).map_err(at)?.is_empty() {
        return Ok(false);
    }
    let sealer = options.encryption.as_ref().map(Sealer::new).transpose()?;
    // First: there is no moment at which it is a store like any other.
    write_mark(dir, Some(mark))?;
    write_meta(dir, secret, sealer.as_ref())?;
    Ok(true)
}

impl Opened {
    fn read_segments(&mut self, dir: &Path, numbers: &[u32]) -> Result<(), OpenError> {
        let mut found = Vec::new();
        for &number in numbers {
            let at = |error| OpenError::Io {
                path: dir.to_owned(),
                error,
            };
            let segment = Segment::open(dir, number).map_err(at)?;
            match read_header(&segment).map_err(at)? {
                SegmentHeader::Newer(format) => {
                    let (what, known) = ("the log", FORMAT);
                    return Err(OpenError::Newer {
                        what,
                        format,
                        known,
                    });
                }
                SegmentHeader::Older(format) => return Err(OpenError::Older { format }),
                SegmentHeader::Ours { first_seq } => found.push((segment, Some(first_seq))),
                SegmentHeader::Damaged => found.push((segment, None)),
                // Prepared by a process that died before it used it. If its first batch was torn
                // so that only the header is missing, it is not blank all through.
                SegmentHeader::Blank if is_blank(&segment).map_err(at)? => {
                    segment.remove().map_err(at)?;
                }
                SegmentHeader::Blank => found.push((segment, None)),
            }
        }

        let mut applied = Applied::default();
        for at in 0..found.len() {
            let next_seq = found.get(at + 1).map(|(_, first_seq)| {
                // A header that is lost says nothing; that there is a segment at all says that
                // this one was finished.
                first_seq.unwrap_or(u64::MAX)
            });
            let (segment, first_seq) = &found[at];
            self.read_segment(dir, segment, *first_seq, next_seq, &mut applied)?;
        }
        for (segment, _) in found {
            self.segments.insert(segment.number, Arc::new(segment));
        }
        for mut shard in self.index.shards() {
            let completed = SlotState::Readable(StateName::Completed);
            for (address, slot) in shard
                .slots_mut()
                .filter(|(_, slot)| slot.state() == completed)
            {
                let chunks = applied.recordings.get(&address).copied().unwrap_or(0);
                if !slot.has_chunks(chunks) && !planted(Bug::TornRecordingKept) {
                    self.broken.push(address);
                } else if let Some(beside) = &mut slot.beside {
                    // The rest was recorded before somebody else's answer took its place.
                    beside.chunks.truncate(chunks as usize);
                }
            }
            shard.tighten();
        }
        for shard in self.index.shards() {
            for place in shard.iter().flat_map(|(_, slot)| slot.places()) {
                if let Some(segment) = self.segments.get(&place.segment) {
                    segment.add_live(place.len);
                }
            }
        }
        Ok(())
    }

    fn read_segment(
        &mut self,
        dir: &Path,
        segment: &Segment,
        first_seq: Option<u64>,
        next_seq: Option<u64>,
        applied: &mut Applied,
    ) -> Result<(), OpenError> {
        let number = segment.number;
        let at = |error| OpenError::Io {
            path: dir.to_owned(),
            error,
        };
        let reading = Reading {
            secret: &self.secret,
            seeds: self.seeds,
            sealer: self.sealer.as_ref(),
            settled: self.ledger.settled(),
        };
        let catalog = match Catalog::read(dir, number) {
            Some(catalog) => {
                if catalog.last_seq > reading.settled {
                    let bytes = Bytes::from(read_all(segment).map_err(at)?);
                    let first_seq = first_seq.unwrap_or(self.last_seq + 1);
                    let next_seq = Some(catalog.last_seq + 1);
                    match reading.scan(number, &bytes, first_seq, next_seq) {
                        Ok(scanned) => self.ledger.keep_all(scanned.kept),
                        Err(error) => {
                            tracing::error!(%error, "entries were lost for the books");
                        }
                    }
                }
                catalog
            }
            None => {
                let bytes = Bytes::from(read_all(segment).map_err(at)?);
                let expected = self.last_seq + 1;
                let first_seq = first_seq
                    .or((expected > 1).then_some(expected))
                    .or_else(|| {
                        let seed = reading.seeds.of_segment(number);
                        let header = layout::read_batch_header(seed, bytes.get(SEGMENT_HEADER..)?);
                        header.map(|header| header.seq)
                    })
                    .unwrap_or(1);
                let next_seq = next_seq.filter(|&next| next != u64::MAX);
                let scanned = reading.scan(number, &bytes, first_seq, next_seq)?;
                if scanned.damaged {
                    tracing::error!(segment = number, "the log is damaged; its keys are unknown");
                }
                segment
                    .used
                    .store(scanned.used, std::sync::atomic::Ordering::Release);
                // Durable before anything else is written: after that, what is torn in the
                // segment could no more be told from damage.
                scanned.catalog.write(dir, number).map_err(at)?;
                segment.trim().map_err(at)?;
                self.ledger.keep_all(scanned.kept);
                scanned.catalog
            }
        };
        if let Some(next) = next_seq.filter(|&next| next != u64::MAX)
            && next != catalog.last_seq + 1
        {
            return Err(OpenError::Damaged {
                segment: number,
                offset: segment.len() as u32,
            });
        }
        segment.finish(catalog.last_seq);
        self.last_seq = catalog.last_seq;
        self.latest = self.latest.max(Timestamp::from_millis(catalog.latest));
        for item in catalog.items {
            apply(&self.index, applied, item);
        }
        Ok(())
    }
}

/// What the index does not hold of the entries that were applied to it.
#[derive(Default)]
struct Applied {
    /// Chunks and attempts whose record was not read yet: a catalog keeps only the last record of
    /// an address, and they may stand before it.
    orphans: HashMap<(Address, OperationId), Beside>,
    /// How many chunks there should be beside a completed record, where there should be any.
    recordings: HashMap<Address, u32>,
}

/// Applies one entry of the log to the index, in the order of the log.
fn apply(index: &Index, applied: &mut Applied, item: Item) {
    let Applied {
        orphans,
        recordings,
    } = applied;
    let Item {
        address,
        place,
        what,
    } = item;
    let mut shard = index.shard(address);
    match what {
        What::Record(record) => {
            let mut slot = Slot::of(&record, place);
            slot.beside = match shard.slot_mut(address) {
                Some(held) if held.id == slot.id => held.beside.take(),
                _ => orphans.remove(&(address, slot.id)).map(Box::new),
            };
            if let Some(beside) = &mut slot.beside
                && beside.claim < slot.claim
            {
                beside.start_recording(slot.claim);
            }
            shard.insert(address, slot, record.tenant_tag);
            match record.chunks {
                0 => recordings.remove(&address),
                chunks => recordings.insert(address, chunks),
            };
        }
        What::Chunk { id, claim, number } => {
            let beside = beside(&mut shard, orphans, address, id);
            // A catalog keeps only the last record of an address, so a chunk may stand before the
            // claim that it is of.
            if beside.claim < claim {
                beside.start_recording(claim);
            }
            if beside.claim == claim {
                beside.set_chunk(number, place);
            }
        }
        What::Attempt { id, number } => {
            beside(&mut shard, orphans, address, id).add_attempt(place);
            if let Some(slot) = shard.slot_mut(address).filter(|slot| slot.id == id) {
                slot.attempts = slot.attempts.max(number);
            }
        }
        What::Removal => {
            shard.remove(address);
        }
        What::Unreadable => {
            // Whatever was written over an operation in flight or unknown, unknown is what is left of
            // it. Over anything else it was a claim, and then all is lost but that.
            let open = [StateName::InFlight, StateName::Unknown].map(SlotState::Readable);
            if shard
                .slot(address)
                .is_none_or(|slot| !open.contains(&slot.state()))
            {
                shard.insert(address, Slot::unreadable(place), 0);
            }
        }
        What::Lost => {}
    }
}

fn beside<'a>(
    shard: &'a mut Shard,
    orphans: &'a mut HashMap<(Address, OperationId), Beside>,
    address: Address,
    id: OperationId,
) -> &'a mut Beside {
    match shard.slot_mut(address) {
        Some(slot) if slot.id == id && slot.state() != SlotState::Unreadable => slot.beside_mut(),
        _ => orphans.entry((address, id)).or_default(),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    // Answers are for the owner's eyes, and the secret lets its reader guess keys.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let parent = dir.canonicalize()?.parent().map(Path::to_owned);
    parent.map_or(Ok(()), |parent| sync_dir(&parent))
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let at = |error| OpenError::Io {
        path: path.clone(),
        error,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(at(error)),
    }
}

/// Reads the secret of the folder, or draws one for a new folder.
fn secret(dir: &Path, sealer: Option<&Sealer>, is_new: bool) -> Result<[u8; 32], OpenError> {
    let path = dir.join("meta");
    let at = |error| OpenError::Io {
        path: path.clone(),
        error,
    };
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_new => {
            let mut secret = [0; 32];
            aws_lc_rs::rand::fill(&mut secret).map_err(|_| SealError::Cipher)?;
            write_meta(dir, &secret, sealer)?;
            return Ok(secret);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Meta(path));
        }
        Err(error) => return Err(at(error)),
    };
    let meta = bytes
        .split_last_chunk::<4>()
        .filter(|(covered, crc)| crc32fast::hash(covered).to_be_bytes() == **crc)
        .and_then(|(covered, _)| covered.strip_prefix(META_MAGIC))
        .filter(|rest| rest.len() > 5);
    let Some(mut rest) = meta else {
        return Err(OpenError::Meta(path));
    };
    let format = rest.get_u32();
    if format > META_FORMAT {
        let (what, known) = ("the folder", META_FORMAT);
        return Err(OpenError::Newer {
            what,
            format,
            known,
        });
    }
    let is_sealed = rest.get_u8() == 1;
    let plain = match (is_sealed, sealer) {
        (false, _) => Bytes::copy_from_slice(rest),
        (true, Some(sealer)) => sealer.open(META_LABEL, rest)?,
        (true, None) => return Err(OpenError::Key(SealError::NoKey)),
    };
    let secret = <[u8; 32]>::try_from(&plain[..]).map_err(|_| OpenError::Meta(path))?;
    // Sealed anew each time, so that it follows the active key.
    if sealer.is_some() {
        write_meta(dir, &secret, sealer)?;
    }
    Ok(secret)
}

fn write_meta(dir: &Path, secret: &[u8; 32], sealer: Option<&Sealer>) -> Result<(), OpenError> {
    let mut out = BytesMut::new();
    out.put_slice(META_MAGIC);
    out.put_u32(META_FORMAT);
    out.put_u8(sealer.is_some().into());
    match sealer {
        Some(sealer) => out.put_slice(&sealer.seal(META_LABEL, secret)?),
        None => out.put_slice(secret),
    }
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    replace(dir, "meta", &out)
}

/// Puts `bytes` in the place of the file `name`, durably and as a whole.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), OpenError> {
    segment::replace(dir, name, bytes).map_err(|error| OpenError::Io {
        path: dir.join(name),
        error,
    })
}

/// Marks the folder durably.
pub fn write_mark(dir: &Path, mark: Option<&Mark>) -> Result<(), OpenError> {
    replace(
        dir,
        "mark",
        mark.map(Mark::encode).unwrap_or_default().as_bytes(),
    )
}

pub fn refuses_claims(mark: Option<&Mark>) -> bool {
    mark.is_some_and(|mark| mark.refusal().is_some())
}

fn read_mark(dir: &Path) -> Result<Option<Mark>, OpenError> {
    let path = dir.join("mark");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::Io { path, error }),
    };
    Mark::decode(&String::from_utf8_lossy(&bytes)).map_err(|_| OpenError::Mark(path))
}

fn read_header(segment: &Segment) -> io::Result<SegmentHeader> {
    use std::os::unix::fs::FileExt;
    let mut header = [0; SEGMENT_HEADER];
    let len = SEGMENT_HEADER.min(segment.capacity as usize);
    segment.file.read_exact_at(&mut header[..len], 0)?;
    Ok(layout::read_segment_header(segment.number, &header[..len]))
}

fn read_all(segment: &Segment) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; segment.capacity as usize];
    segment.file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn is_blank(segment: &Segment) -> io::Result<bool> {
    Ok(read_all(segment)?.iter().all(|&byte| byte == 0))
}
