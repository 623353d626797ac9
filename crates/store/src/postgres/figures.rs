//! What a store says of itself, and how many records it holds (I15).
//!
//! The server is asked now and then; in between, what this gateway writes and drops is counted. Other
//! gateways' writes are seen at the next count, so limits are kept at best effort.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_postgres::types::Type;

use super::{Core, error::Failed};
use crate::{Status, StoreError, commits::Commits};

/// How often all is counted.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Tables of more rows are estimated, and tenants counted on a sample.
const COUNTED_EXACTLY: i64 = 100_000;

/// The same trouble is said again after so long.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// And so long after, another reason for it.
const NEWS_AFTER: Duration = Duration::from_secs(10);

/// What goes wrong beside the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// A lane has no connection.
    Connecting,
    /// Nobody tells this gateway what others show.
    Listening,
}

/// The figures.
#[derive(Default)]
pub struct Figures {
    records: AtomicI64,
    bytes: AtomicI64,
    tenants: Mutex<HashMap<i32, i64>>,
    counted: Mutex<Option<Instant>>,
    commits: Commits,
    troubles: Mutex<HashMap<Trouble, (String, Instant)>>,
}

impl Figures {
    /// A commit took `took` and carried `writes` writes.
    pub fn committed(&self, writes: u64, took: Duration) {
        self.commits.note(writes, took);
    }

    /// This gateway wrote a new row.
    pub fn added(&self, tenant: i32) {
        self.records.fetch_add(1, Ordering::Relaxed);
        *self.tenants.lock().entry(tenant).or_default() += 1;
    }

    /// This gateway dropped a row.
    pub fn dropped(&self, tenant: i32) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        let mut tenants = self.tenants.lock();
        if let Some(held) = tenants.get_mut(&tenant) {
            *held -= 1;
            if *held <= 0 {
                tenants.remove(&tenant);
            }
        }
    }

    /// This gateway wrote, or gave back, so many bytes.
    pub fn grew(&self, bytes: i64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether one more record of `tenant` may be held.
    pub fn check_room(&self, core: &Core, tenant: i32) -> Result<(), StoreError> {
        let most = core.options.max_records;
        if self.records.load(Ordering::Relaxed) >= i64::try_from(most).unwrap_or(i64::MAX) {
            return Err(StoreError::Full(format!(
                "store.max_records is {most} and so many are held"
            )));
        }
        let most = i64::try_from(core.options.max_tenant_records).unwrap_or(i64::MAX);
        if self
            .tenants
            .lock()
            .get(&tenant)
            .is_some_and(|&held| held >= most)
        {
            return Err(StoreError::OverLimit("tenant_records"));
        }
        Ok(())
    }

    /// Says what goes wrong, unless that was said a moment ago.
    pub fn trouble(&self, what: Trouble, why: &str) {
        let mut troubles = self.troubles.lock();
        let is_said = troubles.get(&what).is_some_and(|(said, when)| {
            let pause = if said == why {
                SAID_AGAIN_AFTER
            } else {
                NEWS_AFTER
            };
            when.elapsed() < pause
        });
        if is_said {
            return;
        }
        troubles.insert(what, (why.to_owned(), Instant::now()));
        match what {
            Trouble::Connecting => tracing::warn!("no connection to the store: {why}"),
            Trouble::Listening => tracing::warn!(
                "notices are not heard, and joins across gateways go on by asking: {why}; see \
                 store.listen_url in docs/configuration.md"
            ),
        }
    }

    /// What [`Store::status`](crate::Store::status) tells.
    pub fn status(&self) -> Status {
        let figure = |value: &AtomicI64| u64::try_from(value.load(Ordering::Relaxed)).unwrap_or(0);
        Status {
            poisoned: None,
            records: figure(&self.records),
            bytes: figure(&self.bytes),
            ..self.commits.status()
        }
    }
}

impl Core {
    /// Counts again, if it is time.
    pub async fn count_now_and_then(&self) -> Result<(), Failed> {
        let is_time = |counted: Option<Instant>| {
            counted.is_none_or(|counted| counted.elapsed() >= COUNT_EVERY)
        };
        if is_time(*self.figures.counted.lock()) {
            self.count().await?;
        }
        Ok(())
    }

    /// Counts records, bytes, and the records of each tenant.
    pub async fn count(&self) -> Result<(), Failed> {
        let schema = &self.target.schema;
        *self.figures.counted.lock() = Some(Instant::now());
        let text = format!(
            "SELECT (SELECT count(*) FROM (SELECT FROM {schema}.operations LIMIT $1 + 1) AS counted),
                (SELECT greatest(reltuples, 0)::int8 FROM pg_class
                    WHERE oid = '{schema}.operations'::regclass),
                (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8 FROM pg_class c
                    WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind = 'r')"
        );
        let rows = self
            .chores
            .ask(self, &text, &[Type::INT8], &[&COUNTED_EXACTLY])
            .await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let (some, estimate, bytes): (i64, i64, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let is_exact = some <= COUNTED_EXACTLY;
        let records = if is_exact { some } else { estimate.max(some) };
        // Of a large table, as many pages are looked at as hold the rows that would be counted.
        let share = COUNTED_EXACTLY as f64 / records.max(1) as f64;
        let sample = if is_exact {
            String::new()
        } else {
            format!("TABLESAMPLE SYSTEM ({})", 100.0 * share)
        };
        let text = format!(
            "SELECT tenant_tag, count(*) FROM {schema}.operations {sample} GROUP BY tenant_tag"
        );
        let rows = self.chores.ask(self, &text, &[], &[]).await?;
        let mut tenants = HashMap::with_capacity(rows.len());
        for row in rows {
            let (tenant, count): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
            let count = if is_exact {
                count
            } else {
                (count as f64 / share) as i64
            };
            tenants.insert(tenant, count);
        }
        self.figures.records.store(records, Ordering::Relaxed);
        self.figures.bytes.store(bytes, Ordering::Relaxed);
        *self.figures.tenants.lock() = tenants;
        Ok(())
    }
}
