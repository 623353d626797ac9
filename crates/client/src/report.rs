//! What a call did, for logs and for people.

use std::fmt;
use std::time::Duration;

use onlyonce_core::Key;

use crate::Action;
use crate::attempt::Got;
use crate::policy::Stop;
use crate::time::span;

/// What a call did. In the extensions of its response, and in its error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The action.
    pub action: Action,
    /// Its key.
    pub key: Key,
    /// Whether the key was made for this call. Otherwise an earlier call, of whichever process, may have
    /// sent it.
    pub is_new: bool,
    /// The attempts, in order. None where the call was refused before it sent anything.
    pub attempts: Vec<Attempt>,
    /// Why there was no further one.
    pub stopped: Option<Stop>,
    /// Why what the server said could not be kept. The answer counts all the same; a later call knows
    /// the end of the window only as it is configured.
    pub not_noted: Option<String>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began, counted from the beginning of the call.
    pub started: Duration,
    /// How long it took.
    pub took: Duration,
    /// What it got.
    pub got: Got,
    /// How long was waited after it.
    pub waited: Duration,
}

impl Report {
    pub(crate) fn new(action: Action, key: Key, is_new: bool) -> Self {
        Self {
            action,
            key,
            is_new,
            attempts: Vec::new(),
            stopped: None,
            not_noted: None,
        }
    }

    /// Whether the action may have run: always, unless the key is new and no attempt had a connection.
    pub fn may_have_run(&self) -> bool {
        let was_sent = |got: &Got| !matches!(got, Got::NotConnected(_) | Got::CannotBeSent(_));
        !self.is_new || self.attempts.iter().any(|attempt| was_sent(&attempt.got))
    }
}

/// One line: `order-17/charge: 503, waited 412ms; 200; 2 attempts with key 5f0c... in 1s 20ms`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.action)?;
        for attempt in &self.attempts {
            write!(f, "{}", attempt.got)?;
            if !attempt.waited.is_zero() {
                write!(f, ", waited {}", span(attempt.waited))?;
            }
            f.write_str("; ")?;
        }
        let made = if self.is_new { "new key" } else { "kept key" };
        match self.attempts.as_slice() {
            [] => write!(f, "nothing sent")?,
            [_] => write!(f, "1 attempt")?,
            many => write!(f, "{} attempts", many.len())?,
        }
        write!(f, " with {made} {}", self.key)?;
        if let Some(last) = self.attempts.last() {
            write!(f, " in {}", span(last.started + last.took))?;
        }
        if let Some(why) = &self.not_noted {
            write!(f, "; the answer was not noted: {why}")?;
        }
        Ok(())
    }
}
