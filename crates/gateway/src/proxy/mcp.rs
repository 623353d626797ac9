//! A route of kind `mcp`: of what is posted to a server, calls of tools are operations, and all else passes.
//!
//! A message is read whole before anything is decided. What differs from other keyed requests stands here:
//! where the key comes from, what makes two calls the same, which tools pass. docs/mcp.md says why.

mod told;

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use onlyonce_core::Key;
use onlyonce_http::mcp::{Answered, Calls, ListReader, NotAMessage, Posted, Retry};
use onlyonce_http::problem::Problem;
use onlyonce_http::{call_key, key_of};
use onlyonce_store::Store;
use onlyonce_tower::shell::collecting;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use super::keyed;
use super::passthrough::{self, Came};
use super::path::Path;
use super::reply::Reply;
use super::service::{Caller, Form, refuse};
use super::spool::{self, BodyLimits, Collected, NoBody};
use super::whole::Whole;
use super::worker::Worker;
use crate::config::{KeyMode, Policy, Route, RouteKind};
use crate::metrics::Answer;
use crate::shared::Shared;
use crate::tools::{Told, Tools};

/// Which session a message belongs to.
static SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
/// In a recording, and nowhere else: the id of the request that was executed.
static EXECUTED: HeaderName = HeaderName::from_static("onlyonce-executed-id");

/// Larger messages wait on disk until they are whole, and few of them are read at once, beside the data path.
const MOST_IN_MEMORY: u64 = 256 << 10;
/// The largest message, in bytes, of who presents no credential where one is needed for a call.
const MOST_OF_NOBODY: u64 = 64 << 10;

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
    /// Whether several tools are called, or one several times.
    pub(super) is_several: bool,
    /// The id of the request and its progress token, where it is one request.
    retry: Option<Retry>,
    /// The ids of the answers that there are to be.
    ids: Vec<Box<str>>,
    /// Whether there is a call that gets no answer.
    is_unanswered: bool,
}

/// Whether a request is a message, whatever it says of its type: servers do not agree on what is JSON.
pub(super) fn is_message(route: &Route, method: &Method) -> bool {
    route.kind == RouteKind::Mcp && !method.is_safe() && !passes(route, method)
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
    request: Request<Whole>,
) -> Response<Reply> {
    let http1 = request.version() <= Version::HTTP_11;
    let shared = &worker.shared;
    let route = &path.route;
    let (mut head, body) = request.into_parts();
    let tenant = shared.tenants.tenant_of(
        &head.headers,
        head.uri.query(),
        route.policy.credential_query.as_deref(),
    );
    let is_nobody = tenant.is_anonymous() && !shared.config.server.allow_anonymous;
    let (posted, body) = match read(worker, path, &head, body, is_nobody).await {
        Ok(read) => read,
        Err(problem) => return refuse(shared, Some(path), &problem, http1, Form::JsonRpc(None)),
    };
    let told = Told::of(route, tenant.name(), &head.uri);
    let is_protected = |calls: &Calls| {
        let mut tools = calls.tools.iter();
        !tools.all(|tool| shared.tools.pass(route, &told, tool))
    };
    let decided = match posted.calls {
        Some(calls) if is_protected(&calls) => {
            key_of_calls(shared, path, &head, &calls).map(|way| way.map(|key| (key, calls)))
        }
        _ => Ok(None),
    };
    let answered = match decided {
        Ok(Some((key, mut calls))) => {
            let asked = keyed::Body::Call {
                body,
                identity: std::mem::take(&mut calls.identity),
                call: Arc::new(Call::of(calls)),
            };
            let request = Request::from_parts(head, asked);
            return keyed::answer(worker, caller, path, key, request).await;
        }
        Ok(None) => {
            let lists = posted.lists_tools && route.policy.mcp.trust_annotations;
            if lists {
                ask_for_plain(&mut head.headers);
            }
            let request = Request::from_parts(head, Came::Here(body));
            passthrough::pass(shared, caller, path, request, lists.then_some(told)).await
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
    worker: &Worker<S>,
    path: &Arc<Path>,
    head: &Parts,
    body: Whole,
    is_nobody: bool,
) -> Result<(Posted, Collected), Problem> {
    if head.headers.contains_key(CONTENT_ENCODING) {
        let why = "a message must not be encoded (Content-Encoding)".into();
        return Err(Problem::BadRequest { why });
    }
    if head.headers.get_all(&SESSION).iter().count() > 1 {
        let why = "a message belongs to one session".into();
        return Err(Problem::BadRequest { why });
    }
    let (shared, config) = (&worker.shared, &worker.shared.config);
    let most = match is_nobody {
        true => config.limits.mcp_message.min(MOST_OF_NOBODY),
        false => config.limits.mcp_message,
    };
    let limits = BodyLimits {
        max: most,
        spool_above: config.limits.spool_above.min(MOST_IN_MEMORY),
        folder: &worker.spool_folder,
        timeout: config.server.body_timeout,
    };
    let collected = spool::collect(body, &limits, |_| ()).await;
    let body = collected.map_err(|why| match why {
        NoBody::Came(collecting::NoBody::TooLarge) if is_nobody => Problem::CredentialMissing,
        why => why.problem("limits.mcp_message", &limits),
    })?;
    let posted = match &body {
        Collected::Whole(bytes) => posted(path, bytes),
        Collected::Spooled { file, len, .. } => {
            let (path, file, len) = (Arc::clone(path), Arc::clone(file), *len);
            // It is never closed.
            let _turn = shared.large_messages.acquire().await;
            let read = spool::blocking(move || {
                let mut whole = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
                file.read_exact_at(&mut whole, 0)?;
                Ok(posted(&path, &whole))
            });
            read.await
                .map_err(|error| NoBody::NotSpooled(error).problem("limits.mcp_message", &limits))?
        }
    };
    Ok((posted.map_err(problem_of)?, body))
}

fn posted(path: &Path, body: &[u8]) -> Result<Posted, NotAMessage> {
    let policy = &path.route.policy;
    Posted::read(body, &policy.mcp.meta_keys, &policy.ignore_pointers)
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
        // Without a name there is none, and all who have none would be in it.
        let session = head.headers.get(&SESSION);
        let session = session.filter(|session| !session.as_bytes().trim_ascii().is_empty())?;
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
            is_several: tools.len() > 1,
            is_unanswered: calls.is_unanswered,
            retry: id.map(|id| Retry {
                id,
                token: calls.token,
            }),
            ids: calls.ids,
        }
    }

    /// What the answer to a refused call is written as.
    pub(super) fn form(&self) -> Form<'_> {
        Form::JsonRpc(self.retry.as_ref().map(|retry| &*retry.id))
    }

    /// What follows the answer to it, where that can be read.
    pub(super) fn answered(&self, headers: &HeaderMap) -> Option<Answered> {
        let is_plain = !headers.contains_key(CONTENT_ENCODING);
        let is_stream = is_stream(headers);
        (is_plain && (is_stream || says_json(headers)))
            .then(|| Answered::new(is_stream, &self.ids, self.is_unanswered))
    }

    /// Puts into what is recorded which request was executed: an answer is made that of a retry by it.
    pub(super) fn sign(&self, headers: &mut HeaderMap) {
        let id = self.retry.as_ref().map(|retry| &*retry.id);
        let id = id.map(|id| utf8_percent_encode(id, NON_ALPHANUMERIC).to_string());
        if let Some(id) = id.and_then(|id| HeaderValue::try_from(id).ok()) {
            headers.insert(&EXECUTED, id);
        }
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

/// Takes the id of the executed request out of a head, as JSON.
pub(super) fn executed(headers: &mut HeaderMap) -> Option<Box<str>> {
    let id = headers.remove(&EXECUTED)?;
    let id = percent_decode(id.as_bytes()).decode_utf8().ok()?;
    Some(id.into())
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
    told: Told,
    /// `None` once it has told.
    reader: Option<ListReader>,
}

impl<S: Store> Listing<S> {
    /// Of an answer with this head to `told`; `None` where it is none, or cannot be read.
    pub(super) fn begin(shared: &Arc<Shared<S>>, told: Told, head: &Response<()>) -> Option<Self> {
        let headers = head.headers();
        let is_readable = head.status().is_success() && !headers.contains_key(CONTENT_ENCODING);
        is_readable.then(|| Self {
            shared: Arc::clone(shared),
            told,
            reader: Some(ListReader::new(is_stream(headers))),
        })
    }

    /// The next bytes of the answer. What they declare counts before the caller has them.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        let Some(reader) = &mut self.reader else {
            return;
        };
        reader.see(bytes);
        self.learn();
    }

    /// The answer is over.
    pub(super) fn end(&mut self) {
        if let Some(reader) = &mut self.reader {
            reader.finish();
        }
        self.learn();
        self.reader = None;
    }

    fn learn(&mut self) {
        let Some(reader) = &mut self.reader else {
            return;
        };
        let declared = reader.take();
        if !declared.is_empty() {
            self.shared.tools.learn(&self.told, declared);
        }
        if reader.is_unreadable() {
            self.shared.tools.forget(&self.told);
        }
    }
}
