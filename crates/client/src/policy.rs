//! When to try again: a policy as data, and the decision, which is pure.

use std::time::Duration;

use crate::attempt::Got;
use crate::server::{Server, Verdict};

/// How often and how long a call is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Attempts after the first one. Waiting for an attempt that is still running at the server is none.
    pub retries: u32,
    /// The longest wait before the first retry; it doubles with each further one.
    pub backoff: Duration,
    /// The longest wait before any retry, where the server asks for no longer one.
    pub backoff_most: Duration,
    /// For all attempts and waits together.
    pub deadline: Duration,
    /// For one attempt, from its connection to the end of its answer.
    pub attempt_timeout: Duration,
}

impl Default for Policy {
    /// 5 retries, after up to 0.5, 1, 2, 4 and 8 s; 60 s for an attempt, 10 minutes for all.
    fn default() -> Self {
        Self {
            retries: 5,
            backoff: Duration::from_millis(500),
            backoff_most: Duration::from_secs(8),
            deadline: Duration::from_secs(600),
            attempt_timeout: Duration::from_secs(60),
        }
    }
}

/// Where a call stands when an attempt is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// Retries so far, and so not the first attempt.
    pub retries: u32,
    /// Waits so far for an attempt that is still running at the server.
    pub waits: u32,
    /// Since the call began.
    pub elapsed: Duration,
    /// What is left of the server's window, less a margin.
    pub window_left: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the same request with the same key again.
    Retry {
        /// After this time.
        after: Duration,
        /// Whether it counts as a retry, and draws on the budget: not where the server is well, and the
        /// action is still running there.
        counts: bool,
    },
    /// Leave it.
    Stop(Stop),
}

/// Why a call made no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The server gave its last word.
    Answered,
    /// The server says not to try again.
    ToldNotTo,
    /// Nobody can say whether it ran.
    Unknown,
    /// No attempt can be made of this request.
    CannotBeSent,
    /// All retries were made.
    RetriesSpent,
    /// The wait before the next attempt does not fit into the deadline.
    DeadlinePassed,
    /// By the time of the next attempt the server may have forgotten the key.
    WindowOver,
    /// Too many retries of this client have failed of late.
    BudgetSpent,
}

impl Policy {
    /// What to do after an attempt that got `got` from `server`. `random`, from 0 to 1, spreads the
    /// waits (full jitter).
    ///
    /// Safety is looked at before patience: what is unknown or told not to is never tried again, and
    /// nothing is sent when the server may have forgotten the key.
    pub fn next(&self, server: &Server, got: &Got, history: &History, random: f64) -> Next {
        let counts = match server.verdict(got) {
            Verdict::Final => return Next::Stop(Stop::Answered),
            Verdict::ToldNotTo => return Next::Stop(Stop::ToldNotTo),
            Verdict::Unknown => return Next::Stop(Stop::Unknown),
            Verdict::CannotBeSent => return Next::Stop(Stop::CannotBeSent),
            Verdict::Again if history.retries >= self.retries => {
                return Next::Stop(Stop::RetriesSpent);
            }
            Verdict::Again => true,
            Verdict::InFlight => false,
        };
        let before = if counts {
            history.retries
        } else {
            history.waits
        };
        let after = match asked_for(got) {
            // Not all at once, either, where many are told the same.
            Some(wait) => wait.saturating_add(self.backoff.mul_f64(unit(random))),
            None => self.longest_wait(before).mul_f64(unit(random)),
        };
        if after >= history.window_left {
            Next::Stop(Stop::WindowOver)
        } else if after >= self.deadline.saturating_sub(history.elapsed) {
            Next::Stop(Stop::DeadlinePassed)
        } else {
            Next::Retry { after, counts }
        }
    }

    /// The longest wait after so many of them.
    fn longest_wait(&self, before: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(before);
        self.backoff.saturating_mul(doubled).min(self.backoff_most)
    }
}

fn asked_for(got: &Got) -> Option<Duration> {
    match got {
        Got::Answer(answer) => answer.retry_after,
        _ => None,
    }
}

/// What is not a share of one is taken for the nearest.
fn unit(random: f64) -> f64 {
    if random.is_nan() {
        1.0
    } else {
        random.clamp(0.0, 1.0)
    }
}
