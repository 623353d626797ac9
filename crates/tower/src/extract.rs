//! What axum handlers take and give.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderName, Request, StatusCode};
use onlyonce_http::{Place, Problem, ProblemContext};

use crate::{DidNotRun, Operation, Outcome, StepError};

/// Why a handler that takes an [`Operation`] was not run.
#[derive(Clone, Debug)]
pub enum NoOperation {
    /// The request has no key, or its method is safe.
    NoKey(Box<Problem>),
    /// No [`OnceLayer`](crate::OnceLayer) is around the route.
    NoLayer,
}

/// In the extensions of a request that passes without a key: the header that one is expected in.
#[derive(Clone)]
struct Unkeyed(HeaderName);

/// Notes that a request passes without a key, which is expected in `header`.
pub(crate) fn unkeyed<B>(mut request: Request<B>, header: &HeaderName) -> Request<B> {
    request.extensions_mut().insert(Unkeyed(header.clone()));
    request
}

impl IntoResponse for NoOperation {
    fn into_response(self) -> Response {
        match self {
            Self::NoKey(problem) => {
                let response = problem.to_response(&ProblemContext {
                    place: Place::Layer,
                    ..ProblemContext::default()
                });
                response.map(axum_core::body::Body::from)
            }
            Self::NoLayer => {
                tracing::error!(
                    "a handler takes an Operation and its route has no OnceLayer; add one with \
                     .layer() or .route_layer()"
                );
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Operation {
    type Rejection = NoOperation;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoOperation> {
        if let Some(operation) = parts.extensions.get::<Self>() {
            return Ok(operation.clone());
        }
        Err(match parts.extensions.get::<Unkeyed>() {
            Some(Unkeyed(header)) => NoOperation::NoKey(Box::new(Problem::no_key_in(header))),
            None => NoOperation::NoLayer,
        })
    }
}

/// `None` where the request has no key.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Operation {
    type Rejection = NoOperation;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, NoOperation> {
        match <Self as FromRequestParts<S>>::from_request_parts(parts, state).await {
            Ok(operation) => Ok(Some(operation)),
            Err(NoOperation::NoKey(_)) => Ok(None),
            Err(no_layer) => Err(no_layer),
        }
    }
}

/// What it says becomes of the operation: see [`StepError::outcome`]. The response itself is shown only to
/// those who wait for an operation of which no step may have run, and does not say what the step failed
/// with: that is in the log.
impl IntoResponse for StepError {
    fn into_response(self) -> Response {
        let response = (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", self.told()),
        );
        self.outcome().of(response.into_response())
    }
}

impl<T: IntoResponse> IntoResponse for DidNotRun<T> {
    fn into_response(self) -> Response {
        Outcome::Released.of(self.0.into_response())
    }
}
