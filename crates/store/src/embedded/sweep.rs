//! Expiry, and giving space back.
//!
//! Records leave the index when they expire. The log is dropped from its oldest end only, whole
//! segments at a time: an entry that replaces another is always younger, so nothing that was
//! replaced can come back to life. Where too much of the log is dead while something old lives on
//! (a long window among short ones, an unknown operation that nobody resolved), what lives in the
//! oldest segment is written again at the young end.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use onlyonce_core::{
    Address,
    planted::{Bug, planted},
};

use super::{
    EmbeddedStore, Inner,
    catalog::{RecordItem, What},
    index::{Place, SlotState},
    layout::{self, EntryHead, FLAG_MOVED, FLAG_UNREADABLE, Kind},
    log::{Need, NewEntry, NotTaken},
    segment::Segment,
    shard::Shard,
    store::unread,
};
use crate::{Books, StoreError, Swept};

/// How many bytes one sweep writes again, and those of one more segment at most: so it stays a small load, and
/// yet frees more than is written, however small the segments are.
const MOST_MOVED: u64 = 64 << 20;

impl EmbeddedStore {
    pub(super) async fn sweep_all(&self) -> Result<Swept, StoreError> {
        let mut swept = self.blocking(|inner| Ok(inner.expire())).await?;
        // What is not booked keeps its segment.
        while matches!(self.book().await, Ok(booked) if booked.more) {}
        swept.bytes += self.blocking(Inner::drop_dead).await?;
        let mut moved = 0;
        let mut has_waited = false;
        while moved < MOST_MOVED {
            let Some((position, bytes)) = self.blocking(|inner| Ok(inner.move_oldest())).await?
            else {
                if has_waited {
                    break;
                }
                // The next segment may be on its way.
                has_waited = true;
                self.inner.log.room().await;
                continue;
            };
            moved += bytes;
            // The copies count before the originals go.
            self.inner.log.nudge();
            let gate = &self.inner.log.gate;
            gate.wait(position)
                .await
                .map_err(|why| StoreError::Unavailable(why.to_string()))?;
            swept.bytes += self.blocking(Inner::drop_dead).await?;
        }
        Ok(swept)
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|panic| Err(StoreError::Unavailable(panic.to_string())))
    }
}

impl Inner {
    /// Takes what has expired out of the index.
    fn expire(&self) -> Swept {
        let now = self.clock.now();
        let mut swept = Swept::default();
        for mut shard in self.index.shards() {
            let expired: Vec<Address> = shard
                .iter()
                .filter(|(_, slot)| !slot.counts(now))
                .map(|(address, _)| address)
                .collect();
            for address in expired {
                if let Some((slot, tenant_tag)) = shard.remove(address) {
                    self.forget(&slot, tenant_tag);
                    self.hot.remove(&address);
                    swept.records += 1;
                }
            }
            shard.tighten();
        }
        swept
    }

    /// Drops the oldest segments as long as nothing in them counts.
    fn drop_dead(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for segment in self.log.segments() {
            if !is_droppable(&segment, self.ledger.settled()) {
                break;
            }
            bytes += segment.len();
            self.log
                .drop_segment(&segment)
                .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        }
        Ok(bytes)
    }

    /// Writes again what lives in the oldest segment, where more than half of the log is dead; the
    /// position to wait for, and how many bytes lived there.
    fn move_oldest(&self) -> Option<(u64, u64)> {
        let segments = self.log.segments();
        let oldest = segments
            .first()
            .filter(|segment| segment.sealed.load(Ordering::Acquire))?;
        let held: u64 = segments.iter().map(|segment| segment.len()).sum();
        let live: u64 = segments
            .iter()
            .map(|segment| segment.live.load(Ordering::Relaxed))
            .sum();
        let dead = held.saturating_sub(live);
        // Less than a segment is not worth the moving.
        if dead <= live || dead < u64::from(oldest.capacity) {
            return None;
        }
        let bytes = oldest.live.load(Ordering::Relaxed);
        let mut end = None;
        for address in self.addresses_in(oldest.number) {
            match self.move_slot(address, oldest) {
                Ok(moved) => end = end.max(moved),
                // The rest is for the next sweep.
                Err(_) => break,
            }
        }
        end.map(|end| (end, bytes))
    }

    fn addresses_in(&self, segment: u32) -> Vec<Address> {
        let mut addresses = Vec::new();
        for shard in self.index.shards() {
            let inside = shard
                .iter()
                .filter(|(_, slot)| slot.places().any(|place| place.segment == segment));
            addresses.extend(inside.map(|(address, _)| address));
        }
        addresses
    }

    /// Writes again the entries of a slot that lie in `segment`.
    fn move_slot(&self, address: Address, segment: &Segment) -> Result<Option<u64>, NotMoved> {
        let mut shard = self.index.shard(address);
        let mut end = None;
        if shard
            .slot(address)
            .is_some_and(|slot| slot.place.segment == segment.number)
        {
            let moved = self.move_record(&mut shard, address, segment)?;
            end = moved.map(|place| place.end());
        }
        let Some(slot) = shard.slot_mut(address) else {
            return Ok(end);
        };
        let (id, claim) = (slot.id, slot.claim);
        let mut has_lost_chunks = false;
        if let Some(beside) = slot.beside.as_deref_mut() {
            for (number, chunk) in beside.chunks.iter_mut().enumerate() {
                if chunk.len > 0 && chunk.segment == segment.number {
                    let number = number as u32;
                    let what = What::Chunk { id, claim, number };
                    match self.move_entry(address, segment, *chunk, what)? {
                        Some(moved) => {
                            *chunk = moved;
                            end = end.max(Some(moved.end()));
                        }
                        None => {
                            self.release(*chunk);
                            chunk.len = 0;
                            has_lost_chunks = true;
                        }
                    }
                }
            }
            let mut at = 0;
            while let Some(&attempt) = beside.attempts.get(at) {
                if attempt.segment == segment.number {
                    // Its number counts already: the record, which was moved before it, carries the
                    // count.
                    let what = What::Attempt { id, number: 0 };
                    let Some(moved) = self.move_entry(address, segment, attempt, what)? else {
                        self.release(beside.attempts.remove(at));
                        continue;
                    };
                    beside.attempts[at] = moved;
                    end = end.max(Some(moved.end()));
                }
                at += 1;
            }
        }
        if has_lost_chunks {
            let lost = self.lose_recording(&mut shard, address)?;
            end = end.max(lost.map(|place| place.end()));
        }
        Ok(end)
    }

    /// Writes the record at `address` again; where it lies then.
    fn move_record(
        &self,
        shard: &mut Shard,
        address: Address,
        segment: &Segment,
    ) -> Result<Option<Place>, NotMoved> {
        let (Some(slot), Some(tenant_tag)) = (shard.slot(address), shard.tenant_tag(address))
        else {
            return Ok(None);
        };
        let place = slot.place;
        let moved = match slot.state() {
            SlotState::Readable(state) => {
                let what = What::Record(RecordItem {
                    id: slot.id,
                    epoch: slot.epoch,
                    claim: slot.claim,
                    attempts: slot.attempts,
                    until: slot.until,
                    chunks: slot.chunks(),
                    tenant_tag,
                    state,
                });
                self.move_entry(address, segment, place, what)?
            }
            SlotState::Unreadable => None,
        };
        let moved = match moved {
            Some(moved) => moved,
            None => {
                // All that is left of it is that it was there.
                let head = EntryHead {
                    kind: Kind::Record,
                    flags: FLAG_UNREADABLE,
                    address,
                };
                let moved = self.log.put(NewEntry {
                    head: &head,
                    body: &[],
                    what: What::Unreadable,
                    urgent: false,
                    time: 0,
                    entry: None,
                    need: Need::Moves,
                })?;
                self.release(place);
                shard.spoil(address);
                moved
            }
        };
        if let Some(slot) = shard.slot_mut(address) {
            slot.place = moved;
        }
        Ok(Some(moved))
    }

    /// Writes an entry again as it is, sealed or not, and releases it where it lay; `None` where it
    /// is damaged.
    fn move_entry(
        &self,
        address: Address,
        segment: &Segment,
        place: Place,
        what: What,
    ) -> Result<Option<Place>, NotMoved> {
        let bytes = match segment.read(place).map_err(unread) {
            Ok(bytes) => bytes,
            Err(StoreError::Corrupt(_)) => Bytes::new(),
            Err(error) => {
                tracing::warn!(%error, "what lives in an old segment is not moved yet");
                return Err(NotMoved);
            }
        };
        let entry = layout::read_entry(self.log.seed(segment.number), &bytes)
            .filter(|entry| entry.head.address == address)
            .and_then(|entry| Some((entry.head, entry.body?)));
        let Some((head, body)) = entry else {
            return Ok(None);
        };
        let moved = self.log.put(NewEntry {
            head: &EntryHead {
                flags: head.flags | FLAG_MOVED,
                ..head
            },
            body,
            what,
            urgent: false,
            time: 0,
            entry: None,
            need: Need::Moves,
        })?;
        self.release(place);
        Ok(Some(moved))
    }
}

/// What was to be written again lies where it lay: a later sweep moves it.
struct NotMoved;

impl From<NotTaken> for NotMoved {
    fn from(_: NotTaken) -> Self {
        Self
    }
}

/// Whether nothing in it counts any more, and all of it is in the books.
fn is_droppable(segment: &Segment, settled: u64) -> bool {
    segment
        .finished()
        .is_some_and(|last_seq| last_seq <= settled)
        && (segment.live.load(Ordering::Relaxed) == 0 || planted(Bug::LiveSegmentDropped))
}
