//! Claims of this process that nobody executes: their outcome could not be written, or the attempt
//! that made them went away.
//!
//! The store shows each as in flight under our own lease. Upkeep, or the next attempt for the key,
//! writes what became of it.

use std::collections::HashMap;

use onlyonce_core::{
    Address, Fence, Record, ReleaseReason, State, Timestamp, UnknownReason, transition,
};
use onlyonce_store::{Store, StoreError, Swap, Write};
use parking_lot::Mutex;

use crate::Shared;

/// More than these are not remembered: the lease of the rest runs out, and they become unknown.
const ABANDONED_MAX: usize = 100_000;

#[derive(Default)]
pub(crate) struct Abandoned {
    claims: Mutex<HashMap<Address, Claim>>,
}

/// An abandoned claim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// What is known to have been written; a renewal may have raised the epoch since.
    pub(crate) fence: Fence,
    pub(crate) outcome: Outcome,
    /// On the store's clock.
    pub(crate) since: Timestamp,
}

/// What became of an abandoned claim.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// Provably nothing ran (I10).
    Release(ReleaseReason),
    /// It may have run.
    Lose(UnknownReason),
}

impl Abandoned {
    pub(crate) fn add(&self, address: Address, claim: Claim) {
        let mut claims = self.claims.lock();
        if claims.len() < ABANDONED_MAX || claims.contains_key(&address) {
            claims.insert(address, claim);
        }
    }

    pub(crate) fn forget(&self, address: Address) {
        self.claims.lock().remove(&address);
    }

    pub(crate) fn at(&self, address: Address) -> Option<Claim> {
        self.claims.lock().get(&address).copied()
    }

    pub(crate) fn all(&self) -> Vec<(Address, Claim)> {
        let claims = self.claims.lock();
        claims
            .iter()
            .map(|(address, claim)| (*address, *claim))
            .collect()
    }
}

impl<S: Store> Shared<S> {
    /// Whether `record` is in flight under a claim of this very process.
    pub(crate) fn is_own(&self, record: &Record) -> bool {
        matches!(record.state, State::InFlight { owner, .. } if owner == self.owner)
    }

    /// Writes what became of our claim `record`. The caller has made sure that nobody in this
    /// process executes it. Says whether it wrote.
    pub(crate) async fn settle_abandoned(
        &self,
        address: Address,
        record: &Record,
    ) -> Result<bool, StoreError> {
        let known = self.abandoned.at(address).filter(|claim| {
            let held = record.claim..=record.epoch;
            claim.fence.id == record.id && held.contains(&claim.fence.epoch)
        });
        // A claim that nobody remembers may have been sent.
        let outcome = known.map_or(Outcome::Lose(UnknownReason::NotRecorded), |claim| {
            claim.outcome
        });
        let now = self.store.now();
        let next = match outcome {
            Outcome::Release(reason) => transition::release(
                Some(record),
                record.fence(),
                reason,
                now,
                self.settings.released_retention,
            ),
            // Its owner may have written another outcome, which the store has forgotten.
            Outcome::Lose(reason) => {
                transition::expire(Some(record), record.fence(), reason, now, self.raise())
            }
        };
        let Ok(next) = next else {
            return Ok(false);
        };
        let write = Write {
            record: next,
            last_chunk: None,
            attempt: None,
        };
        let swap = self
            .store
            .compare_and_set(address, Some(record.fence()), write)
            .await?;
        let written = matches!(swap, Swap::Done { .. });
        if written {
            self.abandoned.forget(address);
            if let Outcome::Lose(reason) = outcome {
                self.tell_unknown(reason);
            }
        }
        Ok(written)
    }
}
