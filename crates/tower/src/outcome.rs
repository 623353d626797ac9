//! What a handler says of its outcome.

use http::Response;

/// What became of an operation, where the response alone does not tell it. It goes into the extensions
/// of the response.
///
/// Without one, any whole response completes the operation, also 4xx and 5xx, unless its status is
/// listed in [`Rules::released`](crate::Rules::released).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It ran, and this response is its answer from now on.
    Completed,
    /// Nothing ran. Everybody who waits gets this response, and the key is free again. Say it only
    /// where that is certain: the next attempt runs.
    Released,
    /// Nobody can say whether it ran. The response is not shown: everybody is told that the outcome is
    /// unknown, and nothing runs under the key until an operator has looked it up.
    Unknown,
}

impl Outcome {
    /// `response`, with this outcome.
    pub fn of<B>(self, mut response: Response<B>) -> Response<B> {
        response.extensions_mut().insert(self);
        response
    }
}

/// A response, or an error that becomes one, that says that nothing ran: [`Outcome::Released`].
///
/// ```
/// # #[cfg(feature = "axum")] mod example {
/// use axum::{http::StatusCode, response::{IntoResponse, Response}};
/// use onlyonce_tower::DidNotRun;
///
/// enum ChargeError {
///     CardDeclined,
///     BankUnreachable,
/// }
///
/// impl IntoResponse for ChargeError {
///     fn into_response(self) -> Response {
///         match self {
///             // An answer: every retry gets it.
///             Self::CardDeclined => StatusCode::PAYMENT_REQUIRED.into_response(),
///             // Nothing was sent to the bank: the next attempt runs.
///             Self::BankUnreachable => DidNotRun(StatusCode::SERVICE_UNAVAILABLE).into_response(),
///         }
///     }
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DidNotRun<T>(pub T);

impl<B> DidNotRun<Response<B>> {
    /// The response, with its outcome.
    pub fn into_inner(self) -> Response<B> {
        Outcome::Released.of(self.0)
    }
}

/// An error of a service that says that nothing was sent and nothing ran: the key is free again, and
/// everybody who waits is told so (502 `upstream-unreachable`).
///
/// It counts wherever it stands among the sources of the service's error. Any other error of a service
/// leaves the outcome unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing was sent: {why}")]
pub struct NotSent {
    /// What happened, in words that callers get to read: the text of an error that is not for them does
    /// not belong here.
    pub why: String,
}

impl NotSent {
    /// What `error` says of it, if anything.
    pub(crate) fn in_sources<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(not_sent) = error.downcast_ref() {
                return Some(not_sent);
            }
            next = error.source();
        }
        None
    }
}
