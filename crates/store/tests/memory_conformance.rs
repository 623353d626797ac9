//! The memory store does what a store must do.

use std::{sync::Arc, time::Duration};

use onlyonce_core::Address;
use onlyonce_store::{
    MemoryStore,
    clock::ManualClock,
    conformance::{Fault, Faulty, Subject, cannot_in_memory},
    memory,
};

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

/// A store that a test makes fail.
#[derive(Default)]
struct Failing(memory::Faults);

impl Subject for Failing {
    type Store = MemoryStore;

    async fn make(&mut self, clock: ManualClock) -> Arc<MemoryStore> {
        let store = MemoryStore::with_clock(clock);
        self.0 = store.faults();
        Arc::new(store)
    }
}

impl Faulty for Failing {
    fn time_out(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn cannot(&self, fault: Fault) -> Option<&'static str> {
        cannot_in_memory(fault)
    }

    fn disturb(&self, fault: Fault) {
        self.0.disturb(fault);
    }

    fn heal(&self) {
        self.0.heal();
    }
}

onlyonce_store::fault_tests!(Failing::default());
