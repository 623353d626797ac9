//! The embedded store as a [`Store`].

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use onlyonce_core::{
    Address, Attempt, Entry, Fence, OperationId, Record, RecordingId, State, StateName, Timestamp,
    planted::{Bug, planted},
    transition,
};
use quick_cache::{Weighter, sync::Cache};

use super::{
    EmbeddedStore, Inner,
    body::{self, RecordBody},
    books::Row,
    catalog::What,
    index::{Place, Slot, SlotState},
    layout::{self, Kind},
    log::{Need, NewEntry, NotTaken},
    open,
};
use crate::{
    AttemptNote, Mark, Page, Query, Status, Store, StoreError, Stored, Swap, Swept, Walked, Write,
    corrupt, tag,
};

/// Completed records that were asked for, with their last chunks.
pub type Hot = Cache<Address, Warm, Weight>;

/// A record in the cache. It is good as long as it lies where the index says.
#[derive(Clone)]
pub struct Warm {
    place: Place,
    record: Arc<Record>,
    last_chunk: Option<Bytes>,
}

/// Weighs cached records by their bytes.
#[derive(Clone)]
pub struct Weight;

impl Weighter<Address, Warm> for Weight {
    fn weight(&self, _: &Address, warm: &Warm) -> u64 {
        // The entry's bytes hold headers and last chunk; the rest is the structures around them.
        u64::from(warm.place.len) + 512
    }
}

pub fn hot(bytes: u64) -> Hot {
    let expected = usize::try_from(bytes / 2048).unwrap_or(usize::MAX).max(16);
    Cache::with_weighter(expected, bytes, Weight)
}

impl Store for EmbeddedStore {
    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    fn secret(&self) -> &[u8; 32] {
        &self.inner.secret
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        self.inner.load(address).await
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        self.inner.compare_and_set(address, expected, write).await
    }

    async fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        self.append_chunk(address, recording, chunk, bytes).await
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        self.read_chunk(address, recording, chunk).await
    }

    async fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        self.inner.note_attempt(address, id, note)
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        self.inner.attempts(address, id).await
    }

    async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        Ok(self.inner.find(id))
    }

    async fn list(&self, query: Query) -> Result<Page, StoreError> {
        self.inner.list(&query).await
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        let inner = &self.inner;
        loop {
            match inner.put_removal(address, fence)? {
                Ok(None) => return Ok(false),
                Ok(Some(place)) => {
                    inner.log.gate.wait(place.end()).await.map_err(in_doubt)?;
                    return Ok(true);
                }
                Err(NotTaken::Wait) => inner.log.room().await,
                Err(other) => return Err(refused(other)),
            }
        }
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        self.sweep_all().await
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        Ok(self.inner.overdue(limit).await)
    }

    async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        Ok(self.inner.mark.lock().clone())
    }

    async fn set_mark(&self, expected: Option<Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.set_mark(expected.as_ref(), to))
            .await
            .map_err(|error| StoreError::InDoubt(error.to_string()))?
    }

    async fn walk(&self, after: Option<Walked>, limit: usize) -> Result<Vec<Walked>, StoreError> {
        Ok(self.inner.walk(after, limit))
    }

    fn status(&self) -> Status {
        let log = &self.inner.log;
        Status {
            poisoned: log.gate.broken().map(|why| why.to_string()),
            records: self.inner.census.records(),
            bytes: log.segments().iter().map(|segment| segment.len()).sum(),
            ..log.commits().status()
        }
    }

    async fn close(&self) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        let closing = move || match inner.log.close() {
            true => inner.ledger.close(inner.sealer.as_ref()),
            // What is on the disk is read back at the next start, and booked then.
            false => Ok(()),
        };
        tokio::task::spawn_blocking(closing)
            .await
            .unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }
}

impl Inner {
    pub async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        loop {
            let found = self
                .index
                .shard(address)
                .slot(address)
                .map(|slot| (slot.place, slot.attempts, slot.state()));
            let Some((place, attempts, state)) = found else {
                return Ok(None);
            };
            if state == SlotState::Unreadable {
                return Err(corrupt("the record was damaged"));
            }
            match self.load_at(address, place, state).await {
                // The sweep moved it at the same moment.
                Err(StoreError::Corrupt(_)) if !self.lies_at(address, place) => {}
                Err(error) => return Err(error),
                Ok(Warm {
                    record, last_chunk, ..
                }) => {
                    return Ok(Some(Stored {
                        record,
                        attempts,
                        last_chunk,
                    }));
                }
            }
        }
    }

    /// Marks the folder, and waits for the claims that saw it without the mark.
    fn set_mark(&self, expected: Option<&Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        {
            let mut mark = self.mark.lock();
            if mark.as_ref() != expected {
                return Ok(false);
            }
            open::write_mark(&self.dir, to.as_ref())
                .map_err(|error| StoreError::InDoubt(error.to_string()))?;
            let refuses = open::refuses_claims(to.as_ref());
            self.refuses_claims.store(refuses, Ordering::Relaxed);
            *mark = to;
        }
        // A claim looks at the mark under the lock of its shard.
        self.index.shards().for_each(drop);
        Ok(true)
    }

    /// Whether the record at `address` lies at `place` still.
    fn lies_at(&self, address: Address, place: Place) -> bool {
        let shard = self.index.shard(address);
        shard.slot(address).is_some_and(|slot| slot.place == place)
    }

    async fn load_at(
        &self,
        address: Address,
        place: Place,
        state: SlotState,
    ) -> Result<Warm, StoreError> {
        if place.end() <= self.log.gate.durable()
            && let Some(warm) = self.hot.get(&address)
            && warm.place == place
        {
            return Ok(warm);
        }
        let body = RecordBody::decode(self.entry(address, place, Kind::Record).await?)?;
        let warm = Warm {
            place,
            record: Arc::new(body.record),
            last_chunk: (!body.last_chunk.is_empty()).then_some(body.last_chunk),
        };
        if state == SlotState::Readable(StateName::Completed) {
            self.hot.insert(address, warm.clone());
        }
        Ok(warm)
    }

    /// The body of the entry of `kind` at `place`, once it is durable, verified and opened.
    pub async fn entry(
        &self,
        address: Address,
        place: Place,
        kind: Kind,
    ) -> Result<Bytes, StoreError> {
        if place.end() > self.log.gate.durable() {
            self.log.nudge();
            self.log.gate.wait(place.end()).await.map_err(unavailable)?;
        }
        let segment = self
            .log
            .segment(place.segment)
            .ok_or_else(|| corrupt(format!("segment {} is gone", place.segment)))?;
        let bytes = match segment.read_cached(place) {
            Ok(Some(bytes)) => Ok(bytes),
            Err(error) => Err(error),
            Ok(None) => tokio::task::spawn_blocking(move || segment.read(place))
                .await
                .unwrap_or_else(|panic| Err(std::io::Error::other(panic))),
        };
        let bytes = bytes.map_err(unread)?;
        self.verify(address, place, kind, &bytes)
    }

    /// The opened body of the entry whose bytes are `bytes`.
    pub fn verify(
        &self,
        address: Address,
        place: Place,
        kind: Kind,
        bytes: &Bytes,
    ) -> Result<Bytes, StoreError> {
        let entry = layout::read_entry(self.log.seed(place.segment), bytes)
            .filter(|entry| entry.head.address == address && entry.head.kind == kind)
            .ok_or_else(|| corrupt("the entry's head is damaged"))?;
        if entry.body.is_none() {
            return Err(corrupt("the entry's bytes are damaged"));
        }
        body::open(
            self.sealer.as_ref(),
            &entry.head,
            bytes.slice(layout::ENTRY_HEADER..),
        )
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        let executed = self.former_executing(address, expected).await?;
        loop {
            match self.put_record(address, expected, &write, executed.as_ref())? {
                Ok(None) => return Ok(Swap::Lost),
                Ok(Some((_, attempts)))
                    if planted(Bug::ClaimNotSynced) && write.record.is_new_claim() =>
                {
                    return Ok(Swap::Done { attempts });
                }
                Ok(Some((place, attempts))) => {
                    // Who is woken reads no sooner than it is durable.
                    self.log.gate.wait(place.end()).await.map_err(in_doubt)?;
                    return Ok(Swap::Done { attempts });
                }
                Err(NotTaken::Wait) => self.log.room().await,
                Err(other) => return Err(refused(other)),
            }
        }
    }

    /// The attempt that executed once, where the record is at rest now. It is known only from the
    /// record's own entry, which the new one will replace.
    async fn former_executing(
        &self,
        address: Address,
        expected: Option<Fence>,
    ) -> Result<Option<Attempt>, StoreError> {
        let Some(fence) = expected else {
            return Ok(None);
        };
        loop {
            let place = self
                .index
                .shard(address)
                .slot(address)
                .filter(|slot| slot.fence() == fence)
                .filter(|slot| slot.state() != SlotState::Readable(StateName::InFlight))
                .map(|slot| slot.place);
            let Some(place) = place else { return Ok(None) };
            let body = self.entry(address, place, Kind::Record).await;
            match body.and_then(RecordBody::decode) {
                // The sweep moved it at the same moment.
                Err(StoreError::Corrupt(_)) if !self.lies_at(address, place) => {}
                body => return Ok(body?.executing),
            }
        }
    }

    /// Compares and puts, under the lock of the shard. `Ok(Ok(None))` where it has lost.
    #[allow(clippy::type_complexity)]
    pub fn put_record(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: &Write,
        executed: Option<&Attempt>,
    ) -> Result<Result<Option<(Place, u32)>, NotTaken>, StoreError> {
        let mut shard = self.index.shard(address);
        let now = self.clock.now();
        let held = shard.slot(address).filter(|slot| slot.counts(now));
        if held.is_some_and(|slot| slot.state() == SlotState::Unreadable) {
            return Err(corrupt("the record was damaged"));
        }
        if held.map(Slot::fence) != expected {
            return Ok(Ok(None));
        }
        transition::assert_arrow(held.and_then(Slot::standing), &write.record);
        // The index has 32 bits for it, which one write a second fills in 136 years: here, nothing is
        // forgotten, and every write raises it by one.
        if u32::try_from(write.record.epoch.number()).is_err() {
            return Err(StoreError::Unavailable(format!(
                "{} was written too often",
                write.record.id
            )));
        }
        if self.refuses_claims.load(Ordering::Relaxed)
            && write.record.is_new_claim()
            && let Some(refusal) = self.mark.lock().as_ref().and_then(Mark::refusal)
        {
            return Err(refusal);
        }
        if write.record.is_new_claim() && self.ledger.is_behind() {
            return Err(StoreError::Full(
                "too much waits to be brought into the books, which cannot be written".into(),
            ));
        }
        if let State::Completed(completed) = &write.record.state {
            let beside = completed.chunks.saturating_sub(1);
            if held.is_none_or(|slot| !slot.has_chunks(beside)) {
                return Err(corrupt("a chunk of the recording is missing"));
            }
        }
        if shard.slot(address).is_none() {
            if self.census.records() >= self.max_records {
                return Err(StoreError::Full(format!(
                    "store.max_records is {} and so many are held",
                    self.max_records
                )));
            }
            if self
                .census
                .is_at_limit(tag(&self.secret, &write.record.scope.tenant))
            {
                return Err(StoreError::OverLimit("tenant_records"));
            }
        }

        let attempts = held.map_or(0, |slot| slot.attempts) + u32::from(write.attempt.is_some());
        let in_progress = held
            .and_then(|slot| slot.beside.as_ref()?.executing.as_ref())
            .or(executed);
        let executing = match &write.attempt {
            Some(note) => Some(note.clone().numbered(attempts, write.record.claimed_at)),
            None => in_progress.cloned(),
        };
        let body = RecordBody {
            attempts,
            executing,
            record: &write.record,
            last_chunk: write.last_chunk.clone().unwrap_or_default(),
        };
        let item = body.item(&self.secret);
        let plain = body.encode();
        let (head, sealed) = body::close(self.sealer.as_ref(), Kind::Record, address, plain)?;
        let taken = self.log.put(NewEntry {
            head: &head,
            body: &sealed,
            what: What::Record(item),
            urgent: true,
            time: now.as_millis(),
            entry: Entry::of(&write.record).map(|entry| Row::of(&entry)),
            need: match write.record.is_new_claim() {
                true => Need::More,
                false => Need::Ends,
            },
        });
        let place = match taken {
            Ok(place) => place,
            Err(not_taken) => return Ok(Err(not_taken)),
        };

        let is_claim = write.attempt.is_some();
        let was_there = held.is_some();
        let mut slot = Slot::of(&item, place);
        match shard.slot_mut(address) {
            Some(former) if was_there => {
                self.release(former.place);
                slot.beside = former.beside.take();
            }
            Some(former) => former.places().for_each(|place| self.release(place)),
            None => self.census.add(item.tenant_tag),
        }
        if item.state == StateName::InFlight {
            let beside = slot.beside_mut();
            beside.executing = body.executing;
            if is_claim {
                // Of the execution before this one, only its attempt is of interest still.
                beside
                    .start_recording(item.claim)
                    .into_iter()
                    .for_each(|place| self.release(place));
            }
        } else if let Some(beside) = &mut slot.beside {
            beside.executing = None;
            if let State::Completed(completed) = &write.record.state {
                let kept = (completed.chunks as usize).saturating_sub(1);
                let rest = kept.min(beside.chunks.len());
                beside
                    .chunks
                    .drain(rest..)
                    .for_each(|place| self.release(place));
            }
            if beside.chunks.is_empty() && beside.attempts.is_empty() {
                slot.beside = None;
            }
        }
        shard.insert(address, slot, item.tenant_tag);
        if is_claim && let Some(former) = executed {
            self.put_attempt(&mut shard, address, write.record.id, former);
        }
        Ok(Ok(Some((place, attempts))))
    }

    fn put_removal(
        &self,
        address: Address,
        fence: Fence,
    ) -> Result<Result<Option<Place>, NotTaken>, StoreError> {
        let mut shard = self.index.shard(address);
        let Some(slot) = shard.slot(address) else {
            return Ok(Ok(None));
        };
        if slot.state() == SlotState::Unreadable {
            return Err(corrupt("the record was damaged"));
        }
        if slot.fence() != fence {
            return Ok(Ok(None));
        }
        let (head, body) = body::close(
            self.sealer.as_ref(),
            Kind::Removal,
            address,
            fence.id.as_bytes()[..].into(),
        )?;
        let taken = self.log.put(NewEntry {
            head: &head,
            body: &body,
            what: What::Removal,
            urgent: true,
            time: 0,
            entry: None,
            need: Need::Ends,
        });
        let place = match taken {
            Ok(place) => place,
            Err(not_taken) => return Ok(Err(not_taken)),
        };
        // Nothing points at a removal: it is dead weight from the start, and stays in the log as
        // long as anything older does, since the oldest segment is always dropped first.
        self.release(place);
        if let Some((slot, tenant_tag)) = shard.remove(address) {
            self.forget(&slot, tenant_tag);
        }
        self.hot.remove(&address);
        Ok(Ok(Some(place)))
    }

    /// Counts the bytes at `place` as dead.
    pub fn release(&self, place: Place) {
        if place.len > 0
            && let Some(segment) = self.log.segment(place.segment)
        {
            segment.sub_live(place.len);
        }
    }

    /// Counts all that belongs to a slot as dead.
    pub fn forget(&self, slot: &Slot, tenant_tag: u32) {
        slot.places().for_each(|place| self.release(place));
        self.census.remove(tenant_tag);
    }
}

pub fn refused(not_taken: NotTaken) -> StoreError {
    match not_taken {
        NotTaken::Full(why) => StoreError::Full(why),
        NotTaken::TooLarge => StoreError::Full("an entry is larger than half a MiB".into()),
        NotTaken::Closed(why) => StoreError::Unavailable(why),
        NotTaken::Wait => StoreError::Unavailable("the next segment is being made".into()),
    }
}

pub fn unavailable(why: Arc<str>) -> StoreError {
    StoreError::Unavailable(why.to_string())
}

/// What could not be read. A disk that fails now says nothing of what lies there: only where the file ends too early
/// is that damage (I13).
pub fn unread(error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => corrupt(error),
        _ => StoreError::Unavailable(format!("the data folder cannot be read: {error}")),
    }
}

fn in_doubt(why: Arc<str>) -> StoreError {
    StoreError::InDoubt(why.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    /// What was completed was told to be unknown, and would have been written down so (the campaign power-cuts).
    #[test]
    fn i13_a_disk_that_fails_to_read_is_no_damage() {
        let failed = unread(Error::from_raw_os_error(
            rustix::io::Errno::IO.raw_os_error(),
        ));
        assert!(matches!(failed, StoreError::Unavailable(_)), "{failed:?}");
        let ends_early = unread(Error::from(ErrorKind::UnexpectedEof));
        assert!(
            matches!(ends_early, StoreError::Corrupt(_)),
            "{ends_early:?}"
        );
    }
}
