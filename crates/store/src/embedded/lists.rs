//! Finding operations: by id, in lists, and all of them in turn.
//!
//! The index says where to look, a [shard](super::shard) at a time; nothing here holds more than a page.

use std::{cmp::Reverse, sync::Arc};

use onlyonce_core::{Address, OperationId, Record, StateName, Timestamp};

use super::{
    Inner,
    index::{Index, Slot, SlotState},
    largest::Largest,
    shard::Known,
};
use crate::{Page, Query, StoreError, Stored, Tags, Walked, WantedTags};

/// What a list wants, as far as the index can tell.
pub struct Wanted<'a> {
    query: &'a Query,
    older_than: Option<OperationId>,
    tags: WantedTags,
    now: Timestamp,
}

impl<'a> Wanted<'a> {
    pub fn new(query: &'a Query, secret: &[u8; 32], now: Timestamp) -> Self {
        Self {
            query,
            older_than: query.older_than,
            tags: WantedTags::of(query, secret),
            now,
        }
    }

    /// Whether something in a block of which this is `known` may be wanted.
    pub fn may_be_in(&self, known: &Known) -> bool {
        let Query {
            state,
            since,
            until,
            ..
        } = self.query;
        state.is_none_or(|state| known.holds(state))
            && self.older_than.is_none_or(|id| known.oldest < id)
            && until.is_none_or(|until| known.oldest.first_claimed() < until)
            && since.is_none_or(|since| known.newest.first_claimed() >= since)
    }

    /// Whether something with these tags may be.
    pub fn may_have(&self, tags: Tags) -> bool {
        self.tags.may_be(tags)
    }

    /// Whether the record of `slot` is, its tags aside.
    pub fn is(&self, slot: &Slot) -> bool {
        let Query {
            state,
            since,
            until,
            ..
        } = self.query;
        let claimed = slot.id.first_claimed();
        let is_readable = match state {
            Some(state) => slot.state() == SlotState::Readable(*state),
            None => slot.state() != SlotState::Unreadable,
        };
        is_readable
            && slot.counts(self.now)
            && self.older_than.is_none_or(|id| slot.id < id)
            && since.is_none_or(|since| claimed >= since)
            && until.is_none_or(|until| claimed < until)
    }
}

impl Inner {
    pub fn find(&self, id: OperationId) -> Option<Address> {
        self.index.shards().find_map(|shard| shard.find(id))
    }

    pub async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let mut wanted = Wanted::new(query, &self.secret, self.clock.now());
        let mut page = Page::default();
        loop {
            // One more than the page takes says whether there is a next one.
            let most = (query.limit - page.records.len()).saturating_add(1);
            let found = self.newest(&wanted, most);
            let is_all = found.len() < most;
            for (id, address) in found {
                if page.records.len() == query.limit {
                    page.next = page.records.last().map(|last| last.record.id);
                    return Ok(page);
                }
                wanted.older_than = Some(id);
                page.records.extend(self.listed(query, id, address).await);
            }
            if is_all {
                return Ok(page);
            }
        }
    }

    /// At most `most` operations that may be wanted, newest first.
    fn newest(&self, wanted: &Wanted<'_>, most: usize) -> Vec<(OperationId, Address)> {
        let mut found = Largest::new(most);
        for shard in self.index.shards() {
            shard.newest(wanted, &mut found);
        }
        found.into_vec()
    }

    /// The operation `id` at `address`, if `query` wants it. What cannot be read, or has moved on since,
    /// is not in a list.
    async fn listed(&self, query: &Query, id: OperationId, address: Address) -> Option<Stored> {
        let stored = self.load(address).await.ok().flatten()?;
        (stored.record.id == id && query.wants(&stored.record)).then_some(stored)
    }

    pub async fn overdue(&self, limit: usize) -> Vec<(Address, Record)> {
        let now = self.clock.now().as_millis();
        let mut addresses = Vec::new();
        for shard in self.index.shards() {
            let in_flight = shard.in_state(StateName::InFlight);
            let overdue = in_flight.filter(|(_, slot)| slot.until <= now);
            let room = limit - addresses.len();
            addresses.extend(overdue.map(|(address, _)| address).take(room));
        }
        let mut overdue = Vec::with_capacity(addresses.len());
        for address in addresses {
            if let Ok(Some(stored)) = self.load(address).await {
                overdue.push((address, Arc::unwrap_or_clone(stored.record)));
            }
        }
        overdue
    }

    pub fn walk(&self, after: Option<Walked>, limit: usize) -> Vec<Walked> {
        let mut walked = Vec::new();
        // Shards go by the last byte of an address, so this is their order.
        let first = after.map_or(0, |after| Index::number_of(after.address));
        for (number, shard) in self.index.shards().enumerate().skip(first) {
            let mut here = Largest::new(limit - walked.len());
            for (address, slot) in shard.iter() {
                if number > first || after.is_none_or(|after| address > after.address) {
                    let id = slot.id;
                    here.offer(Reverse(Walked { address, id }));
                }
            }
            walked.extend(here.into_vec().into_iter().map(|Reverse(walked)| walked));
            if walked.len() == limit {
                break;
            }
        }
        walked
    }
}
