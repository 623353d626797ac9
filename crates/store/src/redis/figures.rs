//! What the store says of itself, and how much it may hold (I15).
//!
//! What this gateway writes and drops is counted as it goes; what others do is seen when all is
//! counted, at a sweep. So limits are kept at best effort.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use redis::Value;

use super::{
    Inner,
    check::Info,
    failure::Failure,
    names::{Member, SHARDS, Shard},
    servers::{Request, Servers},
    store::unexpected,
};
use crate::{Status, StoreError, commits::Commits};

/// Shards that are asked at once.
const AT_ONCE: usize = 32;
/// How often the records of each tenant are counted.
const TENANTS_EVERY: Duration = Duration::from_secs(60);
/// Of shards with more records than this, a sample of so many is counted.
const SAMPLE: u64 = 256;

/// The figures.
#[derive(Default)]
pub struct Figures {
    records: AtomicU64,
    bytes: AtomicU64,
    tenants: Mutex<Tenants>,
    writes: Commits,
}

#[derive(Default)]
struct Tenants {
    held: HashMap<u32, u64>,
    counted: Option<Instant>,
}

impl Figures {
    /// A write of `size` bytes that began at `started` was acknowledged.
    pub fn wrote(&self, size: usize, started: Instant) {
        self.grew(size);
        self.writes.note(1, started.elapsed());
    }

    /// So many bytes more are held.
    pub fn grew(&self, size: usize) {
        self.bytes.fetch_add(size as u64, Ordering::Relaxed);
    }

    /// There is one record more.
    pub fn added(&self, tenant_tag: u32) {
        self.records.fetch_add(1, Ordering::Relaxed);
        *self.tenants.lock().held.entry(tenant_tag).or_default() += 1;
    }

    /// There is one record less, of a tenant that is not known here.
    pub fn removed(&self) {
        let less = |records: u64| Some(records.saturating_sub(1));
        let _ = self
            .records
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        // So that it is counted again soon.
        self.tenants.lock().counted = None;
    }

    pub fn status(&self) -> Status {
        Status {
            poisoned: None,
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            ..self.writes.status()
        }
    }
}

impl Inner {
    /// Whether one record more of a tenant may be held.
    pub fn check_room(&self, tenant_tag: u32) -> Result<(), StoreError> {
        let figures = &self.figures;
        let most = self.max_records;
        if figures.records.load(Ordering::Relaxed) >= most {
            return Err(StoreError::Full(format!(
                "store.max_records is {most} and so many are held"
            )));
        }
        let held = figures.tenants.lock().held.get(&tenant_tag).copied();
        if held.is_some_and(|held| held >= self.max_tenant_records) {
            return Err(StoreError::OverLimit("tenant_records"));
        }
        Ok(())
    }

    /// Counts what is held, other gateways' writes included.
    pub async fn count(&self) -> Result<(), StoreError> {
        let shards = records(&self.servers).await.map_err(Failure::of_read)?;
        let records = shards.iter().sum();
        self.figures.records.store(records, Ordering::Relaxed);
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        let answers = self.servers.call_all(&info).await;
        let mut bytes = 0;
        for answer in answers.map_err(Failure::of_read)? {
            let text: String = redis::from_redis_value(answer).map_err(|_| unexpected())?;
            bytes += Info::parse(&text).number("used_memory");
        }
        self.figures.bytes.store(bytes, Ordering::Relaxed);
        let counted = self.figures.tenants.lock().counted;
        if counted.is_none_or(|counted| counted.elapsed() >= TENANTS_EVERY) {
            let held = self.count_tenants(&shards).await?;
            let counted = Some(Instant::now());
            *self.figures.tenants.lock() = Tenants { held, counted };
        }
        Ok(())
    }

    /// How many records each tenant holds, of small shards exactly.
    async fn count_tenants(&self, shards: &[u64]) -> Result<HashMap<u32, u64>, StoreError> {
        let shards: Vec<_> = (0..=u8::MAX).zip(shards.iter().copied()).collect();
        let mut samples = stream::iter(shards)
            .filter(|&(_, records)| std::future::ready(records > 0))
            .map(|(shard, records)| async move { (self.sample(shard).await, records) })
            .buffer_unordered(AT_ONCE);
        let mut counted: HashMap<u32, f64> = HashMap::new();
        while let Some((sample, records)) = samples.next().await {
            let sample = sample?;
            let share = records as f64 / sample.len().max(1) as f64;
            for member in sample.iter().filter_map(|raw| Member::decode(raw)) {
                *counted.entry(member.tenant_tag).or_default() += share;
            }
        }
        let whole = |(tag, held): (u32, f64)| (tag, held.round() as u64);
        Ok(counted.into_iter().map(whole).collect())
    }

    async fn sample(&self, shard: Shard) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut command = redis::cmd("ZRANDMEMBER");
        command.arg(self.servers.names.ids(shard)).arg(SAMPLE);
        self.ask(&Request::plain(shard, command)).await
    }
}

/// How many records there are in each shard.
pub async fn records(servers: &Servers) -> Result<Vec<u64>, Failure> {
    stream::iter(0..SHARDS)
        .map(|shard| async move {
            let shard = shard as Shard;
            let mut command = redis::cmd("ZCARD");
            command.arg(servers.names.ids(shard));
            match servers.call(&Request::plain(shard, command)).await? {
                Value::Int(records) => Ok(records.unsigned_abs()),
                _ => Ok(0),
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}
