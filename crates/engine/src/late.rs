//! The answer that comes after its operation had to be called unknown (HOSTILE 64).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use onlyonce_core::{Address, Head, HeaderBlock, Metered, OperationId, Record};
use onlyonce_store::Store;
use parking_lot::Mutex;

use crate::{Kind, PushError, Unsettled, admission::Permit, writer::Writer};

/// The owner's handle of an execution whose readers were told that the outcome is unknown, and
/// whose answer may still come. Dropping it gives up: the operation stays unknown.
#[must_use = "dropped, the late answer is given up"]
pub struct Late<S: Store> {
    pub(crate) writer: Writer<S>,
    pub(crate) window: std::time::Duration,
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

    /// Takes the head of the late answer.
    pub async fn head(&mut self, head: Head) -> Result<(), PushError> {
        self.writer.head(head, Kind::Executed)
    }

    /// Appends to the recording.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), PushError> {
        let gate = self.gate.gate.clone();
        self.writer.push(bytes, Some(&gate)).await
    }

    /// Says what the answer has told of its use and cost, as [`Execution::meter`](crate::Execution::meter).
    pub fn meter(&mut self, metered: Metered) {
        self.writer.meter(metered);
    }

    /// Completes the unknown operation, if it is still as this execution left it.
    pub async fn complete(self, trailers: HeaderBlock) -> Result<(), Unsettled> {
        self.writer.complete(trailers, self.window).await
    }

    /// Gives up for good: the operation stays unknown.
    pub fn give_up(self) {}
}

/// Closed when a later claim of the same operation is about to be made: from then on, the late
/// writer must not touch the recording. It is locked while a chunk is being written.
pub(crate) type Gate = Arc<tokio::sync::Mutex<bool>>;

#[derive(Default)]
pub(crate) struct Gates {
    len: AtomicUsize,
    gates: Mutex<HashMap<Address, Gate>>,
}

impl Gates {
    fn open(&self, address: Address) -> Gate {
        let gate = Gate::default();
        let mut gates = self.gates.lock();
        gates.insert(address, gate.clone());
        self.len.store(gates.len(), Ordering::Release);
        gate
    }

    fn remove(&self, address: Address, gate: &Gate) {
        let mut gates = self.gates.lock();
        if gates
            .get(&address)
            .is_some_and(|held| Arc::ptr_eq(held, gate))
        {
            gates.remove(&address);
        }
        self.len.store(gates.len(), Ordering::Release);
    }

    /// Shuts the late writer at `address` out, and waits for the chunk that it is writing.
    pub(crate) async fn close(&self, address: Address) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let gate = self.gates.lock().get(&address).cloned();
        if let Some(gate) = gate {
            *gate.lock().await = true;
        }
    }
}

/// Keeps a gate among the gates for as long as its late writer lives.
pub(crate) struct LateGuard<S: Store> {
    shared: Arc<crate::Shared<S>>,
    address: Address,
    gate: Gate,
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
