//! How many records there are, and how many of each tenant (I15).

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use super::index::Index;

/// The counts. Tenants are told apart by the tags that the index keeps.
pub struct Census {
    all: AtomicU64,
    by_tenant: Mutex<HashMap<u32, u64>>,
    most_of_a_tenant: u64,
}

impl Census {
    /// Counts what `index` holds.
    pub fn of(index: &Index, most_of_a_tenant: u64) -> Self {
        let census = Self {
            all: AtomicU64::new(0),
            by_tenant: Mutex::default(),
            most_of_a_tenant,
        };
        for shard in index.shards() {
            shard.tenant_tags().for_each(|tag| census.add(tag));
        }
        census
    }

    /// All records.
    pub fn records(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// Whether this tenant may hold no more records.
    pub fn is_at_limit(&self, tenant: u32) -> bool {
        self.by_tenant
            .lock()
            .get(&tenant)
            .is_some_and(|&held| held >= self.most_of_a_tenant)
    }

    pub fn add(&self, tenant: u32) {
        self.all.fetch_add(1, Ordering::Relaxed);
        *self.by_tenant.lock().entry(tenant).or_default() += 1;
    }

    pub fn remove(&self, tenant: u32) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        let mut by_tenant = self.by_tenant.lock();
        if let Some(held) = by_tenant.get_mut(&tenant) {
            *held -= 1;
            if *held == 0 {
                by_tenant.remove(&tenant);
            }
        }
    }
}
