//! A request's life: counted, read, delayed, broken or answered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::body::{AnswerBody, Broken, Ending};
use crate::endpoint::Endpoint;
use crate::ledger::{Begun, Execution, Ledger};
use crate::provider::openai_responses::Stored;
use crate::provider::{Content, Family, Job, Refusal, Reply};
use crate::script::{Fault, Script};
use crate::wire::Reset;

const LEDGER_PATH: &str = "/_sandbox/ledger";

/// Twice what the gateway takes by default.
const MAX_REQUEST_BODY: usize = 128 << 20;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    /// Responses that can be looked up by id.
    stored: Stored,
    /// Milliseconds since 1970; part of every id.
    born: u64,
}

impl Shared {
    pub(crate) fn new(born: u64) -> Self {
        Self {
            ledger: Ledger::default(),
            stored: Stored::default(),
            born,
        }
    }
}

/// Answers one request. An error makes hyper break the connection (HTTP/2: the stream).
pub(crate) async fn answer(
    shared: Arc<Shared>,
    reset: Reset,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Broken> {
    let arrived = SystemTime::now();
    let (head, body) = request.into_parts();
    if head.uri.path() == LEDGER_PATH {
        return Ok(ledger_page(&shared.ledger, &head.method, &head.uri));
    }
    let family = Family::of(head.uri.path(), &head.headers);
    let Some(endpoint) = Endpoint::of(&head.method, &head.uri) else {
        return Ok(refused(
            family,
            &Refusal::not_found(&head.method, head.uri.path()),
            "0",
        ));
    };
    let script = match Script::from_headers(&head.headers) {
        Ok(script) => script,
        Err(error) => {
            return Ok(refused(
                family,
                &Refusal::bad_request(error.to_string()),
                "0",
            ));
        }
    };

    // From here on it counts: the head is whole, and a provider would have begun to work.
    let execution = begin(&shared.ledger, endpoint, &head, &script, arrived);
    let (n, script) = match &execution {
        Some(execution) => (execution.n(), script.for_execution(execution.nth_of_tag())),
        None => (0, script),
    };
    let id = format!("{:012x}{n:08x}", shared.born);
    let reset = (head.version < Version::HTTP_2).then_some(reset);

    let body = match Limited::new(body, MAX_REQUEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(failed(
                family,
                &Refusal::too_large(MAX_REQUEST_BODY),
                &id,
                execution,
            ));
        }
        Err(_) => return Err(Broken),
    };
    if let Some(execution) = &execution {
        execution.takes(&body);
    }
    if !script.delay.is_zero() {
        tokio::time::sleep(script.delay).await;
    }
    match script.fault {
        Some(Fault::Hang) => match future::pending::<Infallible>().await {},
        Some(Fault::ResetBeforeHead) => {
            if let Some(reset) = &reset {
                reset.arm();
            }
            return Err(Broken);
        }
        Some(Fault::Status(status)) if status.as_u16() >= 400 => {
            return Ok(failed(family, &Refusal::asked_for(status), &id, execution));
        }
        _ => {}
    }

    let job = Job {
        n,
        id: &id,
        now: arrived,
        body: &body,
        script: &script,
        content_type: head.headers.get(CONTENT_TYPE),
        stored: &shared.stored,
    };
    match endpoint.reply(family, &job) {
        Ok(reply) => {
            if let (Some(execution), Some(usage)) = (&execution, endpoint.usage(&job)) {
                execution.generates(usage);
            }
            Ok(answered(
                reply,
                &job,
                family,
                script.fault,
                reset,
                execution,
            ))
        }
        Err(refusal) => Ok(failed(family, &refusal, &id, execution)),
    }
}

fn begin(
    ledger: &Ledger,
    endpoint: Endpoint<'_>,
    head: &Parts,
    script: &Script,
    at: SystemTime,
) -> Option<Execution> {
    let key = head.headers.get("idempotency-key");
    let key = key.or_else(|| head.headers.get("x-verify-key"));
    let key = key.map(|value| String::from_utf8_lossy(value.as_bytes()));
    Some(ledger.begin(Begun {
        at,
        method: head.method.as_str(),
        path: head.uri.path(),
        key: key.as_deref(),
        tag: script.tag.as_deref(),
        price: endpoint.price()?,
    }))
}

fn answered(
    reply: Reply,
    job: &Job<'_>,
    family: Family,
    fault: Option<Fault>,
    reset: Option<Reset>,
    execution: Option<Execution>,
) -> Response<AnswerBody> {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, reply.content_type);
    family.mark(&mut headers, job.id);
    if job.n > 0 {
        headers.insert("x-sandbox-execution", HeaderValue::from(job.n));
    }
    let mut content = reply.content;
    let mut status = StatusCode::OK;
    if let Some(Fault::Status(asked_for)) = fault {
        status = asked_for;
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            headers.remove(CONTENT_TYPE);
            content = Content::Whole(Bytes::new());
        }
    }
    let ending = match fault {
        Some(Fault::CutStream) => Ending::Closed,
        Some(Fault::ResetAfterHead) => Ending::Reset(reset),
        _ => Ending::Clean,
    };
    let body = match content {
        Content::Whole(bytes) if matches!(ending, Ending::Clean) => {
            AnswerBody::whole(bytes, execution)
        }
        Content::Whole(bytes) => {
            // The length of the whole is announced, and then not kept.
            headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
            let half = bytes.slice(..bytes.len() / 2);
            let frames = up_to(&ending, VecDeque::from([half]));
            AnswerBody::paced(frames, job.script.interval, ending, execution)
        }
        Content::Events(mut frames) => {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            if !matches!(ending, Ending::Clean) {
                frames.truncate(frames.len().div_ceil(2));
            }
            let frames = up_to(&ending, frames);
            AnswerBody::paced(frames, job.script.interval, ending, execution)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The frames that are sent before `ending`: none where the reset follows the head at once.
fn up_to(ending: &Ending, frames: VecDeque<Bytes>) -> VecDeque<Bytes> {
    match ending {
        Ending::Clean | Ending::Closed => frames,
        Ending::Reset(_) => VecDeque::new(),
    }
}

/// An error answer to an execution; the execution costs nothing.
fn failed(
    family: Family,
    refusal: &Refusal,
    id: &str,
    mut execution: Option<Execution>,
) -> Response<AnswerBody> {
    let document = family.error(refusal, id).to_string();
    if let Some(execution) = &mut execution {
        execution.answers([document.as_bytes()]);
    }
    let mut response = error_page(family, refusal, id, document);
    if let Some(execution) = execution {
        response
            .headers_mut()
            .insert("x-sandbox-execution", HeaderValue::from(execution.n()));
        execution.fail();
    }
    response
}

/// An error answer in the provider's shape.
fn refused(family: Family, refusal: &Refusal, id: &str) -> Response<AnswerBody> {
    let document = family.error(refusal, id).to_string();
    error_page(family, refusal, id, document)
}

fn error_page(
    family: Family,
    refusal: &Refusal,
    id: &str,
    document: String,
) -> Response<AnswerBody> {
    let mut response = json_page(refusal.status, document);
    family.mark(response.headers_mut(), id);
    // The providers name a wait where they are too busy.
    if matches!(refusal.status.as_u16(), 429 | 503 | 529) {
        response
            .headers_mut()
            .insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}

fn ledger_page(ledger: &Ledger, method: &Method, uri: &Uri) -> Response<AnswerBody> {
    match *method {
        Method::GET => {
            let query = uri.query().unwrap_or_default().as_bytes();
            let filters: Vec<_> = form_urlencoded::parse(query).collect();
            let snapshot = if filters.is_empty() {
                ledger.snapshot()
            } else {
                ledger.snapshot_of(|entry| {
                    filters.iter().all(|(name, value)| match name.as_ref() {
                        "key" => entry.key.as_deref() == Some(value.as_ref()),
                        "tag" => entry.tag.as_deref() == Some(value.as_ref()),
                        _ => true,
                    })
                })
            };
            // A snapshot is numbers and text only, which always serialise.
            json_page(
                StatusCode::OK,
                serde_json::to_string(&snapshot).unwrap_or_default(),
            )
        }
        Method::DELETE => {
            ledger.reset();
            let mut response = Response::new(AnswerBody::whole(Bytes::new(), None));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        _ => {
            let refusal = Refusal::not_found(method, LEDGER_PATH);
            refused(Family::Plain, &refusal, "0")
        }
    }
}

fn json_page(status: StatusCode, text: String) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::whole(text.into(), None));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
