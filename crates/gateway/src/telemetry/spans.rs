//! Spans while they are made: each ends when it is dropped, whatever became of its request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Method, Request};
use onlyonce_core::{Got, Metered, OperationId, OperationSpan, SpanId, TraceId};
use onlyonce_engine::{Ended, Execution, Fate, Ticket};
use onlyonce_store::Store;
use parking_lot::Mutex;

use super::Tracer;
use super::context::Context;
use crate::config::Route;

/// Any method that is not one of HTTP's own, as the conventions call it.
pub(super) const OTHER: &str = "_OTHER";
/// Bytes of a path that a span holds.
const PATH: usize = 1_024;

/// Where a request came from and goes to.
pub(crate) struct Origin {
    pub(crate) peer: IpAddr,
    pub(crate) route: Arc<Route>,
    /// What the caller's SDK said of its own retries.
    pub(crate) sdk_retry_count: Option<u32>,
}

/// The traces of a request.
#[derive(Clone, Copy)]
pub(crate) struct Traces {
    /// That of its caller.
    pub(crate) callers: Option<TraceId>,
    /// The one that it is part of here.
    pub(crate) own: Option<TraceId>,
}

impl Traces {
    /// Where nothing is sent away from here: a request is part of its caller's trace alone.
    pub(crate) fn without_telemetry(headers: &HeaderMap) -> Self {
        let callers = Context::of(headers).map(|context| context.trace);
        Self {
            callers,
            own: callers,
        }
    }
}

/// A span that is done.
pub(super) enum Finished {
    Attempt(Box<Attempt>),
    /// An execution, and its operation.
    Execution(Box<Executed>),
    /// An operation whose execution goes on.
    Operation(Box<Executed>),
    /// An execution whose operation is over already.
    Late(Box<Executed>),
}

/// What is known of an attempt.
pub(super) struct Attempt {
    pub(super) begun: u64,
    pub(super) ended: u64,
    /// What it is a child of.
    pub(super) parent: Option<Context>,
    pub(super) own: Context,
    pub(super) origin: Origin,
    pub(super) method: &'static str,
    pub(super) path: Box<str>,
    pub(super) tenant: Box<str>,
    pub(super) operation: Option<(OperationId, u32)>,
    /// The operation's span, where this attempt is not its parent.
    pub(super) link: Option<OperationSpan>,
    pub(super) got: Got,
    /// None where the caller left before.
    pub(super) status: Option<u16>,
    /// Whether the answer broke off.
    pub(super) broke: bool,
}

/// The span of one request, until its answer is out or given up.
pub(crate) struct AttemptSpan {
    tracer: Arc<Tracer>,
    /// There until it is dropped.
    attempt: Option<Box<Attempt>>,
}

impl AttemptSpan {
    pub(super) fn begin<B>(tracer: &Arc<Tracer>, request: &Request<B>, origin: Origin) -> Self {
        let parent = Context::of(request.headers());
        let trace = match &parent {
            Some(parent) => parent.trace,
            // That of the operation, should this attempt claim it.
            None => tracer.trace(),
        };
        let own = Context {
            trace,
            span: tracer.span(),
            flags: match &parent {
                Some(parent) => parent.flags,
                None => tracer.sample.flags(&trace),
            },
        };
        Self {
            tracer: Arc::clone(tracer),
            attempt: Some(Box::new(Attempt {
                begun: now(),
                ended: 0,
                parent,
                own,
                origin,
                method: known(request.method()),
                path: cut(request.uri().path(), PATH).into(),
                tenant: "".into(),
                operation: None,
                link: None,
                got: Got::Refused,
                status: None,
                broke: false,
            })),
        }
    }

    /// The trace that the request came in, and the one that it is part of, unless it executes: then that
    /// is its operation's.
    pub(crate) fn traces(&self) -> Traces {
        let attempt = self.attempt.as_deref();
        Traces {
            callers: attempt.and_then(|attempt| Some(attempt.parent?.trace)),
            own: attempt.map(|attempt| attempt.own.trace),
        }
    }

    /// Whose request it is.
    pub(crate) fn tenant(&mut self, tenant: &str) {
        self.note(|attempt| attempt.tenant = tenant.into());
    }

    /// Which operation it is for, and what it got of it.
    pub(crate) fn got(&mut self, got: Got, ticket: &Ticket) {
        self.note(|attempt| {
            attempt.got = got;
            attempt.operation = Some((ticket.id, ticket.attempt));
            attempt.link = Some(ticket.span);
        });
    }

    /// It executes: the spans below it.
    pub(crate) fn executes<S: Store>(
        &mut self,
        execution: &Execution<S>,
        ticket: &Ticket,
    ) -> Option<ExecutionSpan> {
        self.got(Got::Executed, ticket);
        let tracer = Arc::clone(&self.tracer);
        let attempt = self.attempt.as_mut()?;
        let operation = execution.claimed().span();
        attempt.link = None;
        if attempt.parent.is_none() {
            attempt.own.trace = operation.trace;
            attempt.own.flags = tracer.sample.flags(&operation.trace);
        }
        let executed = Executed {
            begun: now(),
            ended: 0,
            own: Context {
                span: tracer.span(),
                ..attempt.own
            },
            parent: attempt.own.span,
            continues: attempt.parent.is_some(),
            operation: (execution.id(), operation.span),
            route: Arc::clone(&attempt.origin.route),
            method: attempt.method,
            request_model: "".into(),
            status: None,
            streams: false,
            first_chunk: None,
            end: None,
            joined: 0,
            metered: None,
            is_told: false,
        };
        Some(ExecutionSpan {
            context: executed.own,
            continues: executed.continues,
            fate: execution.fate(),
            tracer,
            executed: Mutex::new(Some(Box::new(executed))),
        })
    }

    /// The head of the answer is known.
    pub(crate) fn answered(&mut self, status: u16) {
        self.note(|attempt| attempt.status = Some(status));
    }

    /// The answer broke off.
    pub(crate) fn broke(&mut self) {
        self.note(|attempt| attempt.broke = true);
    }

    fn note(&mut self, note: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = &mut self.attempt {
            note(attempt);
        }
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        let Some(mut attempt) = self.attempt.take() else {
            return;
        };
        if attempt.own.is_sampled() {
            attempt.ended = now();
            self.tracer.push(Finished::Attempt(attempt));
        }
    }
}

/// What is known of an execution.
#[derive(Clone)]
pub(super) struct Executed {
    pub(super) begun: u64,
    pub(super) ended: u64,
    pub(super) own: Context,
    /// The span of the attempt that claimed.
    pub(super) parent: SpanId,
    /// Whether the trace is the caller's.
    continues: bool,
    pub(super) operation: (OperationId, SpanId),
    pub(super) route: Arc<Route>,
    pub(super) method: &'static str,
    /// The model that the request's body names; empty where it was not read, or names none.
    pub(super) request_model: Box<str>,
    pub(super) status: Option<u16>,
    /// Whether the answer came as a stream of events.
    pub(super) streams: bool,
    /// When its first bytes came.
    pub(super) first_chunk: Option<u64>,
    pub(super) end: Option<Ended>,
    pub(super) joined: u32,
    pub(super) metered: Option<Box<Metered>>,
    /// Whether its operation's span is done.
    is_told: bool,
}

/// The spans of an operation and its execution, until the outcome is known.
pub(crate) struct ExecutionSpan {
    context: Context,
    continues: bool,
    fate: Fate,
    tracer: Arc<Tracer>,
    /// There until it is finished.
    executed: Mutex<Option<Box<Executed>>>,
}

impl ExecutionSpan {
    /// Tells the upstream what it is called by.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        self.context.write(headers, self.continues);
    }

    /// The request names this model.
    pub(crate) fn asks_for(&self, model: &str) {
        self.note(|executed| executed.request_model = model.into());
    }

    /// The head of the upstream's answer is here.
    pub(crate) fn answered(&self, status: u16, streams: bool) {
        self.note(|executed| {
            executed.status = Some(status);
            executed.streams = streams;
        });
    }

    /// Bytes of its body are here.
    pub(crate) fn chunk(&self) {
        self.note(|executed| {
            executed.first_chunk.get_or_insert_with(now);
        });
    }

    /// Callers are told that the outcome is unknown, which ends the operation's span. The answer may
    /// still come: the execution goes on.
    pub(crate) fn told(&self) {
        let (end, joined) = (self.fate.ended(), self.fate.joined());
        self.note(|executed| {
            executed.end = end;
            executed.joined = joined;
            executed.is_told = true;
            if self.context.is_sampled() {
                let operation = Executed {
                    ended: now(),
                    ..executed.clone()
                };
                self.tracer.push(Finished::Operation(Box::new(operation)));
            }
        });
    }

    /// A late answer has told so much of its use, whole or not.
    pub(crate) fn meter(&self, metered: &Metered) {
        self.note(|executed| executed.metered = Some(Box::new(metered.clone())));
    }

    /// The late answer is recorded.
    pub(crate) fn completed_late(&self) {
        self.note(|executed| executed.end = Some(Ended::Completed));
    }

    /// The outcome is known.
    fn finish(&self) {
        let Some(mut executed) = self.executed.lock().take() else {
            return;
        };
        executed.ended = now();
        if !executed.is_told {
            executed.end = self.fate.ended();
            executed.joined = self.fate.joined();
            executed.metered = self.fate.metered();
        }
        self.tracer.sums.add(&executed);
        if self.context.is_sampled() {
            self.tracer.push(match executed.is_told {
                true => Finished::Late(executed),
                false => Finished::Execution(executed),
            });
        }
    }

    fn note(&self, note: impl FnOnce(&mut Executed)) {
        if let Some(executed) = &mut *self.executed.lock() {
            note(executed);
        }
    }
}

impl Drop for ExecutionSpan {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Tracer {
    fn span(&self) -> SpanId {
        SpanId::from_number(self.numbers.next())
    }

    fn trace(&self) -> TraceId {
        loop {
            let pair = u128::from(self.numbers.next()) << 64 | u128::from(self.numbers.next());
            if let Some(trace) = TraceId::from_bytes(pair.to_be_bytes()) {
                return trace;
            }
        }
    }
}

/// The name of a method, and [`OTHER`] for those that callers may make up, of any length.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::CONNECT => "CONNECT",
        Method::DELETE => "DELETE",
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::TRACE => "TRACE",
        _ => OTHER,
    }
}

/// Nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The first bytes of `text`, not more than `most`, without a part of a character.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
