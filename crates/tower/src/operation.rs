//! The operation that a handler executes.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use onlyonce_core::{Fingerprint, Key, Metered, OperationId, Scope, Timestamp, UnknownReason};
use onlyonce_http::{HashKeys, key_for_part};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::doing::Desk;
use crate::failure::Failure;
use crate::rules::remembered;
use crate::step::{Step, StepError};

/// The operation that a handler executes. It is in the extensions of every keyed request, and with the
/// feature `axum` a handler takes it as an argument; a function that [runs once](crate::Once::run) gets it.
///
/// ```
/// # #[cfg(feature = "axum")] mod example {
/// use onlyonce_tower::Operation;
///
/// async fn charge(operation: Operation) -> String {
///     // The same in every execution of this operation, so the bank runs it once.
///     let key_at_the_bank = operation.key_for("charge");
///     format!("{} is charged under {key_at_the_bank}", operation.id())
/// }
/// # }
/// ```
///
/// A handler that takes an `Operation` refuses requests without a key (400 `key-missing`); one that
/// takes an `Option<Operation>` serves them.
#[derive(Clone)]
pub struct Operation(Arc<Inner>);

/// What an operation is made of.
pub(crate) struct Making {
    pub(crate) id: OperationId,
    pub(crate) attempt: u32,
    pub(crate) scope: Scope,
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    /// Whether it was executed before, and nobody can say how far that came.
    pub(crate) resumed: bool,
    pub(crate) steps_window: Duration,
    pub(crate) join_timeout: Duration,
}

struct Inner {
    making: Making,
    hash_keys: HashKeys,
    desk: Arc<dyn Desk>,
    metered: Mutex<Option<Metered>>,
    progress: Mutex<Progress>,
}

/// How far an execution has come.
#[derive(Default)]
struct Progress {
    steps: HashMap<Box<str>, Stage>,
    /// Why it must not go on: nobody can say what a step has done.
    stopped: Option<Words>,
    /// Why a step has no result, the latest.
    failed: Option<Words>,
    /// What became of it is being written: no step runs any more, whoever still holds the operation.
    ended: bool,
}

/// Why something has no result, in words.
#[derive(Clone)]
pub(crate) struct Words {
    /// All that is known, for the process itself and its log.
    pub(crate) why: Arc<str>,
    /// Without what a handler or a store has said, for whoever called over HTTP.
    pub(crate) told: Arc<str>,
}

impl Words {
    /// Words of our own, for everybody.
    pub(crate) fn open(words: &str) -> Self {
        let why: Arc<str> = words.into();
        Self {
            told: why.clone(),
            why,
        }
    }

    pub(crate) fn of(error: &StepError) -> Self {
        Self {
            why: error.to_string().into(),
            told: error.told().into(),
        }
    }
}

/// What the steps of an operation make of how it ended.
pub(crate) struct Ruling {
    pub(crate) reason: UnknownReason,
    pub(crate) words: Words,
}

/// The right to execute the operation: when it is gone, no step runs any more.
pub(crate) struct Executing(Operation);

impl Executing {
    pub(crate) fn new(operation: Operation) -> Self {
        Self(operation)
    }
}

impl Deref for Executing {
    type Target = Operation;

    fn deref(&self) -> &Operation {
        &self.0
    }
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.0.progress().ended = true;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being claimed, or asked for.
    Asked,
    /// It runs, or has run.
    MayHaveRun,
}

impl Operation {
    pub(crate) fn new(making: Making, hash_keys: &HashKeys, desk: Arc<dyn Desk>) -> Self {
        Self(Arc::new(Inner {
            making,
            hash_keys: hash_keys.clone(),
            desk,
            metered: Mutex::new(None),
            progress: Mutex::default(),
        }))
    }

    /// Its id, as in `Onlyonce-Operation`.
    pub fn id(&self) -> OperationId {
        self.0.making.id
    }

    /// The key that the caller sent.
    pub fn key(&self) -> &Key {
        &self.0.making.key
    }

    /// The number of the attempt that is executed, from 1.
    pub fn attempt(&self) -> u32 {
        self.0.making.attempt
    }

    /// Who the caller is.
    pub fn tenant(&self) -> &str {
        &self.0.making.scope.tenant
    }

    /// The key to send along when the operation does its part `name` elsewhere. It follows from the
    /// operation's id and `name`, so every execution sends the same one, and a service that honours keys
    /// does that part once. The next operation under the caller's key, once the window of this one has
    /// passed, has keys of its own.
    pub fn key_for(&self, name: &str) -> Key {
        key_for_part(&self.0.hash_keys, self.0.making.id, name)
    }

    /// Says what the execution used and cost: it goes into the record with the outcome, and into the
    /// books. The last word before the end of the answer counts. What a step uses, its step says:
    /// [`Step::metering`].
    pub fn meter(&self, metered: Metered) {
        *self.0.metered.lock() = Some(metered);
    }

    /// A step: a part of the operation that runs once, whatever becomes of the rest. When it has run, its
    /// result is recorded, and an operation that is executed again
    /// ([`Rules::resume`](crate::Rules::resume)) gets that instead of running it.
    ///
    /// A step is an operation of its own: its claim is durable before `work` begins, and its result is
    /// durable before this returns it. `name` is what tells it from the other steps: 1 to 200 visible ASCII
    /// characters, used once in an execution.
    ///
    /// ```
    /// # use onlyonce_tower::{Failure, Operation, StepError};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Receipt;
    /// # struct Bank; impl Bank {
    /// #     async fn connect(&self) -> std::io::Result<()> { Ok(()) }
    /// #     async fn charge(&self, _: u32, _: onlyonce_tower::Key) -> std::io::Result<Receipt> { Ok(Receipt) }
    /// # }
    /// async fn paid(operation: &Operation, bank: &Bank) -> Result<Receipt, StepError> {
    ///     operation
    ///         .step("charge", async || {
    ///             bank.connect().await.map_err(Failure::did_not_run)?;
    ///             let receipt = bank.charge(1999, operation.key_for("charge")).await?;
    ///             Ok::<_, Failure>(receipt)
    ///         })
    ///         .downstream_honours_the_key()
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`StepError`]; hand it on. After [`StepError::Unknown`] the operation is unknown, whatever its
    /// handler says.
    pub fn step<'a, T, E, W, F>(&'a self, name: &'a str, work: W) -> Step<'a, T>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        E: Into<Failure>,
        W: FnOnce() -> F + Send + 'a,
        F: Future<Output = Result<T, E>> + Send + 'a,
    {
        let work = move || async move { work().await.map_err(Into::into) };
        Step::new(self, name, Box::new(move || Box::pin(work())))
    }

    pub(crate) fn metered(&self) -> Option<Metered> {
        self.0.metered.lock().take()
    }

    pub(crate) fn making(&self) -> &Making {
        &self.0.making
    }

    pub(crate) fn hash_keys(&self) -> &HashKeys {
        &self.0.hash_keys
    }

    pub(crate) fn desk(&self) -> &dyn Desk {
        &*self.0.desk
    }

    /// Until when what its steps have done is remembered for certain.
    pub(crate) fn remembered_until(&self) -> Timestamp {
        let making = &self.0.making;
        making
            .id
            .first_claimed()
            .after(remembered(making.steps_window))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.progress.lock()
    }

    /// A step is asked for: not twice under one name, and not after the end.
    pub(crate) fn ask(&self, name: &str) -> Result<(), StepError> {
        let mut progress = self.progress();
        if progress.ended {
            return Err(StepError::Ended { step: name.into() });
        }
        if progress.steps.contains_key(name) {
            return Err(StepError::Twice { step: name.into() });
        }
        progress.steps.insert(name.into(), Stage::Asked);
        Ok(())
    }

    /// Whether the step may run now. From here on, it may have. What becomes of the operation is decided
    /// under the same lock ([`Operation::ruling`]): either the step counts there, or it does not run (I10).
    pub(crate) fn begin(&self, name: &str) -> bool {
        let mut progress = self.progress();
        if !progress.ended {
            progress.steps.insert(name.into(), Stage::MayHaveRun);
        }
        !progress.ended
    }

    /// The step may have run, here or elsewhere.
    pub(crate) fn may_run(&self, name: &str) {
        self.progress().steps.insert(name.into(), Stage::MayHaveRun);
    }

    /// The step has not run, for certain, and may be asked for again.
    pub(crate) fn did_not_run(&self, name: &str) {
        self.progress().steps.remove(name);
    }

    /// Whether the step may have run.
    pub(crate) fn may_have_run(&self, name: &str) -> bool {
        self.progress().steps.get(name) == Some(&Stage::MayHaveRun)
    }

    /// Nobody can say what a step has done: whatever is said from here on, the operation is unknown.
    pub(crate) fn stop(&self, why: Words) {
        self.progress().stopped.get_or_insert(why);
    }

    /// Notes why a step has no result.
    pub(crate) fn failed(&self, why: Words) {
        self.progress().failed = Some(why);
    }

    /// What the steps make of what an execution says of itself. `released` is why it says that nothing
    /// ran, if it does. `None` where what it says stands. No step runs after this: what is decided here of
    /// those that have must stay true while it is written.
    pub(crate) fn ruling(&self, released: Option<&str>) -> Option<Ruling> {
        let mut progress = self.progress();
        progress.ended = true;
        if let Some(words) = progress.stopped.clone() {
            let reason = UnknownReason::StepUnknown;
            return Some(Ruling { reason, words });
        }
        let why = released?;
        let has_begun = progress
            .steps
            .values()
            .any(|stage| *stage == Stage::MayHaveRun);
        if !has_begun && !self.0.making.resumed {
            return None;
        }
        let words = progress.failed.clone().unwrap_or_else(|| Words {
            why: why.into(),
            told: "it says that it did not run".into(),
        });
        let reason = UnknownReason::Unfinished;
        Some(Ruling { reason, words })
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("id", &self.0.making.id)
            .field("attempt", &self.0.making.attempt)
            .finish_non_exhaustive()
    }
}
