//! The life of a request with a key: who asks, what for, what the engine decides, the answer.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Request, Response, Version};
use hyper::body::Incoming;
use onlyonce_core::{
    Fingerprint, Got, Held, Key, Refusal, RequestLine, Scope, TraceId, UnknownReason, view,
};
use onlyonce_engine::{Begin, Kind, Refused, Start, Ticket, Trouble};
use onlyonce_http::problem::{Problem, ProblemContext};
use onlyonce_http::{FingerprintBuilder, Marks, RequestIdentity, Status, derived_key};
use onlyonce_store::Store;

use super::execute::{self, First, Order};
use super::path::Path;
use super::recorded;
use super::reply::Reply;
use super::service::{COME_AGAIN, Caller, refuse};
use super::spool::{self, BodyLimits, Collected, NoBody};
use super::worker::Worker;
use crate::config::ClientGone;
use crate::metrics::Answer;
use crate::telemetry::{self, AttemptSpan, ExecutionSpan, Origin};

/// What an answer is marked with, as far as that is known before it.
#[derive(Clone, Copy)]
struct Marking<'a> {
    ticket: Option<Ticket>,
    derived_key: Option<&'a Key>,
}

/// Answers a request whose key is `key`, or is to be derived.
pub(super) async fn answer<S: Store>(
    worker: &Arc<Worker<S>>,
    caller: &Caller,
    path: &Arc<Path>,
    key: Option<Key>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let mut span = worker.shared.telemetry.attempt(&request, || Origin {
        peer: caller.peer.ip(),
        route: Arc::clone(&path.route),
        sdk_retry_count: sdk_retry_count(request.headers()),
    });
    let response = answer_in(&mut span, worker, caller, path, key, request).await;
    match span {
        Some(span) => Reply::in_span(response, span),
        None => response,
    }
}

/// Answers it, and notes in `span` what it got.
async fn answer_in<S: Store>(
    span: &mut Option<AttemptSpan>,
    worker: &Arc<Worker<S>>,
    caller: &Caller,
    path: &Arc<Path>,
    key: Option<Key>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let http1 = request.version() <= Version::HTTP_11;
    let shared = &worker.shared;
    let attempt = match attempt(worker, path, key, request).await {
        Ok(attempt) => attempt,
        Err(problem) => return refuse(shared, Some(path), &problem, http1),
    };
    if let Some(span) = span {
        span.tenant(&attempt.scope.tenant);
    }
    let derived_key = attempt.derived.then(|| attempt.key.clone());
    let marking = |ticket| Marking {
        ticket,
        derived_key: derived_key.as_ref(),
    };
    let own_trace = span.as_ref().and_then(AttemptSpan::trace);
    let engine_request = attempt.engine_request(path, caller, own_trace);
    // Whoever leaves a slow store again and again would begin anew each time, and never come to execute.
    let finishes = path.route.policy.client_gone == ClientGone::Finish;
    let staying = finishes.then(|| caller.stays.stay());
    let begun = shared
        .engine
        .begin(engine_request, &path.route.engine_policy)
        .await;
    drop(staying);
    let (mut reader, followed) = match begun {
        Ok(Begin::Replay(_) | Begin::Join(_)) if caller.stays.is_alone() => {
            return Response::new(Reply::empty());
        }
        Err(trouble) => {
            let problem = problem_of(worker, trouble);
            return refusal(worker, path, &marking(None), &problem, http1);
        }
        Ok(Begin::Refuse(Refused {
            refusal: why,
            ticket,
        })) => {
            note(span, Got::Refused, ticket.as_ref());
            let problem = match why {
                Refusal::KeyReused => Problem::KeyReused,
                Refusal::InFlight => in_flight(None),
                Refusal::Unknown(reason) => Problem::OutcomeUnknown(reason),
            };
            return refusal(worker, path, &marking(ticket), &problem, http1);
        }
        Ok(Begin::Execute(execution, reader)) => {
            let spans = span.as_mut();
            let spans = spans.and_then(|span| span.executes(&execution, reader.ticket()));
            let order = match attempt.order(caller, path, spans) {
                Ok(order) => order,
                Err(problem) => {
                    let _ = execution.not_sent("the request has no path").await;
                    return refusal(worker, path, &marking(None), &problem, http1);
                }
            };
            let first = execute::first(worker, caller, path, execution, order, reader).await;
            return executed(worker, path, &marking(None), first, http1);
        }
        Ok(Begin::Replay(reader)) => (reader, Status::Replayed),
        Ok(Begin::Join(reader)) => (reader, Status::Joined),
    };
    let got = match followed {
        Status::Joined => Got::Joined,
        _ => Got::Replayed,
    };
    note(span, got, Some(reader.ticket()));
    if followed == Status::Joined {
        shared.metrics.joined(&path.route);
    }
    let mut follower = None;
    if path.route.policy.client_gone == ClientGone::Cancel && followed == Status::Joined {
        follower = worker.audiences.join(reader.ticket().id, &caller.watch);
        if follower.is_none() {
            // The execution is being cancelled: a head would promise a body that never comes.
            reader.hold_until_durable();
        }
    }
    let start = std::future::poll_fn(|cx| {
        if let Some(follower) = &mut follower {
            follower.look();
        }
        reader.poll_start(cx)
    })
    .await;
    let ticket = Some(*reader.ticket());
    match start {
        Start::Response { head, kind } => {
            let Some(mut response) = recorded::response(&head, reader, follower) else {
                let problem = Problem::OutcomeUnknown(UnknownReason::Unreadable);
                return refusal(worker, path, &marking(ticket), &problem, http1);
            };
            let status = match kind {
                Kind::Executed => followed,
                Kind::Released => Status::Released,
            };
            mark(response.headers_mut(), &marking(ticket), Some(status), true);
            shared.metrics.answered(&path.route, Answer::Marked(status));
            response
        }
        other => {
            let problem = problem_of_start(path, other);
            refusal(worker, path, &marking(ticket), &problem, http1)
        }
    }
}

fn note(span: &mut Option<AttemptSpan>, got: Got, ticket: Option<&Ticket>) {
    if let (Some(span), Some(ticket)) = (span, ticket) {
        span.got(got, ticket);
    }
}

fn executed<S: Store>(
    worker: &Worker<S>,
    path: &Path,
    marking: &Marking<'_>,
    first: First,
    http1: bool,
) -> Response<Reply> {
    match first {
        First::Answer {
            mut response,
            released,
            ticket,
        } => {
            let status = match released {
                true => Status::Released,
                false => Status::Executed,
            };
            let marking = Marking {
                ticket: Some(ticket),
                ..*marking
            };
            mark(response.headers_mut(), &marking, Some(status), false);
            worker
                .shared
                .metrics
                .answered(&path.route, Answer::Marked(status));
            response
        }
        First::Nothing { start, ticket } => {
            let marking = Marking {
                ticket: Some(ticket),
                ..*marking
            };
            let problem = problem_of_start(path, start);
            refusal(worker, path, &marking, &problem, http1)
        }
    }
}

fn mark(headers: &mut HeaderMap, marking: &Marking<'_>, status: Option<Status>, replayed: bool) {
    if let Some(ticket) = marking.ticket {
        let marks = Marks {
            status,
            replayed,
            operation: ticket.id,
            attempt: ticket.attempt,
            expires: ticket.expires_at,
            derived_key: marking.derived_key,
        };
        marks.write(headers);
    }
}

/// A problem document with the marks of the operation that it is about.
fn refusal<S: Store>(
    worker: &Worker<S>,
    path: &Path,
    marking: &Marking<'_>,
    problem: &Problem,
    http1: bool,
) -> Response<Reply> {
    let mut response = refuse(&worker.shared, Some(path), problem, http1);
    if let Some(ticket) = marking.ticket {
        let context = ProblemContext {
            public_url: worker.shared.config.server.public_url.as_deref(),
            operation: Some(ticket.id),
        };
        *response.body_mut() = Reply::whole(problem.to_response(&context).into_body());
    }
    mark(response.headers_mut(), marking, None, false);
    response
}

/// One attempt, read whole.
struct Attempt {
    head: Parts,
    body: Collected,
    scope: Scope,
    key: Key,
    derived: bool,
    fingerprint: Fingerprint,
}

async fn attempt<S: Store>(
    worker: &Worker<S>,
    path: &Path,
    key: Option<Key>,
    request: Request<Incoming>,
) -> Result<Attempt, Problem> {
    let shared = &worker.shared;
    let route = &path.route;
    let (head, body) = request.into_parts();
    let credential_query = route.policy.credential_query.as_deref();
    let tenant = shared
        .tenants
        .tenant_of(&head.headers, head.uri.query(), credential_query);
    if tenant.is_anonymous() && !shared.config.server.allow_anonymous {
        return Err(Problem::CredentialMissing);
    }
    let identity = RequestIdentity {
        method: &head.method,
        upstream: &route.upstream.name,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &head.headers,
    };
    let mut fingerprint =
        FingerprintBuilder::new(&shared.hash_keys, &identity, &route.fingerprint_rules);
    let server = &shared.config.server;
    let limits = BodyLimits {
        max: shared.config.limits.request_body,
        spool_above: shared.config.limits.spool_above,
        folder: &worker.spool_folder,
        timeout: server.body_timeout,
    };
    let body = spool::collect(body, &limits, &mut fingerprint)
        .await
        .map_err(|error| match error {
            NoBody::TooLarge => Problem::BodyTooLarge { limit: limits.max },
            NoBody::TooSlow => Problem::RequestTimeout {
                limit_name: "server.body_timeout",
                limit: limits.timeout,
            },
            NoBody::Broken => Problem::BadRequest {
                why: "the body did not come whole, or is not framed as it should be".into(),
            },
            NoBody::NotSpooled(error) => {
                tracing::error!(%error, "a request body could not be spooled");
                Problem::StorageFull { limit_name: None }
            }
        })?;
    let fingerprint = fingerprint.finish();
    let scope = Scope {
        tenant: tenant.name().into(),
        namespace: route.namespace.clone(),
    };
    let derived = key.is_none();
    let key = match key {
        Some(key) => key,
        None => derive(worker, path, &scope, &fingerprint).await,
    };
    Ok(Attempt {
        head,
        body,
        scope,
        key,
        derived,
        fingerprint,
    })
}

/// The key for a request that came without one: that of the span of time before where an equal
/// request used it within the window, else that of this span.
async fn derive<S: Store>(
    worker: &Worker<S>,
    path: &Path,
    scope: &Scope,
    fingerprint: &Fingerprint,
) -> Key {
    let shared = &worker.shared;
    let store = shared.engine.store();
    let window = path.route.policy.derived_window;
    let now = store.now();
    let span = now.as_millis() / u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1);
    let key_in = |span| {
        derived_key(
            &shared.hash_keys,
            &scope.tenant,
            &path.route.name,
            fingerprint,
            span,
        )
    };
    let before = key_in(span.saturating_sub(1));
    let address = onlyonce_store::address(store.secret(), scope, &before);
    if let Ok(Some(stored)) = store.load(address).await
        && let Held::Record { record, .. } = view(Some(&stored.record), now)
        && now.since(record.claimed_at) < window
    {
        return before;
    }
    key_in(span)
}

impl Attempt {
    fn engine_request(
        &self,
        path: &Path,
        caller: &Caller,
        own_trace: Option<TraceId>,
    ) -> onlyonce_engine::Request {
        let callers = telemetry::trace_of(&self.head.headers);
        onlyonce_engine::Request {
            scope: self.scope.clone(),
            key: self.key.clone(),
            fingerprint: self.fingerprint,
            line: RequestLine {
                route: path.route.name.clone(),
                method: self.head.method.as_str().into(),
                path: self.head.uri.path().into(),
                trace: callers,
            },
            peer: caller.peer.to_string().into(),
            sdk_retry_count: sdk_retry_count(&self.head.headers),
            trace: callers.or(own_trace),
        }
    }

    /// The request as the upstream gets it.
    fn order(
        self,
        caller: &Caller,
        path: &Path,
        spans: Option<ExecutionSpan>,
    ) -> Result<Order, Problem> {
        let target = path.target(&self.head.uri)?;
        let asked_for = path.host_to_tell(&self.head);
        let mut headers = self.head.headers;
        let rules = path.rules(&headers, self.derived);
        onlyonce_http::headers::to_upstream(
            &mut headers,
            Some(&self.key),
            rules,
            &caller.hop(asked_for.as_deref()),
        );
        if self.body.is_empty() {
            super::passthrough::say_no_body(&self.head.method, &mut headers);
        }
        if let Some(spans) = &spans {
            spans.write(&mut headers);
        }
        Ok(Order {
            method: self.head.method,
            target,
            headers,
            body: self.body,
            spans,
        })
    }
}

/// What the OpenAI and Anthropic SDKs say of their own retries.
fn sdk_retry_count(headers: &HeaderMap) -> Option<u32> {
    headers
        .get("x-stainless-retry-count")?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn problem_of<S: Store>(worker: &Worker<S>, trouble: Trouble) -> Problem {
    let limits = &worker.shared.config.limits;
    if let Trouble::Unavailable(_) | Trouble::InDoubt(_) | Trouble::Full(_) = trouble {
        match worker.shared.store_down.turn(std::time::Instant::now()) {
            Some(held_back) => tracing::error!(
                held_back,
                "requests are refused, and nothing is sent for them: {trouble}{}",
                what_to_do(&trouble)
            ),
            None => tracing::debug!("a request is refused: {trouble}"),
        }
    }
    match trouble {
        Trouble::Unavailable(_) | Trouble::InDoubt(_) => Problem::StoreUnavailable {
            retry_after: COME_AGAIN,
        },
        Trouble::Full(why) => {
            let limit_name = ["store.max_bytes", "store.max_records"]
                .into_iter()
                .find(|name| why.contains(name) || why.contains(&name["store.".len()..]));
            Problem::StorageFull { limit_name }
        }
        Trouble::OverLimit(name) => {
            let (limit_name, limit) = match name {
                "tenant_live" => ("limits.tenant_live", limits.tenant_live as u64),
                "tenant_records" => ("limits.tenant_records", limits.tenant_records),
                _ => ("limits.live_operations", limits.live_operations as u64),
            };
            Problem::QuotaExceeded {
                limit_name,
                limit,
                retry_after: COME_AGAIN,
            }
        }
        Trouble::ShuttingDown => Problem::ShuttingDown {
            retry_after: COME_AGAIN,
        },
    }
}

/// What an operator can do, where the store does not say so itself after a semicolon.
fn what_to_do(trouble: &Trouble) -> &'static str {
    match trouble.to_string().contains("; ") {
        true => "",
        false => "; look at the store's server or disk, and at what `onlyonce doctor` says",
    }
}

fn problem_of_start(path: &Path, start: Start) -> Problem {
    match start {
        Start::NotSent(why) => Problem::UpstreamUnreachable {
            upstream: path.route.upstream.name.to_string(),
            why: why.to_string(),
        },
        Start::Timeout => in_flight(Some(path.route.policy.join_timeout)),
        Start::Unknown(reason) => Problem::OutcomeUnknown(reason),
        Start::Response { .. } => Problem::OutcomeUnknown(UnknownReason::Unreadable),
    }
}

fn in_flight(waited: Option<Duration>) -> Problem {
    Problem::OperationInFlight {
        waited,
        retry_after: COME_AGAIN,
    }
}
