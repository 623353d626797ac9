//! How many operations may be live at once, in all and of one tenant (I15, L5).

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{Settings, Trouble};

const SHARDS: usize = 16;

pub(crate) struct Admission {
    all: Arc<AtomicUsize>,
    live_operations: usize,
    tenant_live: usize,
    hasher: RandomState,
    tenants: [Mutex<Tenants>; SHARDS],
}

#[derive(Default)]
struct Tenants {
    live: HashMap<Box<str>, Arc<AtomicUsize>>,
    /// Where the map is swept next: tenants may be as many as credentials that somebody invents.
    sweep_at: usize,
}

/// The right to have one operation live; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    all: Arc<AtomicUsize>,
    tenant: Arc<AtomicUsize>,
}

impl Admission {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            all: Arc::default(),
            live_operations: settings.live_operations,
            tenant_live: settings.tenant_live,
            hasher: RandomState::new(),
            tenants: Default::default(),
        }
    }

    pub(crate) fn admit(&self, tenant: &str) -> Result<Permit, Trouble> {
        let permit = Permit {
            all: self.all.clone(),
            tenant: self.tenant(tenant),
        };
        let all = permit.all.fetch_add(1, Ordering::Relaxed);
        let of_tenant = permit.tenant.fetch_add(1, Ordering::Relaxed);
        if all >= self.live_operations {
            return Err(Trouble::OverLimit("live_operations"));
        }
        if of_tenant >= self.tenant_live {
            return Err(Trouble::OverLimit("tenant_live"));
        }
        Ok(permit)
    }

    fn tenant(&self, name: &str) -> Arc<AtomicUsize> {
        let shard = self.hasher.hash_one(name) as usize % SHARDS;
        let mut tenants = self.tenants[shard].lock();
        if let Some(count) = tenants.live.get(name) {
            return count.clone();
        }
        if tenants.live.len() >= tenants.sweep_at {
            tenants.live.retain(|_, count| Arc::strong_count(count) > 1);
            tenants.sweep_at = (tenants.live.len() * 2).max(256);
        }
        let count = Arc::<AtomicUsize>::default();
        tenants.live.insert(name.into(), count.clone());
        count
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        self.tenant.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i15_tenants_that_have_nothing_live_are_forgotten() {
        let admission = Admission::new(&Settings::default());
        let kept = admission.admit("kept").expect("admitted");
        for number in 0..20_000 {
            drop(admission.admit(&format!("t{number}")).expect("admitted"));
        }
        let known: usize = admission
            .tenants
            .iter()
            .map(|shard| shard.lock().live.len())
            .sum();
        assert!(known <= 256 * SHARDS, "{known} tenants are known");
        assert!(
            admission
                .tenants
                .iter()
                .any(|shard| shard.lock().live.contains_key("kept"))
        );
        drop(kept);
    }

    #[test]
    fn tenants_that_stay_are_looked_through_only_when_there_are_twice_as_many() {
        let admission = Admission::new(&Settings::default());
        let _kept: Vec<_> = (0..9_000)
            .map(|number| admission.admit(&format!("t{number}")).expect("admitted"))
            .collect();
        for shard in &admission.tenants {
            let tenants = shard.lock();
            assert!(tenants.live.len() <= tenants.sweep_at);
            assert!(tenants.sweep_at >= 512 && tenants.sweep_at.is_power_of_two());
        }
    }
}
