//! The control listener: health, metrics, problem pages, and operations to look at and to settle.

mod access;
mod answer;
mod config;
mod console;
mod desk;
mod entries;
mod exec;
mod guesses;
mod health;
mod in_time;
mod listing;
mod operation;
mod operations;
mod overview;
mod pages;
mod query;
mod recording;
mod session;
mod sinks;
mod spend;
mod suspects;
#[cfg(test)]
mod tests;
mod unknown;
mod visitors;
mod waiters;
mod work;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get, post};
use onlyonce_core::Timestamp;
use onlyonce_store::Store;
use tokio::net::TcpListener;

use self::guesses::Guesses;
use self::waiters::Waiters;
pub(crate) use self::work::WINDOWS;
use crate::shared::{Phase, Phases, Shared};

/// What a handler works with. What is behind the token is reached through [`access::May`] only.
pub(crate) struct Control<S: Store> {
    shared: Arc<Shared<S>>,
    phases: Phases,
    /// Wrong tokens that were presented.
    guesses: Arc<Guesses>,
    /// The console's pages that browsers follow now.
    followed: Arc<console::Followed>,
    /// Workers and others that may wait for an operation.
    waiters: Arc<Waiters>,
    /// When the gateway started, on the store's clock.
    started: Timestamp,
}

impl<S: Store> Clone for Control<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            phases: self.phases.clone(),
            guesses: Arc::clone(&self.guesses),
            followed: Arc::clone(&self.followed),
            waiters: Arc::clone(&self.waiters),
            started: self.started,
        }
    }
}

impl<S: Store> Control<S> {
    pub(crate) fn new(shared: Arc<Shared<S>>, phases: Phases) -> Self {
        Self {
            started: shared.engine.store().now(),
            waiters: Arc::new(Waiters::new(shared.config.limits.work_waiters)),
            shared,
            phases,
            guesses: Arc::default(),
            followed: Arc::default(),
        }
    }

    /// Where requests come in, as a caller writes it.
    fn address(&self) -> String {
        let server = &self.shared.config.server;
        let scheme = if server.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", server.listen)
    }

    fn phase(&self) -> Phase {
        *self.phases.borrow()
    }
}

/// One path of the control listener.
struct Endpoint<S: Store> {
    path: &'static str,
    /// Whether it is served without the token: it tells nothing of any operation.
    open: bool,
    /// Whether its body comes for as long as something runs.
    follows: bool,
    handler: MethodRouter<Control<S>>,
}

impl<S: Store> Endpoint<S> {
    fn open(path: &'static str, handler: MethodRouter<Control<S>>) -> Self {
        Self {
            path,
            open: true,
            follows: false,
            handler,
        }
    }

    fn closed(path: &'static str, handler: MethodRouter<Control<S>>) -> Self {
        Self {
            open: false,
            ..Self::open(path, handler)
        }
    }

    /// Adds it to `router`; its bodies have `body_timeout` to come.
    fn add_to(self, router: Router<Control<S>>, body_timeout: Duration) -> Router<Control<S>> {
        let in_time = from_fn_with_state(body_timeout, in_time::whole);
        let handler = match self.follows {
            true => self.handler,
            false => self.handler.layer(in_time),
        };
        router.route(self.path, handler)
    }
}

/// All that the control listener serves. openapi.json describes the same list, the console's pages
/// aside; a test compares them.
fn endpoints<S: Store>() -> Vec<Endpoint<S>> {
    let (open, closed) = (Endpoint::open, Endpoint::closed);
    let mut endpoints = for_workers();
    endpoints.extend([
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
        closed("/v1/overview", get(overview::show)),
        closed("/v1/ledger", get(spend::ledger)),
        closed("/v1/ledger/entries", get(entries::list)),
        closed("/v1/unknown", get(unknown::list)),
        closed("/v1/suspects", get(suspects::list)),
        closed("/v1/health", get(health::show)),
        closed("/v1/config", get(config::show)),
        closed("/v1/sinks", get(sinks::list)),
        closed("/v1/sinks/{name}/dead", get(sinks::dead)),
        closed("/v1/sinks/{name}/resend", post(sinks::resend)),
        open("/", get(console::home)),
        open("/console/console.css", get(console::style)),
        open("/console/console.js", get(console::script)),
        open("/console/icon.svg", get(console::icon)),
        open("/console/login", get(console::login).post(console::enter)),
        closed("/console", get(console::page)),
        closed("/console/operations", get(console::page)),
        closed("/console/operations/{id}", get(console::page)),
        closed("/console/operations/{id}/resolve", post(console::settle)),
        closed("/console/spend", get(console::page)),
        closed("/console/unknown", get(console::page)),
        closed("/console/health", get(console::page)),
        closed("/console/config", get(console::page)),
        closed("/console/live", get(console::live)),
        closed("/console/logout", post(console::leave)),
    ]);
    endpoints
}

/// The operations API, which routes of the gateway may serve too.
fn for_workers<S: Store>() -> Vec<Endpoint<S>> {
    let settle = |path, handler: MethodRouter<Control<S>>| {
        Endpoint::closed(path, handler.layer(work::body_limit()))
    };
    vec![
        Endpoint::closed("/v1/exec", post(exec::outdated)),
        Endpoint::closed("/v1/exec/claim", post(exec::claim)),
        Endpoint {
            follows: true,
            ..Endpoint::closed("/v1/exec/{id}/output", post(exec::output))
        },
        settle("/v1/work", post(work::begin)),
        Endpoint::closed("/v1/work/{id}", get(work::wait)),
        settle("/v1/work/{id}/heartbeat", post(work::heartbeat)),
        settle("/v1/work/{id}/complete", post(work::complete)),
        settle("/v1/work/{id}/release", post(work::release)),
        settle("/v1/work/{id}/fail", post(work::fail)),
    ]
}

/// Serves on `listener` until it is aborted.
pub(crate) async fn serve<S: Store>(control: Control<S>, listener: TcpListener) {
    let shared = Arc::clone(&control.shared);
    visitors::serve(shared, router(control), listener).await;
}

/// The operations API alone, for whoever presents a token in the header. The browser's session counts for
/// nothing here: a page of an upstream's could make use of it.
pub(crate) fn work_router<S: Store>(control: Control<S>) -> Router {
    // Whoever guesses tokens among the requests locks nobody out of the console.
    let control = Control {
        guesses: Arc::default(),
        ..control
    };
    let body_timeout = control.shared.config.server.body_timeout;
    for_workers()
        .into_iter()
        .fold(Router::new(), |router, endpoint| {
            endpoint.add_to(router, body_timeout)
        })
        .layer(from_fn_with_state(control.clone(), access::need_bearer))
        .fallback(pages::not_found)
        .method_not_allowed_fallback(pages::method_not_allowed)
        .with_state(control)
}

fn router<S: Store>(control: Control<S>) -> Router {
    let (open, closed): (Vec<_>, Vec<_>) = endpoints::<S>()
        .into_iter()
        .partition(|endpoint| endpoint.open);
    let body_timeout = control.shared.config.server.body_timeout;
    let add = |router, endpoint: Endpoint<S>| endpoint.add_to(router, body_timeout);
    // A resolution carries a whole body, as base64 within JSON.
    let largest = control.shared.config.limits.response_body / 3 * 4 + (1 << 20);
    let closed = closed
        .into_iter()
        .fold(Router::new(), add)
        .layer(from_fn_with_state(control.clone(), access::need_token))
        .layer(from_fn_with_state(control.clone(), access::need_own_host));
    open.into_iter()
        .fold(closed, add)
        .layer(DefaultBodyLimit::max(
            usize::try_from(largest).unwrap_or(usize::MAX),
        ))
        .fallback(pages::not_found)
        .method_not_allowed_fallback(pages::method_not_allowed)
        .layer(from_fn(console::guard))
        .with_state(control)
}
