//! Writes of records, with every doubt resolved by reading back (I14).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Epoch, Fence, Fingerprint, Held, NotLawful, OperationId, OwnerId, Record,
    ReleaseReason, State, Timestamp, UnknownReason,
    planted::{Bug, planted},
    transition, view,
};
use onlyonce_store::{AttemptNote, Store, StoreError, Swap, Write};
use tokio::time::{Instant, sleep};

use crate::{Shared, Trouble, Unsettled, live::Live};

/// How long a claim in doubt is read back before the attempt is told so.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);

const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// By what a writer knows its own write again. Every claim draws an id or follows an epoch, and
/// only its owner writes after it, so no two writes have the same mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    id: OperationId,
    epoch: Epoch,
    fingerprint: Fingerprint,
    claimed_at: Timestamp,
    state: StateMark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateMark {
    InFlight(OwnerId, Timestamp),
    Completed(Timestamp, u16, u64, u32),
    Unknown(Timestamp, UnknownReason),
    Released(Timestamp, ReleaseReason),
}

impl Mark {
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            id: record.id,
            epoch: record.epoch,
            fingerprint: record.fingerprint,
            claimed_at: record.claimed_at,
            state: match &record.state {
                State::InFlight {
                    owner, lease_until, ..
                } => StateMark::InFlight(*owner, *lease_until),
                State::Completed(completed) => StateMark::Completed(
                    completed.completed_at,
                    completed.head.status,
                    completed.body_len,
                    completed.chunks,
                ),
                State::Unknown { since, reason } => StateMark::Unknown(*since, *reason),
                State::Released { since, reason, .. } => StateMark::Released(*since, *reason),
            },
        }
    }
}

/// How the write of a claim ended.
pub(crate) enum Claimed {
    /// The record is durable, and this is the attempt's number.
    Done(Arc<Record>, u32),
    /// Another record counts there. In doubt, the store did not say so: the claim may be on its way still, and
    /// find nothing that counts.
    Lost { in_doubt: bool },
}

/// Why a claim was not made.
pub(crate) struct ClaimFailed {
    pub(crate) trouble: Trouble,
    /// Whether it may have been written all the same.
    pub(crate) in_doubt: bool,
}

/// What a settling write replaced, and when.
pub(crate) struct Settled {
    pub(crate) held: Arc<Record>,
    pub(crate) now: Timestamp,
}

impl<S: Store> Shared<S> {
    /// Writes a claim. One whose acknowledgement is lost is read back and never made again (I14).
    pub(crate) async fn write_claim(
        &self,
        address: Address,
        expected: Option<Fence>,
        record: Arc<Record>,
        lease: Duration,
        attempt: AttemptNote,
    ) -> Result<Claimed, ClaimFailed> {
        let write = Write {
            record: (*record).clone(),
            last_chunk: None,
            attempt: Some(attempt),
        };
        match self.store.compare_and_set(address, expected, write).await {
            Ok(Swap::Done { attempts }) => Ok(Claimed::Done(record, attempts)),
            Ok(Swap::Lost) => Ok(Claimed::Lost { in_doubt: false }),
            // What is there and cannot be read counts as unknown (I13): a look tells.
            Err(StoreError::Corrupt(_)) => Ok(Claimed::Lost { in_doubt: false }),
            Err(StoreError::InDoubt(_)) if planted(Bug::LostAckClaimedAgain) => {
                Ok(Claimed::Lost { in_doubt: false })
            }
            Err(StoreError::InDoubt(what)) => {
                self.read_claim_back(address, expected, &record, lease, what)
                    .await
            }
            Err(error) => Err(ClaimFailed {
                trouble: error.into(),
                in_doubt: false,
            }),
        }
    }

    /// Takes a claim for written, and writes it meanwhile: a bug to be planted.
    pub(crate) fn claim_behind(
        self: &Arc<Self>,
        address: Address,
        expected: Option<Fence>,
        record: Arc<Record>,
        lease: Duration,
        attempt: AttemptNote,
    ) -> Result<Claimed, ClaimFailed> {
        let (shared, claim) = (Arc::clone(self), Arc::clone(&record));
        tokio::spawn(async move {
            let written = shared.write_claim(address, expected, claim, lease, attempt);
            written.await.is_ok()
        });
        Ok(Claimed::Done(record, 1))
    }

    /// What can be read need not be what a failover keeps: a standby may be without it yet. So a claim
    /// that is there is renewed, and that this is acknowledged makes both durable (I2).
    async fn read_claim_back(
        &self,
        address: Address,
        expected: Option<Fence>,
        claim: &Record,
        lease: Duration,
        what: String,
    ) -> Result<Claimed, ClaimFailed> {
        let mark = Mark::of(claim);
        let give_up_at = Instant::now() + CLAIM_PATIENCE;
        let mut backoff = Backoff::new(give_up_at);
        loop {
            match self.store.load(address).await {
                Ok(Some(stored))
                    if Mark::of(&stored.record) == mark || is_renewal_of(&stored.record, claim) =>
                {
                    if let Some(renewed) = self.renew_claim(address, &stored.record, lease).await {
                        return Ok(Claimed::Done(Arc::new(renewed), stored.attempts));
                    }
                    // Somebody else wrote, or it is in doubt again: the next look tells.
                    if !backoff.wait().await {
                        break;
                    }
                }
                // One whose time is over says nothing of what was written: who claims over it may be on the way.
                Ok(Some(stored))
                    if Some(stored.record.fence()) != expected
                        && matches!(
                            view(Some(&stored.record), self.store.now()),
                            Held::Record { .. }
                        ) =>
                {
                    return Ok(Claimed::Lost { in_doubt: true });
                }
                Ok(_) => break,
                Err(_) if backoff.wait().await => {}
                Err(_) => break,
            }
        }
        Err(ClaimFailed {
            trouble: Trouble::InDoubt(what),
            in_doubt: true,
        })
    }

    /// Renews a claim that was just made. `None` where that was not acknowledged.
    async fn renew_claim(
        &self,
        address: Address,
        claim: &Record,
        lease: Duration,
    ) -> Option<Record> {
        let (fence, now) = (claim.fence(), self.store.now());
        let renewed = transition::renew(Some(claim), fence, now, lease, self.raise()).ok()?;
        let write = Write {
            record: renewed.clone(),
            last_chunk: None,
            attempt: None,
        };
        let swap = self.store.compare_and_set(address, Some(fence), write);
        matches!(swap.await, Ok(Swap::Done { .. })).then_some(renewed)
    }

    /// Writes what `next` makes of the record of `live`, trying again for `patience` while the
    /// store does not take it. The caller holds `live.writing`.
    pub(crate) async fn settle(
        &self,
        live: &Live,
        last_chunk: Option<Bytes>,
        patience: Duration,
        next: impl Fn(&Record, Timestamp) -> Result<Record, NotLawful> + Send,
    ) -> Result<Settled, Unsettled> {
        let mut held = live.state.lock().record.clone().ok_or(Unsettled::Fenced)?;
        // The moment stays the same over all tries, so that each writes the very same record.
        let now = self.store.now();
        let mut backoff = Backoff::new(Instant::now() + patience);
        let mut doubted = false;
        loop {
            let record = next(&held, now).map_err(|_| Unsettled::Fenced)?;
            let mark = Mark::of(&record);
            let write = Write {
                record,
                last_chunk: last_chunk.clone(),
                attempt: None,
            };
            let swap = self
                .store
                .compare_and_set(live.address, Some(held.fence()), write)
                .await;
            let error = match swap {
                Ok(Swap::Done { .. }) => return Ok(Settled { held, now }),
                Ok(Swap::Lost) => match self.read_own_back(live.address, &held, mark).await {
                    ReadBack::Written if doubted => return Ok(Settled { held, now }),
                    ReadBack::Renewed(renewed) => {
                        live.state.lock().record = Some(renewed.clone());
                        held = renewed;
                        continue;
                    }
                    ReadBack::Failed(error) => error,
                    ReadBack::Written | ReadBack::Unchanged | ReadBack::Others => {
                        return Err(Unsettled::Fenced);
                    }
                },
                Err(StoreError::InDoubt(what)) => {
                    doubted = true;
                    match self.read_own_back(live.address, &held, mark).await {
                        ReadBack::Written => return Ok(Settled { held, now }),
                        ReadBack::Others => return Err(Unsettled::Fenced),
                        _ => StoreError::InDoubt(what),
                    }
                }
                Err(error) => error,
            };
            if matches!(error, StoreError::Corrupt(_)) || !backoff.wait().await {
                return Err(Unsettled::NotRecorded(error.to_string()));
            }
        }
    }

    async fn read_own_back(&self, address: Address, held: &Record, mark: Mark) -> ReadBack {
        let stored = match self.store.load(address).await {
            Ok(Some(stored)) => stored.record,
            Ok(None) => return ReadBack::Others,
            Err(error) => return ReadBack::Failed(error),
        };
        if Mark::of(&stored) == mark {
            ReadBack::Written
        } else if stored.fence() == held.fence() {
            ReadBack::Unchanged
        } else if is_renewal_of(&stored, held) || is_unfenced(held, mark) {
            ReadBack::Renewed(stored)
        } else {
            ReadBack::Others
        }
    }
}

enum ReadBack {
    /// One's own write stands there.
    Written,
    /// What was to be replaced still stands there.
    Unchanged,
    /// A renewal of one's own lease stands there, whose acknowledgement was lost.
    Renewed(Arc<Record>),
    /// Somebody else wrote.
    Others,
    Failed(StoreError),
}

/// Whether what is to be written over `held` is written over whatever stands there: never, but for bugs.
fn is_unfenced(held: &Record, mark: Mark) -> bool {
    match (&held.state, mark.state) {
        (State::Unknown { .. }, StateMark::Completed(..)) => planted(Bug::LateAnswerUnfenced),
        (_, StateMark::Completed(..)) => planted(Bug::CompletionUnfenced),
        (_, StateMark::Released(..)) => planted(Bug::ReleaseUnfenced),
        _ => false,
    }
}

/// Whether `stored` is `held` with its lease renewed: only the owner of a claim renews it.
fn is_renewal_of(stored: &Record, held: &Record) -> bool {
    match (&stored.state, &held.state) {
        (State::InFlight { owner, .. }, State::InFlight { owner: ours, .. }) => {
            owner == ours
                && stored.id == held.id
                && stored.claim == held.claim
                && stored.claimed_at == held.claimed_at
                && stored.fingerprint == held.fingerprint
                && stored.epoch > held.epoch
        }
        _ => false,
    }
}

/// Waits between tries: doubled each time, never beyond a deadline.
pub(crate) struct Backoff {
    next: Duration,
    give_up_at: Instant,
}

impl Backoff {
    pub(crate) fn new(give_up_at: Instant) -> Self {
        Self {
            next: BACKOFF_MIN,
            give_up_at,
        }
    }

    /// Waits for the next try; `false`, at once, where there is to be none.
    pub(crate) async fn wait(&mut self) -> bool {
        let left = self.give_up_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        sleep(self.next.min(left)).await;
        self.next = (self.next * 2).min(BACKOFF_MAX);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;
    use crate::testing;

    fn claim(id: u8, owner: u64, at: u64, fingerprint: u8) -> Record {
        let claim = transition::Claim {
            fingerprint: Fingerprint::from_bytes([fingerprint; 32]),
            ..testing::claim(id, owner)
        };
        let lease = Duration::from_secs(30);
        transition::claim(None, claim, Timestamp::from_millis(at), lease).expect("new")
    }

    fn renewed(record: &Record) -> Record {
        let (now, lease) = (Timestamp::from_millis(9), Duration::from_secs(30));
        let raise = NonZero::<u32>::MIN;
        transition::renew(Some(record), record.fence(), now, lease, raise).expect("in flight")
    }

    #[test]
    fn i14_only_a_renewal_of_ones_own_claim_is_taken_for_it() {
        let held = claim(1, 1, 0, 1);
        assert!(is_renewal_of(&renewed(&held), &held));
        assert!(!is_renewal_of(&held, &held), "it is the claim itself");
        for other in [
            claim(2, 1, 0, 1),
            claim(1, 2, 0, 1),
            claim(1, 1, 1, 1),
            claim(1, 1, 0, 2),
        ] {
            assert!(!is_renewal_of(&renewed(&other), &held), "{other:?}");
        }
        let (now, reason) = (Timestamp::from_millis(1), UnknownReason::LeasePassed);
        let lost = transition::lose(Some(&held), held.fence(), reason, now);
        assert!(!is_renewal_of(&lost.expect("in flight"), &held));
    }

    /// Of two attempts of one process in one millisecond, over one record.
    #[test]
    fn i09_another_claim_over_the_same_record_is_no_renewal() {
        let (now, lease) = (Timestamp::from_millis(5), Duration::from_secs(30));
        let first = claim(1, 1, 0, 1);
        let not_sent = ReleaseReason::NotSent;
        let released = transition::release(Some(&first), first.fence(), not_sent, now, lease);
        let released = released.expect("in flight");
        let again = |raise| {
            let claim = transition::Claim {
                raise: NonZero::new(raise).expect("not zero"),
                ..testing::claim(1, 1)
            };
            transition::claim(Some(&released), claim, now, lease).expect("released")
        };
        assert!(is_renewal_of(&renewed(&again(3)), &again(3)));
        assert!(!is_renewal_of(&again(9), &again(3)));
    }
}
