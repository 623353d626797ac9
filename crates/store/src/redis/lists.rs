//! Finding operations: by id, and in lists.
//!
//! Every shard has its operations in a set that is ordered by their ids, and an id begins with the
//! moment of the first claim. A list merges the shards' sets, newest first.

use std::collections::{BinaryHeap, VecDeque};

use futures_util::{StreamExt, TryStreamExt, stream};
use onlyonce_core::{Address, OperationId, Timestamp};

use super::{
    Inner,
    head::Head,
    names::{Member, SHARDS, Shard},
    servers::Request,
};
use crate::{Page, Query, StoreError, Stored, WantedTags};

/// Requests that wait for servers at once.
pub const AT_ONCE: usize = 64;
/// Operations that a page looks at, at most, before it gives what it has and a cursor.
const MOST_SEEN: usize = 50_000;
/// Operations that are looked at together.
const BATCH: usize = 256;

/// A member as the server has it.
type Raw = Vec<u8>;

impl Inner {
    pub async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        let first = [b"[", &id.as_bytes()[..]].concat();
        let last = [b"(", &id.as_bytes()[..], &[0xff; 21]].concat();
        let found: Vec<Vec<Raw>> = stream::iter(0..=u8::MAX)
            .map(|shard| self.ids(shard, &last, &first, 1))
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
        let now = self.now();
        let filter = Filter::new(&query, &self.secret, now);
        let mut newest = Newest::start(self, &query).await?;
        let mut page = Page::default();
        let mut seen = 0;
        loop {
            let batch = newest.next(self, BATCH).await?;
            let is_last = batch.len() < BATCH;
            seen += batch.len();
            let cursor = batch.last().map(|member| member.id);
            for stored in self.wanted(batch, &filter).await? {
                if page.records.len() == query.limit {
                    page.next = page.records.last().map(|last: &Stored| last.record.id);
                    return Ok(page);
                }
                page.records.push(stored);
            }
            if is_last {
                return Ok(page);
            }
            if seen >= MOST_SEEN {
                page.next = cursor;
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

    /// Members of a shard's ids from `last` down to `first`, in Redis' words for ends.
    async fn ids(
        &self,
        shard: Shard,
        last: &[u8],
        first: &[u8],
        limit: usize,
    ) -> Result<Vec<Raw>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command
            .arg(self.servers.names.ids(shard))
            .arg(last)
            .arg(first);
        command
            .arg("BYLEX")
            .arg("REV")
            .arg("LIMIT")
            .arg(0)
            .arg(limit);
        self.ask(&Request::plain(shard, command)).await
    }
}

/// What a query wants.
struct Filter<'a> {
    query: &'a Query,
    tags: WantedTags,
    now: Timestamp,
}

impl<'a> Filter<'a> {
    fn new(query: &'a Query, secret: &[u8; 32], now: Timestamp) -> Self {
        Self {
            query,
            tags: WantedTags::of(query, secret),
            now,
        }
    }

    /// Whether a record with this head may be wanted.
    fn may_want(&self, head: &Head) -> bool {
        let state = head.standing.state;
        head.counts(self.now.as_millis())
            && self.query.state.is_none_or(|wanted| wanted == state)
            && self.tags.may_be(head.tags)
    }
}

/// The operations of all shards, newest first.
struct Newest {
    shards: Vec<Waiting>,
    /// The newest of each shard that has one left.
    next: BinaryHeap<(Raw, Shard)>,
    first: Vec<u8>,
    at_a_time: usize,
}

/// What of a shard was read and not given yet.
struct Waiting {
    members: VecDeque<Raw>,
    /// Whether there may be more.
    more: bool,
}

impl Newest {
    async fn start(inner: &Inner, query: &Query) -> Result<Self, StoreError> {
        let last = [
            query.older_than.map(|id| id.as_bytes().to_vec()),
            query.until.map(|until| moment(until).to_vec()),
        ];
        let last = last.into_iter().flatten().min();
        let last = last.map_or(b"+".to_vec(), |last| [b"(", &last[..]].concat());
        let first = query.since.map(moment);
        let first = first.map_or(b"-".to_vec(), |first| [b"[", &first[..]].concat());
        let at_a_time = (2 * query.limit / SHARDS).clamp(4, 64);
        let read: Vec<Vec<Raw>> = stream::iter(0..=u8::MAX)
            .map(|shard| inner.ids(shard, &last, &first, at_a_time))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let mut newest = Self {
            shards: Vec::with_capacity(SHARDS),
            next: BinaryHeap::with_capacity(SHARDS),
            first,
            at_a_time,
        };
        for (shard, members) in (0..=u8::MAX).zip(read) {
            newest.shards.push(Waiting {
                more: members.len() == at_a_time,
                members: members.into(),
            });
            newest.push_next(shard);
        }
        Ok(newest)
    }

    /// The next `count` operations; fewer only at the end.
    async fn next(&mut self, inner: &Inner, count: usize) -> Result<Vec<Member>, StoreError> {
        let mut given = Vec::with_capacity(count);
        while given.len() < count {
            let Some((member, shard)) = self.next.pop() else {
                break;
            };
            let waiting = &mut self.shards[usize::from(shard)];
            if waiting.members.is_empty() && waiting.more {
                let last = [b"(", &member[..]].concat();
                let members = inner.ids(shard, &last, &self.first, self.at_a_time).await?;
                waiting.more = members.len() == self.at_a_time;
                waiting.members = members.into();
            }
            self.push_next(shard);
            given.extend(Member::decode(&member));
        }
        Ok(given)
    }

    fn push_next(&mut self, shard: Shard) {
        let waiting = &mut self.shards[usize::from(shard)];
        if let Some(member) = waiting.members.pop_front() {
            self.next.push((member, shard));
        }
    }
}

/// How the ids of operations that were first claimed at `time` begin (RFC 9562, 5.7).
fn moment(time: Timestamp) -> [u8; 6] {
    let [_, _, a, b, c, d, e, f] = time.as_millis().to_be_bytes();
    [a, b, c, d, e, f]
}
