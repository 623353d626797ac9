//! The decision: what an attempt may do, given what the store holds.
//!
//! [`view`] turns a stored record and the store's clock into what counts of it; [`decide`] is the
//! whole protocol seen from one attempt.

use std::time::Duration;

use crate::{
    Epoch, Fingerprint, Record, State, Timestamp, UnknownReason,
    planted::{Bug, planted},
};

/// What counts of what the store holds for a key.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// Nothing, or a record whose window has passed.
    Absent,
    /// A record that counts.
    Record {
        /// The record.
        record: &'a Record,
        /// Whether it is in flight under a lease that has passed.
        lease_passed: bool,
    },
    /// Something that cannot be read: corrupt, undecryptable, or of a newer format (I13).
    Unreadable,
}

/// What `record` counts for at the moment `now` of the store's clock.
///
/// A window ends at the very millisecond of `expires_at`: one before it the record answers, at it
/// the key is new.
pub fn view(record: Option<&Record>, now: Timestamp) -> Held<'_> {
    match record {
        None => Held::Absent,
        Some(record) if record.expires_at().is_some_and(|end| now >= end) => Held::Absent,
        Some(record)
            if planted(Bug::EarlyExpiry)
                && record.expires_at() == Some(now.after(Duration::from_millis(1))) =>
        {
            Held::Absent
        }
        Some(record) => {
            let lease_passed =
                matches!(record.state, State::InFlight { lease_until, .. } if now >= lease_until);
            Held::Record {
                record,
                lease_passed,
            }
        }
    }
}

/// What the route wants where the protocol leaves a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// For an attempt that finds the operation running.
    pub concurrent: Concurrent,
    /// For an attempt that finds the outcome unknown.
    pub on_unknown: OnUnknown,
}

/// What happens to an attempt that finds the operation running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Concurrent {
    /// It follows the recording.
    #[default]
    Join,
    /// It is refused and may come again.
    Reject,
}

/// What happens to an attempt that finds the outcome unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnknown {
    /// It is told so.
    #[default]
    Report,
    /// It is sent again, under the same upstream key: only where the upstream honours keys, or
    /// where the configuration says in words that it may run twice.
    Resend,
    /// The same, for an operation whose key was first claimed at this moment or later; another one is
    /// told so. Where executing it again is right only for as long as something is remembered.
    ResendIfClaimedSince(Timestamp),
}

impl OnUnknown {
    /// Whether the operation of `record`, which is unknown, is sent again.
    fn resends(self, record: &Record) -> bool {
        match self {
            Self::Report => false,
            Self::Resend => true,
            Self::ResendIfClaimedSince(moment) => record.id.first_claimed() >= moment,
        }
    }
}

/// What an attempt may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Claim, and execute once the claim is durable.
    Execute {
        /// The epoch that the claim replaces.
        after: Epoch,
    },
    /// Answer from the finished recording.
    Replay,
    /// Follow the growing recording.
    Join,
    /// The owner is gone: write that the outcome is unknown, then decide again.
    ExpireLease,
    /// Send nothing.
    Refuse(Refusal),
}

/// Why an attempt is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key was used for another request (I6).
    KeyReused,
    /// The operation is running and the route does not let attempts join.
    InFlight,
    /// Nobody can say whether the operation ran.
    Unknown(UnknownReason),
}

/// Decides about one attempt.
///
/// The fingerprint is compared before the state is looked at (I6): a request that is another
/// request learns nothing of the first, not even whether it still runs.
pub fn decide(held: Held<'_>, presented: &Fingerprint, policy: &Policy) -> Decision {
    let (record, lease_passed) = match held {
        Held::Absent => return Decision::Execute { after: Epoch::ZERO },
        Held::Unreadable => {
            return Decision::Refuse(Refusal::Unknown(UnknownReason::Unreadable));
        }
        Held::Record {
            record,
            lease_passed,
        } => (record, lease_passed),
    };

    // A released key is free: whatever comes next may take it, as if it had never been used.
    if let State::Released { .. } = record.state {
        return Decision::Execute {
            after: record.epoch,
        };
    }
    if planted(Bug::StateBeforeFingerprint) && matches!(record.state, State::Completed(_)) {
        return Decision::Replay;
    }
    if record.fingerprint != *presented {
        return Decision::Refuse(Refusal::KeyReused);
    }
    match record.state {
        State::InFlight { .. } if lease_passed => Decision::ExpireLease,
        State::InFlight { .. } => match policy.concurrent {
            Concurrent::Join => Decision::Join,
            Concurrent::Reject => Decision::Refuse(Refusal::InFlight),
        },
        State::Completed(_) => Decision::Replay,
        State::Unknown { reason, .. } => match policy.on_unknown.resends(record) {
            false => Decision::Refuse(Refusal::Unknown(reason)),
            true => Decision::Execute {
                after: record.epoch,
            },
        },
        State::Released { .. } => unreachable!("answered above"),
    }
}
