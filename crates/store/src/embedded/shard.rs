//! The slots of some addresses, in blocks that say what is in them.
//!
//! A block is a row of neighbouring slots. It knows how many of them are in which state, and between
//! which ids they lie. Records that come one after another stand side by side, in new slots as well as in
//! those that a sweep has freed, so the blocks tell a list where to look: the newest page is found in a
//! few of them. A block may promise more than it holds, until the next sweep; never less. It never grows,
//! so that nothing is moved, and no memory lies idle, however large the index is.

use std::cmp::Reverse;

use hashbrown::HashTable;
use onlyonce_core::{Address, OperationId, StateName};

use super::{
    index::{Slot, SlotState},
    largest::Largest,
    lists::Wanted,
};
use crate::Tags;

/// Slots in a block: few enough to be looked through, many enough that what is known of a block costs
/// less than a byte a slot.
const BLOCK: usize = 128;

/// The slots of some addresses.
#[derive(Default)]
pub struct Shard {
    table: HashTable<u32>,
    blocks: Vec<Block>,
    free: Vec<u32>,
}

/// A row of slots.
struct Block {
    known: Known,
    slots: Vec<Option<(Address, Slot)>>,
    /// Of each slot. They stand apart so that the few of one key or tenant are found among many
    /// without a look at each slot.
    tags: Vec<Tags>,
}

/// What is known of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// No operation in it is older, and none is newer. What cannot be read has no id that counts.
    pub oldest: OperationId,
    pub newest: OperationId,
    /// How many of its slots are in each state, by its number; those that cannot be read come first.
    states: [u8; 1 + StateName::ALL.len()],
    /// Whether something left it since its ids were looked at.
    is_loose: bool,
}

impl Default for Known {
    /// Nothing is in it.
    fn default() -> Self {
        Self {
            oldest: OperationId::from_bytes([0xff; 16]),
            newest: OperationId::from_bytes([0; 16]),
            states: [0; 1 + StateName::ALL.len()],
            is_loose: false,
        }
    }
}

impl Known {
    fn of(slots: &[Option<(Address, Slot)>]) -> Self {
        let mut known = Self::default();
        for (_, slot) in slots.iter().flatten() {
            known.admit(slot.id, slot.state());
        }
        known
    }

    fn admit(&mut self, id: OperationId, state: SlotState) {
        self.states[number_of(state)] += 1;
        if state != SlotState::Unreadable {
            self.oldest = self.oldest.min(id);
            self.newest = self.newest.max(id);
        }
    }

    fn dismiss(&mut self, state: SlotState) {
        self.states[number_of(state)] -= 1;
    }

    /// Whether any of its slots is in `state`.
    pub fn holds(&self, state: StateName) -> bool {
        self.states[usize::from(state.number())] > 0
    }
}

impl Block {
    fn new() -> Self {
        Self {
            known: Known::default(),
            slots: Vec::with_capacity(BLOCK),
            tags: Vec::with_capacity(BLOCK),
        }
    }

    fn is_full(&self) -> bool {
        self.slots.len() == BLOCK
    }

    fn held(&self) -> impl Iterator<Item = &(Address, Slot)> {
        self.slots.iter().flatten()
    }
}

fn number_of(state: SlotState) -> usize {
    match state {
        SlotState::Unreadable => 0,
        SlotState::Readable(state) => state.number().into(),
    }
}

/// Addresses are hashes already.
fn hash(address: Address) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *address.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Shard {
    pub fn slot(&self, address: Address) -> Option<&Slot> {
        held_at(&self.blocks, self.at(address)?).map(|(_, slot)| slot)
    }

    /// The slot, to change what does not concern its block: neither its id nor its state.
    pub fn slot_mut(&mut self, address: Address) -> Option<&mut Slot> {
        let (block, place) = split(self.at(address)?);
        let held = self.blocks[block].slots[place].as_mut();
        held.map(|(_, slot)| slot)
    }

    /// The tag of the tenant of what stands at `address`.
    pub fn tenant_tag(&self, address: Address) -> Option<u32> {
        let (block, place) = split(self.at(address)?);
        Some(self.blocks[block].tags[place].tenant)
    }

    /// Puts `slot`, of the tenant with this tag, at `address` and gives back the one that stood there.
    pub fn insert(&mut self, address: Address, slot: Slot, tenant_tag: u32) -> Option<Slot> {
        let (id, state) = (slot.id, slot.state());
        let held = self.at(address);
        let at = held.unwrap_or_else(|| self.room());
        let (block, place) = split(at);
        let Block { known, slots, tags } = &mut self.blocks[block];
        let former = slots[place].replace((address, slot));
        tags[place] = Tags::at(address, tenant_tag);
        if let Some((_, former)) = &former {
            known.dismiss(former.state());
            known.is_loose |= former.id != id;
        }
        known.admit(id, state);
        if held.is_none() {
            let blocks = &self.blocks;
            self.table.insert_unique(hash(address), at, |&at| {
                held_at(blocks, at).map_or(0, |(address, _)| hash(*address))
            });
        }
        former.map(|(_, slot)| slot)
    }

    /// A free slot.
    fn room(&mut self) -> u32 {
        if let Some(at) = self.free.pop() {
            return at;
        }
        if self.blocks.last().is_none_or(Block::is_full) {
            self.blocks.push(Block::new());
        }
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        let place = block.slots.len();
        block.slots.push(None);
        block.tags.push(Tags::default());
        (number * BLOCK + place) as u32
    }

    /// Takes out what stands at `address`, with the tag of its tenant.
    pub fn remove(&mut self, address: Address) -> Option<(Slot, u32)> {
        let blocks = &self.blocks;
        let entry = self
            .table
            .find_entry(hash(address), |&at| is_at(blocks, at, address))
            .ok()?;
        let (at, _) = entry.remove();
        self.free.push(at);
        let (block, place) = split(at);
        let block = &mut self.blocks[block];
        let (_, slot) = block.slots[place].take()?;
        block.known.dismiss(slot.state());
        block.known.is_loose = true;
        Some((slot, block.tags[place].tenant))
    }

    /// What stands at `address` cannot be read from now on (I13).
    pub fn spoil(&mut self, address: Address) {
        let Some(at) = self.at(address) else { return };
        let (block, place) = split(at);
        let Block { known, slots, .. } = &mut self.blocks[block];
        if let Some((_, slot)) = &mut slots[place] {
            known.dismiss(slot.state());
            slot.spoil();
            known.admit(slot.id, slot.state());
            known.is_loose = true;
        }
    }

    /// Looks at the blocks again that promise more than they may hold.
    pub fn tighten(&mut self) {
        for Block { known, slots, .. } in &mut self.blocks {
            if known.is_loose {
                let now = Known::of(slots);
                debug_assert_eq!(now.states, known.states, "a state changed past its block");
                *known = now;
            }
        }
    }

    /// What the operation `id` is kept at.
    pub fn find(&self, id: OperationId) -> Option<Address> {
        let blocks = self.blocks.iter();
        let mut held = blocks
            .filter(|block| (block.known.oldest..=block.known.newest).contains(&id))
            .flat_map(Block::held);
        let found =
            held.find(|(_, slot)| slot.id == id && slot.state() != SlotState::Unreadable)?;
        Some(found.0)
    }

    /// All that is in `state`.
    pub fn in_state(&self, state: StateName) -> impl Iterator<Item = (Address, &Slot)> {
        let blocks = self.blocks.iter();
        blocks
            .filter(move |block| block.known.holds(state))
            .flat_map(Block::held)
            .filter(move |(_, slot)| slot.state() == SlotState::Readable(state))
            .map(|(address, slot)| (*address, slot))
    }

    /// Offers `found` what is `wanted`, and little that is older than what it has.
    pub fn newest(&self, wanted: &Wanted<'_>, found: &mut Largest<(OperationId, Address)>) {
        let blocks = self.blocks.iter();
        let mut blocks: Vec<&Block> = blocks
            .filter(|block| wanted.may_be_in(&block.known))
            .collect();
        blocks.sort_unstable_by_key(|block| Reverse(block.known.newest));
        for block in blocks {
            let least = found.least();
            if least.is_some_and(|(least, _)| block.known.newest < *least) {
                break;
            }
            for (slot, tags) in block.slots.iter().zip(&block.tags) {
                if wanted.may_have(*tags)
                    && let Some((address, slot)) = slot
                    && wanted.is(slot)
                {
                    found.offer((slot.id, *address));
                }
            }
        }
    }

    pub fn slots_mut(&mut self) -> impl Iterator<Item = (Address, &mut Slot)> {
        let slots = self.blocks.iter_mut().flat_map(|block| &mut block.slots);
        slots.flatten().map(|(address, slot)| (*address, slot))
    }

    pub fn iter(&self) -> impl Iterator<Item = (Address, &Slot)> {
        let held = self.blocks.iter().flat_map(Block::held);
        held.map(|(address, slot)| (*address, slot))
    }

    /// The tag of the tenant of each that it holds.
    pub fn tenant_tags(&self) -> impl Iterator<Item = u32> {
        let blocks = self.blocks.iter();
        let slots = blocks.flat_map(|block| block.slots.iter().zip(&block.tags));
        slots
            .filter(|(slot, _)| slot.is_some())
            .map(|(_, tags)| tags.tenant)
    }

    fn at(&self, address: Address) -> Option<u32> {
        let blocks = &self.blocks;
        let at = self
            .table
            .find(hash(address), |&at| is_at(blocks, at, address));
        at.copied()
    }
}

/// The block of slot `at`, and its place there.
fn split(at: u32) -> (usize, usize) {
    (at as usize / BLOCK, at as usize % BLOCK)
}

fn held_at(blocks: &[Block], at: u32) -> Option<&(Address, Slot)> {
    let (block, place) = split(at);
    blocks[block].slots[place].as_ref()
}

fn is_at(blocks: &[Block], at: u32, address: Address) -> bool {
    held_at(blocks, at).is_some_and(|(held, _)| *held == address)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use onlyonce_core::{Key, Timestamp};

    use super::*;
    use crate::{
        Query,
        embedded::{catalog::RecordItem, index::Place},
        tag,
    };

    const SECRET: [u8; 32] = [3; 32];
    const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

    fn address(number: u64) -> Address {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&tag(&SECRET, &key(number)).to_be_bytes());
        bytes[4..12].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        Address::from_bytes(bytes)
    }

    fn place(offset: u32) -> Place {
        Place {
            segment: 1,
            offset,
            len: 1,
        }
    }

    /// Of several addresses one.
    fn key(number: u64) -> String {
        format!("key-{}", number % 100)
    }

    fn slot_of(id: OperationId, state: StateName, until: u64) -> Slot {
        let item = RecordItem {
            id,
            epoch: 1,
            claim: 1,
            attempts: 1,
            until,
            chunks: 0,
            tenant_tag: 0,
            state,
        };
        Slot::of(&item, place(1))
    }

    /// Xorshift: the same numbers in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }

        fn pick<T: Copy>(&mut self, from: &[T]) -> T {
            from[self.below(from.len() as u64) as usize]
        }
    }

    #[test]
    fn slots_are_found_replaced_and_removed() {
        let mut shard = Shard::default();
        let slot = |number| Slot::unreadable(place(number));
        for number in 0..10_000 {
            let former = shard.insert(address(number.into()), slot(number), 0);
            assert!(former.is_none());
        }
        assert_eq!(shard.table.len(), 10_000);
        for number in (0..10_000).step_by(2) {
            let removed = shard.remove(address(number.into()));
            let removed = removed.map(|(slot, _)| slot.place.offset);
            assert_eq!(removed, Some(number));
        }
        for number in 0..10_000 {
            let found = shard.slot(address(number.into()));
            let found = found.map(|slot| slot.place.offset);
            assert_eq!(found, (number % 2 == 1).then_some(number));
        }
        assert_eq!(shard.table.len(), 5_000);
    }

    /// What stands at an address, as a list without an index has it.
    #[derive(Clone, Copy)]
    struct Kept {
        id: OperationId,
        state: Option<StateName>,
        until: u64,
        tenant_tag: u32,
    }

    /// A shard, and the same without blocks.
    struct Pair {
        shard: Shard,
        kept: BTreeMap<Address, Kept>,
        random: Random,
        now: u64,
    }

    impl Pair {
        /// Addresses, few enough that many are claimed again.
        const ADDRESSES: u64 = 3_000;

        fn step(&mut self) {
            self.now += self.random.below(2);
            let number = self.random.below(Self::ADDRESSES);
            let address = address(number);
            match self.random.below(100) {
                0 => {
                    self.shard.spoil(address);
                    if let Some(kept) = self.kept.get_mut(&address) {
                        kept.state = None;
                    }
                }
                1..10 => {
                    let removed = self
                        .shard
                        .remove(address)
                        .map(|(slot, tenant_tag)| (slot.id, tenant_tag));
                    let kept = self.kept.remove(&address);
                    assert_eq!(removed, kept.map(|kept| (kept.id, kept.tenant_tag)));
                }
                10 => self.shard.tighten(),
                11 => self.expire(),
                _ => self.write(number),
            }
        }

        /// A claim with an id of its own, or a write of the operation that stands there.
        fn write(&mut self, number: u64) {
            let address = address(number);
            let mut random = [0; 10];
            random[..8].copy_from_slice(&self.random.below(u64::MAX).to_be_bytes());
            let id = match self.kept.get(&address) {
                Some(kept) if kept.state.is_some() && self.random.below(3) > 0 => kept.id,
                _ => OperationId::new(self.now, &random),
            };
            let state = self.random.pick(&StateName::ALL);
            let until = self.now + 1 + self.random.below(2_000);
            let tenant_tag = tag(&SECRET, self.random.pick(&TENANTS));
            let slot = slot_of(id, state, until);
            self.shard.insert(address, slot, tenant_tag);
            let state = Some(state);
            let kept = Kept {
                id,
                state,
                until,
                tenant_tag,
            };
            self.kept.insert(address, kept);
        }

        fn expire(&mut self) {
            let now = Timestamp::from_millis(self.now);
            let expired = self.shard.iter().filter(|(_, slot)| !slot.counts(now));
            let expired: Vec<Address> = expired.map(|(address, _)| address).collect();
            for address in expired {
                self.shard.remove(address);
                self.kept.remove(&address);
            }
        }

        fn query(&mut self) -> Query {
            let now = self.now;
            let moment = |random: &mut Random| Timestamp::from_millis(random.below(now + 2));
            let random = &mut self.random;
            let ids: Vec<OperationId> = self.kept.values().map(|kept| kept.id).collect();
            let mut query = Query {
                limit: random.pick(&[0, 1, 2, 7, 100, 10_000]),
                ..Query::default()
            };
            if random.below(3) == 0 {
                query.state = Some(random.pick(&StateName::ALL));
            }
            if random.below(3) == 0 {
                query.tenant = Some(random.pick(&TENANTS).into());
            }
            if random.below(6) == 0 {
                query.key = Key::new(&format!("key-{}", random.below(110))).ok();
            }
            if random.below(3) == 0 {
                query.since = Some(moment(random));
            }
            if random.below(3) == 0 {
                query.until = Some(moment(random));
            }
            if random.below(3) == 0 && !ids.is_empty() {
                query.older_than = Some(random.pick(&ids));
            }
            query
        }

        fn expected(&self, query: &Query) -> Vec<(OperationId, Address)> {
            let ends = [StateName::Completed, StateName::Released];
            let is_wanted = |address: Address, kept: &Kept| {
                let claimed = kept.id.first_claimed();
                let state = kept.state?;
                let key = query.key.as_ref().map(|key| tag(&SECRET, key.as_str()));
                let tenant = query.tenant.as_ref().map(|tenant| tag(&SECRET, tenant));
                let is = (!ends.contains(&state) || self.now < kept.until)
                    && query.state.is_none_or(|wanted| wanted == state)
                    && key.is_none_or(|key| key.to_be_bytes() == address.as_bytes()[..4])
                    && tenant.is_none_or(|tenant| tenant == kept.tenant_tag)
                    && query.since.is_none_or(|since| claimed >= since)
                    && query.until.is_none_or(|until| claimed < until)
                    && query.older_than.is_none_or(|id| kept.id < id);
                is.then_some(kept.id)
            };
            let found = self.kept.iter();
            let mut found: Vec<_> = found
                .filter_map(|(address, kept)| Some((is_wanted(*address, kept)?, *address)))
                .collect();
            found.sort_unstable();
            found.reverse();
            found.truncate(query.limit);
            found
        }

        fn check(&mut self) {
            let query = self.query();
            let now = Timestamp::from_millis(self.now);
            let mut found = Largest::new(query.limit);
            let wanted = Wanted::new(&query, &SECRET, now);
            self.shard.newest(&wanted, &mut found);
            assert_eq!(found.into_vec(), self.expected(&query), "{query:?}");

            for state in StateName::ALL {
                let held = self.shard.in_state(state).count();
                let expected = self.kept.values();
                let expected = expected.filter(|kept| kept.state == Some(state)).count();
                assert_eq!(held, expected, "{state}");
            }
            for (address, kept) in self.kept.iter().take(20) {
                let readable = kept.state.map(|_| *address);
                assert_eq!(self.shard.find(kept.id), readable);
            }
        }
    }

    #[test]
    fn blocks_hide_nothing_whatever_came_and_went() {
        let mut pair = Pair {
            shard: Shard::default(),
            kept: BTreeMap::new(),
            random: Random(0x2545_f491_4f6c_dd1d),
            now: 1_000,
        };
        for step in 0..60_000 {
            pair.step();
            if step % 100 == 0 {
                pair.check();
            }
        }
        assert!(pair.shard.blocks.len() > 10, "{}", pair.shard.blocks.len());
    }

    /// Else the newest page of a store that is full would be looked for everywhere.
    #[test]
    fn what_comes_in_the_place_of_what_expired_stands_together() {
        let mut shard = Shard::default();
        let id = |number| OperationId::new(1_000 + number, &[0; 10]);
        let (rounds, half) = (10, 25 * BLOCK as u64 + 50);
        for round in 0..rounds {
            // The older half leaves, and as many come.
            let first = round * half;
            if round > 1 {
                for number in first - 2 * half..first - half {
                    shard.remove(address(number));
                }
            }
            shard.tighten();
            for number in first..first + half {
                let slot = slot_of(id(number), StateName::Completed, u64::MAX);
                shard.insert(address(number), slot, 0);
            }
        }
        shard.tighten();
        assert_eq!(shard.iter().count() as u64, 2 * half);
        assert_eq!(shard.blocks.len() as u64, (2 * half).div_ceil(BLOCK as u64));
        let end = rounds * half;
        let newest = id(end - 100);
        let holding = shard
            .blocks
            .iter()
            .filter(|block| block.known.newest >= newest);
        assert!(holding.count() <= 2);
        let oldest = id(end - 2 * half + 100);
        let holding = shard
            .blocks
            .iter()
            .filter(|block| block.known.oldest < oldest);
        assert!(holding.count() <= 2);
    }
}
