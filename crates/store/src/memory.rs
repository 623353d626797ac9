//! A store in memory, for tests and for gateways that may forget.
//!
//! It keeps every promise of [`Store`] but durability, and fails on request: see [`Faults`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlyonce_core::{
    self as core, Address, Attempt, Fence, OperationId, OwnerId, Posting, Record, RecordingId,
    State, Timestamp, transition::check_lawful,
};
use parking_lot::Mutex;

use crate::{
    AttemptNote, Books, MAX_ATTEMPTS_KEPT, Mark, Page, Query, Seen, Shown, Status, Store,
    StoreError, Stored, Swap, Swept, Walked, Write,
    books::{
        Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, Position, SumsQuery,
    },
    clock::{Clock, SystemClock},
    commits::Commits,
};

mod books;
mod faults;
mod tails;

pub use faults::{Call, Fault, Faults, Gate};
use tails::Tails;

/// A store in memory: gone with its last handle.
pub struct MemoryStore {
    clock: Box<dyn Clock>,
    secret: [u8; 32],
    limits: Limits,
    faults: Faults,
    table: Mutex<Table>,
    tails: Tails,
}

/// What a [`MemoryStore`] held at a moment.
#[derive(Clone)]
pub struct Moment(Table);

/// How much a [`MemoryStore`] holds at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records, expired ones that were not swept yet included.
    pub records: usize,
    /// Records of one tenant.
    pub tenant_records: usize,
    /// Bytes of recordings.
    pub bytes: u64,
    /// Booked entries: over that, the oldest ones are dropped. Their sums stay.
    pub entries: usize,
}

impl Default for Limits {
    /// No limit.
    fn default() -> Self {
        Self {
            records: usize::MAX,
            tenant_records: usize::MAX,
            bytes: u64::MAX,
            entries: usize::MAX,
        }
    }
}

impl MemoryStore {
    /// An empty store on the system's clock.
    pub fn new() -> Self {
        Self::with_clock(SystemClock::new())
    }

    /// An empty store on `clock`.
    pub fn with_clock(clock: impl Clock) -> Self {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).expect("the system has random bytes");
        Self {
            clock: Box::new(clock),
            secret,
            limits: Limits::default(),
            faults: Faults::default(),
            table: Mutex::default(),
            tails: Tails::default(),
        }
    }

    /// The same store with limits; beyond them, claims and chunks are refused as
    /// [`StoreError::Full`].
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The time by which a write is judged.
    fn judges_by(&self) -> Timestamp {
        let behind = self.faults.behind().as_millis() as u64;
        Timestamp::from_millis(self.clock.now().as_millis().saturating_sub(behind))
    }

    /// What is held now.
    pub fn moment(&self) -> Moment {
        Moment(self.table.lock().clone())
    }

    /// Forgets all that was written since `moment`, as at a failover to a standby that was behind.
    pub fn forget_since(&self, moment: &Moment) {
        *self.table.lock() = moment.0.clone();
    }

    /// The handle by which tests make the store fail.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore")
            .field("records", &self.table.lock().entries.len())
            .finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        self.faults.meet(Call::Load).await?;
        self.faults.check_readable(address)?;
        Ok(self.table.lock().entries.get(&address).map(Entry::stored))
    }

    /// As the shared stores, for which it stands in tests.
    fn may_forget(&self) -> bool {
        true
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        let call = Call::WriteOf(write.record.state.name());
        let fault = self.faults.meet_write(call).await;
        if let Some(error) = fault.and_then(Fault::before_the_write) {
            return Err(error);
        }
        self.faults.check_readable(address)?;
        if fault == Some(Fault::Lost) {
            return Ok(Swap::Lost);
        }
        let swap = self.table.lock().compare_and_set(
            address,
            expected,
            write,
            self.judges_by(),
            &self.limits,
        )?;
        match fault.and_then(Fault::after_the_write) {
            Some(error) => Err(error),
            None => Ok(swap),
        }
    }

    async fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let fault = self.faults.meet_write(Call::Append).await;
        if let Some(error) = fault.and_then(Fault::before_the_write) {
            return Err(error);
        }
        self.faults.check_readable(address)?;
        self.table
            .lock()
            .append(address, recording, chunk, bytes, &self.limits)?;
        fault.and_then(Fault::after_the_write).map_or(Ok(()), Err)
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        self.faults.meet(Call::Read).await?;
        self.faults.check_readable(address)?;
        let damage = self.faults.check_chunk(address, chunk);
        self.table.lock().read(address, recording, chunk, damage)
    }

    async fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        self.faults.meet(Call::Note).await?;
        let now = self.now();
        let mut table = self.table.lock();
        table.check_open()?;
        let entry = table
            .entry_mut(address, id)
            .ok_or_else(|| StoreError::Unavailable(format!("{id} is not held")))?;
        Ok(entry.note(note, now))
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        let table = self.table.lock();
        Ok(table
            .entry(address, id)
            .map(|entry| entry.attempts.iter().cloned().collect())
            .unwrap_or_default())
    }

    async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        Ok(self.table.lock().addresses.get(&id).copied())
    }

    async fn list(&self, query: Query) -> Result<Page, StoreError> {
        let now = self.now();
        let table = self.table.lock();
        let older_than = query
            .older_than
            .unwrap_or(OperationId::from_bytes([255; 16]));
        let mut found = table
            .addresses
            .range(..older_than)
            .rev()
            .filter(|(_, address)| self.faults.check_readable(**address).is_ok())
            .filter_map(|(_, address)| table.entries.get(address))
            .filter(|entry| entry.counts(now) && query.wants(&entry.record));
        let records: Vec<Stored> = found
            .by_ref()
            .take(query.limit)
            .map(Entry::stored)
            .collect();
        let more = found.next().is_some();
        Ok(Page {
            next: records
                .last()
                .filter(|_| more)
                .map(|stored| stored.record.id),
            records,
        })
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        self.faults.check_readable(address)?;
        let mut table = self.table.lock();
        table.check_open()?;
        let held = table.entries.get(&address);
        let removes = held.is_some_and(|entry| entry.record.fence() == fence);
        if removes {
            table.drop_entry(address);
        }
        Ok(removes)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        let now = self.now();
        let mut table = self.table.lock();
        let expired: Vec<Address> = table
            .entries
            .iter()
            .filter(|(_, entry)| !entry.counts(now))
            .map(|(address, _)| *address)
            .collect();
        let before = table.bytes;
        for address in &expired {
            table.drop_entry(*address);
        }
        self.tails.retain(|address, recording| {
            let held = table.entry(address, recording.operation);
            held.is_some_and(|entry| {
                entry.record.recording() == recording
                    && matches!(entry.record.state, State::InFlight { .. })
            })
        });
        Ok(Swept {
            records: expired.len() as u64,
            bytes: before - table.bytes,
        })
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        let now = self.now();
        let table = self.table.lock();
        let passed = |entry: &Entry| matches!(entry.record.state, State::InFlight { lease_until, .. } if now >= lease_until);
        Ok(table
            .entries
            .iter()
            .filter(|(address, entry)| {
                passed(entry) && self.faults.check_readable(**address).is_ok()
            })
            .take(limit)
            .map(|(address, entry)| (*address, (*entry.record).clone()))
            .collect())
    }

    async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        let followed = self.tails.follow(address, recording, owner, seen, at_most);
        Ok(followed.await)
    }

    async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        let addresses = self.tails.followed(owner).await;
        self.faults.meet(Call::Followed).await?;
        Ok(addresses)
    }

    async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        self.tails.show(address, recording, shown);
        Ok(())
    }

    async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        Ok(self.table.lock().mark.clone())
    }

    async fn set_mark(&self, expected: Option<Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        let mut table = self.table.lock();
        let is_expected = table.mark == expected;
        if is_expected {
            table.mark = to;
        }
        Ok(is_expected)
    }

    async fn walk(&self, after: Option<Walked>, limit: usize) -> Result<Vec<Walked>, StoreError> {
        let table = self.table.lock();
        let mut walked: Vec<Walked> = table
            .addresses
            .iter()
            .map(|(&id, &address)| Walked { address, id })
            .filter(|walked| after.is_none_or(|after| *walked > after))
            .collect();
        walked.sort_unstable();
        walked.truncate(limit);
        Ok(walked)
    }

    fn status(&self) -> Status {
        let table = self.table.lock();
        Status {
            poisoned: None,
            records: table.entries.len() as u64,
            bytes: table.bytes,
            ..table.writes.status()
        }
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.table.lock().closed = true;
        Ok(())
    }
}

impl Books for MemoryStore {
    async fn book(&self) -> Result<Booked, StoreError> {
        self.faults.meet(Call::Books).await?;
        let mut table = self.table.lock();
        table.check_open()?;
        Ok(table.ledger.book(self.limits.entries))
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        let fault = self.faults.meet_write(Call::Books).await;
        if let Some(error) = fault.and_then(Fault::before_the_write) {
            return Err(error);
        }
        let mut table = self.table.lock();
        table.check_open()?;
        postings
            .iter()
            .for_each(|posting| table.ledger.post(posting));
        fault.and_then(Fault::after_the_write).map_or(Ok(()), Err)
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, core::Entry)>, StoreError> {
        self.faults.meet(Call::Books).await?;
        Ok(self.table.lock().ledger.feed(after, limit))
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        self.faults.meet(Call::Books).await?;
        Ok(self.table.lock().ledger.entries(&query))
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        self.faults.meet(Call::Books).await?;
        Ok(self.table.lock().ledger.sums(&query))
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        self.faults.meet(Call::Books).await?;
        let now = self.now();
        Ok(self.table.lock().ledger.hold(&hold, now))
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        self.faults.meet(Call::Books).await?;
        let now = self.now();
        Ok(self.table.lock().ledger.sinks.advance(step, now))
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        Ok(self.table.lock().ledger.sinks.dead(sink, after, limit))
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        Ok(self.table.lock().ledger.sinks.forget_dead(sink, ids))
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        Ok(Swept {
            records: self.table.lock().ledger.trim(before),
            bytes: 0,
        })
    }
}

#[derive(Clone, Default)]
struct Table {
    entries: HashMap<Address, Entry>,
    addresses: BTreeMap<OperationId, Address>,
    bytes: u64,
    writes: Arc<Commits>,
    mark: Option<Mark>,
    closed: bool,
    ledger: books::Ledger,
}

impl Table {
    fn compare_and_set(
        &mut self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Swap, StoreError> {
        let started = Instant::now();
        self.check_open()?;
        let counts = self
            .entries
            .get(&address)
            .filter(|entry| entry.counts(now))
            .map(|entry| Arc::clone(&entry.record));
        if counts.as_ref().map(|record| record.fence()) != expected {
            return Ok(Swap::Lost);
        }
        match check_lawful(counts.as_deref(), &write.record) {
            Ok(()) => {}
            Err(breach) if counts.is_some() => return Ok(crate::forgotten(&write.record, &breach)),
            Err(breach) => panic!("{breach}"),
        }
        if write.record.is_new_claim()
            && let Some(refusal) = self.mark.as_ref().and_then(Mark::refusal)
        {
            return Err(refusal);
        }
        crate::assert_whole(&write);
        let added = write.last_chunk.as_ref().map_or(0, |chunk| chunk.len());
        self.check_room(added, limits)?;

        if counts.is_none() {
            if !self.entries.contains_key(&address) {
                if self.entries.len() >= limits.records {
                    return Err(full("records", limits.records as u64));
                }
                let tenant = &write.record.scope.tenant;
                let held = self
                    .entries
                    .values()
                    .filter(|held| held.record.scope.tenant == *tenant);
                if limits.tenant_records < usize::MAX && held.count() >= limits.tenant_records {
                    return Err(StoreError::OverLimit("tenant_records"));
                }
            }
            self.drop_entry(address);
            self.addresses.insert(write.record.id, address);
        }
        let entry = self.entries.entry(address).or_insert_with(|| Entry {
            record: Arc::new(write.record.clone()),
            chunks: BTreeMap::new(),
            attempts: VecDeque::new(),
            attempts_made: 0,
        });
        let before = entry.bytes();
        self.ledger.keep(&write.record);
        match (&entry.record.state, &write.record.state) {
            // A new execution starts a new recording.
            (State::Released { .. } | State::Unknown { .. }, State::InFlight { .. }) => {
                entry.chunks.clear();
            }
            (_, State::Completed(completed)) => {
                entry.chunks.split_off(&completed.chunks);
                if let Some(chunk) = write.last_chunk {
                    entry.chunks.insert(completed.chunks - 1, chunk);
                }
            }
            _ => {}
        }
        entry.record = Arc::new(write.record);
        if let Some(note) = write.attempt {
            entry.note(note, now);
        }
        let attempts = entry.attempts_made;
        self.bytes = self.bytes - before + entry.bytes();
        self.writes.note(1, started.elapsed());
        Ok(Swap::Done { attempts })
    }

    fn append(
        &mut self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
        limits: &Limits,
    ) -> Result<(), StoreError> {
        self.check_open()?;
        let takes_chunks = self
            .entry(address, recording.operation)
            .is_some_and(|entry| {
                // A late answer is recorded while the outcome is unknown.
                let is_open = matches!(
                    entry.record.state,
                    State::InFlight { .. } | State::Unknown { .. }
                );
                is_open && entry.record.claim == recording.claim
            });
        if !takes_chunks {
            return Err(StoreError::Fenced);
        }
        self.check_room(bytes.len(), limits)?;
        let added = bytes.len() as u64;
        let entry = self
            .entry_mut(address, recording.operation)
            .ok_or(StoreError::Fenced)?;
        let replaced = entry.chunks.insert(chunk, bytes);
        self.bytes += added;
        self.bytes -= replaced.map_or(0, |chunk| chunk.len() as u64);
        Ok(())
    }

    fn read(
        &mut self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        damage: Result<(), StoreError>,
    ) -> Result<Bytes, StoreError> {
        let missing = || StoreError::Corrupt(format!("{recording} has no chunk {chunk}"));
        let entry = self
            .entry_mut(address, recording.operation)
            .filter(|entry| entry.record.claim == recording.claim)
            .ok_or_else(missing)?;
        let read = damage.and_then(|()| entry.chunks.get(&chunk).cloned().ok_or_else(missing));
        if let (Err(_), State::Completed(completed)) = (&read, &entry.record.state)
            && chunk < completed.chunks
        {
            entry.record = Arc::new(Record::clone(&entry.record).without_recording());
        }
        read
    }

    fn entry(&self, address: Address, id: OperationId) -> Option<&Entry> {
        self.entries
            .get(&address)
            .filter(|entry| entry.record.id == id)
    }

    fn entry_mut(&mut self, address: Address, id: OperationId) -> Option<&mut Entry> {
        self.entries
            .get_mut(&address)
            .filter(|entry| entry.record.id == id)
    }

    fn drop_entry(&mut self, address: Address) {
        if let Some(entry) = self.entries.remove(&address) {
            self.bytes -= entry.bytes();
            self.addresses.remove(&entry.record.id);
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed {
            return Err(StoreError::Unavailable("it was closed".into()));
        }
        Ok(())
    }

    fn check_room(&self, added: usize, limits: &Limits) -> Result<(), StoreError> {
        if self.bytes.saturating_add(added as u64) > limits.bytes {
            return Err(full("bytes", limits.bytes));
        }
        Ok(())
    }
}

fn full(what: &str, limit: u64) -> StoreError {
    StoreError::Full(format!("it holds its limit of {limit} {what}"))
}

#[derive(Clone)]
struct Entry {
    record: Arc<Record>,
    chunks: BTreeMap<u32, Bytes>,
    attempts: VecDeque<Attempt>,
    attempts_made: u32,
}

impl Entry {
    fn counts(&self, now: Timestamp) -> bool {
        self.record.expires_at().is_none_or(|end| now < end)
    }

    fn stored(&self) -> Stored {
        let last_chunk = match &self.record.state {
            State::Completed(completed) => completed
                .chunks
                .checked_sub(1)
                .and_then(|last| self.chunks.get(&last).cloned()),
            _ => None,
        };
        Stored {
            record: Arc::clone(&self.record),
            attempts: self.attempts_made,
            last_chunk,
        }
    }

    fn note(&mut self, note: AttemptNote, now: Timestamp) -> u32 {
        self.attempts_made += 1;
        self.attempts
            .push_back(note.numbered(self.attempts_made, now));
        if self.attempts.len() > MAX_ATTEMPTS_KEPT {
            self.attempts.pop_front();
        }
        self.attempts_made
    }

    fn bytes(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.len() as u64).sum()
    }
}
