//! The answer that comes after its operation had to be called unknown (HOSTILE 64).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onlyonce_core::{Address, Head, HeaderBlock, Metered, OperationId, Record};
use onlyonce_store::Store;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::{Kind, PushError, Unsettled, admission::Permit, writer::Writer};

/// The owner's handle of an execution whose readers were told that the outcome is unknown, and
/// whose answer may still come. Dropping it gives up: the operation stays unknown.
#[must_use = "dropped, the late answer is given up"]
pub struct Late<S: Store> {
    pub(crate) writer: Writer<S>,
    pub(crate) window: Duration,
    pub(crate) gate: LateGuard<S>,
    pub(crate) _permit: Option<Permit>,
}

impl<S: Store> Late<S> {
    /// The operation.
    pub fn id(&self) -> OperationId {
        self.writer.fence().id
    }

    /// The record that says that the outcome is unknown.
    pub fn claimed(&self) -> &Record {
        &self.writer.claimed
    }

    /// For whoever drives the exchange that the answer is to come from.
    pub fn closing(&self) -> Closing {
        Closing(self.gate.gate.told.subscribe())
    }

    /// Waits until the operation is in the store as another writer left it, as far as the store can be read:
    /// an operator on another gateway has settled it, or another attempt has claimed it.
    pub async fn overtaken_elsewhere(&self) {
        let shared = &self.writer.shared;
        loop {
            sleep(LOOK_AGAIN).await;
            if let Ok(held) = shared.store.load(self.gate.address).await
                && held.is_none_or(|held| held.record.fence() != self.writer.claimed.fence())
            {
                return;
            }
        }
    }

    /// Takes the head of the late answer.
    pub async fn head(&mut self, head: Head) -> Result<(), PushError> {
        self.writer.head(head, Kind::Executed)
    }

    /// Appends to the recording.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), PushError> {
        self.writer.push(bytes, Some(&self.gate.gate)).await
    }

    /// Says what the answer has told of its use and cost, as [`Execution::meter`](crate::Execution::meter).
    pub fn meter(&mut self, metered: Metered) {
        self.writer.meter(metered);
    }

    /// Completes the unknown operation, if it is still as this execution left it.
    pub async fn complete(self, trailers: HeaderBlock) -> Result<(), Unsettled> {
        // Held until the record is written: an operator's answer goes into the same recording.
        let is_shut = self.gate.gate.shut.lock().await;
        if *is_shut {
            return Err(Unsettled::Fenced);
        }
        self.writer.complete(trailers, self.window).await
    }

    /// Gives up for good: the operation stays unknown.
    pub fn give_up(self) {}
}

/// How long whoever drives a late exchange gets to let go of it.
const LETS_GO: Duration = Duration::from_secs(1);

/// How often an owner looks whether another gateway has settled what it still waits for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Says when an operator is about to settle what a late exchange is still about. From then on no byte of its request may
/// follow: whoever drives it lets go of it first, and drops this afterwards, which the operator waits for.
pub struct Closing(watch::Receiver<bool>);

impl Closing {
    /// Waits until that is so.
    pub async fn wait(&mut self) {
        // Without a sender, nobody can overtake it any more.
        if self.0.wait_for(|told| *told).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Closed when an operator is about to settle the operation.
#[derive(Default)]
pub(crate) struct Gate {
    /// From then on, the late writer must not touch the recording. It is locked while a chunk or the record is being
    /// written.
    pub(crate) shut: tokio::sync::Mutex<bool>,
    /// Whether it is closed, for whoever drives the exchange.
    told: watch::Sender<bool>,
}

#[derive(Default)]
pub(crate) struct Gates {
    len: AtomicUsize,
    gates: Mutex<HashMap<Address, Arc<Gate>>>,
}

impl Gates {
    fn open(&self, address: Address) -> Arc<Gate> {
        let gate = Arc::<Gate>::default();
        let mut gates = self.gates.lock();
        gates.insert(address, Arc::clone(&gate));
        self.len.store(gates.len(), Ordering::Release);
        gate
    }

    fn remove(&self, address: Address, gate: &Arc<Gate>) {
        let mut gates = self.gates.lock();
        if gates
            .get(&address)
            .is_some_and(|held| Arc::ptr_eq(held, gate))
        {
            gates.remove(&address);
        }
        self.len.store(gates.len(), Ordering::Release);
    }

    /// Shuts the late writer at `address` out, and waits for the chunk that it is writing and, for a moment, until its
    /// exchange is let go.
    pub(crate) async fn close(&self, address: Address) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let gate = self.gates.lock().get(&address).cloned();
        if let Some(gate) = gate {
            *gate.shut.lock().await = true;
            gate.told.send_replace(true);
            if timeout(LETS_GO, gate.told.closed()).await.is_err() {
                tracing::warn!("an exchange that was overtaken still goes on");
            }
        }
    }
}

/// Keeps a gate among the gates for as long as its late writer lives.
pub(crate) struct LateGuard<S: Store> {
    shared: Arc<crate::Shared<S>>,
    address: Address,
    gate: Arc<Gate>,
}

impl<S: Store> LateGuard<S> {
    pub(crate) fn open(shared: Arc<crate::Shared<S>>, address: Address) -> Self {
        let gate = shared.late.open(address);
        Self {
            shared,
            address,
            gate,
        }
    }
}

impl<S: Store> Drop for LateGuard<S> {
    fn drop(&mut self) {
        self.shared.late.remove(self.address, &self.gate);
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_core::OwnerId;
    use onlyonce_store::MemoryStore;

    use super::*;
    use crate::{Engine, Settings};

    #[test]
    fn i15_a_gate_goes_with_its_late_writer() {
        let (store, owner) = (MemoryStore::new(), OwnerId::new(1));
        let engine = Engine::new(Arc::new(store), owner, Settings::default());
        let gates = &engine.shared.late;
        let here = Address::from_bytes([1; 16]);
        let first = LateGuard::open(engine.shared.clone(), here);
        // The next execution of the key has become late, too.
        let second = LateGuard::open(engine.shared.clone(), here);
        drop(first);
        let held = gates.gates.lock().get(&here).cloned();
        assert!(held.is_some_and(|held| Arc::ptr_eq(&held, &second.gate)));
        drop(second);
        assert!(gates.gates.lock().is_empty());
        assert_eq!(gates.len.load(Ordering::Acquire), 0);
    }
}
