//! Claims of this process that nobody executes: their outcome could not be written, or the attempt
//! that made them went away.
//!
//! The store shows each as in flight under our own lease. Upkeep, or the next attempt for the key,
//! writes what became of it.

use std::{collections::BTreeMap, ops::RangeInclusive};

use onlyonce_core::{
    Address, Epoch, Fence, OperationId, Record, ReleaseReason, State, Timestamp, UnknownReason,
    transition,
};
use onlyonce_store::{Store, StoreError, Swap, Write};
use parking_lot::Mutex;

use crate::Shared;

/// More than these are not remembered: the lease of the rest runs out, and they become unknown.
const ABANDONED_MAX: usize = 100_000;

#[derive(Default)]
pub(crate) struct Abandoned {
    /// More than one at an address: a claim that was given up may land after the next one was.
    claims: Mutex<BTreeMap<Place, Claim>>,
}

/// Where a claim was made, and its name.
type Place = (Address, OperationId, Epoch);

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
        let place = place(address, &claim);
        let mut claims = self.claims.lock();
        if claims.len() < ABANDONED_MAX || claims.contains_key(&place) {
            claims.insert(place, claim);
        }
    }

    /// Forgets all claims at `address`: none can land any more, or all that did is settled.
    pub(crate) fn forget(&self, address: Address) {
        let mut claims = self.claims.lock();
        while let Some((&place, _)) = claims.range(at(address)).next() {
            claims.remove(&place);
        }
    }

    pub(crate) fn forget_one(&self, address: Address, claim: &Claim) {
        self.claims.lock().remove(&place(address, claim));
    }

    pub(crate) fn holds(&self, address: Address, claim: &Claim) -> bool {
        self.claims.lock().contains_key(&place(address, claim))
    }

    /// The claim that `record` is of, or of which it is a renewal.
    fn of(&self, address: Address, record: &Record) -> Option<Claim> {
        let claims = self.claims.lock();
        let mut here = claims.range(at(address)).map(|(_, claim)| *claim);
        let held = record.claim..=record.epoch;
        here.find(|claim| claim.fence.id == record.id && held.contains(&claim.fence.epoch))
    }

    pub(crate) fn all(&self) -> Vec<(Address, Claim)> {
        let claims = self.claims.lock();
        claims
            .iter()
            .map(|((address, ..), claim)| (*address, *claim))
            .collect()
    }
}

fn place(address: Address, claim: &Claim) -> Place {
    (address, claim.fence.id, claim.fence.epoch)
}

/// All places at `address`.
fn at(address: Address) -> RangeInclusive<Place> {
    let (first, last) = ([0; 16], [255; 16]);
    (address, OperationId::from_bytes(first), Epoch::ZERO)
        ..=(address, OperationId::from_bytes(last), Epoch::new(u64::MAX))
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
        let known = self.abandoned.of(address, record);
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

#[cfg(test)]
mod tests {
    use std::{num::NonZero, time::Duration};

    use super::*;
    use crate::testing;

    const HERE: Address = Address::from_bytes([1; 16]);

    fn claim(number: u8, epoch: u64, outcome: Outcome) -> Claim {
        Claim {
            fence: Fence {
                id: OperationId::from_bytes([number; 16]),
                epoch: Epoch::new(epoch),
            },
            outcome,
            since: Timestamp::from_millis(0),
        }
    }

    fn not_sent(number: u8, epoch: u64) -> Claim {
        claim(number, epoch, Outcome::Release(ReleaseReason::NotSent))
    }

    /// In flight under the first claim of operation `number`, at epoch 1.
    fn record(number: u8) -> Record {
        let (now, lease) = (Timestamp::from_millis(0), Duration::from_secs(30));
        transition::claim(None, testing::claim(number, 1), now, lease).expect("new")
    }

    #[test]
    fn i10_what_became_of_a_claim_is_said_of_no_other_at_the_same_address() {
        let abandoned = Abandoned::default();
        abandoned.add(HERE, not_sent(1, 1));
        abandoned.add(HERE, not_sent(2, 2));
        assert!(abandoned.of(HERE, &record(2)).is_none(), "another epoch");
        assert!(
            abandoned.of(HERE, &record(3)).is_none(),
            "another operation"
        );
        let known = abandoned.of(HERE, &record(1)).expect("this one");
        assert_eq!(known.fence, not_sent(1, 1).fence);
        let elsewhere = Address::from_bytes([2; 16]);
        assert!(abandoned.of(elsewhere, &record(1)).is_none());
    }

    #[test]
    fn a_renewed_claim_is_the_claim_that_was_abandoned() {
        let abandoned = Abandoned::default();
        abandoned.add(HERE, not_sent(1, 1));
        let claimed = record(1);
        let (now, lease) = (Timestamp::from_millis(1), Duration::from_secs(30));
        let raise = NonZero::new(7).expect("not 0");
        let renewed = transition::renew(Some(&claimed), claimed.fence(), now, lease, raise);
        assert!(abandoned.of(HERE, &renewed.expect("its owner")).is_some());
    }

    #[test]
    fn claims_are_forgotten_one_by_one_or_all_of_an_address() {
        let abandoned = Abandoned::default();
        let elsewhere = Address::from_bytes([2; 16]);
        for number in 1..=3 {
            abandoned.add(HERE, not_sent(number, 1));
        }
        abandoned.add(elsewhere, not_sent(1, 1));
        abandoned.forget_one(HERE, &not_sent(2, 1));
        assert!(abandoned.holds(HERE, &not_sent(1, 1)));
        assert!(!abandoned.holds(HERE, &not_sent(2, 1)));
        abandoned.forget(HERE);
        let left = abandoned.all();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].0, elsewhere);
    }

    #[test]
    fn i15_no_more_than_a_limit_are_remembered() {
        let abandoned = Abandoned::default();
        for epoch in 1..=ABANDONED_MAX as u64 + 1 {
            abandoned.add(HERE, not_sent(1, epoch));
        }
        assert_eq!(abandoned.claims.lock().len(), ABANDONED_MAX);
        // Of one that is known, more may be learned.
        let lost = Outcome::Lose(UnknownReason::Broke);
        abandoned.add(HERE, claim(1, 1, lost));
        let known = abandoned.of(HERE, &record(1)).expect("the first one");
        assert!(matches!(known.outcome, Outcome::Lose(_)));
    }
}
