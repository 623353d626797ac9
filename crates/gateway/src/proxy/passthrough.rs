//! Traffic without a key: streamed both ways as it comes, nothing held, nothing recorded.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use onlyonce_core::UnknownReason;
use onlyonce_http::headers;
use onlyonce_http::problem::Problem;
use onlyonce_store::Store;
use onlyonce_tower::shell::timer::Timer;

use super::exchange::{Failure, Patience, exchange};
use super::lane::Answer;
use super::mcp::Listing;
use super::outgoing::{Interrupted, Outgoing};
use super::path::Path;
use super::pool::ReadBy;
use super::reply::{Cut, Reply, cut};
use super::service::Caller;
use super::spool::Collected;
use super::watching::Watching;
use super::whole::{Broken, Whole};
use crate::config::RouteKind;
use crate::observe::Sight;
use crate::shared::Shared;
use crate::tools::Told;

/// The body of a request that is to be passed on.
pub(super) enum Came {
    /// It is still to come.
    Coming(Whole),
    /// It is here.
    Here(Collected),
}

/// Passes `request` on and its answer back. `lists_for` is who asks for a list of tools.
pub(super) async fn pass<S: Store>(
    shared: &Arc<Shared<S>>,
    caller: &Caller,
    path: &Path,
    request: Request<Came>,
    lists_for: Option<Told>,
) -> Result<Response<Reply>, Problem> {
    let policy = &path.route.policy;
    let method = request.method().clone();
    let mut watching = Watching::begin(shared, path, &request);
    let sight = watching.as_ref().map(Watching::sight);
    let (request, interrupted, upgrade) = outbound(caller, path, request, sight)?;
    let begun = exchange(
        &path.pool,
        request,
        ReadBy::Caller,
        Patience {
            connect: policy.connect_timeout,
            first_byte: policy.first_byte_timeout,
            until: None,
        },
        || true,
    )
    .await;
    let (mut head, answer) = match begun {
        Ok(begun) => begun,
        Err(_) if interrupted.is_set() => {
            let why = "the body did not come whole".into();
            return Err(Problem::BadRequest { why });
        }
        Err(failure) => {
            if let (Some(watching), Failure::NotSent(_)) = (&watching, &failure) {
                watching.not_sent();
            }
            return Err(problem(path, failure));
        }
    };
    if head.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match upgrade {
            Some(client) => Ok(switch(client, head, answer)),
            None => Err(Problem::OutcomeUnknown(UnknownReason::BadAnswer)),
        };
    }
    headers::from_upstream(head.headers_mut());
    *head.version_mut() = Version::default();
    if let Some(watching) = &mut watching {
        watching.answered(&head);
    }
    if upgrade.is_some() {
        // The bytes of this connection are not looked at any more: no other request may follow.
        head.headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let listing = lists_for.and_then(|told| Listing::begin(shared, told, &head));
    // What a server has to say by itself comes when it comes.
    let is_endless = path.route.kind == RouteKind::Mcp && method == Method::GET;
    let between_bytes = (!is_endless).then_some(policy.between_bytes_timeout);
    Ok(head.map(|()| body(answer, &method, between_bytes, watching, listing)))
}

/// What came, as the upstream is to get it.
fn outbound(
    caller: &Caller,
    path: &Path,
    mut request: Request<Came>,
    sight: Option<Arc<Sight>>,
) -> Result<(Request<Outgoing>, Interrupted, Option<OnUpgrade>), Problem> {
    let switches = request.headers().get(UPGRADE).cloned();
    let upgrade = switches.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let target = path.target(&head.uri)?;
    let asked_for = path.host_to_tell(&head);
    headers::to_upstream(
        &mut head.headers,
        None,
        &path.pass_rules,
        &caller.hop(asked_for.as_deref()),
    );
    if let Some(protocol) = switches {
        head.headers.insert(UPGRADE, protocol);
        head.headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let interrupted = Interrupted::default();
    let body = match body {
        Came::Here(body) => body.outgoing(),
        Came::Coming(body) if body.is_end_stream() => {
            say_no_body(&head.method, &mut head.headers);
            sight.iter().for_each(|sight| sight.end());
            Outgoing::Whole(Bytes::new())
        }
        Came::Coming(body) => Outgoing::Passed(body, interrupted.clone(), sight),
    };
    let request = path.request(head.method, target, head.headers, body);
    Ok((request, interrupted, upgrade))
}

/// Some servers want a length on every method that usually has a body (RFC 9110 section 8.6).
pub(super) fn say_no_body(method: &Method, headers: &mut HeaderMap) {
    if matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

fn problem(path: &Path, failure: Failure) -> Problem {
    match failure {
        Failure::NotSent(why) => Problem::UpstreamUnreachable {
            upstream: path.route.upstream.name.to_string(),
            why,
        },
        Failure::Broke(_) => Problem::OutcomeUnknown(UnknownReason::Broke),
        Failure::BadAnswer(_) => Problem::OutcomeUnknown(UnknownReason::BadAnswer),
        Failure::TimedOut(_) => Problem::OutcomeUnknown(UnknownReason::TimedOut),
    }
}

fn body<S: Store>(
    mut answer: Answer,
    method: &Method,
    between_bytes: Option<Duration>,
    mut watching: Option<Watching<S>>,
    listing: Option<Listing<S>>,
) -> Reply {
    if answer.is_end_stream() || *method == Method::HEAD {
        answer.give_back();
        watching.iter_mut().for_each(Watching::whole);
        return Reply::empty();
    }
    Reply::streamed(Passed {
        answer,
        timer: Timer::default(),
        between_bytes,
        watching,
        listing,
    })
}

/// The body of an answer that passes through.
struct Passed<S: Store> {
    answer: Answer,
    timer: Timer,
    /// `None` where it may be silent for as long as it likes.
    between_bytes: Option<Duration>,
    /// Where its route observes.
    watching: Option<Watching<S>>,
    /// Where it lists tools.
    listing: Option<Listing<S>>,
}

impl<S: Store> Passed<S> {
    fn list(&mut self, frame: Option<&Result<Frame<Bytes>, Broken>>) {
        let Some(listing) = &mut self.listing else {
            return;
        };
        match frame {
            None => listing.end(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    listing.see(data);
                }
                if self.answer.is_end_stream() {
                    listing.end();
                }
            }
            Some(Err(_)) => self.listing = None,
        }
    }

    fn watch(&mut self, frame: Option<&Result<Frame<Bytes>, Broken>>) {
        let Some(watching) = &mut self.watching else {
            return;
        };
        if let Some(Ok(frame)) = frame
            && let Some(data) = frame.data_ref()
        {
            watching.see(data);
        }
        let is_last = match frame {
            None => true,
            Some(Ok(_)) => self.answer.is_end_stream(),
            Some(Err(_)) => false,
        };
        if is_last {
            watching.whole();
        }
    }
}

impl<S: Store> Body for Passed<S> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(frame) = this.answer.poll_frame(cx) {
                this.timer.clear();
                this.watch(frame.as_ref());
                this.list(frame.as_ref());
                return Poll::Ready(match frame {
                    None => None,
                    Some(Err(error)) => Some(Err(error.into())),
                    Some(Ok(frame)) => match frame.into_trailers() {
                        Err(data) => Some(Ok(data)),
                        Ok(mut trailers) => {
                            headers::trailers_from_upstream(&mut trailers);
                            Some(Ok(Frame::trailers(trailers)))
                        }
                    },
                });
            }
            let Some(between_bytes) = this.between_bytes else {
                return Poll::Pending;
            };
            if this.timer.is_set() {
                ready!(this.timer.poll(cx));
                return Poll::Ready(Some(Err(cut("the upstream was silent for too long"))));
            }
            this.timer.set(between_bytes);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

/// Lets client and upstream speak another protocol over the connections that they have.
fn switch(client: OnUpgrade, mut head: Response<()>, answer: Answer) -> Response<Reply> {
    let upstream = hyper::upgrade::on(&mut head);
    let protocol = head.headers().get(UPGRADE).cloned();
    headers::from_upstream(head.headers_mut());
    *head.version_mut() = Version::default();
    if let Some(protocol) = protocol {
        head.headers_mut().insert(UPGRADE, protocol);
    }
    head.headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    tokio::spawn(async move {
        let Some(lane) = answer.into_lane() else {
            return;
        };
        lane.into_end().await;
        let (Ok(client), Ok(upstream)) = (client.await, upstream.await) else {
            return;
        };
        // Either side may leave at any time: there is nobody to tell.
        let _ =
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(upstream))
                .await;
    });
    head.map(|()| Reply::empty())
}
