//! The transitions: the only code that makes a new record out of an old one.
//!
//! ```text
//!             claim                 complete
//!  (absent) ---------> in flight --------------> completed
//!     ^                 |    |  lose / expire       ^
//!     |       release   |    +-----------> unknown -+  complete (late answer), resolve
//!     +-----------------+---------------------+
//!            released              resolve, or claim again where a resend is allowed
//! ```
//!
//! Each takes what the store holds and what the writer knows, and gives the record to write in its
//! place, or says why the writer has lost. Every new record passes [`assert_lawful`], in release
//! builds too: a bug here must stop the process rather than charge somebody twice.

use std::{num::NonZero, time::Duration};

use crate::{
    Completed, Epoch, Fence, Fingerprint, Head, HeaderBlock, Key, OperationId, OwnerId, Record,
    ReleaseReason, RequestLine, Scope, State, StateName, Timestamp, UnknownReason,
    planted::{Bug, planted},
};

/// Why a write must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLawful {
    /// Somebody else has written since (I9).
    #[error("fenced: the record moved on from {presented:?} to {held:?}")]
    Fenced {
        /// What the writer saw last.
        presented: Fence,
        /// What stands there now.
        held: Option<Fence>,
    },
    /// The drawing has no such arrow (I8).
    #[error("a record that is {from} cannot become {to}")]
    NoSuchArrow {
        /// Where the record stands.
        from: StateName,
        /// Where the writer wanted it.
        to: StateName,
    },
}

/// What a new claim is made of.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The identity to use where the key is new; a record that exists keeps its own.
    pub id: OperationId,
    /// Where the key is unique.
    pub scope: Scope,
    /// The key.
    pub key: Key,
    /// The request's fingerprint.
    pub fingerprint: Fingerprint,
    /// The request, for people.
    pub request: RequestLine,
    /// The process that will execute.
    pub owner: OwnerId,
    /// By how much it raises the epoch of a record that it follows; the first claim of an operation,
    /// whose id nobody else has, does not use it. Drawn at random where the store may forget a claim:
    /// see [`Epoch`].
    pub raise: NonZero<u32>,
}

/// Claims a key that is absent, released, or unknown where a resend is allowed.
///
/// `held` is the record that counts (see [`view`](crate::view)): an expired one is `None`.
pub fn claim(
    held: Option<&Record>,
    claim: Claim,
    now: Timestamp,
    lease: Duration,
) -> Result<Record, NotLawful> {
    let (id, epoch, resend_of) = match held {
        None => (claim.id, Epoch::ZERO.next(), None),
        Some(record) => match record.state {
            State::Released { .. } => (record.id, record.epoch.raised(claim.raise), None),
            State::Unknown { reason, .. } => {
                (record.id, record.epoch.raised(claim.raise), Some(reason))
            }
            _ => return Err(no_arrow(record, StateName::InFlight)),
        },
    };
    let next = Record {
        id,
        scope: claim.scope,
        key: claim.key,
        fingerprint: claim.fingerprint,
        epoch,
        claim: epoch,
        claimed_at: now,
        request: claim.request,
        state: State::InFlight {
            owner: claim.owner,
            lease_until: now.after(lease),
            resend_of,
        },
        // What an execution before it may have cost is not forgotten while this one runs.
        metered: held.and_then(|record| record.metered.clone()),
        entered: held.is_some_and(|record| record.entered),
        ruling: held.and_then(|record| record.ruling.clone()),
    };
    assert_lawful(held, &next);
    Ok(next)
}

/// Renews the owner's lease, and raises the epoch by `raise`: drawn at random where the store may forget
/// it (see [`Epoch`]).
pub fn renew(
    held: Option<&Record>,
    fence: Fence,
    now: Timestamp,
    lease: Duration,
    raise: NonZero<u32>,
) -> Result<Record, NotLawful> {
    let record = fenced(held, fence)?;
    let State::InFlight {
        owner,
        lease_until,
        resend_of,
    } = record.state
    else {
        return Err(no_arrow(record, StateName::InFlight));
    };
    let state = State::InFlight {
        owner,
        // A clock that went back must not shorten a lease that others already believe in.
        lease_until: match planted(Bug::LeaseShortened) {
            true => now.after(lease),
            false => lease_until.max(now.after(lease)),
        },
        resend_of,
    };
    Ok(follow_at(record.epoch.raised(raise), record, state))
}

/// Takes a worker's claim over: from now on the process `owner` executes what the worker was granted, under
/// a lease of its own. The claim, and with it the recording, stays what it was. It raises the epoch as
/// [`renew`] does.
pub fn take_over(
    held: Option<&Record>,
    fence: Fence,
    owner: OwnerId,
    now: Timestamp,
    lease: Duration,
    raise: NonZero<u32>,
) -> Result<Record, NotLawful> {
    let record = fenced(held, fence)?;
    let State::InFlight {
        owner: worker,
        resend_of,
        ..
    } = record.state
    else {
        return Err(no_arrow(record, StateName::InFlight));
    };
    if !worker.is_worker() {
        return Err(no_arrow(record, StateName::InFlight));
    }
    let state = State::InFlight {
        owner,
        lease_until: now.after(lease),
        resend_of,
    };
    Ok(follow_at(record.epoch.raised(raise), record, state))
}

/// What a whole response leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status and headers.
    pub head: Head,
    /// Trailers.
    pub trailers: HeaderBlock,
    /// Bytes of body.
    pub body_len: u64,
    /// Chunks in the recording.
    pub chunks: u32,
}

/// Completes: the whole response is recorded. Also the late answer to an operation that its own
/// owner had to call unknown.
pub fn complete(
    held: Option<&Record>,
    fence: Fence,
    response: Response,
    now: Timestamp,
    window: Duration,
) -> Result<Record, NotLawful> {
    let record = fenced(held, fence)?;
    match record.state.name() {
        StateName::InFlight | StateName::Unknown => {
            let Response {
                head,
                trailers,
                body_len,
                chunks,
            } = response;
            let completed_at = now;
            let expires_at = match planted(Bug::ExpiryFromClaim) {
                true => record.claimed_at.after(window),
                false => completed_at.after(window),
            };
            Ok(follow(
                record,
                State::Completed(Completed {
                    completed_at,
                    expires_at,
                    head,
                    trailers,
                    body_len,
                    chunks,
                }),
            ))
        }
        _ => Err(no_arrow(record, StateName::Completed)),
    }
}

/// Gives up: the owner itself cannot say whether it ran.
pub fn lose(
    held: Option<&Record>,
    fence: Fence,
    reason: UnknownReason,
    now: Timestamp,
) -> Result<Record, NotLawful> {
    expire(held, fence, reason, now, NonZero::<u32>::MIN)
}

/// Declares the owner dead: its lease has passed, or its process is known to be gone.
///
/// It raises the epoch by `raise`, so that the owner, should it wake, loses (I9): drawn at random where
/// the store may forget what the owner has written (see [`Epoch`]).
pub fn expire(
    held: Option<&Record>,
    fence: Fence,
    reason: UnknownReason,
    now: Timestamp,
    raise: NonZero<u32>,
) -> Result<Record, NotLawful> {
    if planted(Bug::LeaseReExecution) && reason == UnknownReason::LeasePassed {
        return release(held, fence, ReleaseReason::NotSent, now, Duration::MAX);
    }
    let record = fenced(held, fence)?;
    match record.state.name() {
        StateName::InFlight => {
            let state = State::Unknown { since: now, reason };
            Ok(follow_at(record.epoch.raised(raise), record, state))
        }
        _ => Err(no_arrow(record, StateName::Unknown)),
    }
}

/// Releases: provably nothing ran (I10).
///
/// A resend that did not run says nothing of the execution before it: the operation goes back to
/// unknown, for the reason that it was unknown before.
pub fn release(
    held: Option<&Record>,
    fence: Fence,
    reason: ReleaseReason,
    now: Timestamp,
    retention: Duration,
) -> Result<Record, NotLawful> {
    let record = fenced(held, fence)?;
    let state = match record.state {
        State::InFlight { .. } if planted(Bug::ResendReleased) => released(reason, now, retention),
        State::InFlight {
            resend_of: Some(reason),
            ..
        } => State::Unknown { since: now, reason },
        State::InFlight { .. } => released(reason, now, retention),
        _ => return Err(no_arrow(record, StateName::Released)),
    };
    Ok(follow(record, state))
}

/// What an operator, or a reconciler, found out about an unknown operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It did not run.
    DidNotRun,
    /// It ran, and this was its answer.
    Ran(Response),
}

/// Resolves an unknown operation.
pub fn resolve(
    held: Option<&Record>,
    fence: Fence,
    resolution: Resolution,
    now: Timestamp,
    span: Duration,
) -> Result<Record, NotLawful> {
    let record = fenced(held, fence)?;
    match (record.state.name(), resolution) {
        (StateName::Unknown, Resolution::DidNotRun) => {
            Ok(follow(record, released(ReleaseReason::Operator, now, span)))
        }
        (StateName::Unknown, Resolution::Ran(response)) => {
            complete(held, fence, response, now, span)
        }
        (_, Resolution::DidNotRun) => Err(no_arrow(record, StateName::Released)),
        (_, Resolution::Ran(_)) => Err(no_arrow(record, StateName::Completed)),
    }
}

fn released(reason: ReleaseReason, now: Timestamp, retention: Duration) -> State {
    State::Released {
        since: now,
        reason,
        forget_at: now.after(retention),
    }
}

fn fenced(held: Option<&Record>, presented: Fence) -> Result<&Record, NotLawful> {
    match held {
        Some(record) if record.fence() == presented => Ok(record),
        _ => Err(NotLawful::Fenced {
            presented,
            held: held.map(Record::fence),
        }),
    }
}

fn no_arrow(record: &Record, to: StateName) -> NotLawful {
    NotLawful::NoSuchArrow {
        from: record.state.name(),
        to,
    }
}

fn follow(record: &Record, state: State) -> Record {
    follow_at(record.epoch.next(), record, state)
}

fn follow_at(epoch: Epoch, record: &Record, state: State) -> Record {
    let metered = match state.name() {
        // What did not run used nothing.
        StateName::Released => None,
        _ => record.metered.clone(),
    };
    let next = Record {
        epoch,
        state,
        metered,
        ..record.clone()
    };
    assert_lawful(Some(record), &next);
    next
}

/// What a write would break: a guarantee, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Breach(String);

fn unless(holds: bool, breach: impl FnOnce() -> String) -> Result<(), Breach> {
    match holds {
        true => Ok(()),
        false => Err(Breach(breach())),
    }
}

/// Panics unless `after` may be written in the place of `before`.
///
/// # Panics
///
/// Where [`check_lawful`] finds a breach.
pub fn assert_lawful(before: Option<&Record>, after: &Record) {
    if let Err(breach) = check_lawful(before, after) {
        panic!("{breach}");
    }
}

/// Whether `after` may be written in the place of `before`.
///
/// # Errors
///
/// When a guarantee would be broken: I6 (a running, completed or unknown record keeps its
/// fingerprint), I7 (and its scope and key), I8 (only the drawn arrows; completed is immutable), I9
/// (every write raises the epoch, a completion and a release by exactly one; a claim names its own
/// recording, and every other write keeps the name; a process keeps its claim), I10 (a resend is known as one, and is not
/// released), I11 (the window starts at completion and does not end before it).
pub fn check_lawful(before: Option<&Record>, after: &Record) -> Result<(), Breach> {
    check_arrow(before.map(Record::standing), after)?;
    let to = after.state.name();
    let in_doubt = before.and_then(earlier_execution_in_doubt);
    unless(
        to != StateName::InFlight || earlier_execution_in_doubt(after) == in_doubt,
        || format!("I10: {} forgot that it is a resend", after.id),
    )?;
    let resent = before.is_some_and(|before| before.state.name() == StateName::InFlight);
    unless(
        to != StateName::Released || !resent || in_doubt.is_none(),
        || format!("I10: {} may have run before it was resent", after.id),
    )?;
    let Some(before) = before else { return Ok(()) };
    unless(may_own(before, after), || {
        format!("I9: {} was taken from a process", after.id)
    })?;
    unless(
        before.scope == after.scope && before.key == after.key,
        || format!("I7: {} changed its scope or key", after.id),
    )?;
    // Only a released key may be taken by another request.
    unless(
        before.state.name() == StateName::Released || before.fingerprint == after.fingerprint,
        || format!("I6: {} changed its fingerprint", after.id),
    )
}

/// A claim stays with the process that made it; a worker's may be taken over.
fn may_own(before: &Record, after: &Record) -> bool {
    match (&before.state, &after.state) {
        (State::InFlight { owner, .. }, State::InFlight { owner: next, .. }) => {
            owner == next || owner.is_worker()
        }
        _ => true,
    }
}

/// Why nobody can say whether an execution before a claim that comes now, or the one that runs,
/// has run.
fn earlier_execution_in_doubt(record: &Record) -> Option<UnknownReason> {
    match record.state {
        State::InFlight { resend_of, .. } => resend_of,
        State::Unknown { reason, .. } => Some(reason),
        State::Completed(_) | State::Released { .. } => None,
    }
}

/// Where a record stands, as far as a store needs to keep it at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The fence that a writer must present.
    pub fence: Fence,
    /// The epoch at which the current claim was made.
    pub claim: Epoch,
    /// The state.
    pub state: StateName,
}

/// Whether `next` may stand after a record with the fence `expected`, as far as can be told without
/// that record's state: what a store can check before it asks its server.
pub fn may_follow(expected: Fence, next: &Record) -> bool {
    next.id == expected.id && rises(expected.epoch, next)
}

/// Whether `after` raises the epoch as it may. What is written beside the owner, and may not know of what
/// it wrote last, raises it by any number: a claim, an expiry, a renewal after those.
fn rises(before: Epoch, after: &Record) -> bool {
    match after.state.name() {
        StateName::InFlight | StateName::Unknown => after.epoch > before,
        StateName::Completed | StateName::Released => after.epoch == before.next(),
    }
}

/// Panics where [`check_arrow`] finds a breach. Stores call the one or the other at the last moment before
/// a write, so that no shell can carry a record around the protocol.
///
/// # Panics
///
/// As [`assert_lawful`], for I8, I9 and I11.
pub fn assert_arrow(before: Option<Standing>, after: &Record) {
    if let Err(breach) = check_arrow(before, after) {
        panic!("{breach}");
    }
}

/// The part of [`check_lawful`] that needs no more than where the record stands.
///
/// # Errors
///
/// As [`check_lawful`], for I8, I9 and I11.
pub fn check_arrow(before: Option<Standing>, after: &Record) -> Result<(), Breach> {
    use StateName::{Completed, InFlight, Released, Unknown};

    let from = before.map(|standing| standing.state);
    let to = after.state.name();
    let drawn = matches!(
        (from, to),
        (None, InFlight)
            | (Some(InFlight), InFlight | Completed | Unknown | Released)
            | (Some(Unknown), InFlight | Completed | Released)
            | (Some(Released), InFlight)
    );
    unless(drawn, || {
        format!("I8: no arrow from {from:?} to {to:?} for {}", after.id)
    })?;

    let epoch = before.map_or(Epoch::ZERO, |standing| standing.fence.epoch);
    let rises = match before {
        Some(_) => rises(epoch, after),
        None => after.epoch == epoch.next(),
    };
    unless(rises, || {
        format!("I9: epoch {:?} after {epoch:?}", after.epoch)
    })?;

    // A renewal leaves what is in flight in flight, and so does who takes it over; every other way there is a claim.
    let claims = to == InFlight && from != Some(InFlight);
    let claim = before
        .filter(|_| !claims)
        .map_or(after.epoch, |standing| standing.claim);
    unless(after.claim == claim, || {
        let id = after.id;
        format!(
            "I9: the claim of {id} is {:?} and not {claim:?}",
            after.claim
        )
    })?;

    let id = before.map_or(after.id, |standing| standing.fence.id);
    unless(id == after.id, || format!("I8: {id} became {}", after.id))?;

    match &after.state {
        State::Completed(completed) => {
            unless(completed.expires_at >= completed.completed_at, || {
                format!("I11: the window of {} ends before it starts", after.id)
            })
        }
        _ => Ok(()),
    }
}
