//! The one execution of an operation: the call of the service inside belongs to it, and the first caller
//! is only its first reader.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body::{Body, Frame};
use onlyonce_core::UnknownReason;
use onlyonce_engine::{Execution, Late, Reader, Ticket, Unsettled};
use onlyonce_store::Store;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower_service::Service;

use crate::caught::{Panicked, caught};
use crate::doing::{Recorded, is_resend};
use crate::kept;
use crate::keyed::Attempt;
use crate::operation::{Executing, Making, Ruling};
use crate::outcome::NotSent;
use crate::service::Route;
use crate::shell::audience::Left;
use crate::shell::first::{self, Begun};
use crate::shell::incoming::{Incoming, Original, Patience, Source};
use crate::shell::taking::{self, settle, take_in, take_late, while_followed};
use crate::shell::timer::Timer;
use crate::step::{StepError, keep};
use crate::{BoxError, Operation, Outcome, RequestBody};

/// What is to be executed, and by whom.
pub(crate) struct Order<I, B> {
    inner: I,
    request: Request<RequestBody<B>>,
    operation: Operation,
    /// What is to be kept of the request before that.
    kept: Option<Recorded>,
}

impl<I, B> Order<I, B> {
    pub(crate) fn new<S: Store>(
        attempt: Attempt,
        inner: I,
        route: &Route<S>,
        execution: &Execution<S>,
        ticket: &Ticket,
    ) -> Self {
        let rules = &route.rules;
        let kept = match rules.completes && !attempt.continues {
            true => kept::keep(&attempt.head, &attempt.body, &rules.fingerprint.headers),
            false => None,
        };
        let making = Making {
            id: ticket.id,
            attempt: ticket.attempt,
            scope: attempt.scope,
            key: attempt.key,
            fingerprint: attempt.fingerprint,
            resumed: is_resend(execution),
            steps_window: rules.steps_window,
            join_timeout: rules.join_timeout,
        };
        let shared = route.once.shared_handle();
        let hash_keys = shared.hash_keys.clone();
        let operation = Operation::new(making, &hash_keys, shared);
        let mut head = attempt.head;
        head.extensions.insert(operation.clone());
        Self {
            inner,
            request: Request::from_parts(head, RequestBody::whole(attempt.body)),
            operation,
            kept,
        }
    }
}

/// Executes, and answers the first caller from the recording.
pub(crate) async fn first<S, I, B, R>(
    route: &Arc<Route<S>>,
    execution: Execution<S>,
    order: Order<I, B>,
    mut reader: Reader<S>,
) -> Begun
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>> + Send + 'static,
    I::Future: Send,
    I::Error: Into<BoxError> + Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    if route.rules.after_durable {
        reader.hold_until_durable();
    }
    let (follower, left) = match route.rules.cancels {
        false => (None, None),
        true => {
            let audiences = &route.once.shared().audiences;
            let (first, left) = audiences.open(execution.id(), None);
            (Some(first), Some(left))
        }
    };
    let original = Arc::new(Mutex::new(None));
    let driver = Driver {
        route: Arc::clone(route),
        original: Arc::clone(&original),
        operation: Executing::new(order.operation),
        deadline: Instant::now() + route.rules.total_timeout,
    };
    let mut stopping = route.once.stopping();
    let driving = async move {
        let driving = driver.drive(execution, order.inner, order.request, order.kept, left);
        tokio::select! {
            biased;
            () = driving => {}
            // Its outcome is written already; the handler goes with it.
            () = stopping.stopped() => {}
        }
    };
    first::executed(driving, &original, reader, follower).await
}

/// How a call ended, before that is written.
type Ended = taking::Outcome<()>;

/// What an execution comes to that nobody follows any more.
const CANCELLED: Ended = Ended::Lost(UnknownReason::Cancelled);

/// What an execution needs beside itself.
struct Driver<S: Store> {
    route: Arc<Route<S>>,
    /// For the first caller: what a recording does not hold.
    original: Arc<Mutex<Option<Original>>>,
    operation: Executing,
    /// The end of the whole.
    deadline: Instant,
}

impl<S: Store> Driver<S> {
    async fn drive<I, B, R>(
        self,
        mut execution: Execution<S>,
        mut inner: I,
        request: Request<RequestBody<B>>,
        kept: Option<Recorded>,
        mut left: Option<Left>,
    ) where
        I: Service<Request<RequestBody<B>>, Response = Response<R>>,
        I::Error: Into<BoxError>,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let ready = match self.keep(kept).await {
            Ok(()) => self.ready(&execution, &mut inner, &mut left).await,
            Err(why) => Err(why),
        };
        let settled = match ready {
            Err(why) => {
                let ended = self.ruled(&execution, Ended::NotSent(why));
                settle(execution, ended).await.map(drop)
            }
            Ok(()) => {
                let mut calling = pin!(caught(|| inner.call(request)));
                let ended = self.run(&mut execution, calling.as_mut(), &mut left).await;
                let ended = self.ruled(&execution, ended);
                if let Some(metered) = self.operation.metered() {
                    // What it used before it failed was used.
                    execution.meter(metered);
                }
                match settle(execution, ended).await {
                    Ok(Some((late, ()))) => self.wait_for_late(late, calling).await,
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        };
        if let Err(error) = settled {
            tracing::warn!(%error, "an outcome was not recorded");
        }
        // Until here, who comes can tell that its audience has left.
        drop(left);
    }

    /// Keeps the request beside the operation; or says why that was not done, and nothing ran.
    async fn keep(&self, kept: Option<Recorded>) -> Result<(), String> {
        let Some(kept) = kept else {
            return Ok(());
        };
        keep(&self.operation, kept).await.map_err(|error| {
            tracing::warn!(operation = %self.operation.id(), error, "a request was not kept");
            "the request could not be kept, so that somebody can continue it".to_owned()
        })
    }

    /// What the steps of the operation make of how its handler ended.
    fn ruled(&self, execution: &Execution<S>, ended: Ended) -> Ended {
        let released = match &ended {
            // The operation is not ours any more, or an answer may still come.
            Ended::Fenced | Ended::Late(()) => return ended,
            Ended::NotSent(why) => Some(&**why),
            Ended::Release | Ended::ReleaseBroken => Some("it says that it did not run"),
            Ended::Whole(..) | Ended::Complete(_) | Ended::Lost(_) => None,
        };
        match self.operation.ruling(released) {
            None => ended,
            Some(Ruling { reason, words }) => {
                execution.explain(&words.told);
                Ended::Lost(reason)
            }
        }
    }

    /// Waits until the service is ready; or says why it was not called, and nothing ran.
    async fn ready<I, B>(
        &self,
        execution: &Execution<S>,
        inner: &mut I,
        left: &mut Option<Left>,
    ) -> Result<(), String>
    where
        I: Service<Request<RequestBody<B>>>,
        I::Error: Into<BoxError>,
    {
        let ready = pin!(caught(|| std::future::poll_fn(|cx| inner.poll_ready(cx))));
        match self.in_time(ready, left).await {
            Came::InTime(Ok(Ok(()))) => {}
            Came::InTime(Ok(Err(error))) => {
                let (id, error) = (self.operation.id(), error.into());
                tracing::warn!(operation = %id, error, "the service is not ready: nothing ran");
                return Err("it is not ready".into());
            }
            Came::InTime(Err(_)) => return Err("it failed before it was called".into()),
            Came::NotInTime => return Err("it was not ready in time".into()),
            Came::AllLeft => return Err("everybody left before it was called".into()),
        }
        // To wait takes its time, and a process can be stopped at any place.
        match execution.may_send() {
            true => Ok(()),
            false => Err("the process stood still for longer than its lease".into()),
        }
    }

    /// Ends early when `left` says that nobody follows any more.
    async fn run<R, E>(
        &self,
        execution: &mut Execution<S>,
        calling: Pin<&mut impl Future<Output = Result<Result<Response<R>, E>, Panicked>>>,
        left: &mut Option<Left>,
    ) -> Ended
    where
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        match self.in_time(calling, left).await {
            Came::AllLeft => CANCELLED,
            Came::NotInTime => Ended::Late(()),
            Came::InTime(Err(Panicked)) => Ended::Lost(UnknownReason::HandlerFailed),
            Came::InTime(Ok(Err(error))) => self.failed(&*error.into()),
            Came::InTime(Ok(Ok(response))) => self.record(execution, response, left).await,
        }
    }

    async fn record<R>(
        &self,
        execution: &mut Execution<S>,
        response: Response<R>,
        left: &mut Option<Left>,
    ) -> Ended
    where
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let released = match response.extensions().get::<Outcome>() {
            Some(Outcome::Completed) => false,
            Some(Outcome::Released) => true,
            Some(Outcome::Unknown) => return Ended::Lost(UnknownReason::HandlerFailed),
            None => self.route.rules.released.contains(&response.status()),
        };
        let len = response.body().size_hint().exact();
        let mut incoming = match self.incoming(response) {
            Ok(incoming) => incoming,
            Err(reason) => return Ended::Lost(reason),
        };
        if let (Some(len), false) = (len, incoming.headers.contains_key(CONTENT_LENGTH)) {
            // The server will tell the client, which takes the last byte for the end (I3).
            execution.declare_len(len);
        }
        let taking = take_in(execution, &mut incoming, released, &self.original, || {});
        while_followed(left, taking).await.unwrap_or(CANCELLED)
    }

    /// The response, as it is to be recorded.
    fn incoming<R>(&self, response: Response<R>) -> Result<Incoming<Inner<R>>, UnknownReason>
    where
        R: Body<Data = Bytes> + Send,
        R::Error: Into<BoxError>,
    {
        if response.status().is_informational() {
            // A switch of protocols that nobody asked for.
            return Err(UnknownReason::BadAnswer);
        }
        let rules = &self.route.rules;
        let patience = Patience {
            between_bytes: rules.between_bytes_timeout,
            deadline: self.deadline,
        };
        let response = response.map(|body| Inner(Box::pin(body)));
        Incoming::new(response, rules.allow_set_cookie, patience, ())
    }

    /// What an error of the service says of the outcome.
    fn failed(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) -> Ended {
        let id = self.operation.id();
        if let Some(NotSent { why }) = NotSent::in_sources(error) {
            return Ended::NotSent(why.clone());
        }
        match StepError::in_sources(error) {
            Some(stopped) if stopped.outcome() == Outcome::Released => {
                Ended::NotSent(stopped.told())
            }
            _ => {
                tracing::error!(operation = %id, error, "the service failed: its outcome is unknown");
                Ended::Lost(UnknownReason::HandlerFailed)
            }
        }
    }

    /// Waits for the answer of an execution that its readers were told to be unknown (HOSTILE 64).
    async fn wait_for_late<R, E>(
        &self,
        mut late: Late<S>,
        mut calling: Pin<&mut impl Future<Output = Result<Result<Response<R>, E>, Panicked>>>,
    ) -> Result<(), Unsettled>
    where
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let mut timer = Timer::default();
        timer.set(self.route.rules.late_answer);
        let Some(Ok(Ok(response))) = before(&mut timer, calling.as_mut()).await else {
            return Ok(());
        };
        let outcome = response.extensions().get::<Outcome>();
        let released = self.route.rules.released.contains(&response.status());
        // That it did not run is an operator's word to write now: others were told "unknown".
        if outcome.map_or(released, |outcome| *outcome != Outcome::Completed) {
            return Ok(());
        }
        let Ok(mut incoming) = self.incoming(response) else {
            return Ok(());
        };
        if late.head(std::mem::take(&mut incoming.head)).await.is_err() {
            return Ok(());
        }
        let trailers = take_late(&mut late, &mut incoming, || {}).await;
        if self.operation.ruling(None).is_some() {
            return Ok(());
        }
        if let Some(metered) = self.operation.metered() {
            late.meter(metered);
        }
        match trailers {
            Some(trailers) => late.complete(trailers).await,
            None => Ok(()),
        }
    }

    /// What `work` comes to before its time is over, and before everybody has left.
    async fn in_time<T>(
        &self,
        work: Pin<&mut impl Future<Output = T>>,
        left: &mut Option<Left>,
    ) -> Came<T> {
        let mut timer = Timer::default();
        let span = self.route.rules.answer_timeout;
        timer.set_at(self.deadline.min(Instant::now() + span));
        match while_followed(left, before(&mut timer, work)).await {
            None => Came::AllLeft,
            Some(None) => Came::NotInTime,
            Some(Some(done)) => Came::InTime(done),
        }
    }
}

enum Came<T> {
    InTime(T),
    NotInTime,
    AllLeft,
}

/// What `work` comes to; `None` where `timer` fires first. A timer is started only once it has to wait.
async fn before<T>(timer: &mut Timer, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => timer.poll(cx).map(|()| None),
    })
    .await
}

/// The body of the service's answer.
struct Inner<R>(Pin<Box<R>>);

impl<R> Source for Inner<R>
where
    R: Body<Data = Bytes> + Send,
    R::Error: Into<BoxError>,
{
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UnknownReason>>> {
        let body = self.0.as_mut();
        match catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx))) {
            Err(_) => Poll::Ready(Some(Err(UnknownReason::HandlerFailed))),
            Ok(polled) => polled.map(|frame| {
                frame.map(|frame| {
                    frame.map_err(|error| {
                        let error: BoxError = error.into();
                        tracing::debug!(error, "the body of an answer broke off");
                        UnknownReason::Truncated
                    })
                })
            }),
        }
    }
}
