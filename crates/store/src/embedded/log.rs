//! The log: one queue of entries, one thread that commits them.
//!
//! Writers put entries into the batch that is being filled and wait at the [`Gate`]. The commit
//! thread takes the batch, writes it in one piece, syncs once and opens the gate for all of them; in
//! the meantime the next batch fills. So claims and completions of all operations share their syncs,
//! and the busier the store, the more share one.
//!
//! A keeper thread makes the next segment ready in advance and writes the catalogs of full ones,
//! so that neither is ever in the way of a commit.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use onlyonce_core::{
    Address,
    planted::{Bug, planted},
};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use tokio::sync::Notify;

use super::{
    books::{Kept, Ledger, Row},
    catalog::{Catalog, Item, What},
    gate::Gate,
    index::{Place, position},
    layout::{self, EntryHead, Kind, SEGMENT_HEADER, Seed, Seeds},
    segment::{Segment, sync_dir},
};
use crate::commits::Commits;

/// Attempts and chunks wait so long at most for a commit that somebody needs.
const LAZY: Duration = Duration::from_millis(100);
/// So long the commit thread looks for the next batch before it sleeps: an answer often follows its
/// claim within that time, and is spared the waking of a thread. It gives way to everybody else who
/// has something to do.
const LINGER: Duration = Duration::from_micros(100);
/// Whoever appends more than this ahead of the disk waits.
const MOST_PENDING: usize = 4 << 20;
/// A batch of so many bytes is committed though nobody waits for it yet.
const LARGE_BATCH: usize = 1 << 20;
/// The smallest segment. Each is twice as large as the one before, up to the configured size, so
/// that a store with little in it takes little space.
pub const SMALLEST_SEGMENT: u32 = 1 << 20;
/// The largest entry: any two fit into the smallest segment.
pub const MOST_ENTRY: usize = SMALLEST_SEGMENT as usize / 2 - 64;

/// The log of an open store.
pub struct Log {
    pub gate: Arc<Gate>,
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    /// Says whether all was committed.
    committer: JoinHandle<bool>,
    keeper: JoinHandle<()>,
}

/// Why an entry was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The next segment is not ready yet; it is being made.
    Wait,
    /// The next segment cannot be made: disk or limit full.
    Full(String),
    /// The log takes nothing more: closed, or poisoned.
    Closed(String),
    /// Larger than any segment.
    TooLarge,
}

struct Shared {
    dir: PathBuf,
    seeds: Seeds,
    gate: Arc<Gate>,
    pending: Mutex<Pending>,
    work: Condvar,
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    room: Notify,
    keeper: mpsc::Sender<Chore>,
    commits: Commits,
    largest_segment: u32,
    max_bytes: u64,
    latest: AtomicU64,
    ledger: Arc<Ledger>,
}

struct Pending {
    batch: Batch,
    /// Batches that are full, oldest first.
    full: VecDeque<Batch>,
    next_seq: u64,
    /// Bytes in `full` and in the batch that is being written.
    bytes_ahead: usize,
    /// Whether somebody waits for what `batch` holds.
    urgent: bool,
    /// Whether the commit thread sleeps.
    idle: bool,
    closing: bool,
    next: Next,
    /// What the next segment is wanted for.
    wanted: Need,
    /// What the present segment was made for, if that was beyond the limit.
    beyond: Need,
}

/// What an entry is for. Where the limit is reached, the log takes a segment more for what ends operations, so that what
/// ran is told, and one more for what gives space back: a full store is to come back by itself (L6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Whatever can be done without.
    #[default]
    More,
    /// What ends an operation, or removes it.
    Ends,
    /// What is written again, so that its segment can go.
    Moves,
}

/// The segment after the present one.
enum Next {
    Coming,
    /// It is there; beyond the limit, only for what it was made for.
    Ready(Arc<Segment>, Need),
    /// It cannot be made, but perhaps for what is needed so much at least.
    Impossible(String, Option<Need>),
}

/// Entries that are committed together.
struct Batch {
    segment: Arc<Segment>,
    offset: u32,
    seq: u64,
    bytes: BytesMut,
    /// The addresses of the records among them.
    records: Vec<Address>,
    items: Vec<Item>,
    /// What comes into the books with them.
    kept: Kept,
    since: Option<Instant>,
    /// The first batch of a segment ends the one before it.
    ends: Option<(Arc<Segment>, u64)>,
}

enum Chore {
    Prepare(u32),
    Seal(Arc<Segment>, u64),
    Stop,
}

/// What an entry is to the log.
pub struct NewEntry<'a> {
    pub head: &'a EntryHead,
    pub body: &'a [u8],
    /// What the catalog will say of it.
    pub what: What,
    /// Whether somebody will wait for it.
    pub urgent: bool,
    /// The latest time that it speaks of.
    pub time: u64,
    /// What comes into the books with it.
    pub entry: Option<Row>,
    /// What it is for.
    pub need: Need,
}

impl Log {
    /// Starts the log behind the segments that are there. `last_seq` is the last batch in them.
    pub fn start(
        dir: &Path,
        seeds: Seeds,
        segments: BTreeMap<u32, Arc<Segment>>,
        last_seq: u64,
        largest_segment: u32,
        max_bytes: u64,
        ledger: Arc<Ledger>,
    ) -> io::Result<Self> {
        let number = segments.keys().next_back().map_or(1, |last| last + 1);
        let first = Arc::new(Segment::create(dir, number, SMALLEST_SEGMENT)?);
        first.used.store(0, Ordering::Release);
        let gate = Gate::open_to(position(number, 0));
        let (keeper, chores) = mpsc::channel();
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            seeds,
            gate: gate.clone(),
            pending: Mutex::new(Pending {
                batch: first_batch(first.clone(), last_seq + 1, None),
                full: VecDeque::new(),
                next_seq: last_seq + 2,
                bytes_ahead: 0,
                urgent: false,
                idle: false,
                closing: false,
                next: Next::Coming,
                wanted: Need::More,
                beyond: Need::More,
            }),
            work: Condvar::new(),
            segments: RwLock::new(segments),
            room: Notify::new(),
            keeper,
            commits: Commits::default(),
            largest_segment,
            max_bytes,
            latest: AtomicU64::new(0),
            ledger,
        });
        shared.segments.write().insert(number, first);
        shared.ask_for_next(number + 1);
        let committer = shared.clone();
        let housekeeper = shared.clone();
        let threads = Threads {
            committer: std::thread::Builder::new()
                .name("onlyonce-commit".into())
                .spawn(move || committer.commit_all())?,
            keeper: std::thread::Builder::new()
                .name("onlyonce-keeper".into())
                .spawn(move || housekeeper.keep(&chores))?,
        };
        Ok(Self {
            gate,
            shared,
            threads: Mutex::new(Some(threads)),
        })
    }

    /// Takes an entry, in order; it is durable once the gate is open up to the end of its place.
    pub fn put(&self, entry: NewEntry<'_>) -> Result<Place, NotTaken> {
        self.shared.put(entry)
    }

    /// Waits until there may be room after [`NotTaken::Wait`].
    pub async fn room(&self) {
        let room = self.shared.room.notified();
        if matches!(self.shared.pending.lock().next, Next::Coming) {
            // A pause is no answer: the keeper always gives one, but never wait for ever.
            drop(tokio::time::timeout(Duration::from_secs(1), room).await);
        }
    }

    /// Makes the commit thread commit what there is, though nobody waits for it yet.
    pub fn nudge(&self) {
        let mut pending = self.shared.pending.lock();
        pending.urgent = true;
        if pending.idle {
            self.shared.work.notify_one();
        }
    }

    /// The position to wait for before appending more, where too much is ahead of the disk.
    pub fn backpressure(&self) -> Option<u64> {
        let pending = self.shared.pending.lock();
        let batch = &pending.batch;
        (pending.bytes_ahead + batch.bytes.len() > MOST_PENDING)
            .then(|| position(batch.segment.number, batch.offset))
    }

    /// What the checksums within segment `number` begin with.
    pub fn seed(&self, number: u32) -> Seed {
        self.shared.seeds.of_segment(number)
    }

    /// The segment with this number.
    pub fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.shared.segments.read().get(&number).cloned()
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.shared.segments.read().values().cloned().collect()
    }

    /// The last batch in the segments that are full.
    pub fn sealed_up_to(&self) -> u64 {
        let segments = self.shared.segments.read();
        let mut finished = segments.values().rev().map(|segment| segment.finished());
        finished.find_map(|last_seq| last_seq).unwrap_or(0)
    }

    /// Forgets and removes a segment; its name is gone for good when this returns.
    pub fn drop_segment(&self, segment: &Segment) -> io::Result<()> {
        self.shared.segments.write().remove(&segment.number);
        segment.remove()?;
        sync_dir(&self.shared.dir)?;
        // What was impossible for want of space may be possible now.
        let mut pending = self.shared.pending.lock();
        if matches!(pending.next, Next::Impossible(..)) {
            pending.next = Next::Coming;
            let number = pending.batch.segment.number + 1;
            drop(pending);
            self.shared.ask_for_next(number);
        }
        Ok(())
    }

    pub fn commits(&self) -> &Commits {
        &self.shared.commits
    }

    /// Commits what there is, writes the last catalog and stops; says whether all was committed. Blocks.
    pub fn close(&self) -> bool {
        let Some(threads) = self.threads.lock().take() else {
            return false;
        };
        {
            let mut pending = self.shared.pending.lock();
            pending.closing = true;
            self.shared.work.notify_one();
        }
        let all_committed = threads.committer.join().unwrap_or(false);
        if all_committed {
            let (segment, next_seq) = {
                let pending = self.shared.pending.lock();
                (pending.batch.segment.clone(), pending.batch.seq)
            };
            self.shared.send(Chore::Seal(segment, next_seq - 1));
        }
        self.shared.send(Chore::Stop);
        // The keeper does not panic; if it did, the next start reads the segments instead.
        drop(threads.keeper.join());
        all_committed
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn put(&self, entry: NewEntry<'_>) -> Result<Place, NotTaken> {
        let len = layout::ENTRY_HEADER + entry.body.len();
        if len > MOST_ENTRY {
            return Err(NotTaken::TooLarge);
        }
        let mut pending = self.pending.lock();
        if let Some(why) = self.gate.broken() {
            return Err(NotTaken::Closed(why.to_string()));
        }
        if pending.closing {
            return Err(NotTaken::Closed("the store is closed".into()));
        }
        if !pending.batch.has_room_for(len) {
            self.next_segment(&mut pending, entry.need)?;
        }
        if entry.need < pending.beyond {
            self.has_come_back(&mut pending)?;
        }
        let batch = &mut pending.batch;
        let place = Place {
            segment: batch.segment.number,
            offset: batch.offset + batch.bytes.len() as u32,
            len: len as u32,
        };
        layout::put_entry(
            &mut batch.bytes,
            self.seeds.of_segment(batch.segment.number),
            entry.head,
            entry.body,
        );
        if entry.head.kind == Kind::Record {
            batch.records.push(entry.head.address);
        }
        batch.segment.add_live(place.len);
        batch.items.push(Item {
            address: entry.head.address,
            place,
            what: entry.what,
        });
        if let Some(row) = &entry.entry {
            batch.kept.push(row);
        }
        let is_first = batch.since.is_none();
        batch.since.get_or_insert_with(Instant::now);
        let is_urgent = entry.urgent || batch.bytes.len() >= LARGE_BATCH;
        pending.urgent |= is_urgent;
        if pending.idle && (is_urgent || is_first) {
            self.work.notify_one();
        }
        drop(pending);
        self.latest.fetch_max(entry.time, Ordering::Relaxed);
        Ok(place)
    }

    /// Bytes of all segments; of one that is not full yet, as many as it may come to hold.
    fn held(&self) -> u64 {
        let bytes = |segment: &Arc<Segment>| match segment.finished() {
            Some(_) => segment.len(),
            None => segment.capacity.into(),
        };
        self.segments.read().values().map(bytes).sum()
    }

    /// Whether the log keeps its limit again, so that everybody may write into a segment that was made beyond it.
    fn has_come_back(&self, pending: &mut Pending) -> Result<(), NotTaken> {
        let held = self.held();
        if held > self.max_bytes {
            return Err(NotTaken::Full(self.is_reached(held)));
        }
        pending.beyond = Need::More;
        Ok(())
    }

    fn is_reached(&self, held: u64) -> String {
        format!(
            "store.max_bytes is {} bytes and {held} are held",
            self.max_bytes
        )
    }

    /// Moves on to the next segment, if it is ready. Any entry fits into a blank segment.
    fn next_segment(&self, pending: &mut Pending, need: Need) -> Result<(), NotTaken> {
        let number = pending.batch.segment.number + 1;
        let (segment, beyond) = match std::mem::replace(&mut pending.next, Next::Coming) {
            Next::Ready(segment, made_for) if made_for <= need => (segment, made_for),
            Next::Ready(segment, made_for) => {
                let held = self.held();
                let fits = held + u64::from(segment.capacity) <= self.max_bytes;
                if !fits {
                    pending.next = Next::Ready(segment, made_for);
                    return Err(NotTaken::Full(self.is_reached(held)));
                }
                (segment, Need::More)
            }
            Next::Coming => return Err(NotTaken::Wait),
            Next::Impossible(_, Some(least)) if need >= least => {
                pending.wanted = pending.wanted.max(need);
                self.ask_for_next(number);
                return Err(NotTaken::Wait);
            }
            Next::Impossible(why, _) => {
                // Asked again each time, so that it works as soon as there is space.
                self.ask_for_next(number);
                return Err(NotTaken::Full(why));
            }
        };
        pending.beyond = beyond;
        // An empty batch is not written: its number is still free.
        let seq = if pending.batch.is_empty() {
            pending.batch.seq
        } else {
            pending.next_seq += 1;
            pending.next_seq - 1
        };
        let ended = pending.batch.segment.clone();
        let next = first_batch(segment.clone(), seq, Some((ended, seq - 1)));
        let before = std::mem::replace(&mut pending.batch, next);
        if !before.is_empty() {
            pending.bytes_ahead += before.bytes.len();
            pending.full.push_back(before);
        }
        self.segments.write().insert(segment.number, segment);
        self.ask_for_next(number + 1);
        Ok(())
    }

    fn ask_for_next(&self, number: u32) {
        self.send(Chore::Prepare(number));
    }

    fn send(&self, chore: Chore) {
        // The keeper is gone only when the store is closed, and then nothing is wanted of it.
        drop(self.keeper.send(chore));
    }

    /// Commits until the log is closed (true) or a write fails (false).
    fn commit_all(&self) -> bool {
        // Whatever ends this thread, nobody may wait for it any longer.
        struct BreakOff<'a>(&'a Gate);
        impl Drop for BreakOff<'_> {
            fn drop(&mut self) {
                self.0.break_off("the store is closed");
            }
        }
        let _break_off = BreakOff(&self.gate);

        while let Some(mut batch) = self.next_batch() {
            let taken = Instant::now();
            if let Err(error) = self.commit(&mut batch) {
                // After a failed sync nobody knows what is on the disk, and a second sync may lie
                // about it: nothing more is written until the log is read again (I12).
                tracing::error!(
                    %error,
                    "a write to the data folder failed: it takes nothing more until it is opened again"
                );
                self.gate.break_off(&format!(
                    "a write to the data folder failed ({error}); it is not known what is on the \
                     disk until the gateway is started again"
                ));
                return false;
            }
            let since = batch.since.unwrap_or(taken);
            self.commits.note(batch.items.len() as u64, since.elapsed());

            let end = batch.offset + batch.bytes.len() as u32;
            batch.segment.used.store(end, Ordering::Release);
            batch.segment.items.lock().append(&mut batch.items);
            self.ledger.keep(batch.seq, std::mem::take(&mut batch.kept));
            self.gate.open(position(batch.segment.number, end));
            if let Some((segment, last_seq)) = batch.ends.take() {
                self.send(Chore::Seal(segment, last_seq));
            }
        }
        true
    }

    /// Waits for the next batch to commit; `None` once the log is closed and all is committed.
    fn next_batch(&self) -> Option<Batch> {
        let mut pending = self.pending.lock();
        pending.bytes_ahead = pending.full.iter().map(|batch| batch.bytes.len()).sum();
        let linger = Instant::now().checked_add(LINGER);
        loop {
            if let Some(batch) = pending.full.pop_front() {
                return Some(batch);
            }
            if !pending.batch.is_empty() {
                let due = pending
                    .batch
                    .since
                    .map_or(Duration::ZERO, |since| since.elapsed());
                if pending.urgent || pending.closing || due >= LAZY {
                    let batch = pending.take_batch();
                    pending.bytes_ahead += batch.bytes.len();
                    return Some(batch);
                }
                pending.idle = true;
                self.work.wait_for(&mut pending, LAZY.saturating_sub(due));
            } else if pending.closing {
                return None;
            } else {
                if linger.is_some_and(|until| Instant::now() < until) {
                    MutexGuard::unlocked(&mut pending, std::thread::yield_now);
                    continue;
                }
                pending.idle = true;
                self.work.wait(&mut pending);
            }
            pending.idle = false;
        }
    }

    fn commit(&self, batch: &mut Batch) -> io::Result<()> {
        let segment = &batch.segment;
        let mut at = batch.offset;
        let seed = self.seeds.of_segment(segment.number);
        layout::finish_batch(&mut batch.bytes, seed, batch.seq, &batch.records);
        if at as usize == SEGMENT_HEADER {
            // The header of a segment comes with its first batch.
            let header = layout::segment_header(segment.number, batch.seq);
            let mut first = BytesMut::with_capacity(SEGMENT_HEADER + batch.bytes.len());
            first.extend_from_slice(&header);
            first.extend_from_slice(&batch.bytes);
            at = 0;
            segment.file.write_all_at(&first, at.into())?;
        } else {
            segment.file.write_all_at(&batch.bytes, at.into())?;
        }
        match segment.file.sync_data() {
            Err(_) if planted(Bug::PoisonCleared) => Ok(()),
            synced => synced,
        }
    }

    fn keep(&self, chores: &mpsc::Receiver<Chore>) {
        while let Ok(chore) = chores.recv() {
            match chore {
                Chore::Prepare(number) => self.prepare(number),
                Chore::Seal(segment, last_seq) => self.seal(&segment, last_seq),
                Chore::Stop => break,
            }
        }
        if let Next::Ready(blank, _) = &self.pending.lock().next {
            // Never used; the next start would remove it otherwise.
            drop(blank.remove());
        }
    }

    fn prepare(&self, number: u32) {
        let (capacity, wanted) = {
            let mut pending = self.pending.lock();
            if !matches!(pending.next, Next::Coming) || pending.batch.segment.number + 1 != number {
                return;
            }
            let wanted = std::mem::take(&mut pending.wanted);
            let present = pending.batch.segment.capacity;
            // What lives in any segment fits into the largest.
            let capacity = match wanted {
                Need::Moves => self.largest_segment,
                _ => present.saturating_mul(2).min(self.largest_segment),
            };
            (capacity, wanted)
        };
        let held = self.held();
        let fits = self.max_bytes == 0 || held + u64::from(capacity) <= self.max_bytes;
        // One segment more for what ends operations, and one on top for what is moved.
        let most = match wanted {
            Need::More => 0,
            Need::Ends => self.max_bytes,
            Need::Moves => self.max_bytes + u64::from(self.largest_segment),
        };
        let next = if !fits && held > most {
            let least = match wanted {
                Need::More if held <= self.max_bytes => Some(Need::Ends),
                Need::More | Need::Ends => Some(Need::Moves),
                Need::Moves => None,
            };
            Next::Impossible(self.is_reached(held), least)
        } else {
            let made_for = if fits { Need::More } else { wanted };
            match Segment::create(&self.dir, number, capacity) {
                Ok(segment) => {
                    segment.used.store(0, Ordering::Release);
                    Next::Ready(Arc::new(segment), made_for)
                }
                Err(error) => {
                    let why = format!(
                        "the data folder has no room for the next {capacity} bytes of log: {error}"
                    );
                    Next::Impossible(why, None)
                }
            }
        };
        if let Next::Impossible(why, _) = &next {
            tracing::warn!(why, "the store is full");
        }
        self.pending.lock().next = next;
        self.room.notify_waiters();
    }

    /// Writes the catalog of a segment that is full, or the last one at the end.
    fn seal(&self, segment: &Segment, last_seq: u64) {
        let items = std::mem::take(&mut *segment.items.lock());
        if items.is_empty() && segment.len() == 0 {
            drop(segment.remove());
            return;
        }
        let latest = self.latest.load(Ordering::Relaxed);
        let catalog = Catalog {
            last_seq,
            latest,
            items,
        };
        let sealed = catalog
            .write(&self.dir, segment.number)
            .and_then(|()| segment.trim());
        if let Err(error) = sealed {
            // Not needed: the next start reads the segment itself.
            tracing::warn!(segment = segment.number, %error, "no catalog written");
        }
        segment.finish(last_seq);
    }
}

impl Pending {
    fn take_batch(&mut self) -> Batch {
        let before = &self.batch;
        let end =
            before.offset + layout::batch_len(before.entries_len(), before.records.len()) as u32;
        let mut bytes = BytesMut::with_capacity(before.bytes.len().clamp(4096, 1 << 20));
        layout::start_batch(&mut bytes);
        let next = Batch {
            segment: before.segment.clone(),
            offset: end,
            seq: self.next_seq,
            bytes,
            records: Vec::with_capacity(before.records.len()),
            items: Vec::with_capacity(before.items.len()),
            kept: Kept::like(&before.kept),
            since: None,
            ends: None,
        };
        self.next_seq += 1;
        self.urgent = false;
        std::mem::replace(&mut self.batch, next)
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn entries_len(&self) -> usize {
        self.bytes.len() - layout::BATCH_HEADER
    }

    /// Whether an entry of `len` bytes fits, be it a record or not.
    fn has_room_for(&self, len: usize) -> bool {
        let batch = layout::batch_len(self.entries_len() + len, self.records.len() + 1);
        self.offset as usize + batch <= self.segment.capacity as usize
    }
}

fn first_batch(segment: Arc<Segment>, seq: u64, ends: Option<(Arc<Segment>, u64)>) -> Batch {
    let mut bytes = BytesMut::with_capacity(4096);
    layout::start_batch(&mut bytes);
    Batch {
        segment,
        offset: SEGMENT_HEADER as u32,
        seq,
        bytes,
        records: Vec::new(),
        items: Vec::new(),
        kept: Kept::default(),
        since: None,
        ends,
    }
}
