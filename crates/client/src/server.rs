//! What is known about a server that takes keys: data, and one function that reads an answer by it.

use std::time::Duration;

use http::{HeaderName, StatusCode, header::HeaderMap};
use onlyonce_http::marks::{STRIPE_SHOULD_RETRY, X_SHOULD_RETRY};

use crate::attempt::{Answer, Got};

/// The rules of a server.
///
/// Beside them, these hold for every server, since a gateway of ours may stand before it: the problem
/// `outcome-unknown` is final, `operation-in-flight` is waited for, `Onlyonce-Status` tells a recorded
/// answer, and `Onlyonce-Expires` the end of the window.
#[derive(Clone, Debug)]
pub struct Server {
    /// The header that the key goes into.
    pub key_header: HeaderName,
    /// How long a key is good for, counted from when it was made: longer than the server says, and a
    /// retry may run the action a second time.
    pub window: Duration,
    /// Statuses that are worth another attempt.
    pub retried: Vec<StatusCode>,
    /// Statuses that say that another attempt of the action is still running there. They are waited for
    /// until the deadline, and cost no retry.
    pub in_flight: Vec<StatusCode>,
    /// Headers in which the server says `true` or `false` to another attempt. They count for more than
    /// the status.
    pub should_retry: Vec<HeaderName>,
}

/// What an attempt means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server's last word.
    Final,
    /// The server says not to try again.
    ToldNotTo,
    /// Nobody can say whether it ran, and no attempt will find out.
    Unknown,
    /// Another attempt is running: wait for its answer.
    InFlight,
    /// Try again.
    Again,
    /// No attempt can be made of this request.
    CannotBeSent,
}

const HOURS_24: Duration = Duration::from_secs(24 * 3600);

impl Server {
    /// Onlyonce, with its default window of 24 hours. Where the route says another, say it too.
    pub fn onlyonce() -> Self {
        Self {
            in_flight: Vec::new(),
            ..Self::generic(HOURS_24)
        }
    }

    /// Stripe: keys are removed once they are at least 24 hours old, and 409 means that a request with
    /// the key, or on the same object, is running (<https://docs.stripe.com/api/idempotent_requests>,
    /// <https://docs.stripe.com/error-low-level>).
    pub fn stripe() -> Self {
        let mut stripe = Self::generic(HOURS_24);
        stripe
            .retried
            .retain(|status| *status != StatusCode::CONFLICT);
        stripe.in_flight = vec![StatusCode::CONFLICT];
        stripe
    }

    /// A server that takes `Idempotency-Key` as the IETF draft has it, and keeps keys for `window`:
    /// look it up, there is no value that is safe to guess.
    ///
    /// Its 409 may mean that the action is running (draft-ietf-httpapi-idempotency-key-header-07,
    /// section 2.7) or something of its own, so it is tried again as often as a failure.
    pub fn generic(window: Duration) -> Self {
        let retried = [408, 409, 425, 429, 500, 502, 503, 504, 529];
        Self {
            key_header: HeaderName::from_static("idempotency-key"),
            window,
            retried: statuses(&retried),
            in_flight: Vec::new(),
            should_retry: vec![X_SHOULD_RETRY.clone(), STRIPE_SHOULD_RETRY.clone()],
        }
    }

    /// What the server says in `headers` to another attempt. Where two headers differ, it is no.
    pub(crate) fn told(&self, headers: &HeaderMap) -> Option<bool> {
        let values = self
            .should_retry
            .iter()
            .flat_map(|name| headers.get_all(name));
        let said = values.filter_map(|value| match value.as_bytes() {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        });
        said.reduce(|one, other| one && other)
    }

    /// What `got` means. Read from above: the first rule that fits counts.
    pub(crate) fn verdict(&self, got: &Got) -> Verdict {
        let answer = match got {
            Got::Answer(answer) => answer,
            Got::NotConnected(_) | Got::Broke(_) | Got::TimedOut(_) => return Verdict::Again,
            Got::CannotBeSent(_) => return Verdict::CannotBeSent,
        };
        let status = answer.status;
        if answer.is_problem("outcome-unknown") {
            Verdict::Unknown
        } else if is_done(answer) {
            Verdict::Final
        } else if answer.told == Some(false) {
            Verdict::ToldNotTo
        } else if answer.is_problem("operation-in-flight") || self.in_flight.contains(&status) {
            Verdict::InFlight
        } else if answer.told == Some(true) {
            Verdict::Again
        } else if answer.is_replay {
            // What the server has recorded it will say again.
            Verdict::Final
        } else if self.retried.contains(&status) {
            Verdict::Again
        } else {
            Verdict::Final
        }
    }
}

/// Whether every other attempt would get this too: what is no error, and what Onlyonce has recorded,
/// whatever the upstream's own headers in it say.
fn is_done(answer: &Answer) -> bool {
    !(answer.status.is_client_error() || answer.status.is_server_error()) || answer.is_recorded
}

fn statuses(numbers: &[u16]) -> Vec<StatusCode> {
    let known = numbers.iter().map(|number| StatusCode::from_u16(*number));
    known.flatten().collect()
}
