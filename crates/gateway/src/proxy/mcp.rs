//! A route of kind `mcp`: of what is posted to a server, calls of tools are operations, and all else passes.
//!
//! A message is read whole before anything is decided. What differs from other keyed requests stands here:
//! where the key comes from, what makes two calls the same, which tools pass. docs/mcp.md says why.

mod told;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;
use onlyonce_core::Key;
use onlyonce_http::mcp::{Answered, Calls, ListReader, NotAMessage, Posted, Retry};
use onlyonce_http::problem::Problem;
use onlyonce_http::{call_key, key_of};
use onlyonce_store::Store;
use onlyonce_tower::shell::collecting::Coming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::keyed;
use super::passthrough::{self, Came};
use super::path::Path;
use super::reply::Reply;
use super::service::{Caller, Form, refuse};
use super::spool::problem_of_no_body;
use super::worker::Worker;
use crate::config::{KeyMode, Policy, Route, RouteKind};
use crate::metrics::Answer;
use crate::shared::Shared;
use crate::tools::Tools;

/// Which session a message belongs to.
static SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

/// Of the name of a tool, what stands for itself.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// Bytes of a tool's name that are shown.
const MOST_OF_A_NAME: usize = 128;

/// A call of a tool, or several that were posted at once.
pub(super) struct Call {
    /// The tool, as it is shown and priced.
    pub(super) tool: Box<str>,
    /// What makes two calls the same call.
    pub(super) identity: Vec<u8>,
    /// The id of the request and its progress token, where it is one request.
    retry: Option<Retry>,
    /// How many answers there are to be.
    requests: usize,
}

/// Whether a request is a message: with a JSON body, posted on a route of the kind.
pub(super) fn is_message<B>(route: &Route, request: &Request<B>) -> bool {
    route.kind == RouteKind::Mcp
        && *request.method() == Method::POST
        && says_json(request.headers())
}

/// Whether a request passes whatever key it has: what is asked for is the server's stream, or the end of a
/// session.
pub(super) fn passes(route: &Route, method: &Method) -> bool {
    route.kind == RouteKind::Mcp && *method == Method::DELETE
}

/// Answers a message.
pub(super) async fn answer<S: Store>(
    worker: &Arc<Worker<S>>,
    caller: &Caller,
    path: &Arc<Path>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let http1 = request.version() <= Version::HTTP_11;
    let shared = &worker.shared;
    let (mut head, body) = request.into_parts();
    let (posted, body) = match read(shared, path, &head, body).await {
        Ok(read) => read,
        Err(problem) => return refuse(shared, Some(path), &problem, http1, Form::JsonRpc(None)),
    };
    let route = &path.route;
    let tenant = shared.tenants.tenant_of(
        &head.headers,
        head.uri.query(),
        route.policy.credential_query.as_deref(),
    );
    let is_protected = |calls: &Calls| {
        let mut tools = calls.tools.iter();
        !tools.all(|tool| shared.tools.pass(route, tenant.name(), tool))
    };
    let decided = match posted.calls {
        Some(calls) if is_protected(&calls) => key_of_calls(shared, path, &head, &calls)
            .map(|way| way.map(|key| (key, Call::of(calls)))),
        _ => Ok(None),
    };
    let answered = match decided {
        Ok(Some((key, call))) => {
            let asked = keyed::Body::Call(body, Arc::new(call));
            let request = Request::from_parts(head, asked);
            return keyed::answer(worker, caller, path, key, request).await;
        }
        Ok(None) => {
            let lists = posted.lists_tools && route.policy.mcp.trust_annotations;
            if lists {
                ask_for_plain(&mut head.headers);
            }
            let request = Request::from_parts(head, Came::Whole(body));
            let tenant = lists.then(|| tenant.name().into());
            passthrough::pass(shared, caller, path, request, tenant).await
        }
        Err(problem) => Err(problem),
    };
    match answered {
        Ok(response) => {
            shared.metrics.answered(route, Answer::Passed);
            response
        }
        Err(problem) => {
            let form = Form::JsonRpc(posted.id.as_deref());
            refuse(shared, Some(path), &problem, http1, form)
        }
    }
}

/// What is posted, and the whole body.
async fn read<S: Store>(
    shared: &Shared<S>,
    path: &Path,
    head: &Parts,
    body: Incoming,
) -> Result<(Posted, Bytes), Problem> {
    let policy = &path.route.policy;
    if head.headers.contains_key(CONTENT_ENCODING) {
        let why = "a message must not be encoded (Content-Encoding)".into();
        return Err(Problem::BadRequest { why });
    }
    if head.headers.get_all(&SESSION).iter().count() > 1 {
        let why = "a message belongs to one session".into();
        return Err(Problem::BadRequest { why });
    }
    let (limit, timeout) = (
        shared.config.limits.mcp_message,
        shared.config.server.body_timeout,
    );
    let no_body = |why| problem_of_no_body(why, "limits.mcp_message", limit, timeout);
    let mut coming = Coming::new(body, limit, timeout).map_err(no_body)?;
    let mut whole = BytesMut::new();
    while let Some(piece) = coming.next().await.map_err(no_body)? {
        whole.extend_from_slice(&piece);
    }
    let posted = Posted::read(&whole, &policy.mcp.meta_keys, &policy.ignore_pointers);
    Ok((posted.map_err(problem_of)?, whole.freeze()))
}

fn problem_of(error: NotAMessage) -> Problem {
    match error {
        NotAMessage::Key(error) => Problem::KeyMalformed(error),
        error => Problem::BadRequest {
            why: error.to_string().into(),
        },
    }
}

/// The key of a call, in this order: of a header, of its `_meta`, of its place in its session. `Some(None)`
/// where it is to be derived; `None` where the call passes without one, which no call of a tool does that is named
/// in `protect`.
fn key_of_calls<S: Store>(
    shared: &Shared<S>,
    path: &Path,
    head: &Parts,
    calls: &Calls,
) -> Result<Option<Option<Key>>, Problem> {
    let policy = &path.route.policy;
    let sent = key_of(&head.headers, &policy.key_headers)?.or_else(|| calls.key.clone());
    let in_session = || {
        let session = head.headers.get(&SESSION)?;
        let ids = calls.ids.iter().map(|id| &**id);
        (!calls.ids.is_empty()).then(|| call_key(&shared.hash_keys, session.as_bytes(), ids))
    };
    let mut tools = calls.tools.iter();
    let is_protected = tools.any(|tool| Tools::is_named(&path.route, tool));
    match (sent.or_else(in_session), policy.key) {
        (None, KeyMode::Required) => Err(no_key(policy)),
        // That it is always an operation is a promise.
        (None, KeyMode::Optional | KeyMode::Observe) if is_protected => Err(no_key(policy)),
        (None, KeyMode::Optional | KeyMode::Observe) => {
            note_unprotected(shared, &path.route, calls);
            Ok(None)
        }
        (key, _) => Ok(Some(key)),
    }
}

fn no_key(policy: &Policy) -> Problem {
    Problem::KeyMissing {
        expected_in: key_is_expected_in(policy).into(),
    }
}

fn key_is_expected_in(policy: &Policy) -> String {
    match policy.mcp.meta_keys.first() {
        Some(name) => format!("_meta[\"{name}\"]"),
        None => format!("the header {}", policy.key_headers[0]),
    }
}

/// Counts calls that pass though nothing tells them from others, and says so once for each tool.
fn note_unprotected<S: Store>(shared: &Shared<S>, route: &Route, calls: &Calls) {
    shared.metrics.unprotected(route);
    for tool in &calls.tools {
        if shared.tools.is_to_be_warned_of(route, tool) {
            tracing::warn!(
                route = %route.name,
                tool = shown(tool),
                "calls of a tool pass, and nothing protects them: they have neither a session nor a key; have \
                 clients set {}, and name the tool in `protect`, or set key = \"required\"",
                key_is_expected_in(&route.policy)
            );
        }
    }
}

impl Call {
    fn of(calls: Calls) -> Self {
        let tools: Vec<_> = calls.tools.iter().map(|tool| shown(tool)).collect();
        let id = match calls.ids.as_slice() {
            [id] if !calls.is_batch => Some(id.clone()),
            _ => None,
        };
        Self {
            tool: tools.join("+").into(),
            identity: calls.identity,
            requests: calls.ids.len(),
            retry: id.map(|id| Retry {
                id,
                token: calls.token,
            }),
        }
    }

    /// What the answer to a refused call is written as.
    pub(super) fn form(&self) -> Form<'_> {
        Form::JsonRpc(self.retry.as_ref().map(|retry| &*retry.id))
    }

    /// What follows the answer to it, where that can be read.
    pub(super) fn answered(&self, headers: &HeaderMap) -> Option<Answered> {
        let is_plain = !headers.contains_key(CONTENT_ENCODING);
        is_plain.then(|| Answered::new(is_stream(headers), self.requests))
    }
}

/// The name of a tool as it is shown: part of a path, and of bounded length.
fn shown(tool: &str) -> String {
    let encoded = utf8_percent_encode(tool, PLAIN).flat_map(str::chars);
    encoded.take(MOST_OF_A_NAME).collect()
}

/// Asks the server for an answer that can be read.
pub(super) fn ask_for_plain(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// Takes the session out of an answer that is to be recorded: it belongs to one caller, and the answer to all.
pub(super) fn without_session(headers: &mut HeaderMap) -> Option<HeaderValue> {
    headers.remove(&SESSION)
}

/// Puts it back, for the caller whose session it is.
pub(super) fn with_session(headers: &mut HeaderMap, session: HeaderValue) {
    headers.insert(&SESSION, session);
}

fn says_json(headers: &HeaderMap) -> bool {
    kind(headers).is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
}

fn is_stream(headers: &HeaderMap) -> bool {
    kind(headers).is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"))
}

/// The content type, without parameters.
fn kind(headers: &HeaderMap) -> Option<&str> {
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(kind.split(';').next()?.trim())
}

/// Learns which tools are harmless from a list that passes, until it is dropped.
pub(super) struct Listing<S: Store> {
    shared: Arc<Shared<S>>,
    route: Arc<Route>,
    tenant: Box<str>,
    /// `None` once it has told.
    reader: Option<ListReader>,
}

impl<S: Store> Listing<S> {
    /// Of an answer with this head to `tenant`; `None` where it is none, or cannot be read.
    pub(super) fn begin(
        shared: &Arc<Shared<S>>,
        path: &Path,
        tenant: Box<str>,
        head: &Response<()>,
    ) -> Option<Self> {
        let headers = head.headers();
        let is_readable = head.status().is_success() && !headers.contains_key(CONTENT_ENCODING);
        is_readable.then(|| Self {
            shared: Arc::clone(shared),
            route: Arc::clone(&path.route),
            tenant,
            reader: Some(ListReader::new(is_stream(headers))),
        })
    }

    /// The next bytes of the answer. What they declare counts before the caller has them.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        let Some(reader) = &mut self.reader else {
            return;
        };
        reader.see(bytes);
        let declared = reader.take();
        if !declared.is_empty() {
            self.shared.tools.learn(&self.route, &self.tenant, declared);
        }
    }

    /// The answer is over.
    pub(super) fn end(&mut self) {
        if let Some(reader) = self.reader.take() {
            let declared = reader.finish();
            self.shared.tools.learn(&self.route, &self.tenant, declared);
        }
    }
}
