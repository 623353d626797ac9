//! The client as a middleware of reqwest, over real sockets.

use std::time::Duration;

use onlyonce_client::{Error, KeyFolder, OnceClient, Report};
use onlyonce_testkit::{Refusing, Upstream};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};

use crate::support::action;

fn client(folder: &tempfile::TempDir) -> ClientWithMiddleware {
    let keys = KeyFolder::open(folder.path()).unwrap();
    let client = OnceClient::builder(keys).random(|| 0.0).build();
    ClientBuilder::new(reqwest::Client::new())
        .with(client.middleware())
        .build()
}

fn cause(error: &reqwest_middleware::Error) -> &Error {
    match error {
        reqwest_middleware::Error::Middleware(error) => error.downcast_ref().unwrap(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_dying_connection_is_tried_again_and_the_response_is_as_ever() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.reset(),
        2 => {
            x.start_chunked(200, &[]);
            x.chunk("half");
            x.reset();
        }
        _ => x.answer(201, &[("X-Own", "1")], b"the whole"),
    });
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{}/charges?x=1", upstream.url());
    let response = client(&folder)
        .post(&url)
        .with_extension(action("order-17/charge"))
        .body("amount=4200")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (response.status().as_u16(), response.url().as_str()),
        (201, &*url)
    );
    assert_eq!(response.headers()["x-own"], "1");
    let report: &Report = response.extensions().get().unwrap();
    assert_eq!(report.attempts.len(), 3, "{report}");
    assert_eq!(response.text().await.unwrap(), "the whole");
    for seen in upstream.seen() {
        assert_eq!(
            seen.head.header("idempotency-key"),
            upstream.seen()[0].head.header("idempotency-key")
        );
        assert_eq!(seen.head.header("content-length"), Some("11"));
    }
    assert_eq!(upstream.hits(), 3);
}

#[tokio::test]
async fn hostile_082_a_new_process_sends_the_key_of_the_old_one() {
    let upstream = Upstream::counting();
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let request = client(&folder).post(upstream.url());
        let sent = request.with_extension(action("a")).send().await.unwrap();
        assert_eq!(sent.status(), 200);
    }
    let seen = upstream.seen();
    let keys: Vec<_> = seen
        .iter()
        .map(|seen| seen.head.header("idempotency-key"))
        .collect();
    assert!(
        keys.len() == 2 && keys[0].is_some() && keys[0] == keys[1],
        "{keys:?}"
    );
}

#[tokio::test]
async fn a_requests_own_time_out_stays_and_a_missing_action_is_refused() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.wait_for_close(),
        _ => x.answer(200, &[], b""),
    });
    let folder = tempfile::tempdir().unwrap();
    let client = client(&folder);
    let response = client
        .post(upstream.url())
        .timeout(Duration::from_millis(200))
        .with_extension(action("a"))
        .send()
        .await
        .unwrap();
    let report: &Report = response.extensions().get().unwrap();
    assert_eq!(report.attempts.len(), 2, "{report}");
    let error = client.post(upstream.url()).send().await.unwrap_err();
    assert!(matches!(cause(&error), Error::NoAction { .. }), "{error}");
    assert_eq!(upstream.hits(), 2);
}

#[tokio::test]
async fn hostile_061_what_never_connected_costs_nothing() {
    let refusing = Refusing::new();
    let folder = tempfile::tempdir().unwrap();
    let request = client(&folder).post(refusing.url());
    let error = request
        .with_extension(action("a"))
        .send()
        .await
        .unwrap_err();
    let error = cause(&error);
    assert!(!error.report().unwrap().may_have_run(), "{error}");
}
