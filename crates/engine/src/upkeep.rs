//! What has to be done without anybody asking: leases, dead owners, what could not be written,
//! expired space.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use onlyonce_core::{Address, Record, State, Timestamp, UnknownReason, transition};
use onlyonce_store::{Store, Swept};
use tokio::time::{Instant, sleep};

use crate::{
    Engine, Shared,
    abandoned::Claim,
    begin::Slot,
    live::{End, Live, Phase},
};

/// Renewals that wait for the store at once: one durable commit serves them all.
const RENEWALS_AT_ONCE: usize = 256;
/// Overdue claims that are asked for at once.
const OVERDUE_PAGE: usize = 256;
const SWEEP_EVERY: Duration = Duration::from_secs(5);
const ROUND_MIN: Duration = Duration::from_millis(50);
const ROUND_MAX: Duration = Duration::from_secs(1);
const BOOKED_EVERY: Duration = Duration::from_secs(1);
/// The books lose whole days: there is no haste.
const TRIMMED_EVERY: Duration = Duration::from_secs(600);

/// What a round of upkeep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Leases renewed.
    pub renewed: usize,
    /// Dead owners' claims that became unknown.
    pub expired: usize,
    /// Outcomes written that the store had not taken before.
    pub settled: usize,
    /// Entries that came into the books.
    pub booked: u64,
    /// What the sweep gave back.
    pub swept: Swept,
}

impl<S: Store> Engine<S> {
    /// Runs upkeep until it is dropped: a round every tenth of a lease, but at least every second;
    /// a sweep every five seconds. In the meantime it shows the recordings that other gateways
    /// follow.
    pub async fn run_upkeep(&self) {
        tokio::join!(
            self.run_rounds(),
            self.shared.show_followed(),
            self.run_books()
        );
    }

    async fn run_rounds(&self) {
        let pause = (self.shared.settings.lease / 10).clamp(ROUND_MIN, ROUND_MAX);
        let mut swept_at = Instant::now();
        loop {
            sleep(pause).await;
            let mut round = self.shared.round().await;
            if swept_at.elapsed() >= SWEEP_EVERY {
                round.swept = self.shared.sweep().await;
                swept_at = Instant::now();
            }
            if round != Upkeep::default() {
                tracing::debug!(?round, "upkeep");
            }
        }
    }

    /// Beside the rounds: a lease is not to wait for the books.
    async fn run_books(&self) {
        loop {
            self.shared.trim_books().await;
            let trimmed_at = Instant::now();
            while trimmed_at.elapsed() < TRIMMED_EVERY {
                sleep(BOOKED_EVERY).await;
                self.shared.keep_books().await;
            }
        }
    }

    /// One round of upkeep, with the books and a sweep.
    pub async fn upkeep(&self) -> Upkeep {
        let mut round = self.shared.round().await;
        round.booked = self.shared.keep_books().await;
        self.shared.trim_books().await;
        round.swept = self.shared.sweep().await;
        round
    }
}

impl<S: Store> Shared<S> {
    async fn round(self: &Arc<Self>) -> Upkeep {
        // Renewals come first: what they renew is not overdue.
        let renewed = self.renew_leases().await;
        let settled = self.settle_all_abandoned().await;
        let expired = self.expire_overdue().await;
        Upkeep {
            renewed,
            expired,
            settled,
            ..Upkeep::default()
        }
    }

    async fn sweep(&self) -> Swept {
        match self.store.sweep().await {
            Ok(swept) => swept,
            Err(error) => {
                self.left_undone("the store could not be swept", &error);
                Swept::default()
            }
        }
    }

    /// Upkeep that is tried again in a moment. While a store is down, a line now and then is enough.
    pub(crate) fn left_undone(&self, what: &str, error: &impl std::fmt::Display) {
        match self.store_down.turn(Instant::now().into_std()) {
            Some(held_back) => tracing::warn!(held_back, %error, "{what}; it is tried again"),
            None => tracing::debug!(%error, "{what}; it is tried again"),
        }
    }

    async fn renew_leases(&self) -> usize {
        let now = self.store.now();
        let due: Vec<Arc<Live>> = self.registry.all();
        stream::iter(due.into_iter().filter(|live| self.renewal_due(live, now)))
            .map(|live| self.renew(live))
            .buffer_unordered(RENEWALS_AT_ONCE)
            .filter(|renewed| std::future::ready(*renewed))
            .count()
            .await
    }

    /// Once a third of the lease is gone, there is time for two more tries.
    fn renewal_due(&self, live: &Live, now: Timestamp) -> bool {
        let state = live.state.lock();
        if !matches!(state.phase, Phase::Running) {
            return false;
        }
        state.record.as_ref().is_some_and(|record| {
            let State::InFlight { lease_until, .. } = record.state else {
                return false;
            };
            lease_until.since(now) <= self.settings.lease * 2 / 3
        })
    }

    async fn renew(&self, live: Arc<Live>) -> bool {
        // Whoever writes the record now settles it, or renews it.
        let Ok(_writing) = live.writing.try_lock() else {
            return false;
        };
        let (lease, raise) = (self.settings.lease, self.raise());
        let renew = move |held: &Record, now| {
            transition::renew(Some(held), held.fence(), now, lease, raise)
        };
        match self.settle(&live, None, Duration::ZERO, renew).await {
            Ok(settled) => {
                if let Ok(record) = renew(&settled.held, settled.now) {
                    live.state.lock().record = Some(Arc::new(record));
                }
                true
            }
            Err(crate::Unsettled::Fenced) => {
                if !matches!(live.state.lock().phase, Phase::Ended(_)) {
                    tracing::warn!("fenced: the lease of a live operation was lost");
                    self.end(&live, End::Unknown(UnknownReason::LeasePassed));
                }
                false
            }
            // It is tried again in the next round.
            Err(error) => {
                self.left_undone("a lease could not be renewed", &error);
                false
            }
        }
    }

    /// Writes what the store did not take before.
    pub(crate) async fn settle_all_abandoned(self: &Arc<Self>) -> usize {
        let mut settled = 0;
        for (address, claim) in self.abandoned.all() {
            match self.settle_one_abandoned(address, claim).await {
                Ok(written) => settled += usize::from(written),
                // The store does not take writes: the rest would fare no better.
                Err(_) => break,
            }
        }
        settled
    }

    async fn settle_one_abandoned(
        self: &Arc<Self>,
        address: Address,
        claim: Claim,
    ) -> Result<bool, onlyonce_store::StoreError> {
        let stored = match self.store.load(address).await {
            Ok(stored) => stored,
            Err(onlyonce_store::StoreError::Corrupt(_)) => {
                self.abandoned.forget(address);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        // A claim in doubt may still land, for as long as a write can be under way.
        let is_over = self.store.now() >= claim.since.after(self.settings.lease);
        let Some(stored) = stored else {
            if is_over {
                self.abandoned.forget_one(address, &claim);
            }
            return Ok(false);
        };
        // While it is held, no attempt claims here.
        let Some(_slot) = Slot::take(self, address, stored.record.fingerprint) else {
            return Ok(false);
        };
        // It may have been claimed anew before the slot was ours.
        if !self.abandoned.holds(address, &claim) {
            return Ok(false);
        }
        let ours = stored.record.id == claim.fence.id && self.is_own(&stored.record);
        if ours {
            return self.settle_abandoned(address, &stored.record).await;
        }
        if is_over {
            self.abandoned.forget_one(address, &claim);
        }
        Ok(false)
    }

    /// Claims whose owners were not heard of for a whole lease (L3).
    async fn expire_overdue(self: &Arc<Self>) -> usize {
        let mut expired = 0;
        loop {
            let overdue = match self.store.overdue(OVERDUE_PAGE).await {
                Ok(overdue) => overdue,
                Err(error) => {
                    self.left_undone("the store did not tell which claims are overdue", &error);
                    return expired;
                }
            };
            let full = overdue.len() == OVERDUE_PAGE;
            let mut progress = false;
            for (address, record) in overdue {
                if self.expire_one(address, &record).await {
                    expired += 1;
                    progress = true;
                }
            }
            if !full || !progress {
                return expired;
            }
        }
    }

    async fn expire_one(self: &Arc<Self>, address: Address, record: &Record) -> bool {
        let written = if self.is_own(record) {
            // Its own lease was not renewed in time, but whoever executes it here is not dead.
            let Some(_slot) = Slot::take(self, address, record.fingerprint) else {
                return false;
            };
            self.settle_abandoned(address, record).await
        } else {
            self.expire(address, record, self.store.now()).await
        };
        match written {
            Ok(written) => written,
            Err(error) => {
                self.left_undone("an overdue claim could not be expired", &error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{Epoch, Fence, OperationId, OwnerId, ReleaseReason};
    use onlyonce_store::{MemoryStore, Write, clock::ManualClock};

    use super::*;
    use crate::{Settings, abandoned::Outcome, testing};

    const LEASE: Duration = Duration::from_secs(30);
    const HERE: Address = Address::from_bytes([1; 16]);

    /// An engine that has given up on a claim at [`HERE`] which may be on its way still.
    fn with_an_abandoned_claim() -> (Engine<MemoryStore>, ManualClock) {
        let clock = ManualClock::default();
        let store = Arc::new(MemoryStore::with_clock(clock.clone()));
        let settings = Settings {
            lease: LEASE,
            ..Settings::default()
        };
        let engine = Engine::new(store, OwnerId::new(1), settings);
        let claim = Claim {
            fence: Fence {
                id: OperationId::from_bytes([1; 16]),
                epoch: Epoch::ZERO.next(),
            },
            outcome: Outcome::Release(ReleaseReason::NotSent),
            since: engine.store().now(),
        };
        engine.shared.abandoned.add(HERE, claim);
        (engine, clock)
    }

    /// Puts a claim of `owner` there.
    async fn claim(engine: &Engine<MemoryStore>, id: u8, owner: u64) {
        let (store, lease) = (engine.store(), 10 * LEASE);
        let claim = testing::claim(id, owner);
        let record = transition::claim(None, claim, store.now(), lease).expect("new");
        let write = Write {
            record,
            last_chunk: None,
            attempt: None,
        };
        let swap = store.compare_and_set(HERE, None, write).await;
        swap.expect("written");
    }

    async fn remembered_after_upkeep(engine: &Engine<MemoryStore>) -> usize {
        assert_eq!(engine.upkeep().await.settled, 0);
        engine.shared.abandoned.all().len()
    }

    #[tokio::test]
    async fn i10_a_claim_that_did_not_land_is_remembered_for_a_lease() {
        let (engine, clock) = with_an_abandoned_claim();
        clock.advance(LEASE - Duration::from_millis(1));
        assert_eq!(remembered_after_upkeep(&engine).await, 1);
        clock.advance(Duration::from_millis(1));
        assert_eq!(remembered_after_upkeep(&engine).await, 0);
    }

    #[tokio::test]
    async fn i10_a_claim_that_another_one_stands_for_is_remembered_for_a_lease_too() {
        let (engine, clock) = with_an_abandoned_claim();
        claim(&engine, 2, 9).await;
        assert_eq!(remembered_after_upkeep(&engine).await, 1);
        clock.advance(LEASE);
        assert_eq!(remembered_after_upkeep(&engine).await, 0);
        let stands = engine.store().load(HERE).await.expect("readable");
        let stands = stands.expect("theirs").record;
        assert!(matches!(stands.state, State::InFlight { .. }), "{stands:?}");
    }

    #[tokio::test]
    async fn i01_a_claim_of_another_gateway_for_the_same_operation_is_left_alone() {
        let (engine, clock) = with_an_abandoned_claim();
        claim(&engine, 1, 9).await;
        assert_eq!(remembered_after_upkeep(&engine).await, 1);
        clock.advance(LEASE);
        assert_eq!(remembered_after_upkeep(&engine).await, 0);
        let stands = engine.store().load(HERE).await.expect("readable");
        let state = &stands.expect("theirs").record.state;
        assert!(
            matches!(state, State::InFlight { owner, .. } if *owner == OwnerId::new(9)),
            "{state:?}"
        );
    }

    #[tokio::test]
    async fn i10_a_claim_that_lands_late_is_released() {
        let (engine, _) = with_an_abandoned_claim();
        claim(&engine, 1, 1).await;
        assert_eq!(engine.upkeep().await.settled, 1);
        let held = engine.store().load(HERE).await.expect("readable");
        let record = held.expect("released").record;
        assert!(matches!(record.state, State::Released { .. }), "{record:?}");
        assert!(engine.shared.abandoned.all().is_empty());
    }
}
