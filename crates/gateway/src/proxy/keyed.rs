//! The life of a request with a key: who asks, what for, what the engine decides, the answer.

use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response, Version};
use onlyonce_core::planted::{Bug, planted};
use onlyonce_core::{Fingerprint, Got, Held, Key, RequestLine, Scope, UnknownReason, view};
use onlyonce_engine::{AskedModel, Begin, Refused, Ticket, Trouble};
use onlyonce_http::headers::sdk_retry_count;
use onlyonce_http::problem::{Problem, ProblemContext};
use onlyonce_http::{FingerprintBuilder, RequestIdentity, Status, derived_key};
use onlyonce_store::Store;
use onlyonce_tower::shell::first::{self, Begun};
use onlyonce_tower::shell::telling::{
    Marking, log_trouble, marked, problem_of_refusal, problem_of_start, problem_of_trouble,
};

use super::asking;
use super::execute::{self, Order};
use super::mcp::{Call, ask_for_plain};
use super::path::Path;
use super::reply::Reply;
use super::service::{Caller, Form, refuse};
use super::spool::{self, BodyLimits, Collected};
use super::whole::Whole;
use super::worker::Worker;
use crate::config::{ClientGone, Forward, Route};
use crate::metrics::Answer;
use crate::telemetry::{AttemptSpan, ExecutionSpan, Origin, Traces};

/// The body of a keyed request.
pub(super) enum Body {
    /// It is still to come.
    Coming(Whole),
    /// It is here, and is a call.
    Call {
        body: Collected,
        call: Arc<Call>,
        /// What makes two calls the same call.
        identity: Vec<u8>,
    },
}

impl Body {
    fn call(&self) -> Option<&Arc<Call>> {
        match self {
            Self::Coming(_) => None,
            Self::Call { call, .. } => Some(call),
        }
    }
}

/// Answers a request whose key is `key`, or is to be derived.
pub(super) async fn answer<S: Store>(
    worker: &Arc<Worker<S>>,
    caller: &Caller,
    path: &Arc<Path>,
    key: Option<Key>,
    request: Request<Body>,
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
    request: Request<Body>,
) -> Response<Reply> {
    let asked = &Asked {
        path,
        http1: request.version() <= Version::HTTP_11,
        call: request.body().call().cloned(),
    };
    let shared = &worker.shared;
    let attempt = match attempt(worker, path, key, request).await {
        Ok(attempt) => attempt,
        Err(problem) => return refuse(shared, Some(path), &problem, asked.http1, asked.form()),
    };
    if let Some(span) = span {
        span.tenant(&attempt.scope.tenant);
    }
    let derived_key = attempt.derived.then(|| attempt.key.clone());
    let marking = |ticket| Marking {
        ticket,
        derived_key: derived_key.as_ref(),
    };
    let traces = match span {
        Some(span) => span.traces(),
        None => Traces::without_telemetry(&attempt.head.headers),
    };
    let engine_request = attempt.engine_request(path, caller, traces);
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
            return refusal(worker, asked, &marking(None), &problem);
        }
        Ok(Begin::Refuse(Refused {
            refusal: why,
            ticket,
        })) => {
            note(span, Got::Refused, ticket.as_ref());
            let problem = problem_of_refusal(why);
            return refusal(worker, asked, &marking(ticket), &problem);
        }
        Ok(Begin::Execute(execution, reader)) => {
            let spans = span.as_mut();
            let spans = spans.and_then(|span| span.executes(&execution, reader.ticket()));
            let order = match attempt.order(caller, path, spans) {
                Ok(order) => order,
                Err(problem) => {
                    let _ = execution.not_sent("the request has no path").await;
                    return refusal(worker, asked, &marking(None), &problem);
                }
            };
            let first = execute::first(worker, caller, path, execution, order, reader).await;
            return told(worker, asked, &marking(None), first, Status::Executed);
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
    if path.route.policy.forward == Forward::AfterDurable {
        reader.hold_until_durable();
    }
    let mut follower = None;
    if path.route.policy.client_gone == ClientGone::Cancel && followed == Status::Joined {
        let presence = Some(caller.presence());
        follower = worker.audiences.join(reader.ticket().id, presence);
        if follower.is_none() {
            // The execution is being cancelled: a head would promise a body that never comes.
            reader.hold_until_durable();
        }
    }
    let begun = first::followed(reader, follower).await;
    told(worker, asked, &marking(None), begun, followed)
}

/// What is known of a request before it is read.
struct Asked<'a> {
    path: &'a Path,
    http1: bool,
    call: Option<Arc<Call>>,
}

impl Asked<'_> {
    fn form(&self) -> Form<'_> {
        self.call
            .as_ref()
            .map_or(Form::Document, |call| call.form())
    }
}

fn note(span: &mut Option<AttemptSpan>, got: Got, ticket: Option<&Ticket>) {
    if let (Some(span), Some(ticket)) = (span, ticket) {
        span.got(got, ticket);
    }
}

/// The answer that has begun, marked as what it is.
fn told<S: Store>(
    worker: &Worker<S>,
    asked: &Asked<'_>,
    marking: &Marking<'_>,
    begun: Begun,
    status: Status,
) -> Response<Reply> {
    let path = asked.path;
    match begun {
        Begun::Answer {
            response,
            kind,
            ticket,
        } => {
            let marking = Marking {
                ticket: Some(ticket),
                ..*marking
            };
            let response = match &asked.call {
                Some(call) => call.tell(response, status, &context(worker, Some(&ticket))),
                None => Some(response),
            };
            let Some(response) = response else {
                let problem = Problem::OutcomeUnknown(UnknownReason::Unreadable);
                return refusal(worker, asked, &marking, &problem);
            };
            let (response, status) = marked(response, kind, status, &marking);
            worker
                .shared
                .metrics
                .answered(&path.route, Answer::Marked(status));
            response.map(Reply::from)
        }
        Begun::Nothing { start, ticket, .. } => {
            let marking = Marking {
                ticket: Some(ticket),
                ..*marking
            };
            let policy = &path.route.policy;
            let upstream = &path.route.upstream.name;
            let problem = problem_of_start(start, upstream, policy.join_timeout);
            refusal(worker, asked, &marking, &problem)
        }
    }
}

/// A refusal with the marks of the operation that it is about.
fn refusal<S: Store>(
    worker: &Worker<S>,
    asked: &Asked<'_>,
    marking: &Marking<'_>,
    problem: &Problem,
) -> Response<Reply> {
    let (path, form) = (asked.path, asked.form());
    let mut response = refuse(&worker.shared, Some(path), problem, asked.http1, form);
    if marking.ticket.is_some() {
        let context = context(worker, marking.ticket.as_ref());
        *response.body_mut() = Reply::whole(form.response(problem, &context).into_body());
    }
    marking.mark(response.headers_mut(), None, false);
    response
}

fn context<'a, S: Store>(worker: &'a Worker<S>, ticket: Option<&Ticket>) -> ProblemContext<'a> {
    ProblemContext {
        public_url: worker.shared.config.server.public_url.as_deref(),
        operation: ticket.map(|ticket| ticket.id),
        ..ProblemContext::default()
    }
}

/// One attempt, read whole.
struct Attempt {
    head: Parts,
    body: Collected,
    scope: Scope,
    key: Key,
    derived: bool,
    fingerprint: Fingerprint,
    /// The claim keeps it, for people.
    asked_model: AskedModel,
    call: Option<Arc<Call>>,
}

async fn attempt<S: Store>(
    worker: &Worker<S>,
    path: &Arc<Path>,
    key: Option<Key>,
    request: Request<Body>,
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
    let call = body.call().cloned();
    let (body, fingerprint) = match body {
        Body::Coming(body) => collected(worker, route, &identity, body).await?,
        Body::Call {
            body,
            identity: call,
            ..
        } => {
            let rules = &route.fingerprint_rules;
            let mut fingerprint = FingerprintBuilder::by_bytes(&shared.hash_keys, &identity, rules);
            fingerprint.body_chunk(&call);
            (body, fingerprint.finish())
        }
    };
    let scope = Scope {
        tenant: tenant.name().into(),
        namespace: route.namespace.clone(),
    };
    let derived = key.is_none();
    let key = match key {
        Some(key) => key,
        None => derive(worker, path, &scope, &fingerprint).await,
    };
    let asked_model = match &call {
        Some(_) => AskedModel::default(),
        None => asking::asked_model(path, &head, &body).await,
    };
    Ok(Attempt {
        asked_model,
        head,
        body,
        scope,
        key,
        derived,
        fingerprint,
        call,
    })
}

/// The whole body, and the fingerprint of the request that it is of.
async fn collected<S: Store>(
    worker: &Worker<S>,
    route: &Route,
    identity: &RequestIdentity<'_>,
    body: Whole,
) -> Result<(Collected, Fingerprint), Problem> {
    let (shared, rules) = (&worker.shared, &route.fingerprint_rules);
    let mut fingerprint = FingerprintBuilder::new(&shared.hash_keys, identity, rules);
    let limits = BodyLimits {
        max: shared.config.limits.request_body,
        spool_above: shared.config.limits.spool_above,
        folder: &worker.spool_folder,
        timeout: shared.config.server.body_timeout,
    };
    let collected = spool::collect(body, &limits, |piece| fingerprint.body_chunk(piece)).await;
    let body = collected.map_err(|why| why.problem("limits.request_body", &limits))?;
    Ok((body, fingerprint.finish()))
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
        traces: Traces,
    ) -> onlyonce_engine::Request {
        onlyonce_engine::Request {
            scope: self.scope.clone(),
            key: self.key.clone(),
            fingerprint: self.fingerprint,
            line: RequestLine {
                route: path.route.name.clone(),
                method: self.head.method.as_str().into(),
                path: match &self.call {
                    Some(call) => format!("{}#{}", self.head.uri.path(), call.tool).into(),
                    None if planted(Bug::QueryStored) => self.head.uri.to_string().into(),
                    None => self.head.uri.path().into(),
                },
                trace: traces.callers,
            },
            asked_model: self.asked_model.clone(),
            peer: caller.peer.to_string().into(),
            sdk_retry_count: sdk_retry_count(&self.head.headers),
            trace: traces.own,
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
        if self.call.is_some() {
            ask_for_plain(&mut headers);
        }
        if let Some(spans) = &spans {
            spans.write(&mut headers);
        }
        Ok(Order {
            method: self.head.method,
            target,
            headers,
            body: self.body,
            asked_model: self.asked_model,
            call: self.call,
            spans,
        })
    }
}

fn problem_of<S: Store>(worker: &Worker<S>, trouble: Trouble) -> Problem {
    let limits = &worker.shared.config.limits;
    log_trouble(
        &worker.shared.store_down,
        &trouble,
        "look at the store's server or disk, and at what `onlyonce doctor` says",
    );
    problem_of_trouble(&trouble, |name| match name {
        "tenant_live" => ("limits.tenant_live", Some(limits.tenant_live as u64)),
        "tenant_records" => ("limits.tenant_records", Some(limits.tenant_records)),
        _ => (
            "limits.live_operations",
            Some(limits.live_operations as u64),
        ),
    })
}
