//! What a function says that did not come to a result.

use std::fmt;

use crate::step::StepError;
use crate::{BoxError, Outcome};

/// Why a step, or a function that [runs once](crate::Once::run), has no result.
///
/// Any error becomes one by `?`, and says that nobody can know what happened: what ran up to there may have
/// done something. Only [`Failure::did_not_run`] says that nothing did. A failure of the business (a card
/// that is declined) is a result: give it as one, and it stays.
///
/// ```
/// use onlyonce_tower::Failure;
/// # async fn connect() -> std::io::Result<()> { Ok(()) }
/// # async fn charge() -> std::io::Result<u32> { Ok(1) }
/// async fn charged() -> Result<u32, Failure> {
///     // Nothing was sent: the next attempt tries again.
///     connect().await.map_err(Failure::did_not_run)?;
///     // From here on, an error leaves the outcome unknown.
///     Ok(charge().await?)
/// }
/// ```
pub struct Failure {
    kind: Kind,
    error: BoxError,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    DidNotRun,
    Failed,
    /// A step within has stopped it.
    Step(Outcome),
}

impl Failure {
    /// Says that nothing happened, for certain: whoever comes next tries again.
    pub fn did_not_run(error: impl Into<BoxError>) -> Self {
        Self {
            kind: Kind::DidNotRun,
            error: error.into(),
        }
    }

    /// Says that nobody can know what happened, as `?` does of every error.
    pub fn unknown(error: impl Into<BoxError>) -> Self {
        Self {
            kind: Kind::Failed,
            error: error.into(),
        }
    }

    /// What it says of an operation that is made of steps.
    pub(crate) fn of_operation(&self) -> Outcome {
        match self.kind {
            Kind::DidNotRun => Outcome::Released,
            Kind::Failed => Outcome::Unknown,
            Kind::Step(outcome) => outcome,
        }
    }

    /// What it says of a step. That a step within it did not run says nothing of the rest.
    pub(crate) fn of_step(&self) -> Outcome {
        match self.kind {
            Kind::DidNotRun => Outcome::Released,
            Kind::Failed | Kind::Step(_) => Outcome::Unknown,
        }
    }

    pub(crate) fn into_error(self) -> BoxError {
        self.error
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let kind = match StepError::in_sources(&error) {
            Some(stopped) => Kind::Step(stopped.outcome()),
            None => Kind::Failed,
        };
        Self {
            kind,
            error: error.into(),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Failure")
            .field(&self.kind)
            .field(&self.error)
            .finish()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}
