//! What is done every few seconds: expiry, overdue leases, clocks, and counting.

use std::sync::atomic::Ordering;

use futures_util::{StreamExt, TryStreamExt, stream};
use onlyonce_core::{Address, Record, StateName};
use redis::FromRedisValue;

use super::{
    Inner,
    failure::Failure,
    head::Head,
    names::{Member, SHARDS, Shard, shard_of},
    scripts,
    servers::Request,
    store::unexpected,
};
use crate::{StoreError, Swept};

/// Shards that are looked at at once.
const AT_ONCE: usize = 32;
/// Records that one script sweeps: the server does nothing else meanwhile.
const BATCH: usize = 100;
/// Batches of one shard in one sweep.
const MOST_BATCHES: usize = 100;
/// A lease that has passed for so long has no record, or somebody would have written it.
const FORGOTTEN_MILLIS: u64 = 60_000;

impl Inner {
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        let swept = stream::iter(0..=u8::MAX)
            .map(|shard| self.sweep_shard(shard))
            .buffer_unordered(AT_ONCE)
            .try_fold(Swept::default(), async |all, one| {
                Ok(Swept {
                    records: all.records + one.records,
                    bytes: all.bytes + one.bytes,
                })
            })
            .await?;
        self.hush().await;
        // There may be another master, and the former one may not know.
        self.servers.doubt_map();
        self.measure_clocks().await?;
        self.count().await?;
        Ok(swept)
    }

    async fn sweep_shard(&self, shard: Shard) -> Result<Swept, StoreError> {
        let names = &self.servers.names;
        let now = self.now().as_millis();
        let forgotten = now.saturating_sub(FORGOTTEN_MILLIS);
        let mut swept = Swept::default();
        for (index, until) in [(names.ends(shard), now), (names.leases(shard), forgotten)] {
            for _ in 0..MOST_BATCHES {
                let due = self.due(shard, &index, until, BATCH).await?;
                if due.is_empty() {
                    break;
                }
                let one = self.sweep_records(shard, &due).await?;
                swept.records += one.records;
                swept.bytes += one.bytes;
                // Leases that are only overdue stay where they are.
                if due.len() < BATCH || one.records == 0 {
                    break;
                }
            }
        }
        Ok(swept)
    }

    async fn sweep_records(&self, shard: Shard, members: &[Vec<u8>]) -> Result<Swept, StoreError> {
        let names = &self.servers.names;
        let addresses: Vec<Address> = members
            .iter()
            .map(|raw| Member::decode(raw).map(|member| member.address))
            .collect::<Option<_>>()
            .ok_or_else(unexpected)?;
        let mut command = scripts::SWEEP.call();
        command.arg(4 + members.len());
        command.arg(names.ids(shard)).arg(names.leases(shard));
        command.arg(names.ends(shard)).arg(names.others(shard));
        for address in addresses {
            command.arg(names.record(address));
        }
        command.arg(self.given_now()).arg(members);
        let request = Request::script(shard, &scripts::SWEEP, command);
        let (records, bytes) = self.ask(&request).await?;
        Ok(Swept { records, bytes })
    }

    pub async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        self.measure_home().await?;
        let now = self.now().as_millis();
        // Not always the same shards first: what cannot be written in one must not hide the others.
        let first = self.first_shard.fetch_add(1, Ordering::Relaxed) as usize;
        let mut members = stream::iter(0..SHARDS)
            .map(|at| {
                let shard = ((first + at) % SHARDS) as Shard;
                let leases = self.servers.names.leases(shard);
                async move { self.due(shard, &leases, now, limit).await }
            })
            .buffered(AT_ONCE);
        let mut overdue = Vec::new();
        while let Some(due) = members.next().await {
            for Member { id, address, .. } in due?.iter().filter_map(|raw| Member::decode(raw)) {
                if overdue.len() == limit {
                    return Ok(overdue);
                }
                // What cannot be read is nobody's to expire, and says so to whoever asks for it.
                let Some(head) = self.head(address).await? else {
                    continue;
                };
                let standing = head.standing;
                if standing.state != StateName::InFlight
                    || standing.fence.id != id
                    || now < head.until
                {
                    continue;
                }
                match self.load(address).await {
                    Ok(Some(stored)) if stored.record.fence() == standing.fence => {
                        overdue.push((address, (*stored.record).clone()));
                    }
                    Ok(_) | Err(StoreError::Corrupt(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(overdue)
    }

    /// Members of `index` whose time is `until` or before, oldest first.
    async fn due(
        &self,
        shard: Shard,
        index: &str,
        until: u64,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(index).arg("-inf").arg(until).arg("BYSCORE");
        command.arg("LIMIT").arg(0).arg(limit);
        self.ask(&Request::plain(shard, command)).await
    }

    /// The head of what is held at `address`; `None` where there is none that can be read.
    pub async fn head(&self, address: Address) -> Result<Option<Head>, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.servers.names.record(address)).arg("h");
        let request = Request::plain(shard_of(address), command);
        let head: Option<Vec<u8>> = self.ask(&request).await?;
        Ok(head.and_then(|head| Head::decode(&head).ok()))
    }

    pub async fn ask<T: FromRedisValue>(&self, request: &Request) -> Result<T, StoreError> {
        let value = self.call(request).await.map_err(Failure::of_read)?;
        redis::from_redis_value(value).map_err(|_| unexpected())
    }

    /// Measures the clocks of all servers again.
    pub async fn measure_clocks(&self) -> Result<(), StoreError> {
        for node in self.servers.all().await.map_err(Failure::of_read)? {
            self.servers
                .measure_clock(&node)
                .await
                .map_err(Failure::of_read)?;
        }
        self.measure_home().await
    }

    async fn measure_home(&self) -> Result<(), StoreError> {
        let home = self.servers.home().await.map_err(Failure::of_read)?;
        self.servers
            .measure_clock(&home)
            .await
            .map_err(Failure::of_read)?;
        *self.home_clock.write() = home.clock.clone();
        Ok(())
    }
}
