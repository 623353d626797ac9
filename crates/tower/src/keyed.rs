//! The life of a request with a key: who asks, what for, what the engine decides, the answer.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use onlyonce_core::{Fingerprint, Key, Refusal, RequestLine, Scope, UnknownReason};
use onlyonce_engine::{Begin, Refused, Start, Ticket, Trouble};
use onlyonce_http::place::SETTLE_IN_A_SERVER;
use onlyonce_http::problem::Problem;
use onlyonce_http::tenant::{ANONYMOUS, HASHED_PREFIX};
use onlyonce_http::work::{is_reserved, reserved};
use onlyonce_http::{FingerprintBuilder, RequestIdentity, Status};
use onlyonce_store::Store;
use tower_service::Service;

use crate::completer::PEER;
use crate::doing::owner_is_gone;
use crate::execute::{self, Order};
use crate::kept::Continued;
use crate::rules::remembered;
use crate::service::{Asking, Route};
use crate::shell::attached::Stays;
use crate::shell::collecting::{Coming, NoBody};
use crate::shell::first::{self, Begun};
use crate::shell::reply::Reply;
use crate::shell::telling::{
    COME_AGAIN, Marking, log_trouble, marked, problem_of_refusal, problem_of_start,
    problem_of_trouble,
};
use crate::{BoxError, RequestBody, ResponseBody};

/// Answers a request whose key is `key`.
pub(crate) async fn answer<S, I, B, R>(
    route: Arc<Route<S>>,
    inner: I,
    key: Key,
    request: Request<B>,
    stays: Stays,
) -> Response<ResponseBody<R>>
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>> + Send + 'static,
    I::Future: Send,
    I::Error: Into<BoxError> + Send,
    B: Body<Data = Bytes> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let asking = Asking::of(&request);
    let attempt = match route.attempt(key, request).await {
        Ok(attempt) => attempt,
        Err(problem) => return route.refuse(&problem, &Marking::default(), asking),
    };
    // Whoever leaves a slow store again and again would begin anew each time, and never come to execute.
    let staying = (!route.rules.cancels).then(|| stays.stay());
    let shared = route.once.shared();
    let policy = route.rules.for_engine(shared.engine.store().now());
    let begun = shared
        .engine
        .begin(attempt.engine_request(&route), &policy)
        .await;
    drop(staying);
    let (mut reader, status) = match begun {
        Ok(Begin::Replay(_) | Begin::Join(_)) if stays.is_alone() => {
            return Response::new(ResponseBody::recorded(Reply::empty()));
        }
        Err(trouble) => {
            let problem = route.problem_of(&trouble);
            return route.refuse(&problem, &Marking::default(), asking);
        }
        Ok(Begin::Refuse(Refused { refusal, ticket })) => {
            let marking = Marking {
                ticket,
                ..Marking::default()
            };
            let problem = route.problem_of_refusal(refusal, ticket);
            return route.refuse(&problem, &marking, asking);
        }
        Ok(Begin::Execute(execution, reader)) => {
            let order = Order::new(attempt, inner, &route, &execution, reader.ticket());
            let begun = execute::first(&route, execution, order, reader).await;
            return route.told(begun, Status::Executed, asking);
        }
        Ok(Begin::Replay(reader)) => (reader, Status::Replayed),
        Ok(Begin::Join(reader)) => (reader, Status::Joined),
    };
    if route.rules.after_durable {
        reader.hold_until_durable();
    }
    let mut follower = None;
    if route.rules.cancels && status == Status::Joined {
        follower = shared.audiences.join(reader.ticket().id, None);
        if follower.is_none() {
            // The execution is being cancelled: a head would promise a body that never comes.
            reader.hold_until_durable();
        }
    }
    let begun = first::followed(reader, follower).await;
    route.told(begun, status, asking)
}

/// One attempt, read whole.
pub(crate) struct Attempt {
    pub(crate) head: Parts,
    pub(crate) body: Bytes,
    pub(crate) scope: Scope,
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    /// Whether a completer sends it, and not a caller.
    pub(crate) continues: bool,
}

impl Attempt {
    fn engine_request<S: Store>(&self, route: &Route<S>) -> onlyonce_engine::Request {
        onlyonce_engine::Request {
            scope: self.scope.clone(),
            key: self.key.clone(),
            fingerprint: self.fingerprint,
            line: RequestLine {
                route: route.rules.namespace.clone(),
                method: self.head.method.as_str().into(),
                path: path_of(&self.head).into(),
                trace: None,
            },
            peer: if self.continues { PEER } else { "" }.into(),
            asked_model: "".into(),
            sdk_retry_count: onlyonce_http::headers::sdk_retry_count(&self.head.headers),
            trace: None,
        }
    }
}

impl<S: Store> Route<S> {
    async fn attempt<B>(&self, key: Key, request: Request<B>) -> Result<Attempt, Problem>
    where
        B: Body<Data = Bytes>,
    {
        let rules = &self.rules;
        let (mut head, body) = request.into_parts();
        if is_reserved(&head.method) {
            return Err(reserved(&head.method));
        }
        let continued = head.extensions.remove::<Continued>();
        let tenant = match &continued {
            Some(continued) => continued.scope.tenant.clone(),
            None => self.tenant_of(&head).ok_or(Problem::CredentialMissing)?,
        };
        let identity = RequestIdentity {
            method: &head.method,
            upstream: &rules.namespace,
            path: path_of(&head),
            query: head.uri.query(),
            headers: &head.headers,
        };
        let hash_keys = &self.once.shared().hash_keys;
        let mut fingerprint = FingerprintBuilder::new(hash_keys, &identity, &rules.fingerprint);
        let collected = collect(pin!(body), self, &mut fingerprint).await;
        let body = collected.map_err(|error| match error {
            NoBody::TooLarge => Problem::BodyTooLarge {
                limit_name: "max_request_body",
                limit: rules.max_request,
            },
            NoBody::TooSlow => Problem::RequestTimeout {
                limit_name: "body_timeout",
                limit: rules.body_timeout,
            },
            NoBody::Broken => Problem::BadRequest {
                why: "the body did not come whole, or is not framed as it should be".into(),
            },
        })?;
        let taken = fingerprint.finish();
        let continues = continued.is_some();
        // What is continued is the same request, though not all of it was kept.
        let fingerprint = continued.map_or(taken, |continued| continued.fingerprint);
        Ok(Attempt {
            head,
            body,
            scope: Scope {
                tenant,
                namespace: rules.namespace.clone(),
            },
            key,
            fingerprint,
            continues,
        })
    }

    /// `None` where the caller is nobody and has to be somebody.
    fn tenant_of(&self, head: &Parts) -> Option<Box<str>> {
        let rules = &self.rules;
        let named = rules.tenant_of.as_ref().and_then(|of| of(head));
        if let Some(name) = named.filter(|name| is_name(name)) {
            return Some(name);
        }
        let tenants = &self.once.shared().tenants;
        let tenant = tenants.tenant_of(&head.headers, None, None);
        (!tenant.is_anonymous() || rules.allow_anonymous).then(|| tenant.name().into())
    }

    fn problem_of(&self, trouble: &Trouble) -> Problem {
        let shared = self.once.shared();
        log_trouble(
            &shared.store_down,
            trouble,
            "look at the store's server or disk",
        );
        problem_of_trouble(trouble, |name| match name {
            "tenant_live" => (name, Some(shared.settings.tenant_live as u64)),
            "live_operations" => (name, Some(shared.settings.live_operations as u64)),
            // One of the store's own.
            _ => (name, None),
        })
    }

    /// The answer that has begun, marked as what it is.
    fn told<R>(&self, begun: Begun, status: Status, asking: Asking) -> Response<ResponseBody<R>> {
        match begun {
            Begun::Answer {
                response,
                kind,
                ticket,
            } => {
                let (response, _) = marked(response, kind, status, &marking_of(ticket));
                response.map(ResponseBody::recorded)
            }
            Begun::Nothing { start, why, ticket } => {
                let problem = match (&start, why) {
                    (Start::Unknown(reason), why) => self.problem_of_unknown(*reason, why),
                    _ => problem_of_start(start, &self.rules.namespace, self.rules.join_timeout),
                };
                self.refuse(&problem, &marking_of(ticket), asking)
            }
        }
    }

    /// What an attempt is told that is refused.
    fn problem_of_refusal(&self, refusal: Refusal, ticket: Option<Ticket>) -> Problem {
        let span = remembered(self.rules.steps_window);
        let now = self.once.shared().engine.store().now();
        let is_too_old = |ticket: Ticket| ticket.id.first_claimed().after(span) < now;
        match refusal {
            Refusal::Unknown(reason) if self.rules.resumes() && ticket.is_some_and(is_too_old) => {
                Problem::StepsUnknown {
                    why: format!(
                        "The operation stopped ({reason}), and was begun so long ago that what its \
                         steps did may be forgotten: it is not continued"
                    ),
                    next: format!(
                        "Find out what it did. Then an operator settles the operation, \
                         {SETTLE_IN_A_SERVER}. Every retry with this key gets this answer until it \
                         is settled."
                    )
                    .into(),
                }
            }
            Refusal::Unknown(reason) => self.problem_of_unknown(reason, None),
            refusal => problem_of_refusal(refusal),
        }
    }

    /// What is told of an operation whose outcome is unknown; `why` is what its owner has said.
    fn problem_of_unknown(&self, reason: UnknownReason, why: Option<Arc<str>>) -> Problem {
        let what = match &why {
            Some(why) => why,
            None => reason.as_str(),
        };
        match reason {
            UnknownReason::StepUnknown => Problem::StepsUnknown {
                why: format!("The operation stopped: {what}"),
                next: format!(
                    "Find out whether the step ran. Then an operator settles the step, by its own \
                     id, {SETTLE_IN_A_SERVER}. A retry with this key continues the operation after \
                     that, where its rules let it resume."
                )
                .into(),
            },
            reason
                if self.rules.resumes()
                    && (reason == UnknownReason::Unfinished || owner_is_gone(reason)) =>
            {
                Problem::Unfinished {
                    why: format!("The operation stopped: {what}"),
                    retry_after: COME_AGAIN,
                }
            }
            // It did not answer in time, and may still do so.
            UnknownReason::TimedOut => Problem::OutcomeUnknown(reason),
            _ if self.rules.resumes() => Problem::StepsUnknown {
                why: format!("The operation stopped: {what}. What its steps have done is recorded"),
                next: "Find out why it stopped. A retry with this key executes it again, and it \
                       continues after its last finished step."
                    .into(),
            },
            reason => Problem::OutcomeUnknown(reason),
        }
    }
}

fn marking_of(ticket: Ticket) -> Marking<'static> {
    Marking {
        ticket: Some(ticket),
        ..Marking::default()
    }
}

/// Whether a tenant may be called so: the other names are those of callers that nobody named.
fn is_name(name: &str) -> bool {
    let is_ours = name == ANONYMOUS || name.starts_with(HASHED_PREFIX);
    if is_ours {
        tracing::error!(name, "a tenant cannot be called so; give it another name");
    }
    !name.is_empty() && !is_ours
}

/// The path that the caller asked for.
pub(crate) fn path_of(head: &Parts) -> &str {
    // A router that is nested in another one sees only the rest of it, and two requests to different
    // routers must not look like one.
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(uri)) = head.extensions.get() {
        return uri.path();
    }
    head.uri.path()
}

/// Takes in the whole body, and shows each piece of it to `fingerprint`.
async fn collect<S: Store>(
    body: impl Body<Data = Bytes> + Unpin,
    route: &Route<S>,
    fingerprint: &mut FingerprintBuilder<'_>,
) -> Result<Bytes, NoBody> {
    let rules = &route.rules;
    let mut coming = Coming::new(body, rules.max_request, rules.body_timeout)?;
    let announced = coming.announced();
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(data) = coming.next().await? {
        fingerprint.body_chunk(&data);
        if first.is_empty() {
            // Most bodies are no more.
            first = data;
        } else {
            if rest.is_empty() {
                rest.reserve(usize::try_from(announced).unwrap_or(0).max(2 * first.len()));
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(match rest.is_empty() {
        true => first,
        false => rest.freeze(),
    })
}
