//! What callers are told: the marks of an answer, and the problem that stands for one.

use std::time::{Duration, Instant};

use http::{HeaderMap, Response};
use onlyonce_core::{Key, Refusal, UnknownReason};
use onlyonce_engine::{Kind, Seldom, Start, Ticket, Trouble};
use onlyonce_http::problem::Problem;
use onlyonce_http::{Marks, Status};

/// After how long to come again where nothing better is known.
pub const COME_AGAIN: Duration = Duration::from_secs(1);

/// What an answer is marked with, as far as that is known before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marking<'a> {
    /// Which attempt of which operation it is for, where that may be told.
    pub ticket: Option<Ticket>,
    /// The key, where it was derived.
    pub derived_key: Option<&'a Key>,
}

impl Marking<'_> {
    /// Marks an answer, or a refusal (without a status).
    pub fn mark(&self, headers: &mut HeaderMap, status: Option<Status>, replayed: bool) {
        if let Some(ticket) = self.ticket {
            let marks = Marks {
                status,
                replayed,
                operation: ticket.id,
                attempt: ticket.attempt,
                expires: ticket.expires_at,
                derived_key: self.derived_key,
            };
            marks.write(headers);
        }
    }
}

/// An answer that has begun, marked as what it is; one that says that nothing ran is marked so, whoever
/// gets it. With the status that it is marked with.
pub fn marked<B>(
    mut response: Response<B>,
    kind: Kind,
    status: Status,
    marking: &Marking<'_>,
) -> (Response<B>, Status) {
    let replayed = status != Status::Executed;
    let status = match kind {
        Kind::Executed => status,
        Kind::Released => Status::Released,
    };
    marking.mark(response.headers_mut(), Some(status), replayed);
    (response, status)
}

/// What an attempt that is refused is told.
pub fn problem_of_refusal(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::KeyReused => Problem::KeyReused,
        Refusal::InFlight => in_flight(None),
        Refusal::Unknown(reason) => Problem::OutcomeUnknown(reason),
    }
}

/// What is told where no response begins the answer. `upstream` names who executes, and `join_timeout`
/// is how long an attempt waits for the start.
pub fn problem_of_start(start: Start, upstream: &str, join_timeout: Duration) -> Problem {
    match start {
        Start::NotSent(why) => Problem::UpstreamUnreachable {
            upstream: upstream.to_owned(),
            why: why.to_string(),
        },
        Start::Timeout => in_flight(Some(join_timeout)),
        Start::Unknown(reason) => Problem::OutcomeUnknown(reason),
        Start::Response { .. } => Problem::OutcomeUnknown(UnknownReason::Unreadable),
    }
}

/// What is told where an attempt could not be decided about. `limit` gives the name under which people
/// set a limit, and its value where that is known.
pub fn problem_of_trouble(
    trouble: &Trouble,
    limit: impl Fn(&'static str) -> (&'static str, Option<u64>),
) -> Problem {
    match trouble {
        Trouble::Unavailable(_) | Trouble::InDoubt(_) => Problem::StoreUnavailable {
            retry_after: COME_AGAIN,
        },
        Trouble::Full(why) => {
            let limit_name = ["store.max_bytes", "store.max_records"]
                .into_iter()
                .find(|name| why.contains(name) || why.contains(&name["store.".len()..]));
            Problem::StorageFull { limit_name }
        }
        Trouble::OverLimit(name) => {
            let (limit_name, limit) = limit(name);
            Problem::QuotaExceeded {
                limit_name,
                limit,
                retry_after: COME_AGAIN,
            }
        }
        Trouble::ShuttingDown => Problem::ShuttingDown {
            retry_after: COME_AGAIN,
        },
    }
}

/// Logs why attempts are refused, a line now and then while `store_down` lasts. `next` is what to do where
/// the store does not say so itself after a semicolon.
pub fn log_trouble(store_down: &Seldom, trouble: &Trouble, next: &str) {
    let (Trouble::Unavailable(what) | Trouble::InDoubt(what) | Trouble::Full(what)) = trouble
    else {
        return;
    };
    let next = match what.contains("; ") {
        true => String::new(),
        false => format!("; {next}"),
    };
    match store_down.turn(Instant::now()) {
        Some(held_back) => tracing::error!(
            held_back,
            "requests are refused, and nothing is sent for them: {trouble}{next}"
        ),
        None => tracing::debug!("a request is refused: {trouble}"),
    }
}

fn in_flight(waited: Option<Duration>) -> Problem {
    Problem::OperationInFlight {
        waited,
        retry_after: COME_AGAIN,
    }
}
