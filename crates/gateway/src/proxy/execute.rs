//! The one execution of an operation: the exchange with the upstream belongs to it, and the first
//! caller is only its first reader.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request};
use onlyonce_core::planted::{Bug, planted};
use onlyonce_core::{OperationId, UnknownReason};
use onlyonce_engine::{AskedModel, Execution, Reader, Unsettled};
use onlyonce_ledger::End;
use onlyonce_store::Store;
use onlyonce_tower::shell::audience::Left;
use onlyonce_tower::shell::first;
use onlyonce_tower::shell::incoming::Original;
use onlyonce_tower::shell::taking::{self, settle, take_in, take_late, while_followed};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::asking::Asked;
use super::exchange::{Begun, Failure, Patience, Waiting, exchange};
use super::mcp::Call;
use super::outgoing::Outgoing;
use super::path::Path;
use super::pool::ReadBy;
use super::recording::{self, Incoming};
use super::service::Caller;
use super::spool::Collected;
use super::worker::{Open, Worker};
use crate::config::{ClientGone, Forward};
use crate::telemetry::ExecutionSpan;

/// A request as the upstream is to get it.
pub(super) struct Order {
    pub(super) method: Method,
    pub(super) target: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) body: Collected,
    /// The model that it asks for.
    pub(super) asked_model: AskedModel,
    /// What it calls, where it is a call.
    pub(super) call: Option<Arc<Call>>,
    /// Where traces are kept.
    pub(super) spans: Option<ExecutionSpan>,
}

/// Executes, and answers the first caller from the recording.
pub(super) async fn first<S: Store>(
    worker: &Arc<Worker<S>>,
    caller: &Caller,
    path: &Arc<Path>,
    execution: Execution<S>,
    mut order: Order,
    mut reader: Reader<S>,
) -> first::Begun {
    let policy = &path.route.policy;
    if policy.forward == Forward::AfterDurable {
        reader.hold_until_durable();
    }
    let original = Arc::new(Mutex::new(None));
    let (follower, left) = match policy.client_gone {
        ClientGone::Finish => (None, None),
        ClientGone::Cancel => {
            let presence = Some(caller.presence());
            let (first, left) = worker.audiences.open(execution.id(), presence);
            (Some(first), Some(left))
        }
    };
    let driver = Driver {
        worker: Arc::clone(worker),
        path: Arc::clone(path),
        original: Arc::clone(&original),
        target: order.target.path().into(),
        call: order.call.take(),
        asked: Asked::default(),
        spans: order.spans.take(),
    };
    let open = worker.open.one_more();
    let driving = driver.drive(execution, order, left, open);
    first::executed(driving, &original, reader, follower).await
}

/// How an exchange ended, before that is written.
type Outcome = taking::Outcome<Box<Waiting>>;

/// What an execution needs beside itself.
struct Driver<S: Store> {
    worker: Arc<Worker<S>>,
    path: Arc<Path>,
    /// For the first caller: what a recording does not hold.
    original: Arc<Mutex<Option<Original>>>,
    /// What is called of the upstream, without the query.
    target: Box<str>,
    call: Option<Arc<Call>>,
    /// What it is asked for.
    asked: Asked,
    spans: Option<ExecutionSpan>,
}

impl<S: Store> Driver<S> {
    async fn drive(
        mut self,
        mut execution: Execution<S>,
        mut order: Order,
        mut left: Option<Left>,
        open: Open,
    ) {
        let begun = Instant::now();
        self.asked = match &self.call {
            None => order.asks(&self.path.route).await,
            Some(call) => {
                // Each tool has a path of its own, and what answers is the tool.
                self.target = format!("{}/{}", self.target, call.tool).into();
                Asked::of_model(&call.tool)
            }
        };
        if let (Some(spans), Some(model)) = (&self.spans, &self.asked.model) {
            spans.asks_for(model);
        }
        let outcome = self.run(&mut execution, order, &mut left).await;
        let metrics = &self.worker.shared.metrics;
        metrics.executed(&self.path.route, begun.elapsed());
        if let Err(error) = self.settle(execution, outcome, open).await {
            tracing::warn!(%error, "an outcome was not recorded");
        }
        // Until here, who comes can tell that its audience has left.
        drop(left);
    }

    /// `open` is what a worker waits for before it goes.
    async fn settle(
        &self,
        execution: Execution<S>,
        outcome: Outcome,
        open: Open,
    ) -> Result<(), Unsettled> {
        let Some((late, waiting)) = settle(execution, outcome).await? else {
            return Ok(());
        };
        drop(open);
        self.spans.iter().for_each(ExecutionSpan::told);
        self.wait_for_late(late, waiting).await
    }

    /// Ends early when `left` says that nobody follows any more.
    async fn run(
        &self,
        execution: &mut Execution<S>,
        mut order: Order,
        left: &mut Option<Left>,
    ) -> Outcome {
        let policy = &self.path.route.policy;
        self.path.count_request();
        let deadline = Instant::now() + policy.total_timeout;
        let patience = Patience {
            connect: policy.connect_timeout,
            first_byte: policy.first_byte_timeout,
            until: Some(deadline),
        };
        let mut tries = 0;
        let blind = u32::from(planted(Bug::BlindUpstreamRetry));
        loop {
            let more = tries < policy.retries.max.max(blind);
            let request = order.request(&self.path, more);
            let exchanging = exchange(
                &self.path.pool,
                request,
                ReadBy::Recording,
                patience,
                || execution.may_send(),
            );
            let Some(exchanged) = while_followed(left, exchanging).await else {
                return CANCELLED;
            };
            match exchanged {
                Ok((head, _))
                    if more
                        && policy.releases(head.status().as_u16())
                        && self.path.take_retry() => {}
                Ok(begun) => return self.record(execution, begun, deadline, left).await,
                Err(Failure::NotSent(_)) if more && self.path.take_retry() => {}
                Err(Failure::NotSent(why)) => return Outcome::NotSent(why),
                Err(Failure::Broke(_)) if tries < blind => {}
                Err(Failure::Broke(why)) => {
                    tracing::debug!(operation = %execution.id(), why, "the exchange broke");
                    return Outcome::Lost(UnknownReason::Broke);
                }
                Err(Failure::BadAnswer(why)) => {
                    tracing::debug!(operation = %execution.id(), why, "the answer is not HTTP");
                    return Outcome::Lost(UnknownReason::BadAnswer);
                }
                Err(Failure::TimedOut(waiting)) => return Outcome::Late(waiting),
            }
            self.worker.shared.metrics.retried(&self.path.route);
            let pause = tokio::time::sleep(jitter(&policy.retries, tries, execution.id()));
            if while_followed(left, pause).await.is_none() {
                return CANCELLED;
            }
            tries += 1;
        }
    }

    async fn record(
        &self,
        execution: &mut Execution<S>,
        begun: Begun,
        deadline: Instant,
        left: &mut Option<Left>,
    ) -> Outcome {
        let policy = &self.path.route.policy;
        let mut incoming = match self.incoming(begun, deadline) {
            Ok(incoming) => incoming,
            Err(reason) => return Outcome::Lost(reason),
        };
        let mut released = policy.releases(incoming.head.status);
        if let Some(spans) = &self.spans {
            spans.answered(incoming.head.status, incoming.is_stream());
        }
        let (meters, route) = (&self.worker.shared.meters, &self.path.route);
        if !released {
            self.meter(&mut incoming);
            let Some(()) = while_followed(left, recording::hold(&mut incoming)).await else {
                return CANCELLED;
            };
            released = recording::says_not_run(&mut incoming, policy);
        }
        let chunk = || self.spans.iter().for_each(ExecutionSpan::chunk);
        let taking = take_in(execution, &mut incoming, released, &self.original, chunk);
        // What it used until it was cut off was used.
        let outcome = while_followed(left, taking).await.unwrap_or(CANCELLED);
        let end = match &outcome {
            Outcome::Whole(..) | Outcome::Complete(_) => End::Clean,
            _ => End::Broken,
        };
        let claimed = execution.claimed();
        if let Some(metered) = recording::metered(&mut incoming, end, meters, route, claimed) {
            execution.meter(metered);
        }
        outcome
    }

    /// The answer, as it is to be recorded.
    fn incoming(&self, begun: Begun, deadline: Instant) -> Result<Incoming, UnknownReason> {
        let policy = &self.path.route.policy;
        let mut incoming = recording::incoming(begun, policy, deadline)?;
        if let Some(call) = &self.call {
            recording::follow(&mut incoming, call)?;
        }
        if self.asked.adds_usage {
            recording::hide_usage(&mut incoming)?;
        }
        Ok(incoming)
    }

    /// Reads what the answer uses as it passes.
    fn meter(&self, incoming: &mut Incoming) {
        let (meters, route) = (&self.worker.shared.meters, &self.path.route);
        let is_several = self.call.as_ref().is_some_and(|call| call.is_several);
        recording::meter(incoming, meters, route, self.asked(), is_several);
    }

    fn asked(&self) -> onlyonce_ledger::Asked<'_> {
        onlyonce_ledger::Asked {
            path: &self.target,
            model: self.asked.model.as_deref(),
        }
    }

    /// Waits for the answer of an execution that its readers were told to be unknown (HOSTILE 64).
    async fn wait_for_late(
        &self,
        mut late: onlyonce_engine::Late<S>,
        waiting: Box<Waiting>,
    ) -> Result<(), Unsettled> {
        let policy = &self.path.route.policy;
        // Dropped after the request: whoever settles it has to know that no byte of that follows.
        let mut closing = late.closing();
        let begun = tokio::select! {
            biased;
            () = closing.wait() => return Ok(()),
            () = late.overtaken_elsewhere() => return Ok(()),
            begun = waiting.late(policy.late_answer) => begun,
        };
        let Ok(begun) = begun else {
            return Ok(());
        };
        let deadline = Instant::now() + policy.total_timeout;
        let Ok(mut incoming) = self.incoming(begun, deadline) else {
            return Ok(());
        };
        // That it did not run is an operator's word to write now: others were told "unknown".
        if policy.releases(incoming.head.status) {
            return Ok(());
        }
        let (meters, route) = (&self.worker.shared.meters, &self.path.route);
        self.meter(&mut incoming);
        if let Some(spans) = &self.spans {
            spans.answered(incoming.head.status, incoming.is_stream());
        }
        let head = std::mem::take(&mut incoming.head);
        if late.head(head).await.is_err() {
            return Ok(());
        }
        let chunk = || self.spans.iter().for_each(ExecutionSpan::chunk);
        // The answer may begin before the request is out.
        let trailers = tokio::select! {
            biased;
            () = closing.wait() => None,
            trailers = take_late(&mut late, &mut incoming, chunk) => trailers,
        };
        let end = match trailers {
            Some(_) => End::Clean,
            None => End::Broken,
        };
        let metered = recording::metered(&mut incoming, end, meters, route, late.claimed());
        if let (Some(spans), Some(metered)) = (&self.spans, &metered) {
            spans.meter(metered);
        }
        let Some(trailers) = trailers else {
            return Ok(());
        };
        if recording::says_not_run(&mut incoming, policy) {
            return Ok(());
        }
        if let Some(metered) = metered {
            late.meter(metered);
        }
        drop(closing);
        let completed = late.complete(trailers).await;
        if completed.is_ok() {
            self.spans.iter().for_each(ExecutionSpan::completed_late);
        }
        completed
    }
}

/// What an execution comes to that nobody follows any more.
const CANCELLED: Outcome = Outcome::Lost(UnknownReason::Cancelled);

impl Order {
    /// The request; `again` says that it may have to be made once more.
    fn request(&mut self, path: &Path, again: bool) -> Request<Outgoing> {
        let headers = match again {
            true => self.headers.clone(),
            false => std::mem::take(&mut self.headers),
        };
        path.request(
            self.method.clone(),
            self.target.clone(),
            headers,
            self.body.outgoing(),
        )
    }
}

/// A pause before try number `tries` + 1: anything from nothing to a span that doubles each time,
/// so that those who failed together do not come back together. What is drawn are bits of the
/// operation's id, which were drawn for it alone.
fn jitter(retries: &crate::config::Retries, tries: u32, operation: OperationId) -> Duration {
    let ceiling = retries
        .backoff
        .saturating_mul(1_u32.checked_shl(tries.min(20)).unwrap_or(u32::MAX))
        .min(retries.max_backoff);
    let [.., a, b, c, d, e, f, g, h] = *operation.as_bytes();
    let drawn = u64::from_be_bytes([a, b, c, d, e, f, g, h]).rotate_left(11 * (tries % 64));
    let share = f64::from(drawn as u32) / f64::from(u32::MAX);
    ceiling.mul_f64(share)
}
