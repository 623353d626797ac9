//! The control listener: health, metrics, problem pages, and operations to look at and to settle.

mod access;
mod answer;
mod operation;
mod operations;
mod pages;
mod query;
mod recording;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use onlyonce_store::Store;
use tokio::net::TcpListener;

use crate::shared::{Phase, Phases, Shared};

/// What a handler works with.
struct Control<S: Store> {
    shared: Arc<Shared<S>>,
    phases: Phases,
}

impl<S: Store> Clone for Control<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            phases: self.phases.clone(),
        }
    }
}

impl<S: Store> Control<S> {
    fn phase(&self) -> Phase {
        *self.phases.borrow()
    }
}

/// One path of the control listener.
struct Endpoint<S: Store> {
    path: &'static str,
    /// Whether it is served without the token: it tells nothing of any operation.
    open: bool,
    handler: MethodRouter<Control<S>>,
}

/// All that the control listener serves. openapi.json describes the same list; a test compares
/// them.
fn endpoints<S: Store>() -> Vec<Endpoint<S>> {
    let open = |path, handler| Endpoint {
        path,
        open: true,
        handler,
    };
    let closed = |path, handler| Endpoint {
        path,
        open: false,
        handler,
    };
    vec![
        open("/healthz", get(pages::health)),
        open("/readyz", get(pages::ready)),
        open("/problems", get(pages::problems)),
        open("/problems/{name}", get(pages::problem)),
        open("/openapi.json", get(pages::openapi)),
        closed("/metrics", get(pages::metrics)),
        closed("/v1/operations", get(operations::list)),
        closed("/v1/operations/{id}", get(operations::show)),
        closed("/v1/operations/{id}/recording", get(recording::stream)),
        closed("/v1/operations/{id}/resolve", post(operations::resolve)),
        closed("/v1/purge", post(operations::purge)),
    ]
}

/// Serves on `listener` until it is aborted.
pub(crate) async fn serve<S: Store>(shared: Arc<Shared<S>>, listener: TcpListener, phases: Phases) {
    if let Err(error) = axum::serve(listener, router(shared, phases)).await {
        tracing::error!(%error, "the control listener ended");
    }
}

fn router<S: Store>(shared: Arc<Shared<S>>, phases: Phases) -> Router {
    let control = Control { shared, phases };
    let (open, closed): (Vec<_>, Vec<_>) = endpoints::<S>()
        .into_iter()
        .partition(|endpoint| endpoint.open);
    let route = |router: Router<Control<S>>, endpoint: Endpoint<S>| {
        router.route(endpoint.path, endpoint.handler)
    };
    // A resolution carries a whole body, as base64 within JSON.
    let largest = control.shared.config.limits.response_body / 3 * 4 + (1 << 20);
    let closed = closed
        .into_iter()
        .fold(Router::new(), route)
        .layer(from_fn_with_state(control.clone(), access::need_token))
        .layer(from_fn_with_state(control.clone(), access::need_own_host));
    open.into_iter()
        .fold(closed, route)
        .layer(DefaultBodyLimit::max(
            usize::try_from(largest).unwrap_or(usize::MAX),
        ))
        .fallback(pages::not_found)
        .method_not_allowed_fallback(pages::method_not_allowed)
        .with_state(control)
}
