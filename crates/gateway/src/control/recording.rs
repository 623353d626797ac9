//! The recording of an operation as a plain stream of bytes, followed live while it grows.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use onlyonce_core::State;
use onlyonce_engine::{Broken, Operation, Reader, Start};
use onlyonce_store::Store;
use serde::Deserialize;

use super::access::{May, Payload};
use super::answer::Refusal;
use super::query::{Named, operation_id};

/// The query of `GET /v1/operations/{id}/recording`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordingQuery {
    #[serde(default)]
    from: u64,
}

/// `GET /v1/operations/{id}/recording`.
pub(super) async fn stream<S: Store>(
    desk: May<S, Payload>,
    Named(id): Named,
    query: Result<Query<RecordingQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(RecordingQuery { from }) = query.map_err(|error| {
        Refusal::bad_request(error.body_text(), "use from=BYTE, counted from 0")
    })?;
    let operation = operation_id(&id)?;
    let reader = desk.recording(operation).await?;
    let Some(mut reader) = reader else {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!("there is no recording of {id}"),
            "look at its state at /v1/operations/{id}: only what completed or runs has one",
        ));
    };
    if from > 0 {
        within(&desk.operation(operation).await?, from)?;
        reader.seek(from);
    }
    let gone = |what: String| {
        Refusal::new(
            StatusCode::CONFLICT,
            format!("there is no whole recording of {id}: {what}"),
            "look at its state at /v1/operations/{id}",
        )
    };
    match reader.start().await {
        Start::Response { .. } => {}
        Start::NotSent(what) => return Err(gone(what.to_string())),
        Start::Unknown(reason) => return Err(gone(reason.to_string())),
        Start::Timeout => return Err(gone("its answer has not begun".to_owned())),
    }
    let mut response = Response::new(Body::new(RecordingBody { reader }));
    let headers = response.headers_mut();
    // Whatever it is, a browser must not run it as a page of the control listener.
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Refuses a byte after the end of a finished recording. One that still grows may get there.
fn within(operation: &Operation, from: u64) -> Result<(), Refusal> {
    match &operation.stored.record.state {
        State::Completed(completed) if from > completed.body_len => Err(Refusal::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            format!(
                "the recording has {} bytes, and from is {from}",
                completed.body_len
            ),
            "ask from a byte that is there",
        )),
        _ => Ok(()),
    }
}

/// The body of a recording, as a body.
pub(super) struct RecordingBody<S: Store> {
    pub(super) reader: Reader<S>,
}

// Nothing in it is pinned by anything but `&mut`.
impl<S: Store> Unpin for RecordingBody<S> {}

impl<S: Store> HttpBody for RecordingBody<S> {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            return Poll::Ready(match ready!(self.reader.poll_next(cx)) {
                None => None,
                Some(Err(broken)) => Some(Err(broken)),
                Some(Ok(onlyonce_engine::Frame::Data(bytes))) => Some(Ok(Frame::data(bytes))),
                // Body bytes only: a download has no place for trailers.
                Some(Ok(onlyonce_engine::Frame::Trailers(_))) => continue,
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reader.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
