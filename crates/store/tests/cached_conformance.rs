//! A cached store does what a store must do.

use std::{sync::Arc, time::Duration};

use onlyonce_core::Address;
use onlyonce_store::{
    Cached, MemoryStore,
    cached::Options,
    clock::ManualClock,
    conformance::{Fault, Faulty, Subject, cannot_in_memory},
};

/// Over a store in memory, which a test can damage behind the cache's back.
#[derive(Default)]
struct OverMemory(Option<Arc<MemoryStore>>);

impl OverMemory {
    /// The cache of another gateway on the same store, in which nothing is warm.
    fn cold(&self) -> Option<Arc<Cached<MemoryStore>>> {
        let store = self.0.clone()?;
        Some(Arc::new(Cached::new(store, Options::default())))
    }
}

impl Subject for OverMemory {
    type Store = Cached<MemoryStore>;

    async fn make(&mut self, clock: ManualClock) -> Arc<Cached<MemoryStore>> {
        self.0 = Some(Arc::new(MemoryStore::with_clock(clock)));
        self.cold().expect("it was just made")
    }

    async fn damage(
        &mut self,
        _: Arc<Cached<MemoryStore>>,
        _: ManualClock,
        address: Address,
    ) -> Option<Arc<Cached<MemoryStore>>> {
        self.0.as_ref()?.faults().corrupt(address);
        self.cold()
    }

    async fn damage_chunk(
        &mut self,
        store: Arc<Cached<MemoryStore>>,
        _: ManualClock,
        address: Address,
    ) -> Option<Arc<Cached<MemoryStore>>> {
        self.0.as_ref()?.faults().corrupt_chunk(address, 0);
        Some(store)
    }
}

onlyonce_store::conformance_tests!(OverMemory::default());

impl Faulty for OverMemory {
    fn time_out(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn cannot(&self, fault: Fault) -> Option<&'static str> {
        cannot_in_memory(fault)
    }

    fn disturb(&self, fault: Fault) {
        let store = self.0.as_ref().expect("it was made");
        store.faults().disturb(fault);
    }

    fn heal(&self) {
        self.0.as_ref().expect("it was made").faults().heal();
    }
}

onlyonce_store::fault_tests!(OverMemory::default());
