//! The life of a request, from its head to its answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;
use onlyonce_core::Key;
use onlyonce_http::framing::{self, FramingError};
use onlyonce_http::headers::InboundHop;
use onlyonce_http::key_of;
use onlyonce_http::marks::write_should_retry;
use onlyonce_http::problem::{Problem, ProblemContext};
use onlyonce_http::work::{is_reserved, reserved};
use onlyonce_store::Store;
use onlyonce_tower::shell::attached::{Attached, Stays};
use onlyonce_tower::shell::audience::Presence;

use super::connection::Answers;
use super::keyed;
use super::mcp;
use super::passthrough::{self, Came};
use super::path::{Path, host};
use super::reply::{Busy, Reply};
use super::watch::Watch;
use super::whole::Whole;
use super::work;
use super::worker::Worker;
use crate::config::KeyMode;
use crate::metrics::Answer;
use crate::shared::Shared;

/// Who a request comes from.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) peer: SocketAddr,
    pub(super) tls: bool,
    pub(super) watch: Arc<Watch>,
    /// Of the request that is being answered.
    pub(super) stays: Stays,
}

impl Caller {
    /// What tells whether it has left.
    pub(super) fn presence(&self) -> Arc<dyn Presence> {
        self.watch.clone()
    }

    /// The hop that a request took to get here.
    pub(super) fn hop<'a>(&self, host: Option<&'a str>) -> InboundHop<'a> {
        InboundHop {
            peer: self.peer.ip(),
            host,
            tls: self.tls,
        }
    }
}

/// Answers the requests of one connection.
pub(super) struct Service<S: Store> {
    pub(super) worker: Arc<Worker<S>>,
    pub(super) caller: Caller,
}

impl<S: Store> hyper::service::Service<Request<Incoming>> for Service<S> {
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = Attached<Result<Response<Reply>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = Busy::new(&self.caller.watch);
        let worker = Arc::clone(&self.worker);
        let stays = Stays::default();
        let caller = Caller {
            stays: stays.clone(),
            ..self.caller.clone()
        };
        let version = request.version();
        Attached::while_it_stays(stays, async move {
            let response = answer(&worker, &caller, request).await;
            Ok(Reply::until_answered(response, busy, version))
        })
    }
}

impl<S: Store> Answers for Service<S> {
    type Answer = Reply;

    fn watch(&self) -> &Arc<Watch> {
        &self.caller.watch
    }

    const OWES_HALF_CLOSED: bool = true;
}

/// Whom a request is for.
enum Target<'a> {
    /// An upstream.
    Path(&'a Arc<Path>),
    /// The operations API, at this path.
    Work(String),
}

fn target<'a, S: Store>(worker: &'a Worker<S>, head: &Parts) -> Result<Target<'a>, Problem> {
    let config = &worker.shared.config;
    let (host, path) = (host(head), head.uri.path());
    if let Some(path) = config.work(host, path) {
        return Ok(Target::Work(path.to_owned()));
    }
    let route = config.route(host, path).ok_or(Problem::RouteNotFound)?;
    Ok(Target::Path(&worker.paths[route.index]))
}

/// Which way a request goes.
enum Way {
    /// Without a key.
    Pass,
    /// Under the key that the client sent, or one that is to be derived.
    Keyed(Option<Key>),
    /// As what the message says that it is.
    Message,
}

async fn answer<S: Store>(
    worker: &Arc<Worker<S>>,
    caller: &Caller,
    request: Request<Incoming>,
) -> Response<Reply> {
    let shared = &worker.shared;
    let http1 = request.version() <= Version::HTTP_11;
    let safe = request.method().is_safe();
    let upgrade = request.headers().contains_key(UPGRADE);
    let (head, body) = request.into_parts();
    let body = Whole::new(body, head.version);
    let target = framing::check(&head, false)
        .map_err(Problem::from)
        .and_then(|()| target(worker, &head));
    let request = Request::from_parts(head, body);
    let route = match &target {
        Ok(Target::Path(path)) => Some(&***path),
        _ => None,
    };
    let answered = match target {
        Err(problem) => Err(problem),
        Ok(Target::Work(path)) => {
            Ok(Box::pin(work::answer(&worker.work, caller.peer, path, request)).await)
        }
        Ok(Target::Path(path)) => match way(path, &request) {
            Err(problem) => Err(problem),
            Ok(Way::Pass) => {
                let request = request.map(Came::Coming);
                let passing = passthrough::pass(shared, caller, path, request, None);
                let passed = Box::pin(passing).await;
                if passed.is_ok() {
                    shared.metrics.answered(&path.route, Answer::Passed);
                }
                passed
            }
            Ok(Way::Keyed(key)) => {
                let request = request.map(keyed::Body::Coming);
                return Box::pin(keyed::answer(worker, caller, path, key, request)).await;
            }
            Ok(Way::Message) => {
                return Box::pin(mcp::answer(worker, caller, path, request)).await;
            }
        },
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(problem) => {
            let mut response = refuse(shared, route, &problem, http1, Form::Document);
            if safe && matches!(problem, Problem::OutcomeUnknown(_)) {
                // Without a key and by a safe method, to ask again does no harm.
                write_should_retry(response.headers_mut(), true);
            }
            response
        }
    };
    if upgrade && http1 && response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        // The gate looks at nothing after a request for another protocol.
        close(&mut response);
    }
    response
}

fn way(path: &Path, request: &Request<Whole>) -> Result<Way, Problem> {
    if request.method().is_safe() || *request.method() == Method::TRACE {
        return Ok(Way::Pass);
    }
    let policy = &path.route.policy;
    if policy.key == KeyMode::Observe || mcp::passes(&path.route, request.method()) {
        return Ok(Way::Pass);
    }
    if mcp::is_message(&path.route, request.method()) {
        return match request.headers().contains_key(UPGRADE) {
            true => Err(FramingError::UpgradeWithKey.into()),
            false => Ok(Way::Message),
        };
    }
    let key = match (key_of(request.headers(), &policy.key_headers)?, policy.key) {
        (None, KeyMode::Optional) => return Ok(Way::Pass),
        (None, KeyMode::Required) => {
            return Err(Problem::no_key_in(&policy.key_headers[0]));
        }
        (key, _) => key,
    };
    if request.headers().contains_key(UPGRADE) {
        return Err(FramingError::UpgradeWithKey.into());
    }
    if is_reserved(request.method()) {
        return Err(reserved(request.method()));
    }
    Ok(Way::Keyed(key))
}

/// What a refusal is written as.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    /// A problem document.
    Document,
    /// An error of JSON-RPC, to the request with this id, as JSON; `None` where it is not known.
    JsonRpc(Option<&'a str>),
}

impl Form<'_> {
    pub(super) fn response(
        self,
        problem: &Problem,
        context: &ProblemContext<'_>,
    ) -> Response<Bytes> {
        match self {
            Self::Document => problem.to_response(context),
            Self::JsonRpc(id) => problem.to_json_rpc_response(id, context),
        }
    }
}

/// The answer of the gateway's own.
pub(super) fn refuse<S: Store>(
    shared: &Shared<S>,
    path: Option<&Path>,
    problem: &Problem,
    http1: bool,
    form: Form<'_>,
) -> Response<Reply> {
    shared.metrics.problem(problem.name());
    if let Some(path) = path {
        shared.metrics.answered(&path.route, Answer::Refused);
    }
    let context = ProblemContext {
        public_url: shared.config.server.public_url.as_deref(),
        ..ProblemContext::default()
    };
    let mut response = form.response(problem, &context).map(Reply::whole);
    if http1 && problem.closes_connection() {
        close(&mut response);
    }
    response
}

fn close(response: &mut Response<Reply>) {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}
