//! The index: where every record stands, in memory.
//!
//! One small slot a record, in shards by address. The slot holds what a compare-and-set must
//! compare and what a list must filter, so that neither reads the disk. Everything in it can be
//! read back from the log.

use onlyonce_core::{
    Address, Attempt, Epoch, Fence, OperationId, RecordingId, Standing, StateName, Timestamp,
};
use parking_lot::{Mutex, MutexGuard};

use super::{catalog::RecordItem, shard::Shard};
use crate::MAX_ATTEMPTS_KEPT;

const SHARDS: usize = 64;

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment's number.
    pub segment: u32,
    /// Its first byte in the segment.
    pub offset: u32,
    /// Its bytes.
    pub len: u32,
}

impl Place {
    /// The position of its end in the whole log: later entries have higher ones.
    pub fn end(&self) -> u64 {
        position(self.segment, self.offset + self.len)
    }
}

/// The position in the whole log of byte `offset` of segment `segment`.
pub fn position(segment: u32, offset: u32) -> u64 {
    u64::from(segment) << 32 | u64::from(offset)
}

/// What is known of a record without reading it.
#[derive(Clone, Debug)]
pub struct Slot {
    pub id: OperationId,
    pub epoch: u32,
    pub claim: u32,
    pub attempts: u32,
    pub place: Place,
    /// End of the window, of the retention or of the lease, in milliseconds; 0 for none.
    pub until: u64,
    /// Changed only by the [`Shard`], which counts the slots in each state.
    state: SlotState,
    /// Entries beside the record's own; most records have none.
    pub beside: Option<Box<Beside>>,
}

/// The state of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    Readable(StateName),
    /// Something is there that cannot be read (I13).
    Unreadable,
}

/// The entries of an operation beside its record.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The claim that the chunks are of.
    pub claim: u32,
    /// The chunks of the recording, by number. A hole has length 0.
    pub chunks: Vec<Place>,
    /// The attempts other than the one that executes, latest last.
    pub attempts: Vec<Place>,
    /// The attempt that executes, while it does.
    pub executing: Option<Attempt>,
}

impl Beside {
    /// Goes on to the recording of `claim`; gives back the places of the one before it.
    pub fn start_recording(&mut self, claim: u32) -> Vec<Place> {
        self.claim = claim;
        std::mem::take(&mut self.chunks)
    }

    /// Notes where chunk `number` lies; gives back the place that it replaces.
    pub fn set_chunk(&mut self, number: u32, place: Place) -> Option<Place> {
        let number = number as usize;
        if self.chunks.len() <= number {
            let hole = Place {
                segment: 0,
                offset: 0,
                len: 0,
            };
            self.chunks.resize(number + 1, hole);
        }
        let before = std::mem::replace(&mut self.chunks[number], place);
        (before.len > 0).then_some(before)
    }

    /// Notes where one more attempt lies; gives back the place of the one that is forgotten for it.
    pub fn add_attempt(&mut self, place: Place) -> Option<Place> {
        let forgotten = (self.attempts.len() >= MAX_ATTEMPTS_KEPT).then(|| self.attempts.remove(0));
        self.attempts.push(place);
        forgotten
    }
}

impl Slot {
    /// The slot of a record that lies at `place`.
    pub fn of(record: &RecordItem, place: Place) -> Self {
        Self {
            id: record.id,
            epoch: record.epoch,
            claim: record.claim,
            attempts: record.attempts,
            place,
            until: record.until,
            state: SlotState::Readable(record.state),
            beside: None,
        }
    }

    /// A slot for what cannot be read.
    pub fn unreadable(place: Place) -> Self {
        Self {
            id: OperationId::from_bytes([0; 16]),
            epoch: 0,
            claim: 0,
            attempts: 0,
            place,
            until: 0,
            state: SlotState::Unreadable,
            beside: None,
        }
    }

    pub fn state(&self) -> SlotState {
        self.state
    }

    /// It cannot be read from now on.
    pub(super) fn spoil(&mut self) {
        self.state = SlotState::Unreadable;
    }

    /// Whether it counts at `now`.
    pub fn counts(&self, now: Timestamp) -> bool {
        match self.state {
            SlotState::Readable(StateName::Completed | StateName::Released) => {
                now.as_millis() < self.until
            }
            _ => true,
        }
    }

    pub fn fence(&self) -> Fence {
        Fence {
            id: self.id,
            epoch: Epoch::new(self.epoch.into()),
        }
    }

    /// The name of the recording.
    pub fn recording(&self) -> RecordingId {
        RecordingId {
            operation: self.id,
            claim: Epoch::new(self.claim.into()),
        }
    }

    pub fn standing(&self) -> Option<Standing> {
        match self.state {
            SlotState::Readable(state) => Some(Standing {
                fence: self.fence(),
                claim: Epoch::new(self.claim.into()),
                state,
            }),
            SlotState::Unreadable => None,
        }
    }

    /// Where chunk `number` of its recording lies, if it lies beside the record.
    pub fn chunk(&self, number: u32) -> Option<Place> {
        let chunk = self.beside.as_deref()?.chunks.get(number as usize)?;
        (chunk.len > 0).then_some(*chunk)
    }

    /// How many chunks of a whole recording lie beside the record: all but the last.
    pub fn chunks(&self) -> u32 {
        match (&self.state, self.beside.as_deref()) {
            (SlotState::Readable(StateName::Completed), Some(beside)) => beside.chunks.len() as u32,
            _ => 0,
        }
    }

    /// Whether the first `chunks` chunks of its recording are all there.
    pub fn has_chunks(&self, chunks: u32) -> bool {
        (0..chunks).all(|number| self.chunk(number).is_some())
    }

    /// Every entry that belongs to it.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let beside = self.beside.as_deref();
        let chunks = beside.into_iter().flat_map(|beside| &beside.chunks);
        let attempts = beside.into_iter().flat_map(|beside| &beside.attempts);
        std::iter::once(self.place)
            .chain(chunks.chain(attempts).copied())
            .filter(|place| place.len > 0)
    }

    pub fn beside_mut(&mut self) -> &mut Beside {
        self.beside.get_or_insert_default()
    }
}

/// All slots.
pub struct Index {
    shards: Box<[Mutex<Shard>]>,
}

impl Index {
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// The shard of `address`, locked.
    pub fn shard(&self, address: Address) -> MutexGuard<'_, Shard> {
        self.shards[Self::number_of(address)].lock()
    }

    /// The number of the shard of `address`.
    pub fn number_of(address: Address) -> usize {
        usize::from(address.as_bytes()[15]) % SHARDS
    }

    /// Every shard, one after another.
    pub fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> {
        self.shards.iter().map(Mutex::lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_stays_small() {
        assert!(
            size_of::<Option<(Address, Slot)>>() <= 80,
            "{}",
            size_of::<Slot>()
        );
    }
}
