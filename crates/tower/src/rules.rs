//! What a layer wants where the contract leaves a choice.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, StatusCode};
use onlyonce_core::{Concurrent, OnUnknown, Policy, Scope, Timestamp};
use onlyonce_engine::RoutePolicy;
use onlyonce_http::canonical_json::Pointer;
use onlyonce_http::{BodyRule, FingerprintRules};

/// Tells who the caller of a request is.
type TenantOf = Arc<dyn Fn(&Parts) -> Option<Box<str>> + Send + Sync>;

/// What one [`OnceLayer`](crate::OnceLayer) wants. Every rule has a default; each method says which.
///
/// ```
/// use std::time::Duration;
/// use onlyonce_tower::Rules;
///
/// let rules = Rules::default()
///     .require_key()
///     .window(Duration::from_secs(7 * 86_400))
///     .tenant(|request| request.extensions.get::<String>().cloned());
/// ```
#[derive(Clone)]
pub struct Rules {
    pub(crate) namespace: Box<str>,
    pub(crate) require_key: bool,
    pub(crate) key_headers: Vec<HeaderName>,
    pub(crate) tenant_of: Option<TenantOf>,
    pub(crate) allow_anonymous: bool,
    concurrent: Concurrent,
    on_unknown: Again,
    pub(crate) completes: bool,
    pub(crate) steps_window: Duration,
    pub(crate) window: Duration,
    pub(crate) join_timeout: Duration,
    pub(crate) cancels: bool,
    pub(crate) after_durable: bool,
    pub(crate) released: Vec<StatusCode>,
    pub(crate) fingerprint: FingerprintRules,
    pub(crate) allow_set_cookie: bool,
    pub(crate) max_request: u64,
    pub(crate) body_timeout: Duration,
    pub(crate) answer_timeout: Duration,
    pub(crate) between_bytes_timeout: Duration,
    pub(crate) total_timeout: Duration,
    pub(crate) late_answer: Duration,
    pub(crate) public_url: Option<Box<str>>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            namespace: "service".into(),
            require_key: false,
            key_headers: vec![HeaderName::from_static("idempotency-key")],
            tenant_of: None,
            allow_anonymous: false,
            concurrent: Concurrent::default(),
            on_unknown: Again::Never,
            completes: false,
            steps_window: DEFAULT_STEPS_WINDOW,
            window: minutes(24 * 60),
            join_timeout: minutes(10),
            cancels: false,
            after_durable: false,
            released: Vec::new(),
            fingerprint: FingerprintRules::default(),
            allow_set_cookie: false,
            max_request: 2 << 20,
            body_timeout: Duration::from_secs(30),
            answer_timeout: minutes(10),
            between_bytes_timeout: minutes(2),
            total_timeout: minutes(60),
            late_answer: minutes(10),
            public_url: None,
        }
    }
}

/// Whether a handler runs again where nobody can say whether it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    Never,
    Always,
    /// For as long as what its steps have done is remembered.
    Resumes,
}

/// How long what steps have done is kept, unless set.
pub(crate) const DEFAULT_STEPS_WINDOW: Duration = minutes(30 * 24 * 60);

/// The longest that they are kept: what an operator settles is kept for longer.
const MAX_STEPS_WINDOW: Duration = minutes(365 * 24 * 60);

/// How long steps are kept that are to be kept for `span`.
pub(crate) fn steps_window(span: Duration) -> Duration {
    span.min(MAX_STEPS_WINDOW)
}

/// How long after its first claim an operation may be executed again: a day less than its steps are
/// remembered at least, or a tenth less where they are not remembered for long. An execution that begins at
/// the last moment is over by then, or its next step finds that it is too late.
pub(crate) fn remembered(steps_window: Duration) -> Duration {
    steps_window - (steps_window / 10).min(minutes(24 * 60))
}

/// What becomes of an unknown operation that is made of steps.
pub(crate) fn resume_policy(now: Timestamp, steps_window: Duration) -> OnUnknown {
    let span = u64::try_from(remembered(steps_window).as_millis()).unwrap_or(u64::MAX);
    let since = now.as_millis().saturating_sub(span);
    OnUnknown::ResendIfClaimedSince(Timestamp::from_millis(since))
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

impl Rules {
    /// Keys are unique within a tenant and this name; `service` unless set. Give services that share a
    /// store names of their own.
    ///
    /// # Panics
    ///
    /// Where it ends in `/steps`: that is where the steps of operations are.
    pub fn namespace(mut self, name: &str) -> Self {
        assert!(
            !name.ends_with(Scope::STEPS),
            "the namespace {name} ends in {}, where the steps of operations are; give it another name",
            Scope::STEPS
        );
        self.namespace = name.into();
        self
    }

    /// Refuses a request without a key, unless its method is safe. By default it passes, unprotected.
    pub fn require_key(mut self) -> Self {
        self.require_key = true;
        self
    }

    /// The headers that a key may come in; `Idempotency-Key` unless set.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn key_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.key_headers = names.into_iter().collect();
        assert!(!self.key_headers.is_empty(), "a key comes in some header");
        self
    }

    /// Who the caller of a request is, from its head: what an authentication layer outside of this one
    /// has put into its extensions, for example. Keys of two tenants have nothing to do with each other.
    ///
    /// Who gets no name here (`None`) is known by the credential that it sends (`Authorization`,
    /// `x-api-key` and the like), of which only a keyed hash is kept; so is everybody by default. A cookie
    /// is no credential: where your callers have nothing else, you have to say who they are.
    pub fn tenant<F, T>(mut self, tenant_of: F) -> Self
    where
        F: Fn(&Parts) -> Option<T> + Send + Sync + 'static,
        T: Into<Box<str>>,
    {
        self.tenant_of = Some(Arc::new(move |head| tenant_of(head).map(Into::into)));
        self
    }

    /// Serves callers that are nobody, all as one tenant: they may get each other's answers where they
    /// use the same key for the same request. By default they are refused with 401.
    pub fn allow_anonymous(mut self) -> Self {
        self.allow_anonymous = true;
        self
    }

    /// An attempt that finds the operation running is told so (409) instead of joining it.
    pub fn reject_concurrent(mut self) -> Self {
        self.concurrent = Concurrent::Reject;
        self
    }

    /// How long an attempt that joins waits for the answer to begin; 10 minutes unless set.
    pub fn join_timeout(mut self, span: Duration) -> Self {
        self.join_timeout = span;
        self
    }

    /// How long a completed operation answers retries, counted from its completion; 24 hours unless
    /// set.
    pub fn window(mut self, span: Duration) -> Self {
        self.window = span;
        self
    }

    /// The handler may run again where nobody can say whether it ran. Only for a handler that does
    /// everything under keys that are the same in every execution ([`Operation::key_for`]), towards
    /// services that honour them.
    ///
    /// [`Operation::key_for`]: crate::Operation::key_for
    pub fn run_again_on_unknown(mut self) -> Self {
        self.on_unknown = Again::Always;
        self
    }

    /// The handler is made of [steps](crate::Operation::step), and runs again where nobody can say how far
    /// it came: it continues after its last finished step.
    ///
    /// Right where everything that the handler does, and that must not be done twice, is in a step, and
    /// what decides which steps there are follows from the request and from the results of earlier steps.
    /// Reading, and what may be done twice, may stand outside.
    ///
    /// An operation that was begun longer ago than its steps are remembered for certain
    /// ([`Rules::steps_window`], less a margin) is not continued.
    pub fn resume(mut self) -> Self {
        self.on_unknown = Again::Resumes;
        self
    }

    /// How long what a step has done is kept, counted from its completion; 30 days unless set, and a year
    /// at most. As long ago, less a day (or a tenth, where that is less), an operation may have been begun
    /// that is continued.
    ///
    /// Do not raise it while operations wait to be continued that were begun under a shorter one: their steps
    /// are kept for that.
    pub fn steps_window(mut self, span: Duration) -> Self {
        self.steps_window = steps_window(span);
        self
    }

    /// The request is kept beside its operation before the handler begins, so that a
    /// [`Completer`](crate::Completer) can continue it when the process has died. It [resumes](Self::resume)
    /// too. It costs two more durable writes for each operation.
    ///
    /// Kept are the method, path and query, the body, and of the headers content type, encoding and
    /// language, `Accept`, `Accept-Language` and [those that are compared](Self::fingerprint_headers); no
    /// credential ever. A request whose query may hold one (`access_token`, `key` ...) is not kept. Put
    /// none into a body.
    pub fn complete_abandoned(mut self) -> Self {
        self.completes = true;
        self.resume()
    }

    /// The handler is dropped when everybody who waits for its answer has left, and the outcome is
    /// unknown then. By default it goes on, and its answer is there for the retry.
    pub fn cancel_when_all_left(mut self) -> Self {
        self.cancels = true;
        self
    }

    /// No byte of an answer goes out before all of it is recorded. By default it streams, and only its
    /// end waits.
    pub fn after_durable(mut self) -> Self {
        self.after_durable = true;
        self
    }

    /// The statuses by which the handler says that nothing ran, so that the key is free again; none
    /// unless set. Say it of single answers with [`DidNotRun`](crate::DidNotRun).
    ///
    /// A status that is listed here must mean it every time: a 503 that a handler may answer after it
    /// has charged somebody is not one.
    pub fn released(mut self, statuses: impl IntoIterator<Item = StatusCode>) -> Self {
        self.released = statuses.into_iter().collect();
        self
    }

    /// The headers that make another request, besides content type and encoding; none unless set.
    pub fn fingerprint_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.fingerprint.headers = names.into_iter().collect();
        self
    }

    /// Compares bodies that are JSON as canonical JSON (RFC 8785), without what `ignore` points at. By
    /// default every body is compared byte by byte.
    pub fn json_bodies(mut self, ignore: impl IntoIterator<Item = Pointer>) -> Self {
        self.fingerprint.body = BodyRule::Json {
            ignore: ignore.into_iter().collect(),
        };
        self
    }

    /// Replays carry `Set-Cookie`. By default only the caller that the handler ran for gets it.
    pub fn allow_set_cookie(mut self) -> Self {
        self.allow_set_cookie = true;
        self
    }

    /// Bytes of the body of a keyed request, which is collected in memory; 2 MiB unless set.
    pub fn max_request_body(mut self, bytes: u64) -> Self {
        self.max_request = bytes;
        self
    }

    /// How long the body of a keyed request may take to come in, if it comes slower than 16 KiB a
    /// second; 30 seconds unless set.
    pub fn body_timeout(mut self, span: Duration) -> Self {
        self.body_timeout = span;
        self
    }

    /// How long the handler may take to answer; 10 minutes unless set. The outcome is unknown then,
    /// until the answer comes: see [`Rules::late_answer`].
    pub fn answer_timeout(mut self, span: Duration) -> Self {
        self.answer_timeout = span;
        self
    }

    /// How long the body of an answer may pause; 2 minutes unless set.
    pub fn between_bytes_timeout(mut self, span: Duration) -> Self {
        self.between_bytes_timeout = span;
        self
    }

    /// How long an execution may take to the end of its answer; 1 hour unless set.
    pub fn total_timeout(mut self, span: Duration) -> Self {
        self.total_timeout = span;
        self
    }

    /// For how long after its time the handler runs on, so that its late answer can still complete the
    /// operation; 10 minutes unless set.
    pub fn late_answer(mut self, span: Duration) -> Self {
        self.late_answer = span;
        self
    }

    /// Where `/problems/NAME` is served, for the links in problem documents; without it they are
    /// relative. [`problem_pages`](onlyonce_http::problem_pages) has the pages.
    pub fn public_url(mut self, url: &str) -> Self {
        self.public_url = Some(url.trim_end_matches('/').into());
        self
    }

    pub(crate) fn resumes(&self) -> bool {
        self.on_unknown == Again::Resumes
    }

    /// For an attempt that comes at the moment `now` of the store's clock.
    pub(crate) fn for_engine(&self, now: Timestamp) -> RoutePolicy {
        let on_unknown = match self.on_unknown {
            Again::Never => OnUnknown::Report,
            Again::Always => OnUnknown::Resend,
            Again::Resumes => resume_policy(now, self.steps_window),
        };
        RoutePolicy {
            decision: Policy {
                concurrent: self.concurrent,
                on_unknown,
            },
            window: self.window,
            join_timeout: self.join_timeout,
        }
    }
}
