//! Failures of a [`MemoryStore`](super::MemoryStore) on request.

use std::{collections::HashSet, sync::Arc, time::Duration};

use onlyonce_core::{Address, StateName};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::StoreError;

/// The handle by which a test makes a store fail or wait. Its clones are one handle.
///
/// ```
/// # async fn example() -> Result<(), onlyonce_store::StoreError> {
/// use onlyonce_store::{MemoryStore, memory::{Call, Fault}};
///
/// let store = MemoryStore::new();
/// // The next two writes are written, and their acknowledgements are lost.
/// store.faults().fail(Call::Write, Fault::InDoubtWritten, 2);
/// // Every load waits until the gate is dropped.
/// let gate = store.faults().hold(Call::Load);
/// gate.until_waiting(1).await;
/// drop(gate);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Planned>>);

#[derive(Debug, Default)]
struct Planned {
    failures: Vec<Failure>,
    gates: Vec<Arc<Barrier>>,
    unreadable: HashSet<Address>,
    unreadable_chunks: HashSet<(Address, u32)>,
    set_back: Duration,
}

#[derive(Debug)]
struct Failure {
    call: Call,
    fault: Fault,
    times: u32,
}

/// Which calls a fault or a gate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Store::load`](crate::Store::load).
    Load,
    /// [`Store::compare_and_set`](crate::Store::compare_and_set), whatever it writes.
    Write,
    /// [`Store::compare_and_set`](crate::Store::compare_and_set) of a record in this state.
    WriteOf(StateName),
    /// [`Store::append`](crate::Store::append).
    Append,
    /// [`Store::read`](crate::Store::read).
    Read,
    /// [`Store::note_attempt`](crate::Store::note_attempt).
    Note,
    /// [`Store::followed`](crate::Store::followed), once it has taken what it is to return.
    Followed,
    /// Any call of [`Books`](crate::Books) but those about dead letters.
    Books,
}

impl Call {
    fn covers(self, call: Self) -> bool {
        self == call || matches!((self, call), (Self::Write, Self::WriteOf(_)))
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and the store says so.
    Unavailable,
    /// Nothing is done: there is no space.
    Full,
    /// It is done, and the acknowledgement is lost.
    InDoubtWritten,
    /// It is not done, and the store cannot say so.
    InDoubtNotWritten,
    /// Of a write: it is lost, though the record whose fence it presents is what a look finds. So it is
    /// while looks are answered by a former primary still.
    Lost,
}

impl Fault {
    /// The error of a call that fails before it does anything.
    pub(super) fn before_the_write(self) -> Option<StoreError> {
        match self {
            Self::Unavailable => Some(StoreError::Unavailable("a test wants it so".into())),
            Self::Full => Some(StoreError::Full("a test wants it so".into())),
            Self::InDoubtNotWritten => Some(lost()),
            Self::InDoubtWritten | Self::Lost => None,
        }
    }

    /// The error of a call that fails after it has done its work.
    pub(super) fn after_the_write(self) -> Option<StoreError> {
        (self == Self::InDoubtWritten).then(lost)
    }
}

fn lost() -> StoreError {
    StoreError::InDoubt("a test has lost the acknowledgement".into())
}

impl Faults {
    /// Makes the next `times` calls of this kind fail. Faults of one kind happen in the order in
    /// which they were asked for.
    pub fn fail(&self, call: Call, fault: Fault, times: u32) {
        self.0.lock().failures.push(Failure { call, fault, times });
    }

    /// Forgets the failures that were asked for and did not happen yet.
    pub fn heal(&self) {
        self.0.lock().failures.clear();
    }

    /// Makes every call of this kind wait, before it does anything, until the gate is dropped.
    #[must_use = "the gate opens when it is dropped"]
    pub fn hold(&self, call: Call) -> Gate {
        let barrier = Arc::new(Barrier {
            call,
            open: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
        });
        self.0.lock().gates.push(Arc::clone(&barrier));
        Gate {
            faults: self.clone(),
            barrier,
        }
    }

    /// Sets the clock back by which a write is judged, and not the one that [`Store::now`] follows: as
    /// at a failover to a server whose clock is behind, while a gateway keeps the later time.
    ///
    /// [`Store::now`]: crate::Store::now
    pub fn set_back(&self, span: Duration) {
        self.0.lock().set_back = span;
    }

    pub(super) fn behind(&self) -> Duration {
        self.0.lock().set_back
    }

    /// Damages what is kept at `address`: from now on it cannot be read (I13).
    pub fn corrupt(&self, address: Address) {
        self.0.lock().unreadable.insert(address);
    }

    /// Damages one chunk of the recording kept at `address`.
    pub fn corrupt_chunk(&self, address: Address, chunk: u32) {
        self.0.lock().unreadable_chunks.insert((address, chunk));
    }

    /// Waits at the gates for `call`, which changes nothing, and fails if a fault was asked for.
    pub(super) async fn meet(&self, call: Call) -> Result<(), StoreError> {
        let fault = self.meet_write(call).await;
        let error = |fault: Fault| fault.before_the_write().or(fault.after_the_write());
        fault.and_then(error).map_or(Ok(()), Err)
    }

    /// Waits at the gates for `call`; the fault is the caller's to apply.
    pub(super) async fn meet_write(&self, call: Call) -> Option<Fault> {
        self.wait(call).await;
        self.take(call)
    }

    pub(super) fn check_readable(&self, address: Address) -> Result<(), StoreError> {
        match self.0.lock().unreadable.contains(&address) {
            true => Err(StoreError::Corrupt("a test has damaged the record".into())),
            false => Ok(()),
        }
    }

    pub(super) fn check_chunk(&self, address: Address, chunk: u32) -> Result<(), StoreError> {
        match self.0.lock().unreadable_chunks.contains(&(address, chunk)) {
            true => Err(StoreError::Corrupt("a test has damaged the chunk".into())),
            false => Ok(()),
        }
    }

    async fn wait(&self, call: Call) {
        let gates: Vec<_> = {
            let planned = self.0.lock();
            let held = planned.gates.iter();
            held.filter(|gate| gate.call.covers(call))
                .cloned()
                .collect()
        };
        for gate in gates {
            gate.pass().await;
        }
    }

    fn take(&self, call: Call) -> Option<Fault> {
        let mut planned = self.0.lock();
        let index = planned
            .failures
            .iter()
            .position(|failure| failure.call.covers(call) && failure.times > 0)?;
        let failure = &mut planned.failures[index];
        failure.times -= 1;
        Some(failure.fault)
    }
}

/// Holds calls up for as long as it is alive.
#[derive(Debug)]
pub struct Gate {
    faults: Faults,
    barrier: Arc<Barrier>,
}

impl Gate {
    /// How many calls wait now.
    pub fn waiting(&self) -> usize {
        *self.barrier.waiting.borrow()
    }

    /// Returns once at least `calls` wait.
    pub async fn until_waiting(&self, calls: usize) {
        let mut waiting = self.barrier.waiting.subscribe();
        // The sender lives in the barrier that this borrows: it cannot be gone.
        let _ = waiting.wait_for(|waiting| *waiting >= calls).await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut planned = self.faults.0.lock();
        planned
            .gates
            .retain(|gate| !Arc::ptr_eq(gate, &self.barrier));
        self.barrier.open.send_replace(true);
    }
}

#[derive(Debug)]
struct Barrier {
    call: Call,
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Barrier {
    async fn pass(&self) {
        let mut open = self.open.subscribe();
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _waits = Waits(&self.waiting);
        // The sender lives in the barrier that this borrows: it cannot be gone.
        let _ = open.wait_for(|open| *open).await;
    }
}

/// Counts a call out, also when its future is dropped.
struct Waits<'a>(&'a watch::Sender<usize>);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}
