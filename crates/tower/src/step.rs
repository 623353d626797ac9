//! Steps: parts of an operation that run once, each an operation of its own.
//!
//! ```text
//! operation   op_1 ────────── in flight ──── owner dies ──── in flight again ────────► completed
//! step        op_1/charge      ├─ claim, run, completed        ├─ replayed
//! step        op_1/mail        └─ claim ...                    └─ run, or unknown: the operation stops
//! ```
//!
//! Its key is the id of its operation and its name: whoever executes the operation again finds it, whoever
//! holds its claim alone runs it, and the next operation under the same caller's key, once the window of
//! this one has passed, has steps of its own.

use std::future::IntoFuture;
use std::sync::Arc;

use onlyonce_core::{Key, Metered, OnUnknown, OperationId, Policy, RequestLine, UnknownReason};
use onlyonce_engine::RoutePolicy;
use onlyonce_http::fingerprint_of_parts;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::doing::{BoxFuture, Came, NotDone, Recorded, Task, Undone, Work};
use crate::failure::Failure;
use crate::input::Input;
use crate::operation::Words;
use crate::{BoxError, Operation, Outcome};

/// The longest name, in characters: it goes into a key, behind an operation's id.
const MAX_NAME: usize = 200;
/// What the names of what the library itself keeps beside an operation begin with.
const RESERVED: char = '~';

/// A step, to be awaited: see [`Operation::step`].
#[must_use = "a step runs when it is awaited"]
pub struct Step<'a, T> {
    operation: &'a Operation,
    name: &'a str,
    input: Input,
    honours: bool,
    metering: Option<Metering<'a, T>>,
    work: StepWork<'a, T>,
}

pub(crate) type StepWork<'a, T> =
    Box<dyn FnOnce() -> BoxFuture<'a, Result<T, Failure>> + Send + 'a>;

/// What a step used, by its result.
type Metering<'a, T> = Box<dyn FnOnce(&T) -> Metered + Send + 'a>;

/// Why a step has no result. Hand it on: it says what becomes of the operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// It did nothing, for certain. The operation is released where none of its steps has run, and else
    /// may continue with the next attempt.
    #[error("the step {step} did not run: {why}")]
    DidNotRun {
        /// Its name.
        step: Box<str>,
        /// What happened, in words.
        why: Arc<str>,
        /// What it failed with, where it ran here.
        source: Option<BoxError>,
    },
    /// It failed, and may run again, since its downstream honours its key; or somebody is at it still. The
    /// operation may continue with the next attempt.
    #[error("the step {step} is not finished: {why}")]
    Unfinished {
        /// Its name.
        step: Box<str>,
        /// What happened, in words.
        why: Arc<str>,
        /// What it failed with, where it ran here.
        source: Option<BoxError>,
    },
    /// It may have run, once at most, and nobody can say. It is not run again, and the operation is unknown
    /// until somebody has settled the step.
    #[error(
        "the step {step} may have run, once at most, and nobody can say ({why}); it is the operation {}",
        show(*operation)
    )]
    Unknown {
        /// Its name.
        step: Box<str>,
        /// The step's own id, to settle it by. `None` where its record cannot be read.
        operation: Option<OperationId>,
        /// Why that is so.
        reason: UnknownReason,
        /// The same in words, and with what is known here.
        why: Arc<str>,
        /// What it failed with, where it ran here.
        source: Option<BoxError>,
    },
    /// An execution before this one began the step with another input.
    #[error(
        "the step {step} was begun with another input in an earlier execution; a handler made of steps \
         has to take the same way each time"
    )]
    Reused {
        /// Its name.
        step: Box<str>,
    },
    /// One execution has two steps of this name.
    #[error("the step {step} was there before in this execution; give each step a name of its own")]
    Twice {
        /// Its name.
        step: Box<str>,
    },
    /// The operation has ended: its handler has given its answer, or was dropped. A task that the handler
    /// left behind comes too late. Nothing is run.
    #[error(
        "the operation has ended, so {step} is not run: a handler waits for its steps, and leaves none of \
         them to a task that outlives it"
    )]
    Ended {
        /// Its name.
        step: Box<str>,
    },
    /// No step can be called so.
    #[error(
        "{step:?} is no name of a step: it has 1 to {MAX_NAME} visible ASCII characters, and does not \
         begin with {RESERVED}"
    )]
    BadName {
        /// The name.
        step: Box<str>,
    },
    /// What is recorded is no result of the type that is asked for, or the input is no JSON.
    #[error("the step {step}: {why}")]
    BadJson {
        /// Its name.
        step: Box<str>,
        /// What is wrong.
        why: String,
    },
    /// The operation was begun so long ago that what its steps have done may be forgotten. Nothing is run.
    #[error(
        "the operation was begun so long ago that what its steps did may be forgotten, so {step} is not \
         run: find out what it did, and settle the operation itself"
    )]
    TooOld {
        /// Its name.
        step: Box<str>,
    },
}

fn show(operation: Option<OperationId>) -> String {
    operation.map_or_else(|| "that cannot be read".to_owned(), |id| id.to_string())
}

impl StepError {
    /// What it says of the operation that the step is of. [`Outcome::Released`] counts only where no other
    /// step may have run: else the operation is unfinished, and continues with its next attempt.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::DidNotRun { .. } | Self::Unfinished { .. } => Outcome::Released,
            _ => Outcome::Unknown,
        }
    }

    /// The same for whoever called over HTTP: what a step failed with is nobody's business there, and
    /// may hold what must not leave the process. The log has it.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::DidNotRun { step, .. } => format!("the step {step} did not run"),
            Self::Unfinished { step, .. } => format!("the step {step} is not finished"),
            Self::Unknown {
                step,
                operation,
                reason,
                ..
            } => format!(
                "the step {step} may have run, once at most, and nobody can say ({reason}); it is the \
                 operation {}",
                show(*operation)
            ),
            Self::BadJson { step, .. } => {
                format!("the step {step} has an input or a result that is not as it should be")
            }
            Self::Reused { .. }
            | Self::Twice { .. }
            | Self::Ended { .. }
            | Self::BadName { .. }
            | Self::TooOld { .. } => self.to_string(),
        }
    }

    /// The one that `error` comes of, if any.
    pub(crate) fn in_sources<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(step) = error.downcast_ref() {
                return Some(step);
            }
            next = error.source();
        }
        None
    }
}

impl<'a, T> Step<'a, T> {
    pub(crate) fn new(operation: &'a Operation, name: &'a str, work: StepWork<'a, T>) -> Self {
        Self {
            operation,
            name,
            input: Input::default(),
            honours: false,
            metering: None,
            work,
        }
    }

    /// What the step does depends on `input`: an execution that comes to it with another one is told so
    /// ([`StepError::Reused`]), and gets no result of something else. It is compared as canonical JSON, and
    /// not kept.
    pub fn input(mut self, input: &impl Serialize) -> Self {
        self.input = Input::of(input);
        self
    }

    /// Whoever the step calls does under one key only once what it is asked for, for at least as long as
    /// the operation may be continued; and the step sends [`Operation::key_for`] of its name along. Then a
    /// step of which nobody knows how far it came is run again, under the same key.
    pub fn downstream_honours_the_key(mut self) -> Self {
        self.honours = true;
        self
    }

    /// What the step used and cost, by its result: it goes into the books as an entry of the step's own,
    /// once. A step without it has none.
    pub fn metering(mut self, metered: impl FnOnce(&T) -> Metered + Send + 'a) -> Self {
        self.metering = Some(Box::new(metered));
        self
    }
}

impl<'a, T: Serialize + DeserializeOwned + Send + 'a> IntoFuture for Step<'a, T> {
    type Output = Result<T, StepError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.taken())
    }
}

impl<'a, T: Serialize + DeserializeOwned + Send + 'a> Step<'a, T> {
    async fn taken(self) -> Result<T, StepError> {
        let operation = self.operation;
        let taken = self.take().await;
        if let Err(error) = &taken {
            tracing::warn!(operation = %operation.id(), %error, "a step has no result");
            let words = Words::of(error);
            if matches!(error, StepError::Unknown { .. } | StepError::TooOld { .. }) {
                operation.stop(words.clone());
            }
            operation.failed(words);
        }
        taken
    }

    async fn take(self) -> Result<T, StepError> {
        let Self {
            operation,
            name,
            input,
            honours,
            metering,
            work,
        } = self;
        let bad = |why: String| StepError::BadJson {
            step: name.into(),
            why,
        };
        if name.starts_with(RESERVED) || name.len() > MAX_NAME {
            return Err(StepError::BadName { step: name.into() });
        }
        let mut task = task(operation, name, &input.canonical().map_err(bad)?)?;
        if honours {
            task.policy.decision.on_unknown = OnUnknown::Resend;
        }
        if operation.desk().now() >= operation.remembered_until() {
            return Err(StepError::TooOld { step: name.into() });
        }
        operation.ask(name)?;
        let asked = Asked {
            operation,
            name,
            honours,
        };
        let work: Work<'a> = Box::new(move |_| match operation.begin(name) {
            true => Box::pin(async move { came(work().await, metering) }),
            // It ended while the step was being claimed.
            false => Box::pin(std::future::ready(Came::nothing("its operation has ended"))),
        });
        let done = operation.desk().once(task, work).await;
        std::mem::forget(asked);
        match done {
            Ok(recorded) => {
                operation.may_run(name);
                recorded
                    .read()
                    .map_err(|error| bad(format!("what is recorded is no such result: {error}")))
            }
            Err(not_done) => Err(error_of(not_done, operation, name, honours)),
        }
    }
}

/// A step that is asked for. Dropped before it has come to an end, it may have run if it had begun.
struct Asked<'a> {
    operation: &'a Operation,
    name: &'a str,
    honours: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let Self {
            operation, name, ..
        } = self;
        match operation.may_have_run(name) {
            false => operation.did_not_run(name),
            true if self.honours => {}
            true => {
                let dropped = format!("the step {name} was dropped in the middle");
                operation.stop(Words::open(&dropped));
            }
        }
    }
}

/// The step `name` of `operation`, as it is claimed.
fn task(operation: &Operation, name: &str, input: &[u8]) -> Result<Task, StepError> {
    let making = operation.making();
    let key = Key::new(&format!("{}/{name}", making.id));
    let key = key
        .ok()
        .filter(|_| !name.is_empty())
        .ok_or_else(|| StepError::BadName { step: name.into() })?;
    // Where an operation was released, its key may be taken by another request: what was a step of the
    // first one is none of that.
    let parts = [
        b"step".as_slice(),
        making.fingerprint.as_bytes(),
        name.as_bytes(),
        input,
    ];
    Ok(Task {
        request: onlyonce_engine::Request {
            scope: making.scope.of_steps(),
            key,
            fingerprint: fingerprint_of_parts(operation.hash_keys(), &parts),
            line: RequestLine {
                route: making.scope.namespace.clone(),
                method: "STEP".into(),
                path: name.into(),
                trace: None,
            },
            peer: "".into(),
            asked_model: "".into(),
            sdk_retry_count: None,
            trace: None,
        },
        policy: RoutePolicy {
            decision: Policy::default(),
            window: making.steps_window,
            join_timeout: making.join_timeout,
        },
    })
}

/// The name under which what `operation` was asked for is kept beside it.
pub(crate) fn kept_name(fingerprint: &onlyonce_core::Fingerprint) -> String {
    let [a, b, c, d, ..] = *fingerprint.as_bytes();
    format!("{RESERVED}request-{:08x}", u32::from_be_bytes([a, b, c, d]))
}

/// Keeps what `operation` was asked for, as a step that is there before its handler begins. An error says
/// why that is not so.
pub(crate) async fn keep(operation: &Operation, kept: Recorded) -> Result<(), String> {
    let name = kept_name(&operation.making().fingerprint);
    let mut task = task(operation, &name, &[]).map_err(|error| error.to_string())?;
    // To keep the same twice does no harm.
    task.policy.decision.on_unknown = OnUnknown::Resend;
    let work: Work<'_> = Box::new(|_| {
        Box::pin(std::future::ready(Came {
            result: Ok(kept),
            metered: None,
        }))
    });
    match operation.desk().once(task, work).await {
        Ok(_) => Ok(()),
        Err(NotDone::Trouble(trouble)) => Err(trouble.to_string()),
        Err(_) => Err("what was asked for could not be kept".to_owned()),
    }
}

/// What the closure of a step came to, to be recorded.
fn came<T: Serialize>(worked: Result<T, Failure>, metering: Option<Metering<'_, T>>) -> Came {
    let result = match worked {
        Ok(result) => result,
        Err(failure) => {
            let lost =
                (failure.of_step() != Outcome::Released).then_some(UnknownReason::HandlerFailed);
            let why = failure.to_string();
            return Came {
                result: Err(Undone {
                    lost,
                    why,
                    error: Some(failure.into_error()),
                }),
                metered: None,
            };
        }
    };
    let metered = metering.map(|metering| metering(&result));
    let result = match serde_json::to_vec(&result) {
        Ok(json) => Ok(Recorded::json(json)),
        Err(error) => Err(Undone {
            lost: Some(UnknownReason::HandlerFailed),
            why: format!("its result is no JSON: {error}"),
            error: Some(error.into()),
        }),
    };
    Came { result, metered }
}

/// What a step that has no result says, and what that means for its operation.
fn error_of(not_done: NotDone, operation: &Operation, name: &str, honours: bool) -> StepError {
    let step: Box<str> = name.into();
    match not_done {
        NotDone::KeyReused => {
            operation.did_not_run(name);
            StepError::Reused { step }
        }
        NotDone::Trouble(trouble) => {
            operation.did_not_run(name);
            StepError::DidNotRun {
                step,
                why: trouble.to_string().into(),
                source: Some(trouble.into()),
            }
        }
        NotDone::Released { why, error } => {
            operation.did_not_run(name);
            StepError::DidNotRun {
                step,
                why,
                source: error,
            }
        }
        NotDone::InFlight => {
            operation.may_run(name);
            StepError::Unfinished {
                step,
                why: "somebody is at it still".into(),
                source: None,
            }
        }
        NotDone::Unknown {
            id,
            reason,
            why,
            error,
        } => {
            operation.may_run(name);
            let why = why.unwrap_or_else(|| reason.as_str().into());
            match honours && reason != UnknownReason::Unreadable {
                true => StepError::Unfinished {
                    step,
                    why,
                    source: error,
                },
                false => StepError::Unknown {
                    step,
                    operation: id,
                    reason,
                    why,
                    source: error,
                },
            }
        }
    }
}
