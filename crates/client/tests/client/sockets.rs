//! Calls over real sockets, against servers that a test scripts byte by byte.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use onlyonce_client::{AnswerBody, Error, Got, KeyFolder, OnceClient, Report};
use onlyonce_testkit::{Refusing, Signal, Upstream};
use tempfile::TempDir;
use tower::{Layer, ServiceExt};

use crate::support::action;

struct World {
    _folder: TempDir,
    client: OnceClient<KeyFolder>,
}

type Answered = Result<Response<AnswerBody<hyper::body::Incoming>>, Error>;

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::open(folder.path()).unwrap();
        // No waits: what is looked at is what goes over the wire.
        let client = OnceClient::builder(keys).random(|| 0.0).build();
        Self {
            _folder: folder,
            client,
        }
    }

    async fn post(&self, url: &str) -> Answered {
        let http = Client::builder(TokioExecutor::new())
            .retry_canceled_requests(false)
            .build_http::<Full<Bytes>>();
        let mut request = Request::post(format!("{url}/charges"))
            .body(Full::from("amount=4200"))
            .unwrap();
        request.extensions_mut().insert(action("order-17/charge"));
        self.client.layer().layer(http).oneshot(request).await
    }
}

fn report(response: &Response<AnswerBody<hyper::body::Incoming>>) -> Report {
    response.extensions().get::<Report>().unwrap().clone()
}

/// Every request that came, with the same key, the same body, and nothing of ours in between.
fn same_requests(upstream: &Upstream, count: usize) {
    let seen = upstream.seen();
    assert_eq!(seen.len(), count);
    for request in &seen {
        let key = |request: &onlyonce_testkit::Seen| {
            request.head.header("idempotency-key").map(str::to_owned)
        };
        assert!(key(request).is_some());
        assert_eq!(key(request), key(&seen[0]));
        assert_eq!(request.head.header("content-length"), Some("11"));
    }
}

#[tokio::test]
async fn a_connection_that_dies_before_during_or_after_the_head_is_tried_again() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.reset(),
        2 => {
            x.read_body();
            x.send(b"HTTP/1.1 200 OK\r\nContent-Le");
            x.reset();
        }
        // Half of what was promised, cleanly closed.
        3 => {
            x.read_body();
            x.send_head(200, &[("Content-Length", "8")]);
            x.send(b"half");
            x.close();
        }
        4 => {
            x.start_chunked(200, &[]);
            x.chunk("half");
            x.reset();
        }
        _ => x.answer(200, &[], b"the whole"),
    });
    let world = World::new();
    let response = world.post(&upstream.url()).await.unwrap();
    let report = report(&response);
    assert_eq!(report.attempts.len(), 5, "{report}");
    let broke = report.attempts[..4]
        .iter()
        .all(|a| matches!(a.got, Got::Broke(_)));
    assert!(broke, "{report}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&*body, b"the whole");
    same_requests(&upstream, 5);
}

#[tokio::test]
async fn hostile_061_a_server_that_is_not_there_yet_is_found_and_nothing_was_sent_before() {
    let refusing = Refusing::new();
    let world = World::new();
    let error = world.post(&refusing.url()).await.map(|_| ()).unwrap_err();
    let report = error.report().unwrap().clone();
    assert_eq!(report.attempts.len(), 6);
    let not_connected = |got: &Got| matches!(got, Got::NotConnected(_));
    assert!(
        report.attempts.iter().all(|a| not_connected(&a.got)),
        "{report}"
    );
    assert!(!report.may_have_run());
    assert!(error.money().contains("costs nothing"), "{error}");
}

#[tokio::test]
async fn an_event_stream_is_handed_on_as_it_comes_and_breaks_where_it_breaks() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[("Content-Type", "text/event-stream")]);
        x.chunk("data: one\n\n");
        wait.wait();
        x.reset();
    });
    let world = World::new();
    let response = world.post(&upstream.url()).await.unwrap();
    assert_eq!(report(&response).attempts.len(), 1);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&*first, b"data: one\n\n");
    go.fire();
    body.frame().await.unwrap().unwrap_err();
    same_requests(&upstream, 1);
}

#[tokio::test]
async fn a_body_that_is_too_long_to_be_read_first_comes_whole_all_the_same() {
    let length = AnswerBody::<hyper::body::Incoming>::WHOLE * 2;
    let upstream = Upstream::scripted(move |x| {
        x.answer(200, &[], &vec![b'x'; length]);
    });
    let world = World::new();
    let response = world.post(&upstream.url()).await.unwrap();
    let hint = http_body::Body::size_hint(response.body());
    assert_eq!(hint.exact(), Some(length as u64));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), length);
    assert!(body.iter().all(|byte| *byte == b'x'));
}

#[tokio::test]
async fn hostile_064_a_server_that_is_silent_is_left_at_the_attempts_own_time_out() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.wait_for_close(),
        _ => x.answer(200, &[], b"late"),
    });
    let folder = tempfile::tempdir().unwrap();
    let keys = KeyFolder::open(folder.path()).unwrap();
    let policy = onlyonce_client::Policy {
        attempt_timeout: Duration::from_millis(200),
        ..onlyonce_client::Policy::default()
    };
    let client = OnceClient::builder(keys)
        .policy(policy)
        .random(|| 0.0)
        .build();
    let world = World {
        _folder: folder,
        client,
    };
    let response = world.post(&upstream.url()).await.unwrap();
    let report = report(&response);
    assert!(
        matches!(report.attempts[0].got, Got::TimedOut(_)),
        "{report}"
    );
    same_requests(&upstream, 2);
}
