//! The memory store does what a store must do.

use std::sync::Arc;

use onlyonce_core::Address;
use onlyonce_store::{MemoryStore, clock::ManualClock, conformance::Subject};

struct Memory;

impl Subject for Memory {
    type Store = MemoryStore;

    async fn make(&mut self, clock: ManualClock) -> Arc<MemoryStore> {
        Arc::new(MemoryStore::with_clock(clock))
    }

    async fn damage(
        &mut self,
        store: Arc<MemoryStore>,
        _: ManualClock,
        address: Address,
    ) -> Option<Arc<MemoryStore>> {
        store.faults().corrupt(address);
        Some(store)
    }

    async fn damage_chunk(
        &mut self,
        store: Arc<MemoryStore>,
        _: ManualClock,
        address: Address,
    ) -> Option<Arc<MemoryStore>> {
        store.faults().corrupt_chunk(address, 0);
        Some(store)
    }
}

onlyonce_store::conformance_tests!(Memory);
