//! Functions that run once, without HTTP: jobs, messages, tools.

use std::sync::Arc;
use std::time::Duration;

use onlyonce_core::{
    HeaderBlock, Key, Metered, OnUnknown, OperationId, Policy, RequestLine, Scope, UnknownReason,
};
use onlyonce_engine::{RoutePolicy, Trouble};
use onlyonce_http::fingerprint_of_parts;
use onlyonce_http::tenant::ANONYMOUS;
use onlyonce_store::Store;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::caught::caught;
use crate::doing::{Began, BoxFuture, Came, Desk, NotDone, Recorded, Task, Undone, Work};
use crate::failure::Failure;
use crate::input::Input;
use crate::operation::{Executing, Making, Ruling};
use crate::rules::{DEFAULT_STEPS_WINDOW, remembered, resume_policy, steps_window};
use crate::shell::attached::Attached;
use crate::step::keep;
use crate::{BoxError, Once, Operation, Outcome};

/// The method of what runs without HTTP, for people who look at a list.
pub(crate) const METHOD: &str = "RUN";

/// Names one thing that is to run once: see [`Once::run`].
///
/// ```
/// use onlyonce_tower::{Call, Key};
/// # fn example(message_id: &str, order: &str) -> Result<Call, Box<dyn std::error::Error>> {
/// let call = Call::new(Key::new(message_id)?).name("report").input(&order);
/// # Ok(call) }
/// ```
#[derive(Clone, Debug)]
pub struct Call {
    key: Key,
    tenant: Box<str>,
    namespace: Box<str>,
    name: Box<str>,
    input: Input,
    window: Duration,
    join_timeout: Duration,
    resumes: bool,
    completes: bool,
    steps_window: Duration,
    /// Who asks, where that is not the caller.
    peer: &'static str,
}

impl Call {
    /// One thing to do, called `key`: made before the first attempt, of what stays the same over retries
    /// (the id of the message, or of the row).
    pub fn new(key: Key) -> Self {
        Self {
            key,
            tenant: ANONYMOUS.into(),
            namespace: "run".into(),
            name: "run".into(),
            input: Input::default(),
            window: Duration::from_secs(24 * 3_600),
            join_timeout: Duration::from_secs(600),
            resumes: false,
            completes: false,
            steps_window: DEFAULT_STEPS_WINDOW,
            peer: "",
        }
    }

    /// What it is: `run` unless set. A [`Completer`](crate::Completer) knows functions by this name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// What it is to do. The same key with another input is a mistake, and is refused. It is compared as
    /// canonical JSON (RFC 8785), and kept only where [`Call::complete_abandoned`] says so.
    pub fn input(mut self, input: &impl Serialize) -> Self {
        self.input = Input::of(input);
        self
    }

    /// Whose it is; `anonymous` unless set. Keys of two tenants have nothing to do with each other.
    pub fn tenant(mut self, tenant: &str) -> Self {
        self.tenant = tenant.into();
        self
    }

    /// Keys are unique within a tenant and this name; `run` unless set. One that ends in `/steps` is
    /// refused ([`RunError::Reserved`]): that is where the steps of operations are.
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespace = name.into();
        self
    }

    /// How long its result is kept, counted from completion; 24 hours unless set.
    pub fn window(mut self, span: Duration) -> Self {
        self.window = span;
        self
    }

    /// How long one that finds it running waits for the result; 10 minutes unless set.
    pub fn join_timeout(mut self, span: Duration) -> Self {
        self.join_timeout = span;
        self
    }

    /// Where nobody can say whether it ran, it is run again: see [`Rules::resume`](crate::Rules::resume),
    /// which says when that is right.
    pub fn resume(mut self) -> Self {
        self.resumes = true;
        self
    }

    /// As [`Rules::steps_window`](crate::Rules::steps_window); 30 days unless set.
    pub fn steps_window(mut self, span: Duration) -> Self {
        self.steps_window = steps_window(span);
        self
    }

    /// Its input is kept, so that a [`Completer`](crate::Completer) can continue it when its process has
    /// died. Only for what may [resume](Call::resume), which it says too. Keep credentials out of the input.
    pub fn complete_abandoned(mut self) -> Self {
        self.resumes = true;
        self.completes = true;
        self
    }
}

/// Why there is no result of what was to run once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The key was used with another input or name. Nothing was run.
    #[error("the key was used before with another input or name")]
    KeyReused,
    /// Somebody is at it still.
    #[error("somebody is at it still")]
    InFlight,
    /// Nothing ran, for certain: it may be run again.
    #[error("nothing ran: {why}")]
    DidNotRun {
        /// What happened, in words.
        why: Arc<str>,
        /// What it failed with, where it ran here.
        source: Option<BoxError>,
    },
    /// It stopped between two steps. Run again with the same key, it continues.
    #[error("it stopped between two steps, and continues when it is run again: {why}")]
    Unfinished {
        /// The operation. `None` where its record cannot be read.
        operation: Option<OperationId>,
        /// Where it stopped, in words.
        why: Arc<str>,
        /// What it failed with, where it ran here.
        source: Option<BoxError>,
    },
    /// It may have run, and nobody can say. It is not run again before somebody has settled it, or the
    /// step that it names.
    #[error("it may have run, and nobody can say: {why}")]
    Unknown {
        /// The operation. `None` where its record cannot be read.
        operation: Option<OperationId>,
        /// Why that is so.
        reason: UnknownReason,
        /// The same in words, and with what is known here.
        why: Arc<str>,
        /// What it failed with, where it ran here.
        source: Option<BoxError>,
    },
    /// The store, or a limit. Nothing was run.
    #[error("nothing was run: {0}")]
    Trouble(#[from] Trouble),
    /// The call's namespace is one of steps. Nothing was run.
    #[error(
        "the namespace {namespace} ends in /steps, where the steps of operations are; give it another name"
    )]
    Reserved {
        /// The namespace.
        namespace: Box<str>,
    },
    /// The input is no JSON, or what is recorded is no result of the type that is asked for.
    #[error("{0}")]
    BadJson(String),
}

/// What does it, if it is to be done here.
pub(crate) type Function =
    Box<dyn FnOnce(Operation) -> BoxFuture<'static, Result<Vec<u8>, Failure>> + Send>;

impl<S: Store> Once<S> {
    /// Runs `work` once under the key of `call`: for jobs, messages and tools, without HTTP. Whoever comes
    /// later with the key gets its result; whoever comes while it runs waits for it. A caller that goes
    /// away stops nothing.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use onlyonce_tower::{Call, Failure, Key, Once};
    ///
    /// let once = Once::in_memory();
    /// let call = || Call::new(Key::new("message-17").unwrap()).name("report").input(&"october");
    /// for _ in 0..2 {
    ///     let pages: u32 = once.run(call(), async |_operation| Ok::<_, Failure>(3)).await?;
    ///     assert_eq!(pages, 3);
    /// }
    /// # Ok(()) }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`RunError`]. What `work` says by its error is on the page of [`Failure`].
    pub async fn run<T, E, W, F>(&self, call: Call, work: W) -> Result<T, RunError>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Into<Failure>,
        W: FnOnce(Operation) -> F + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let function: Function = Box::new(move |operation| {
            let working = work(operation);
            Box::pin(async move {
                let result = working.await.map_err(Into::into)?;
                Ok(serde_json::to_vec(&result)?)
            })
        });
        let recorded = self.run_json(call, function).await?;
        let read = recorded.read();
        read.map_err(|error| {
            RunError::BadJson(format!("what is recorded is no such result: {error}"))
        })
    }

    /// As [`Once::run`], with a result that is JSON already.
    pub(crate) async fn run_json(&self, call: Call, work: Function) -> Result<Recorded, RunError> {
        let once = self.clone();
        Attached::new(async move { once.ran(call, work).await }).await
    }

    async fn ran(self, call: Call, work: Function) -> Result<Recorded, RunError> {
        let shared = self.shared_handle();
        let input = call.input.canonical().map_err(RunError::BadJson)?;
        let parts = [b"run".as_slice(), call.name.as_bytes(), &input];
        let fingerprint = fingerprint_of_parts(&shared.hash_keys, &parts);
        let scope = Scope {
            tenant: call.tenant.clone(),
            namespace: call.namespace.clone(),
        };
        if scope.has_steps() {
            let namespace = scope.namespace;
            return Err(RunError::Reserved { namespace });
        }
        let on_unknown = match call.resumes {
            true => resume_policy(shared.now(), call.steps_window),
            false => OnUnknown::Report,
        };
        let task = Task {
            request: onlyonce_engine::Request {
                scope: scope.clone(),
                key: call.key.clone(),
                fingerprint,
                line: RequestLine {
                    route: call.namespace.clone(),
                    method: METHOD.into(),
                    path: call.name.clone(),
                    trace: None,
                },
                peer: call.peer.into(),
                asked_model: "".into(),
                sdk_retry_count: None,
                trace: None,
            },
            policy: RoutePolicy {
                decision: Policy {
                    on_unknown,
                    ..Policy::default()
                },
                window: call.window,
                join_timeout: call.join_timeout,
            },
        };
        let (resumes, span) = (call.resumes, remembered(call.steps_window));
        let kept = match call.completes {
            true => Some(call.kept().map_err(RunError::BadJson)?),
            false => None,
        };
        let desk = shared.clone();
        let work: Work<'_> = Box::new(move |Began { ticket, resumed }| {
            let making = Making {
                id: ticket.id,
                attempt: ticket.attempt,
                scope,
                key: call.key,
                fingerprint,
                resumed,
                steps_window: call.steps_window,
                join_timeout: call.join_timeout,
            };
            let operation = Operation::new(making, &desk.hash_keys, desk.clone());
            Box::pin(execute(Executing::new(operation), kept, work))
        });
        let done = shared.once(task, work).await;
        done.map_err(|not_done| {
            let is_too_old = |id: OperationId| shared.now() >= id.first_claimed().after(span);
            match error_of(not_done, resumes) {
                RunError::Unknown {
                    operation,
                    reason,
                    why,
                    source,
                } if resumes && operation.is_some_and(is_too_old) => RunError::Unknown {
                    operation,
                    reason,
                    why: format!(
                        "{why}; it was begun so long ago that what its steps did may be forgotten, so \
                         it is not continued: find out what it did, and settle it"
                    )
                    .into(),
                    source,
                },
                error => error,
            }
        })
    }
}

/// Calls the function, and says what became of the operation.
async fn execute(operation: Executing, kept: Option<Recorded>, work: Function) -> Came {
    if let Some(kept) = kept
        && let Err(why) = keep(&operation, kept).await
    {
        return Came::nothing(&why);
    }
    let worked = caught(|| work(Operation::clone(&operation))).await;
    let (result, released) = match worked {
        Err(_) => (Came::panicked().result, None),
        Ok(Ok(json)) => (Ok(Recorded::json(json)), None),
        Ok(Err(failure)) => {
            let why = failure.to_string();
            let released = failure.of_operation() == Outcome::Released;
            let undone = Undone {
                lost: (!released).then_some(UnknownReason::HandlerFailed),
                why: why.clone(),
                error: Some(failure.into_error()),
            };
            (Err(undone), released.then_some(why))
        }
    };
    let result = match operation.ruling(released.as_deref()) {
        None => result,
        Some(Ruling { reason, words }) => Err(Undone {
            lost: Some(reason),
            why: words.why.to_string(),
            error: result.err().and_then(|undone| undone.error),
        }),
    };
    let metered: Option<Metered> = operation.metered();
    Came { result, metered }
}

fn error_of(not_done: NotDone, resumes: bool) -> RunError {
    match not_done {
        NotDone::Trouble(trouble) => RunError::Trouble(trouble),
        NotDone::KeyReused => RunError::KeyReused,
        NotDone::InFlight => RunError::InFlight,
        NotDone::Released { why, error } => RunError::DidNotRun { why, source: error },
        NotDone::Unknown {
            id: operation,
            reason,
            why,
            error: source,
        } => {
            let why = why.unwrap_or_else(|| reason.as_str().into());
            match resumes && reason == UnknownReason::Unfinished {
                true => RunError::Unfinished {
                    operation,
                    why,
                    source,
                },
                false => RunError::Unknown {
                    operation,
                    reason,
                    why,
                    source,
                },
            }
        }
    }
}

const WINDOW: &[u8] = b"onlyonce-kept-window-ms";
const STEPS_WINDOW: &[u8] = b"onlyonce-kept-steps-window-ms";

impl Call {
    /// What a completer needs to run it again.
    fn kept(&self) -> Result<Recorded, String> {
        let [window, steps] =
            [self.window, self.steps_window].map(|span| span.as_millis().to_string());
        let mut kept = Recorded::json(self.input.json()?.to_vec());
        let fields = [
            (b"content-type".as_slice(), b"application/json".as_slice()),
            (WINDOW, window.as_bytes()),
            (STEPS_WINDOW, steps.as_bytes()),
        ];
        kept.headers = HeaderBlock::pack(fields).map_err(|error| error.to_string())?;
        Ok(kept)
    }

    /// The call of `record`, as it was kept, for a completer.
    pub(crate) fn from_kept(record: &onlyonce_core::Record, kept: &Recorded) -> Self {
        let span = |wanted: &[u8], otherwise| {
            let value = kept.headers.iter().find(|(name, _)| *name == wanted);
            let millis = value.and_then(|(_, value)| str::from_utf8(value).ok()?.parse().ok());
            millis.map_or(otherwise, Duration::from_millis)
        };
        let call = Self::new(record.key.clone());
        Self {
            tenant: record.scope.tenant.clone(),
            namespace: record.scope.namespace.clone(),
            name: record.request.path.clone(),
            input: Input::kept(&kept.body),
            window: span(WINDOW, call.window),
            steps_window: span(STEPS_WINDOW, call.steps_window),
            resumes: true,
            completes: true,
            peer: crate::completer::PEER,
            ..call
        }
    }
}
