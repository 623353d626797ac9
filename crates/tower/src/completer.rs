//! Continues operations whose owner has died.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use onlyonce_core::{Key, OperationId, Record, State, StateName, UnknownReason};
use onlyonce_engine::Trouble;
use onlyonce_http::marks::ONLYONCE_OPERATION;
use onlyonce_store::{Query, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower_service::Service;

use crate::call::{Call, METHOD};
use crate::doing::{BoxFuture, Recorded, owner_is_gone, read};
use crate::failure::Failure;
use crate::kept::{self, Continued};
use crate::step::kept_name;
use crate::{BoxError, Once, OnceLayer, Operation};

/// The peer of its attempts, for people who look at them.
pub(crate) const PEER: &str = "completer";

/// Unknown operations on one page of a look, and pages that it takes at most.
const PAGE: usize = 500;
const PAGES: usize = 40;
/// Operations that it continues at once.
const AT_ONCE: usize = 16;

/// Continues operations that are unknown because their owner is gone, where
/// [`Rules::complete_abandoned`](crate::Rules::complete_abandoned) or [`Call::complete_abandoned`] was said
/// when they began. [`Once::completer`] makes one.
///
/// ```
/// # #[cfg(feature = "axum")]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Router, routing::post};
/// use onlyonce_tower::{Failure, Once, OnceLayer, Operation, Rules, StepError};
///
/// async fn report(operation: Operation) -> Result<String, StepError> {
///     operation.step("make", async || Ok::<_, Failure>("a report".to_owned())).await
/// }
/// async fn job(operation: Operation, month: String) -> Result<String, StepError> {
///     report(operation).await.map(|report| format!("{report} of {month}"))
/// }
///
/// let once = Once::in_memory();
/// let layer = OnceLayer::new(once.clone(), Rules::default().complete_abandoned());
/// let app: Router = Router::new().route("/reports", post(report)).layer(layer.clone());
/// once.completer()
///     .serve::<axum::body::Body>(&layer, app.clone())
///     .register("report", job)
///     .start();
/// # once.shutdown(std::time::Duration::ZERO).await?;
/// # Ok(()) }
/// # #[cfg(feature = "axum")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
///
/// It looks at all operations of its store, also those of other processes. Two completers never execute one
/// operation at the same time: each begins as any other attempt does, by a claim.
///
/// What it takes up: what is unknown because its process died, was stopped, or could not record the
/// outcome; what stopped between two steps; and what stopped at a step that somebody has settled since.
/// Nothing that failed, panicked or took too long: that would happen again.
pub struct Completer<S: Store> {
    once: Once<S>,
    every: Duration,
    most_attempts: usize,
    /// By namespace.
    services: HashMap<Box<str>, Continue>,
    /// By the name of the call.
    functions: HashMap<Box<str>, Continue>,
}

/// Continues one operation, to its end.
type Continue = Arc<dyn Fn(Abandoned) -> BoxFuture<'static, ()> + Send + Sync>;

/// An operation that nobody executes any more, and what it was asked for.
struct Abandoned {
    record: Arc<Record>,
    kept: Recorded,
}

impl<S: Store> Once<S> {
    /// What continues operations whose owner has died, to be told of what it may run.
    pub fn completer(&self) -> Completer<S> {
        Completer {
            once: self.clone(),
            every: Duration::from_secs(10),
            most_attempts: 10,
            services: HashMap::new(),
            functions: HashMap::new(),
        }
    }
}

impl<S: Store> Completer<S> {
    /// Continues what came through `layer`, by `service`: the one that `layer` is around, with the layer,
    /// and without what asks for credentials. It gets the request as it was kept, with a body of type `B`, and
    /// [`Operation`] is all that is in its extensions.
    ///
    /// # Panics
    ///
    /// Where the rules of `layer` do not say
    /// [`complete_abandoned`](crate::Rules::complete_abandoned), or another service was given for their
    /// [namespace](crate::Rules::namespace): nothing else tells whose an operation is.
    pub fn serve<B: From<Bytes> + Send + 'static>(
        mut self,
        layer: &OnceLayer<S>,
        service: impl Service<
            Request<B>,
            Response = Response<impl Body<Data: Send> + Send + 'static>,
            Error: Into<BoxError>,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let rules = layer.rules();
        assert!(
            rules.completes,
            "nothing of a layer is kept whose rules do not say complete_abandoned"
        );
        let go_on: Continue = Arc::new(move |abandoned| {
            let service = service.clone();
            Box::pin(async move {
                let id = abandoned.record.id;
                match sent(service, abandoned).await {
                    Ok(status) => {
                        tracing::info!(operation = %id, status, "an operation was continued")
                    }
                    Err(error) => {
                        tracing::warn!(operation = %id, error, "an operation was not continued")
                    }
                }
            })
        });
        let before = self.services.insert(rules.namespace.clone(), go_on);
        let namespace = &rules.namespace;
        assert!(
            before.is_none(),
            "the namespace {namespace} has two services; give each its own by Rules::namespace, or hand \
             over one service with both of them"
        );
        self
    }

    /// Continues [calls](Once::run) of this name by `function`, which gets the input as it was kept. It has
    /// to be what they were run with.
    ///
    /// # Panics
    ///
    /// Where there is a function of this name already.
    pub fn register<I, T, E, W, F>(mut self, name: &str, function: W) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        T: Serialize + Send + 'static,
        E: Into<Failure>,
        W: Fn(Operation, I) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let once = self.once.clone();
        let go_on: Continue = Arc::new(move |Abandoned { record, kept }| {
            let (once, function) = (once.clone(), function.clone());
            Box::pin(async move {
                let id = record.id;
                let input: I = match kept.read() {
                    Ok(input) => input,
                    Err(error) => {
                        tracing::error!(operation = %id, %error, "what was kept is no input");
                        return;
                    }
                };
                let call = Call::from_kept(&record, &kept);
                let ran = once.run_json(
                    call,
                    Box::new(move |operation| {
                        let working = function(operation, input);
                        Box::pin(async move {
                            let result = working.await.map_err(Into::into)?;
                            Ok(serde_json::to_vec(&result)?)
                        })
                    }),
                );
                match ran.await {
                    Ok(_) => tracing::info!(operation = %id, "an operation was continued"),
                    Err(error) => {
                        tracing::warn!(operation = %id, %error, "an operation was continued")
                    }
                }
            })
        });
        let before = self.functions.insert(name.into(), go_on);
        assert!(before.is_none(), "there are two functions called {name}");
        self
    }

    /// How often it looks; every 10 seconds unless set.
    pub fn every(mut self, span: Duration) -> Self {
        self.every = span;
        self
    }

    /// How often it tries one operation; 10 times unless set. What kills its process every time is left
    /// alone after that.
    pub fn most_attempts(mut self, count: usize) -> Self {
        self.most_attempts = count;
        self
    }

    /// Looks now and then, from now on, as a task of the runtime that this is called on, until the
    /// [`Once`] is shut down.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(self) {
        let mut stopping = self.once.stopping();
        let looking = async move {
            loop {
                if let Err(error) = self.look(Some(self.every)).await {
                    tracing::warn!(%error, "what was abandoned could not be looked for");
                }
                sleep(self.every).await;
            }
        };
        tokio::spawn(async move {
            let looking = pin!(looking);
            tokio::select! {
                biased;
                () = stopping.stopped() => {}
                () = looking => {}
            }
        });
    }

    /// Looks once, and continues what it finds, to its end. Says how many operations that were.
    ///
    /// # Errors
    ///
    /// [`Trouble`] where the store does not answer.
    pub async fn round(&self) -> Result<usize, Trouble> {
        self.look(None).await
    }

    /// `patience` is how long it waits for the end of one: it goes on without that.
    async fn look(&self, patience: Option<Duration>) -> Result<usize, Trouble> {
        let found = self.abandoned().await?;
        let mut running = JoinSet::new();
        let mut continued = 0;
        for record in found {
            let Some((abandoned, go_on)) = self.of(record).await? else {
                continue;
            };
            while running.len() >= AT_ONCE {
                running.join_next().await;
            }
            continued += 1;
            let going = go_on(abandoned);
            running.spawn(async move {
                match patience {
                    None => going.await,
                    // What it has begun goes on.
                    Some(patience) => drop(timeout(patience, going).await),
                }
            });
        }
        while running.join_next().await.is_some() {}
        Ok(continued)
    }

    /// What may be continued by its state, oldest first.
    async fn abandoned(&self) -> Result<Vec<Arc<Record>>, Trouble> {
        let mut found = Vec::new();
        // Operations of which a step is unknown, with the scope that their steps are in: who has another
        // one may have a key that looks like theirs (I7).
        let mut stopped = HashSet::new();
        let mut older_than = None;
        for _ in 0..PAGES {
            let query = Query {
                state: Some(StateName::Unknown),
                older_than,
                limit: PAGE,
                ..Query::default()
            };
            let page = self.once.engine().list(query).await?;
            for stored in page.records {
                let record = stored.record;
                match (&record.state, record.scope.has_steps()) {
                    (_, true) => {
                        let id = operation_of(&record.key);
                        stopped.extend(id.map(|id| (id, record.scope.clone())));
                    }
                    (State::Unknown { reason, .. }, false) if may_go_on(*reason) => {
                        found.push(record);
                    }
                    _ => {}
                }
            }
            older_than = page.next;
            if older_than.is_none() {
                break;
            }
        }
        found.retain(|record| match record.state {
            State::Unknown {
                reason: UnknownReason::StepUnknown,
                ..
            } => !stopped.contains(&(record.id, record.scope.of_steps())),
            _ => true,
        });
        found.reverse();
        Ok(found)
    }

    /// What continues the operation of `record`, with what it was asked for. `None` where that was not
    /// kept, or it was tried often enough.
    async fn of(&self, record: Arc<Record>) -> Result<Option<(Abandoned, Continue)>, Trouble> {
        let go_on = match &*record.request.method {
            METHOD => self.functions.get(&record.request.path),
            _ => self.services.get(&record.scope.namespace),
        };
        let Some(go_on) = go_on.cloned() else {
            return Ok(None);
        };
        let Some(kept) = self.kept(&record).await? else {
            return Ok(None);
        };
        let Some(operation) = self.once.engine().operation(record.id).await? else {
            return Ok(None);
        };
        let attempts = operation.attempts.iter();
        let tried = attempts.filter(|attempt| &*attempt.peer == PEER).count();
        if tried >= self.most_attempts {
            tracing::debug!(operation = %record.id, tried, "an operation is left alone");
            return Ok(None);
        }
        Ok(Some((Abandoned { record, kept }, go_on)))
    }

    /// What the operation of `record` was asked for.
    async fn kept(&self, record: &Record) -> Result<Option<Recorded>, Trouble> {
        let engine = self.once.engine();
        let Ok(key) = Key::new(&format!("{}/{}", record.id, kept_name(&record.fingerprint))) else {
            return Ok(None);
        };
        let store = engine.store();
        let address = onlyonce_store::address(store.secret(), &record.scope.of_steps(), &key);
        let Some(stored) = store.load(address).await? else {
            return Ok(None);
        };
        // A stored value repeats its scope and key (I7).
        if stored.record.scope != record.scope.of_steps() || stored.record.key != key {
            return Ok(None);
        }
        match engine.recording(stored.record.id).await? {
            Some(reader) => Ok(read(reader).await.ok()),
            None => Ok(None),
        }
    }
}

/// Whether an operation that is unknown for this reason may be continued by itself.
fn may_go_on(reason: UnknownReason) -> bool {
    use UnknownReason::{NotRecorded, StepUnknown, Unfinished};
    owner_is_gone(reason) || matches!(reason, NotRecorded | Unfinished | StepUnknown)
}

/// The operation that a step with this key is of.
fn operation_of(key: &Key) -> Option<OperationId> {
    key.as_str().split_once('/')?.0.parse().ok()
}

/// Sends the request that was kept, and takes the answer to its end. Gives its status.
async fn sent<V, B, R>(mut service: V, abandoned: Abandoned) -> Result<u16, BoxError>
where
    V: Service<Request<B>, Response = Response<R>>,
    V::Error: Into<BoxError>,
    B: From<Bytes>,
    R: Body,
{
    let Abandoned { record, kept } = abandoned;
    let mut request = kept::request_of::<B>(&kept).ok_or("what was kept is no request")?;
    request.extensions_mut().insert(Continued {
        scope: record.scope.clone(),
        key: record.key.clone(),
        fingerprint: record.fingerprint,
    });
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(Into::into)?;
    let response = service.call(request).await.map_err(Into::into)?;
    if !response.headers().contains_key(&ONLYONCE_OPERATION) {
        return Err(
            "the service did not hand it to the layer: give it the routes with the layer".into(),
        );
    }
    let status = response.status().as_u16();
    let mut body = pin!(response.into_body());
    // Whether it breaks off, the record tells.
    while let Some(Ok(_)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {}
    Ok(status)
}
