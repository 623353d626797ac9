//! The index: where every record stands, in memory.
//!
//! One small slot a record, in shards by address. The slot holds what a compare-and-set must
//! compare and what a list must filter, so that neither reads the disk. Everything in it can be
//! read back from the log.

use hashbrown::HashTable;
use onlyonce_core::{
    Address, Attempt, Epoch, Fence, OperationId, RecordingId, Standing, StateName, Timestamp,
};
use parking_lot::{Mutex, MutexGuard};

use super::catalog::RecordItem;
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
    pub tenant_tag: u32,
    pub key_tag: u32,
    pub state: SlotState,
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
            tenant_tag: record.tenant_tag,
            key_tag: record.key_tag,
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
            tenant_tag: 0,
            key_tag: 0,
            state: SlotState::Unreadable,
            beside: None,
        }
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

/// The slots of some addresses.
#[derive(Default)]
pub struct Shard {
    table: HashTable<u32>,
    slots: Vec<Option<(Address, Slot)>>,
    free: Vec<u32>,
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

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards().map(|shard| shard.table.len()).sum()
    }
}

/// Addresses are hashes already.
fn hash(address: Address) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *address.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Shard {
    pub fn slot(&self, address: Address) -> Option<&Slot> {
        let at = *self
            .table
            .find(hash(address), |&at| self.is_at(at, address))?;
        self.slots[at as usize].as_ref().map(|(_, slot)| slot)
    }

    pub fn slot_mut(&mut self, address: Address) -> Option<&mut Slot> {
        let at = *self
            .table
            .find(hash(address), |&at| self.is_at(at, address))?;
        self.slots[at as usize].as_mut().map(|(_, slot)| slot)
    }

    /// Puts `slot` at `address` and gives back the one that stood there.
    pub fn insert(&mut self, address: Address, slot: Slot) -> Option<Slot> {
        if let Some(held) = self.slot_mut(address) {
            return Some(std::mem::replace(held, slot));
        }
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some((address, slot));
                at
            }
            None => {
                if self.slots.len() == self.slots.capacity() {
                    // An eighth at a time: doubling would leave up to half of a large index unused.
                    self.slots.reserve_exact((self.slots.len() / 8).max(16));
                }
                self.slots.push(Some((address, slot)));
                (self.slots.len() - 1) as u32
            }
        };
        let slots = &self.slots;
        self.table.insert_unique(hash(address), at, |&at| {
            slots[at as usize]
                .as_ref()
                .map_or(0, |(address, _)| hash(*address))
        });
        None
    }

    pub fn remove(&mut self, address: Address) -> Option<Slot> {
        let entry = self
            .table
            .find_entry(hash(address), |&at| {
                self.slots[at as usize]
                    .as_ref()
                    .is_some_and(|(held, _)| *held == address)
            })
            .ok()?;
        let (at, _) = entry.remove();
        self.free.push(at);
        self.slots[at as usize].take().map(|(_, slot)| slot)
    }

    pub fn slots_mut(&mut self) -> impl Iterator<Item = (Address, &mut Slot)> {
        let held = self.slots.iter_mut().flatten();
        held.map(|(address, slot)| (*address, slot))
    }

    pub fn iter(&self) -> impl Iterator<Item = (Address, &Slot)> {
        self.slots
            .iter()
            .flatten()
            .map(|(address, slot)| (*address, slot))
    }

    fn is_at(&self, at: u32, address: Address) -> bool {
        self.slots[at as usize]
            .as_ref()
            .is_some_and(|(held, _)| *held == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Address {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes[15] = number as u8;
        Address::from_bytes(bytes)
    }

    fn slot(offset: u32) -> Slot {
        Slot::unreadable(Place {
            segment: 1,
            offset,
            len: 1,
        })
    }

    #[test]
    fn slots_are_found_replaced_and_removed() {
        let index = Index::new();
        for number in 0..10_000 {
            assert!(
                index
                    .shard(address(number))
                    .insert(address(number), slot(number))
                    .is_none()
            );
        }
        assert_eq!(index.len(), 10_000);
        for number in (0..10_000).step_by(2) {
            let removed = index.shard(address(number)).remove(address(number));
            assert_eq!(removed.map(|slot| slot.place.offset), Some(number));
        }
        for number in 0..10_000 {
            let shard = index.shard(address(number));
            let found = shard.slot(address(number)).map(|slot| slot.place.offset);
            assert_eq!(found, (number % 2 == 1).then_some(number));
        }
        assert_eq!(index.len(), 5_000);
    }

    #[test]
    fn a_slot_stays_small() {
        assert!(
            size_of::<Option<(Address, Slot)>>() <= 88,
            "{}",
            size_of::<Slot>()
        );
    }
}
