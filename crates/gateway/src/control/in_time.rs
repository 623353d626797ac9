//! Bodies that come in time, or not at all.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use onlyonce_http::{Place, Problem};
use onlyonce_tower::shell::timer::Timer;

use super::answer::Refusal;

/// Refuses a request whose body is not there whole after `limit`, which is `server.body_timeout`.
pub(super) async fn whole(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let late = Arc::new(AtomicBool::new(false));
    let mut timer = Timer::default();
    timer.set(limit);
    let request = request.map(|body| {
        Body::new(InTime {
            body,
            timer,
            late: Arc::clone(&late),
        })
    });
    let response = next.run(request).await;
    if !late.load(Relaxed) {
        return response;
    }
    let limit_name = "server.body_timeout";
    let problem = Problem::RequestTimeout { limit_name, limit };
    let mut response =
        Refusal::problem(StatusCode::REQUEST_TIMEOUT, &problem, Place::Work).into_response();
    // The rest may still come.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

/// A body that breaks off when its time is over.
struct InTime {
    body: Body,
    timer: Timer,
    late: Arc<AtomicBool>,
}

impl HttpBody for InTime {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        std::task::ready!(this.timer.poll(cx));
        this.late.store(true, Relaxed);
        let late = axum::Error::new("the body did not come in time");
        Poll::Ready(Some(Err(late)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
