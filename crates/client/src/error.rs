//! Why a call has no answer: what happened, what it means for the caller's money, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::time::SystemTime;

use http::{HeaderName, Method};

use crate::Action;
use crate::attempt::printable;
use crate::keys::Said;
use crate::policy::Stop;
use crate::report::Report;
use crate::time;

/// Any error of somebody else.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a call has no answer. An answer of any status is none of these, but for `outcome-unknown`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The request says not what it does, and its method is not a safe one.
    NoAction {
        /// The method.
        method: Method,
    },
    /// The request has an action and a key of its own.
    KeyPresent {
        /// The action.
        action: Action,
        /// The header with the key.
        header: HeaderName,
    },
    /// The request's own body cannot be read.
    Body {
        /// The action.
        action: Action,
        /// Why.
        source: BoxError,
    },
    /// The key cannot be kept or read.
    Keys {
        /// The action.
        action: Action,
        /// Why, and what to do.
        source: BoxError,
    },
    /// The action belongs to another request: method, URL or body differ.
    ActionReused {
        /// The first request's key; nothing was sent by this call.
        report: Box<Report>,
        /// When the first one was made.
        made_at: SystemTime,
    },
    /// The server may have forgotten the key by now, so that it would run the action anew.
    WindowOver {
        /// What this call did.
        report: Box<Report>,
        /// The end of the window.
        ended_at: SystemTime,
        /// What the server said last that counts, and when, as far as this is known.
        said: Option<(Said, SystemTime)>,
    },
    /// The clock stands before a moment that is past, so nobody can tell whether the window is over.
    ClockWentBack {
        /// What this call did.
        report: Box<Report>,
        /// That moment.
        past: SystemTime,
        /// What the clock says now.
        now: SystemTime,
    },
    /// It may have run, and the server cannot say.
    Unknown {
        /// What this call did.
        report: Box<Report>,
        /// Onlyonce's name of the operation.
        operation: Option<String>,
        /// What the server said of it.
        detail: String,
    },
    /// No attempt got an answer. [`Report::stopped`] says why there was no further one.
    NoAnswer {
        /// What this call did.
        report: Box<Report>,
        /// Until when to call again.
        until: SystemTime,
    },
    /// A request without an action, which was sent once as it is, failed.
    Passed {
        /// What the inner service said.
        source: BoxError,
    },
}

const NOTHING: &str = "This call sent nothing and costs nothing.";

impl Error {
    /// What the call did, where the action had a key.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::ActionReused { report, .. }
            | Self::WindowOver { report, .. }
            | Self::ClockWentBack { report, .. }
            | Self::Unknown { report, .. }
            | Self::NoAnswer { report, .. } => Some(report),
            Self::NoAction { .. }
            | Self::KeyPresent { .. }
            | Self::Body { .. }
            | Self::Keys { .. }
            | Self::Passed { .. } => None,
        }
    }

    /// What happened.
    pub fn happened(&self) -> String {
        match self {
            Self::NoAction { method } => format!("The {method} request has no action."),
            Self::KeyPresent { action, header } => {
                format!("The request for {action} brings its own {header}.")
            }
            Self::Body { action, source } => {
                format!(
                    "The body of the request for {action} cannot be read: {}.",
                    chain(&**source)
                )
            }
            Self::Keys { action, source } => {
                format!(
                    "The key for {action} cannot be kept or read: {}.",
                    chain(&**source)
                )
            }
            Self::ActionReused { report, made_at } => format!(
                "{} was used for another request at {}: its method, URL or body differs.",
                report.action,
                time::text(*made_at)
            ),
            Self::WindowOver {
                report, ended_at, ..
            } => format!(
                "The server may have forgotten the key of {}: its window ends at {}.",
                report.action,
                time::text(*ended_at)
            ),
            Self::ClockWentBack { report, past, now } => format!(
                "The clock says {}, and {} was called at {}: nobody can tell whether the server \
                 still knows its key.",
                time::text(*now),
                report.action,
                time::text(*past)
            ),
            Self::Unknown { report, detail, .. } if detail.is_empty() => {
                format!("Nobody can say whether {} ran.", report.action)
            }
            Self::Unknown { report, detail, .. } => {
                format!("{}: {}", report.action, printable(detail))
            }
            Self::NoAnswer { report, .. } => {
                let last = report.attempts.last();
                let last = last.map_or(String::new(), |attempt| attempt.got.to_string());
                let why = match report.stopped {
                    Some(Stop::RetriesSpent) => "all retries were made",
                    Some(Stop::DeadlinePassed) => "the deadline leaves no time for another attempt",
                    Some(Stop::BudgetSpent) => "the budget of retries is spent",
                    _ => "another attempt would end the same way",
                };
                format!("{} has no answer: {last}, and {why}.", report.action)
            }
            Self::Passed { source } => format!("The request failed: {}.", chain(&**source)),
        }
    }

    /// What it means for the caller's money.
    pub fn money(&self) -> String {
        match self {
            Self::NoAction { .. }
            | Self::KeyPresent { .. }
            | Self::Body { .. }
            | Self::Keys { .. } => NOTHING.to_owned(),
            Self::ActionReused { .. } => {
                format!("{NOTHING} The first request is not changed by it.")
            }
            Self::WindowOver { report, said, .. } => match said {
                Some((Said::Answer(status), at)) => format!(
                    "The server's last answer was {status}, at {}. To send it again could run it a \
                     second time.",
                    time::text(*at)
                ),
                _ if report.may_have_run() => {
                    "It may have run, and to send it again could run it a second time.".to_owned()
                }
                _ => NOTHING.to_owned(),
            },
            Self::ClockWentBack { .. } => {
                "It may have run, and to send it again could run it a second time.".to_owned()
            }
            Self::Unknown { detail, .. } => {
                let billed = "It may have run and may be billed, once at most.";
                // A server of ours has said so.
                match detail.contains("under this key") {
                    true => billed.to_owned(),
                    false => format!("{billed} Nothing further runs under this key."),
                }
            }
            Self::NoAnswer { report, .. } if report.may_have_run() => {
                "It may have run and may be billed, once at most.".to_owned()
            }
            Self::NoAnswer { .. } => NOTHING.to_owned(),
            Self::Passed { .. } => {
                "It may have run. It had no action, so nothing makes a further one safe.".to_owned()
            }
        }
    }

    /// What to do.
    pub fn next(&self) -> String {
        match self {
            Self::NoAction { .. } => "Put an Action into the request's extensions, or build the \
                 client with pass_without_action."
                .to_owned(),
            Self::KeyPresent { header, .. } => {
                format!("Take out the {header}, or the action.")
            }
            Self::Body { .. } => "Give it a body that is there, then call again.".to_owned(),
            Self::Keys { .. } => "Nothing is sent for this action until that is done.".to_owned(),
            Self::ActionReused { .. } => {
                "If this is another action, give it another name. If it is \
                 the same one, send the very same request as the first time."
                    .to_owned()
            }
            Self::WindowOver { report, .. } if !report.may_have_run() => {
                "Give the client a window that is longer than its margin.".to_owned()
            }
            Self::WindowOver { .. } => {
                "Find out at the server whether it ran. If it did, use what is \
                 there. If it did not, forget the action and call again: it then gets a new key."
                    .to_owned()
            }
            Self::ClockWentBack { .. } => {
                "Set the clock right, then call again with the same action.".to_owned()
            }
            Self::Unknown { operation, .. } => {
                let operation = operation.as_deref().unwrap_or("the operation");
                format!(
                    "Find out at the provider whether it ran; the operator of the gateway settles \
                     {} then. To call again with the same action asks again and runs nothing. A new \
                     action could run it a second time.",
                    printable(operation)
                )
            }
            Self::NoAnswer { report, .. } if report.stopped == Some(Stop::CannotBeSent) => {
                "Correct the request, forget the action, and call again.".to_owned()
            }
            Self::NoAnswer { until, .. } => format!(
                "Call again with the same action before {}: it is sent with the same key, and what \
                 ran is not run again.",
                time::text(*until)
            ),
            Self::Passed { .. } => "Find out at the server whether it ran.".to_owned(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.happened(), self.money(), self.next())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Body { source, .. } | Self::Keys { source, .. } | Self::Passed { source } => {
                Some(&**source)
            }
            _ => None,
        }
    }
}

/// An error with what caused it.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some repeat their cause.
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
