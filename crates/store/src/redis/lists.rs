//! Finding operations: by id, and in lists.
//!
//! Every shard has its operations in a set that is ordered by their ids, and an id begins with the
//! moment of the first claim. A list merges the shards' sets, newest first. Of what runs, is unknown or was
//! released there are sets of their own, and a key is in one shard.

use std::{
    collections::{BinaryHeap, VecDeque},
    ops::RangeInclusive,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use onlyonce_core::{Address, OperationId, StateName, Timestamp};

use super::{
    Inner,
    head::Head,
    names::{Member, SHARDS, Shard, shard_of},
    servers::Request,
};
use crate::{Page, Query, StoreError, Stored, addresses_of_key, books::MOST_LOOKED_AT, tag};

/// Requests that wait for servers at once.
pub const AT_ONCE: usize = 64;
/// Records that are looked at together.
const BATCH: usize = 256;
/// Operations that are read at once, where most are passed over.
const MANY: usize = 8_192;

/// A member as the server has it.
type Raw = Vec<u8>;

impl Inner {
    pub async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        let first = [b"[", &id.as_bytes()[..]].concat();
        let last = [b"(", &id.as_bytes()[..], &[0xff; 21]].concat();
        let shards = self.told_of.shard(id).map_or(0..=u8::MAX, |it| it..=it);
        let found: Vec<Vec<Raw>> = stream::iter(shards)
            .map(|shard| {
                let of = (shard, self.servers.names.ids(shard));
                self.stretch(of, &last, &first, 1)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let found = found.iter().flatten().find_map(|raw| Member::decode(raw));
        let Some(Member { address, .. }) = found else {
            return Ok(None);
        };
        // An entry may outlive its record.
        let head = self.head(address).await?;
        Ok(head.filter(|head| head.id() == id).map(|_| address))
    }

    pub async fn list(&self, query: Query) -> Result<Page, StoreError> {
        let filter = Filter::new(&query, &self.secret, self.now());
        let mut newest = Newest::start(self, &query, &filter).await?;
        let mut page = Page::default();
        loop {
            // One more tells whether there is another page.
            let missing = query.limit - page.records.len() + 1;
            let batch = newest.next(self, &filter, missing.min(BATCH)).await?;
            for stored in self.wanted(batch, &filter).await? {
                if page.records.len() == query.limit {
                    page.next = page.records.last().map(|last: &Stored| last.record.id);
                    return Ok(page);
                }
                page.records.push(stored);
            }
            if newest.is_over() {
                page.next = newest.cursor();
                return Ok(page);
            }
        }
    }

    /// Those of `batch` that the filter wants, in the same order.
    async fn wanted(
        &self,
        batch: Vec<Member>,
        filter: &Filter<'_>,
    ) -> Result<Vec<Stored>, StoreError> {
        let wanted = stream::iter(batch)
            .map(|Member { id, address, .. }| async move {
                let head = self.head(address).await?;
                if !head.is_some_and(|head| head.id() == id && filter.may_want(&head)) {
                    return Ok(None);
                }
                match self.load(address).await {
                    Ok(stored) => Ok(stored.filter(|Stored { record, .. }| {
                        record.id == id && filter.query.wants(record)
                    })),
                    // What cannot be read is not in a list.
                    Err(StoreError::Corrupt(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(wanted.into_iter().flatten().collect())
    }

    /// Members of a shard's index by id from `last` down to `first`, in Redis' words for ends.
    async fn stretch(
        &self,
        (shard, index): (Shard, String),
        last: &[u8],
        first: &[u8],
        limit: usize,
    ) -> Result<Vec<Raw>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(index).arg(last).arg(first);
        command.arg("BYLEX").arg("REV");
        command.arg("LIMIT").arg(0).arg(limit);
        self.ask(&Request::plain(shard, command)).await
    }
}

/// What a query wants.
struct Filter<'a> {
    query: &'a Query,
    tenant: Option<u32>,
    addresses: Option<RangeInclusive<Address>>,
    now: Timestamp,
}

impl<'a> Filter<'a> {
    fn new(query: &'a Query, secret: &[u8; 32], now: Timestamp) -> Self {
        let tag_of = |text: &str| tag(secret, text);
        let key = query.key.as_ref();
        Self {
            query,
            tenant: query.tenant.as_deref().map(tag_of),
            addresses: key.map(|key| addresses_of_key(secret, key)),
            now,
        }
    }

    /// The shards that may have it.
    fn shards(&self) -> RangeInclusive<Shard> {
        let of = |addresses: &RangeInclusive<Address>| {
            shard_of(*addresses.start())..=shard_of(*addresses.end())
        };
        self.addresses.as_ref().map_or(0..=u8::MAX, of)
    }

    /// Whether most of an index may have to be passed over.
    fn is_narrow(&self) -> bool {
        self.tenant.is_some() || self.addresses.is_some()
    }

    /// Whether the operation of this member may be wanted.
    fn may_be(&self, member: &Member) -> bool {
        let addresses = self.addresses.as_ref();
        self.tenant.is_none_or(|tag| tag == member.tenant_tag)
            && addresses.is_none_or(|addresses| addresses.contains(&member.address))
    }

    /// Whether a record with this head may be wanted.
    fn may_want(&self, head: &Head) -> bool {
        let state = head.standing.state;
        head.counts(self.now.as_millis()) && self.query.state.is_none_or(|wanted| wanted == state)
    }
}

/// Which index has what is wanted.
#[derive(Clone, Copy)]
enum Index {
    Ids,
    Leases,
    Others,
}

impl Index {
    fn of(query: &Query) -> Self {
        match query.state {
            Some(StateName::InFlight) => Self::Leases,
            Some(StateName::Unknown | StateName::Released) => Self::Others,
            Some(StateName::Completed) | None => Self::Ids,
        }
    }
}

/// What an index has of the shards, newest first.
struct Newest {
    index: Index,
    shards: Vec<Waiting>,
    /// The newest of each of `shards` that has one left.
    next: BinaryHeap<(Raw, usize)>,
    /// Ids from here on; before `before`.
    since: Option<[u8; 6]>,
    before: Option<Raw>,
    at_a_time: usize,
    looked_at: usize,
    last: Option<OperationId>,
}

/// What of a shard was read and not given yet.
struct Waiting {
    shard: Shard,
    members: VecDeque<Raw>,
    /// The last that was read.
    last: Option<Raw>,
    /// Whether there may be more.
    more: bool,
}

impl Newest {
    async fn start(inner: &Inner, query: &Query, filter: &Filter<'_>) -> Result<Self, StoreError> {
        let before = [
            query.older_than.map(|id| id.as_bytes().to_vec()),
            query.until.map(|until| moment(until).to_vec()),
        ];
        let at_a_time = match filter.is_narrow() {
            true => MANY / filter.shards().len(),
            false => (2 * query.limit / SHARDS).clamp(4, 64),
        };
        let waiting = |shard| Waiting {
            shard,
            members: VecDeque::new(),
            last: None,
            more: true,
        };
        let shards = filter.shards().map(waiting);
        let mut newest = Self {
            index: Index::of(query),
            shards: shards.collect(),
            next: BinaryHeap::with_capacity(SHARDS),
            since: query.since.map(moment),
            before: before.into_iter().flatten().min(),
            at_a_time,
            looked_at: 0,
            last: None,
        };
        newest.read(inner).await?;
        for at in 0..newest.shards.len() {
            newest.push_next(at);
        }
        Ok(newest)
    }

    /// The next `count` operations that may be wanted; fewer only where it is over.
    async fn next(
        &mut self,
        inner: &Inner,
        filter: &Filter<'_>,
        count: usize,
    ) -> Result<Vec<Member>, StoreError> {
        let mut given = Vec::with_capacity(count);
        while given.len() < count && self.looked_at < MOST_LOOKED_AT {
            let Some((raw, at)) = self.next.pop() else {
                break;
            };
            if self.shards[at].members.is_empty() && self.shards[at].more {
                self.read(inner).await?;
            }
            self.push_next(at);
            self.looked_at += 1;
            let Some(member) = Member::decode(&raw) else {
                continue;
            };
            self.last = Some(member.id);
            given.extend(Some(member).filter(|member| filter.may_be(member)));
        }
        Ok(given)
    }

    fn is_over(&self) -> bool {
        self.next.is_empty() || self.looked_at >= MOST_LOOKED_AT
    }

    /// The last that was looked at, where more are left.
    fn cursor(&self) -> Option<OperationId> {
        self.last.filter(|_| !self.next.is_empty())
    }

    fn push_next(&mut self, at: usize) {
        if let Some(member) = self.shards[at].members.pop_front() {
            self.next.push((member, at));
        }
    }

    /// Reads on in the shards of which little is left: they run out together, as operations spread over
    /// them evenly.
    async fn read(&mut self, inner: &Inner) -> Result<(), StoreError> {
        let enough = self.at_a_time / 4;
        let ends = |waiting: &Waiting| waiting.more && waiting.members.len() <= enough;
        let short: Vec<usize> = (0..self.shards.len())
            .filter(|&at| ends(&self.shards[at]))
            .collect();
        let read: Vec<Vec<Raw>> = stream::iter(short.clone())
            .map(|at| self.read_shard(inner, &self.shards[at]))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        for (at, members) in short.into_iter().zip(read) {
            let waiting = &mut self.shards[at];
            waiting.more = !matches!(self.index, Index::Leases) && members.len() == self.at_a_time;
            waiting.last = members.last().cloned();
            waiting.members.extend(members);
        }
        Ok(())
    }

    async fn read_shard(&self, inner: &Inner, waiting: &Waiting) -> Result<Vec<Raw>, StoreError> {
        let (names, shard) = (&inner.servers.names, waiting.shard);
        let index = match self.index {
            Index::Ids => names.ids(shard),
            Index::Others => names.others(shard),
            Index::Leases => return self.leases(inner, shard).await,
        };
        let before = waiting.last.as_ref().or(self.before.as_ref());
        let last = before.map_or(b"+".to_vec(), |last| [b"(", &last[..]].concat());
        let first = self.since.as_ref();
        let first = first.map_or(b"-".to_vec(), |first| [b"[", &first[..]].concat());
        let of = (shard, index);
        inner.stretch(of, &last, &first, self.at_a_time).await
    }

    /// All that runs in a shard. Its index is ordered by the ends of leases.
    async fn leases(&self, inner: &Inner, shard: Shard) -> Result<Vec<Raw>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(inner.servers.names.leases(shard));
        command.arg(0).arg(-1);
        let mut members: Vec<Raw> = inner.ask(&Request::plain(shard, command)).await?;
        members.retain(|member| {
            self.since.is_none_or(|since| member[..] >= since[..])
                && self.before.as_ref().is_none_or(|before| member < before)
        });
        members.sort_unstable_by(|one, other| other.cmp(one));
        Ok(members)
    }
}

/// How the ids of operations that were first claimed at `time` begin (RFC 9562, 5.7).
fn moment(time: Timestamp) -> [u8; 6] {
    let [_, _, a, b, c, d, e, f] = time.as_millis().to_be_bytes();
    [a, b, c, d, e, f]
}
