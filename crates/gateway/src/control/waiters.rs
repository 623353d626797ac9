//! Who may wait for the end of an operation, and how many of them at once.
//!
//! The places are one pot, and no tenant may empty it (L5): each may hold as many as are left free. One tenant
//! alone gets half of them, two get a third each, and who comes next always finds one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The places.
pub(super) struct Waiters {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    by_tenant: HashMap<Box<str>, usize>,
}

/// One of them, until it is dropped.
pub(super) struct Waiter {
    waiters: Arc<Waiters>,
    tenant: Box<str>,
}

impl Waiters {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: Mutex::default(),
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A place for one who waits for an operation of `tenant`. `None` where there is none for that one.
    pub(super) fn admit(self: &Arc<Self>, tenant: &str) -> Option<Waiter> {
        let mut held = self.held.lock();
        let free = self.limit.saturating_sub(held.all);
        let own = held.by_tenant.get(tenant).copied().unwrap_or(0);
        if own >= free {
            return None;
        }
        held.all += 1;
        held.by_tenant.insert(tenant.into(), own + 1);
        Some(Waiter {
            waiters: Arc::clone(self),
            tenant: tenant.into(),
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut held = self.waiters.held.lock();
        held.all = held.all.saturating_sub(1);
        let own = held.by_tenant.get(&self.tenant).copied().unwrap_or(0);
        match own {
            0 | 1 => held.by_tenant.remove(&self.tenant),
            own => held.by_tenant.insert(self.tenant.clone(), own - 1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l5_whoever_comes_next_finds_a_place_however_many_one_tenant_takes() {
        let waiters = Arc::new(Waiters::new(9));
        let all_of = |tenant: &str| -> Vec<Waiter> {
            std::iter::from_fn(|| waiters.admit(tenant)).collect()
        };
        let first = all_of("acme");
        assert_eq!(first.len(), 5);
        let second = all_of("beta");
        assert_eq!(second.len(), 2);
        assert_eq!(all_of("gamma").len(), 1);
        drop((first, second));
        assert_eq!(all_of("beta").len(), 5);
        assert_eq!(waiters.held.lock().by_tenant.len(), 0);
    }
}
