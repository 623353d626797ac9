//! Live operations: the ones that this process claims or executes now.

use std::{
    collections::HashMap,
    future::poll_fn,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    task::Poll,
};

use onlyonce_core::{Address, Fingerprint, Metered, Record, Timestamp, UnknownReason};

use crate::{
    Trouble,
    recording::Recording,
    sync::{AtomicUsize, Mutex, Ordering},
    wakers::{Seat, Wakers},
};

/// One live operation: shared by the execution, its readers, those who wait for the claim, and
/// upkeep.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) address: Address,
    pub(crate) fingerprint: Fingerprint,
    /// Held while somebody writes the record: the owner settles and upkeep renews, one at a time.
    pub(crate) writing: tokio::sync::Mutex<()>,
    /// Of a mirror: this process has written the record, and there is no need to wait for the store to
    /// tell.
    pub(crate) poked: tokio::sync::Notify,
    pub(crate) state: Mutex<LiveState>,
}

#[derive(Debug)]
pub(crate) struct LiveState {
    pub(crate) phase: Phase,
    /// As this process wrote it last. `None` while the claim is being made.
    pub(crate) record: Option<Arc<Record>>,
    pub(crate) recording: Recording,
    /// What the owner has read in its answer so far.
    pub(crate) metered: Option<Box<Metered>>,
    /// What its owner says of why the outcome is unknown, for people.
    pub(crate) why: Option<Arc<str>>,
    /// Attempts that have joined it in this process.
    pub(crate) joined: u32,
    /// Set before another claim may start a recording of its own: the chunks in the store are gone
    /// with that, and readers that fell behind are told how this execution ended instead.
    pub(crate) doomed: bool,
    pub(crate) wakers: Wakers,
}

#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// The claim is being written.
    Claiming,
    /// The claim is durable.
    Running,
    /// It is over, and that is durable (or given up on).
    Ended(End),
}

#[derive(Clone, Debug)]
pub(crate) enum End {
    /// There was no claim: those who waited share the trouble, or decide for themselves.
    NotClaimed(Option<Trouble>),
    /// The record is completed.
    Completed {
        /// The end of its window.
        expires_at: Option<Timestamp>,
    },
    /// The record is released.
    Released {
        /// What happened, for people.
        detail: Arc<str>,
        /// Whether the body of the answer, if there was one, came whole.
        whole: bool,
    },
    /// Nobody can say whether it ran.
    Unknown(UnknownReason),
}

impl Live {
    pub(crate) fn new(address: Address, fingerprint: Fingerprint) -> Self {
        Self {
            address,
            fingerprint,
            writing: tokio::sync::Mutex::new(()),
            poked: tokio::sync::Notify::new(),
            state: Mutex::new(LiveState {
                phase: Phase::Claiming,
                record: None,
                recording: Recording::default(),
                metered: None,
                why: None,
                joined: 0,
                doomed: false,
                wakers: Wakers::new(),
            }),
        }
    }

    /// A running operation with a recording, outside the registry: for a late answer, and for a
    /// mirror.
    pub(crate) fn continued(
        address: Address,
        fingerprint: Fingerprint,
        record: Arc<Record>,
        recording: Recording,
    ) -> Self {
        let live = Self::new(address, fingerprint);
        {
            let mut state = live.state.lock();
            state.phase = Phase::Running;
            state.record = Some(record);
            state.recording = recording;
        }
        live
    }

    /// Waits until the claim is made, or is not.
    pub(crate) async fn claimed(&self) -> Phase {
        self.until(|phase| !matches!(phase, Phase::Claiming)).await
    }

    /// Waits until it has ended: then it is out of the registry.
    pub(crate) async fn ended(&self) {
        self.until(|phase| matches!(phase, Phase::Ended(_))).await;
    }

    async fn until(&self, is_reached: impl Fn(&Phase) -> bool) -> Phase {
        let mut waiting = Waiting::at(self);
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if is_reached(&state.phase) {
                return Poll::Ready(state.phase.clone());
            }
            state.wakers.sit(&mut waiting.seat, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// Changes the state and wakes everybody who waits for that.
    pub(crate) fn publish<T>(&self, change: impl FnOnce(&mut LiveState) -> T) -> T {
        let (result, woken) = {
            let mut state = self.state.lock();
            let result = change(&mut state);
            (result, state.wakers.take())
        };
        woken.wake();
        result
    }

    /// Ends it, unless it has ended.
    pub(crate) fn end(&self, end: End) {
        self.publish(|state| {
            if !matches!(state.phase, Phase::Ended(_)) {
                state.phase = Phase::Ended(end);
            }
        });
    }

    pub(crate) fn leave(&self, seat: &mut Seat) {
        let waker = self.state.lock().wakers.leave(seat);
        drop(waker);
    }
}

/// Somebody who waits for a live operation to change, and leaves when dropped.
pub(crate) struct Waiting<'a> {
    pub(crate) live: &'a Live,
    pub(crate) seat: Seat,
}

impl<'a> Waiting<'a> {
    pub(crate) fn at(live: &'a Live) -> Self {
        Self {
            live,
            seat: Seat::default(),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.live.leave(&mut self.seat);
    }
}

const SHARDS: usize = 64;

/// The live operations by address. At most one at an address: who enters first claims, everybody
/// else meets it.
pub(crate) struct Registry {
    shards: Box<[Shard]>,
    len: AtomicUsize,
}

/// The map hashes by the first bytes; the shard is chosen by the last.
fn shard_of(address: Address) -> usize {
    usize::from(address.as_bytes()[15]) % SHARDS
}

type Shard = Mutex<HashMap<Address, Arc<Live>, BuildHasherDefault<AddressHasher>>>;

/// What stood at an address.
pub(crate) enum Entered {
    /// Nothing: it is the caller's now.
    Mine(Arc<Live>),
    /// Somebody else's operation.
    Theirs(Arc<Live>),
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            len: AtomicUsize::new(0),
        }
    }

    fn shard(&self, address: Address) -> &Shard {
        &self.shards[shard_of(address)]
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    pub(crate) fn at(&self, address: Address) -> Option<Arc<Live>> {
        self.shard(address).lock().get(&address).cloned()
    }

    pub(crate) fn enter(&self, address: Address, fingerprint: Fingerprint) -> Entered {
        let mut shard = self.shard(address).lock();
        if let Some(live) = shard.get(&address) {
            return Entered::Theirs(live.clone());
        }
        let live = Arc::new(Live::new(address, fingerprint));
        shard.insert(address, live.clone());
        self.len.fetch_add(1, Ordering::AcqRel);
        Entered::Mine(live)
    }

    /// The mirror of the recording that `record` tells of, and whether it is new.
    pub(crate) fn enter_mirror(&self, address: Address, record: &Arc<Record>) -> (Arc<Live>, bool) {
        let mut shard = self.shard(address).lock();
        if let Some(live) = shard.get(&address) {
            let state = live.state.lock();
            let held = state.record.as_ref().map(|held| held.recording());
            if held == Some(record.recording()) && matches!(state.phase, Phase::Running) {
                return (live.clone(), false);
            }
        }
        let recording = Recording::default();
        let live = Live::continued(address, record.fingerprint, record.clone(), recording);
        let live = Arc::new(live);
        if shard.insert(address, live.clone()).is_none() {
            self.len.fetch_add(1, Ordering::AcqRel);
        }
        (live, true)
    }

    /// Takes `live` out, if it is in; says whether that left nothing.
    pub(crate) fn leave(&self, live: &Arc<Live>) -> bool {
        let mut shard = self.shard(live.address).lock();
        let stands = shard
            .get(&live.address)
            .is_some_and(|held| Arc::ptr_eq(held, live));
        if !stands {
            return false;
        }
        shard.remove(&live.address);
        self.len.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// All of them, as they stand now.
    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            all.extend(shard.lock().values().cloned());
        }
        all
    }
}

/// Addresses are keyed hashes: their first bytes are as good as any hash of them.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    // Rust hashes an array as a slice: its length comes first, and says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_operations_are_spread_over_all_shards() {
        let mut counts = [0; SHARDS];
        for last in 0..=255 {
            let mut address = [0; 16];
            address[15] = last;
            counts[shard_of(Address::from_bytes(address))] += 1;
        }
        assert_eq!(counts, [256 / SHARDS; SHARDS]);
    }

    #[test]
    fn an_address_is_hashed_by_its_first_bytes() {
        use std::hash::{BuildHasher, BuildHasherDefault};

        let hashed = BuildHasherDefault::<AddressHasher>::default();
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        let first = u64::from_ne_bytes([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(hashed.hash_one(Address::from_bytes(bytes)), first);
    }
}
