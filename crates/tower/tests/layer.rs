//! The layer before handlers of axum, over real sockets.
//!
//! What is the same in the gateway is tested by the hostile suite, which runs before both. Here is what
//! only a handler can do.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use onlyonce_core::{State, UnknownReason, Usd};
use onlyonce_store::MemoryStore;
use onlyonce_testkit::{Request, Signal, eventually};
use onlyonce_tower::{
    DidNotRun, Once, OnceLayer, Operation, OperationId, Outcome, ResolveError, Rules,
};
use tower::ServiceExt;

use kit::{Ending, Server, keyed, layer, on_each_store, streamed};

/// Counts how often the handler ran.
type Runs = Arc<AtomicUsize>;

fn counting(runs: &Runs) -> impl Fn() -> usize + Clone + Send + Sync + 'static {
    let runs = runs.clone();
    move || runs.fetch_add(1, SeqCst) + 1
}

/// A server whose answers say `run N begun, `, wait for the signal, and end with `and ended`.
fn held(store: kit::TestStore) -> (Signal, Server) {
    let go = Signal::new();
    let wait = go.clone();
    let run = counting(&Runs::default());
    let server = Server::start(store, Rules::default(), move |layer| {
        let handler = move || async move { streamed(run(), wait, Ending::Whole) };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    (go, server)
}

#[test]
fn a_handler_runs_once_and_its_answer_is_replayed() {
    on_each_store(|store| {
        let runs = Runs::default();
        let run = counting(&runs);
        let server = Server::start(store, Rules::default(), move |layer| {
            Router::new()
                .route(
                    "/x",
                    post(move |body: String| async move {
                        ([("x-number", "7")], format!("run {} of {body}", run()))
                    }),
                )
                .layer(layer)
        });
        let first = server.send(&keyed("/x", "k").body("b"));
        first.expect_status(200).expect_mark("executed");
        assert_eq!(first.text(), "run 1 of b");
        assert!(first.header("onlyonce-operation").is_some());
        assert!(first.header("onlyonce-expires").is_some());
        assert_eq!(first.header("idempotent-replayed"), None);
        for attempt in 2..4 {
            let again = server.send(&keyed("/x", "k").body("b"));
            again.expect_status(200).expect_mark("replayed");
            assert_eq!(again.text(), first.text());
            assert_eq!(again.header("idempotent-replayed"), Some("true"));
            assert_eq!(again.header("x-number"), Some("7"));
            assert_eq!(again.header("date"), first.header("date"));
            assert_eq!(
                again.header("onlyonce-attempt"),
                Some(&*attempt.to_string())
            );
        }
        assert_eq!(runs.load(SeqCst), 1);
    });
}

#[test]
fn another_request_under_a_used_key_is_refused() {
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        Router::new()
            .route("/x", post(move || async move { format!("run {}", run()) }))
            .layer(layer)
    });
    server.send(&keyed("/x", "k").body("b")).expect_status(200);
    let refused = server.send(&keyed("/x", "k").body("c"));
    refused
        .expect_problem(422, "key-reused")
        .expect_retry(false);
    assert_eq!(refused.header("onlyonce-operation"), None);
    assert_eq!(runs.load(SeqCst), 1);
}

#[test]
fn who_comes_while_it_runs_joins_the_stream() {
    on_each_store(|store| {
        let (go, server) = held(store);
        let mut first = server.begin(&keyed("/x", "k").body("b"));
        assert_eq!(
            first.read_head().header("onlyonce-status"),
            Some("executed")
        );
        first.read_until("begun");
        let mut second = server.begin(&keyed("/x", "k").body("b"));
        assert_eq!(second.read_head().header("onlyonce-status"), Some("joined"));
        second.read_until("begun");
        go.fire();
        let (first, second) = (first.finish(), second.finish());
        assert!(first.whole() && second.whole());
        assert_eq!(first.text(), "run 1 begun, and ended");
        assert_eq!(second.text(), first.text());
        let third = server.send(&keyed("/x", "k").body("b"));
        third.expect_mark("replayed");
        assert_eq!(third.text(), first.text());
    });
}

#[test]
fn who_leaves_stops_nothing_and_gets_the_whole_on_its_retry() {
    on_each_store(|store| {
        let (go, server) = held(store);
        let mut first = server.begin(&keyed("/x", "k").body("b"));
        first.read_head();
        first.read_until("begun");
        first.reset();
        let mut retry = server.begin(&keyed("/x", "k").body("b"));
        assert_eq!(retry.read_head().header("onlyonce-status"), Some("joined"));
        go.fire();
        assert_eq!(retry.finish().text(), "run 1 begun, and ended");
    });
}

#[test]
fn a_handler_whose_only_caller_leaves_before_its_answer_goes_on() {
    let (begun, go) = (Signal::new(), Signal::new());
    let (tell, wait) = (begun.clone(), go.clone());
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let handler = move || async move {
            let number = run();
            tell.fire();
            kit::until(&wait).await;
            format!("run {number}")
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let first = server.begin(&keyed("/x", "k").body("b"));
    begun.wait();
    first.reset();
    server.until_connections(0);
    go.fire();
    let retry = server.send(&keyed("/x", "k").body("b"));
    assert_eq!(retry.expect_status(200).text(), "run 1");
    assert_ne!(retry.mark(), Some("executed"));
    assert_eq!(runs.load(SeqCst), 1);
}

#[test]
fn a_handler_is_dropped_when_all_have_left_where_the_rules_say_so() {
    let (begun, dropped) = (Signal::new(), Signal::new());
    let (tell, told) = (begun.clone(), dropped.clone());
    let rules = Rules::default().cancel_when_all_left();
    let server = Server::start(kit::memory(), rules, move |layer| {
        let handler = move || async move {
            let _guard = kit::FireOnDrop(told);
            tell.fire();
            std::future::pending::<String>().await
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let first = server.begin(&keyed("/x", "k").body("b"));
    begun.wait();
    first.reset();
    dropped.wait();
    let retry = server.until_settled(&keyed("/x", "k").body("b"));
    retry
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    assert_eq!(server.unknown_reason(), Some(UnknownReason::Cancelled));
}

/// An error of a handler that knows what it means.
enum ChargeError {
    Declined,
    BankUnreachable,
}

impl IntoResponse for ChargeError {
    fn into_response(self) -> Response {
        match self {
            Self::Declined => StatusCode::PAYMENT_REQUIRED.into_response(),
            Self::BankUnreachable => {
                DidNotRun((StatusCode::SERVICE_UNAVAILABLE, "no bank")).into_response()
            }
        }
    }
}

#[test]
fn a_typed_error_that_says_nothing_ran_frees_the_key() {
    on_each_store(|store| {
        let runs = Runs::default();
        let run = counting(&runs);
        let server = Server::start(store, Rules::default(), move |layer| {
            let handler = move || async move {
                match run() {
                    1 => Err(ChargeError::BankUnreachable),
                    2 => Err(ChargeError::Declined),
                    _ => Ok("charged"),
                }
            };
            Router::new().route("/x", post(handler)).layer(layer)
        });
        let released = server.send(&keyed("/x", "k").body("b"));
        released.expect_status(503).expect_mark("released");
        assert_eq!(released.text(), "no bank");
        assert_eq!(released.header("onlyonce-expires"), None);
        // Any other error is an answer.
        server
            .send(&keyed("/x", "k").body("b"))
            .expect_status(402)
            .expect_mark("executed");
        server
            .send(&keyed("/x", "k").body("b"))
            .expect_status(402)
            .expect_mark("replayed");
        assert_eq!(runs.load(SeqCst), 2);
    });
}

#[test]
fn i18_those_who_joined_get_the_answer_that_says_nothing_ran() {
    let go = Signal::new();
    let wait = go.clone();
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let handler = move || async move {
            let number = run();
            kit::until(&wait).await;
            DidNotRun((StatusCode::SERVICE_UNAVAILABLE, format!("refusal {number}")))
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let mut clients: Vec<_> = (0..10)
        .map(|_| server.begin(&keyed("/x", "k").body("b")))
        .collect();
    eventually("ten attempts at one operation", || server.attempts() == 10);
    go.fire();
    for client in &mut clients {
        let answer = client.response();
        answer.expect_status(503).expect_mark("released");
        assert_eq!(answer.text(), "refusal 1");
    }
    assert_eq!(runs.load(SeqCst), 1);
}

#[test]
fn a_listed_status_frees_the_key_and_the_handler_has_the_last_word() {
    let runs = Runs::default();
    let run = counting(&runs);
    let rules = Rules::default().released([StatusCode::SERVICE_UNAVAILABLE]);
    let server = Server::start(kit::memory(), rules, move |layer| {
        let handler = move || async move {
            let response = StatusCode::SERVICE_UNAVAILABLE.into_response();
            match run() {
                1 => response,
                _ => Outcome::Completed.of(response),
            }
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    server
        .send(&keyed("/x", "k").body("b"))
        .expect_status(503)
        .expect_mark("released");
    server
        .send(&keyed("/x", "k").body("b"))
        .expect_status(503)
        .expect_mark("executed");
    server
        .send(&keyed("/x", "k").body("b"))
        .expect_status(503)
        .expect_mark("replayed");
    assert_eq!(runs.load(SeqCst), 2);
}

#[test]
fn without_a_list_no_status_frees_a_key() {
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let handler =
            move || async move { (StatusCode::SERVICE_UNAVAILABLE, format!("run {}", run())) };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    server
        .send(&keyed("/x", "k").body("b"))
        .expect_status(503)
        .expect_mark("executed");
    let again = server.send(&keyed("/x", "k").body("b"));
    assert_eq!(
        again.expect_status(503).expect_mark("replayed").text(),
        "run 1"
    );
}

/// Every attempt is told that the outcome is unknown, and the handler runs once.
#[track_caller]
fn expect_unknown(server: &Server, runs: &Runs) -> UnknownReason {
    for _ in 0..2 {
        let answer = server.send(&keyed("/x", "k").body("b"));
        answer
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
        assert!(answer.header("onlyonce-operation").is_some());
    }
    assert_eq!(runs.load(SeqCst), 1);
    server.unknown_reason().expect("an unknown outcome")
}

#[test]
fn a_handler_that_panics_leaves_the_outcome_unknown() {
    on_each_store(|store| {
        let runs = Runs::default();
        let run = counting(&runs);
        let server = Server::start(store, Rules::default(), move |layer| {
            let handler = move || async move {
                run();
                // Once inside of the future, after a turn.
                tokio::task::yield_now().await;
                let number: u32 = "a bug in the handler".parse().unwrap();
                number.to_string()
            };
            Router::new().route("/x", post(handler)).layer(layer)
        });
        let reason = expect_unknown(&server, &runs);
        assert_eq!(reason, UnknownReason::HandlerFailed);
    });
}

#[test]
fn a_handler_can_say_that_nobody_knows() {
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let handler = move || async move {
            run();
            Outcome::Unknown.of((StatusCode::OK, "not to be shown").into_response())
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let reason = expect_unknown(&server, &runs);
    assert_eq!(reason, UnknownReason::HandlerFailed);
}

/// All of it with what a user of the crate can name.
#[tokio::test]
async fn what_somebody_has_found_out_answers_the_retries() {
    let once = Once::in_memory();
    let runs = Runs::default();
    let run = counting(&runs);
    let handler = move || async move {
        match run() {
            1 | 2 => Outcome::Unknown.of(StatusCode::OK.into_response()),
            number => format!("run {number}").into_response(),
        }
    };
    let layer = OnceLayer::new(once.clone(), Rules::default());
    let app = Router::new().route("/x", post(handler)).layer(layer);
    let ask = async |key: &str| {
        let request = axum::http::Request::post("/x").header("authorization", "Bearer me");
        let request = request.header("idempotency-key", key).body(Body::empty());
        let (head, body) = app
            .clone()
            .oneshot(request.unwrap())
            .await
            .unwrap()
            .into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head, String::from_utf8(body.to_vec()).unwrap())
    };
    let unknown = async |key: &str| -> OperationId {
        let (head, said) = ask(key).await;
        assert_eq!(head.status, 502, "{said}");
        // It says what can be done here, where there is no gateway.
        assert!(said.contains("Once::complete or Once::release"), "{said}");
        assert!(!said.contains("upstream"), "{said}");
        head.headers["onlyonce-operation"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    let hour = Duration::from_secs(3_600);

    let ran = unknown("ran").await;
    let found = Response::builder()
        .status(201)
        .header("x-number", "7")
        .header("content-length", "99")
        .body("found");
    once.complete(ran, found.unwrap(), hour, "ada", "it is in the books")
        .await
        .unwrap();
    let (head, body) = ask("ran").await;
    assert_eq!((head.status.as_u16(), &*body), (201, "found"));
    assert_eq!(head.headers["x-number"], "7");
    assert_eq!(head.headers["onlyonce-status"], "replayed");
    assert_eq!(head.headers["content-length"], "5");
    let again = once.release(ran, "ada", "no").await;
    assert!(
        matches!(again, Err(ResolveError::NotUnknown(_))),
        "{again:?}"
    );

    let idle = unknown("idle").await;
    once.release(idle, "ada", "it is not in the books")
        .await
        .unwrap();
    assert_eq!(ask("idle").await.1, "run 3");
    let nobody = "op_01a21b5d-191c-7bfa-ac80-a371b5d7c6df".parse().unwrap();
    let nobody = once.release(nobody, "ada", "no").await;
    assert_eq!(nobody, Err(ResolveError::NotFound));
}

#[test]
fn i05_a_body_that_breaks_off_or_panics_never_ends_cleanly() {
    for ending in [Ending::Fails, Ending::Panics] {
        let runs = Runs::default();
        let run = counting(&runs);
        let go = Signal::new();
        let wait = go.clone();
        let server = Server::start(kit::memory(), Rules::default(), move |layer| {
            let handler = move || async move { streamed(run(), wait, ending) };
            Router::new().route("/x", post(handler)).layer(layer)
        });
        let mut first = server.begin(&keyed("/x", "k").body("b"));
        assert_eq!(first.read_head().status(), 200);
        first.read_until("begun");
        go.fire();
        assert!(!first.finish().whole());
        let reason = expect_unknown(&server, &runs);
        let expected = match ending {
            Ending::Panics => UnknownReason::HandlerFailed,
            _ => UnknownReason::Truncated,
        };
        assert_eq!(reason, expected);
    }
}

#[test]
fn i03_the_last_byte_of_a_body_of_known_size_waits_for_its_end() {
    let go = Signal::new();
    let wait = go.clone();
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        // Its size is known, and no header says it: the server will.
        let handler = move || async move { kit::sized(wait, "01234", "56789") };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let mut client = server.begin(&keyed("/x", "k").body("b"));
    assert_eq!(client.read_head().content_length(), Some(10));
    client.read_until("01234");
    client.patience(Duration::from_millis(200));
    while client.step().is_ok() {
        assert!(
            client.body().len() < 10,
            "the last byte came before the record"
        );
    }
    go.fire();
    client.patience(onlyonce_testkit::PATIENCE);
    let answer = client.finish();
    assert!(answer.whole());
    assert_eq!(answer.text(), "0123456789");
}

#[test]
fn no_answer_in_time_is_unknown_and_a_late_one_completes() {
    let go = Signal::new();
    let wait = go.clone();
    let rules = Rules::default().answer_timeout(Duration::from_millis(100));
    let server = Server::start(kit::memory(), rules, move |layer| {
        let handler = move || async move {
            kit::until(&wait).await;
            "late"
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let request = keyed("/x", "k").body("b");
    for _ in 0..2 {
        let told = server.send(&request);
        told.expect_problem(504, "outcome-unknown")
            .expect_retry(false);
    }
    go.fire();
    eventually("the late answer", || server.send(&request).status() == 200);
    let late = server.send(&request);
    assert_eq!(late.expect_mark("replayed").text(), "late");
}

#[test]
fn at_the_end_what_runs_is_finished_or_unknown_and_no_handler_is_left() {
    let (begun, dropped) = (Signal::new(), Signal::new());
    let (tell, told) = (begun.clone(), dropped.clone());
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let handler = move || async move {
            let _guard = kit::FireOnDrop(told);
            tell.fire();
            std::future::pending::<String>().await
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let mut first = server.begin(&keyed("/x", "k").body("b"));
    begun.wait();
    server.shutdown(Duration::from_millis(50));
    let answer = first.response();
    answer
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    dropped.wait();
    // And nothing new is taken.
    let refused = server.send(&keyed("/x", "k2").body("b"));
    refused
        .expect_problem(503, "shutting-down")
        .expect_retry(true);
}

#[test]
fn what_is_over_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let runs = Runs::default();
    let mut first = None;
    for _ in 0..2 {
        let run = counting(&runs);
        let store = kit::embedded(folder.path());
        let server = Server::start(store, Rules::default(), move |layer| {
            let handler = move || async move { format!("run {}", run()) };
            Router::new().route("/x", post(handler)).layer(layer)
        });
        let answer = server.send(&keyed("/x", "k").body("b"));
        server.end();
        let first: &String = first.get_or_insert(answer.text());
        assert_eq!(answer.expect_status(200).text(), *first);
    }
    assert_eq!(runs.load(SeqCst), 1);
}

#[test]
fn without_a_key_a_request_passes_or_is_refused() {
    let runs = Runs::default();
    for required in [false, true] {
        let run = counting(&runs);
        let rules = match required {
            true => Rules::default().require_key(),
            false => Rules::default(),
        };
        let server = Server::start(kit::memory(), rules, move |layer| {
            let handler = move |operation: Option<Operation>| async move {
                run();
                // Forged marks do not pass.
                (
                    [("onlyonce-status", "replayed")],
                    operation.is_some().to_string(),
                )
            };
            Router::new().route("/x", any(handler)).layer(layer)
        });
        let safe = server.send(&Request::get("/x").header("Idempotency-Key", "k"));
        assert_eq!(
            (safe.expect_status(200).text().as_str(), safe.mark()),
            ("false", None)
        );
        let unkeyed = server.send(&Request::post("/x").body("b"));
        match required {
            false => {
                assert_eq!(unkeyed.expect_status(200).text(), "false");
                assert_eq!(unkeyed.mark(), None);
            }
            true => {
                unkeyed
                    .expect_problem(400, "key-missing")
                    .expect_retry(false);
            }
        }
        assert_eq!(server.send(&keyed("/x", "k").body("b")).text(), "true");
    }
    assert_eq!(runs.load(SeqCst), 5);
}

#[test]
fn a_handler_that_takes_an_operation_refuses_requests_without_a_key() {
    let server = Server::start(kit::memory(), Rules::default(), |layer| {
        Router::new()
            .route(
                "/x",
                post(|operation: Operation| async move { operation.id().to_string() }),
            )
            .layer(layer)
            .route("/bare", post(|_: Operation| async { "never" }))
    });
    let refused = server.send(&Request::post("/x").body("b"));
    refused
        .expect_problem(400, "key-missing")
        .expect_retry(false);
    // Where there is no layer, it is the server that is wrong.
    server
        .send(&keyed("/bare", "k").body("b"))
        .expect_status(500);
}

#[test]
fn an_operation_tells_who_asks_and_derives_keys_that_stay_the_same() {
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let handler = move |operation: Operation| async move {
            let text = format!(
                "{} {} {} {}",
                operation.key(),
                operation.tenant(),
                operation.key_for("charge"),
                operation.key_for("mail"),
            );
            match run() {
                1 => DidNotRun(text).into_response(),
                _ => format!("{} {} {text}", operation.id(), operation.attempt()).into_response(),
            }
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let released = server.send(&keyed("/x", "k").body("b"));
    let executed = server.send(&keyed("/x", "k").body("b"));
    executed.expect_mark("executed");
    let told = executed.text();
    let words: Vec<_> = told.split(' ').collect();
    assert_eq!(executed.header("onlyonce-operation"), Some(words[0]));
    assert_eq!(executed.header("onlyonce-attempt"), Some(words[1]));
    assert_eq!(words[2..].join(" "), released.text());
    assert_eq!(words[2], "k");
    assert!(words[3].starts_with("cred_"));
    assert_ne!(words[4], words[5]);
}

#[test]
fn tenants_are_told_apart_by_credential_or_as_the_rules_say() {
    let handler = |operation: Operation| async move { operation.tenant().to_owned() };
    let of = |name: &'static str, value: &'static str| {
        Request::post("/x").key("k").body("b").header(name, value)
    };
    // By credential; who sends none is refused, unless that is allowed.
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let one = server.send(&of("Authorization", "Bearer one"));
    let two = server.send(&of("Authorization", "Bearer two"));
    assert_ne!(
        one.expect_mark("executed").text(),
        two.expect_mark("executed").text()
    );
    let nobody = server.send(&Request::post("/x").key("k").body("b"));
    nobody
        .expect_problem(401, "credential-missing")
        .expect_retry(false);
    let said = nobody.text();
    assert!(
        said.contains("Rules::allow_anonymous") && !said.contains("gateway"),
        "{said}"
    );
    let rules = Rules::default().allow_anonymous();
    let server = Server::start(kit::memory(), rules, move |layer| {
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let nobody = server.send(&Request::post("/x").key("k").body("b"));
    assert_eq!(nobody.expect_status(200).text(), "anonymous");
    // By what the application knows.
    let rules = Rules::default().tenant(|head| {
        let user = head.headers.get("x-user")?.to_str().ok()?;
        Some(user.to_owned())
    });
    let server = Server::start(kit::memory(), rules, move |layer| {
        Router::new().route("/x", post(handler)).layer(layer)
    });
    assert_eq!(
        server
            .send(&of("X-User", "ann"))
            .expect_mark("executed")
            .text(),
        "ann"
    );
    assert_eq!(
        server
            .send(&of("X-User", "bob"))
            .expect_mark("executed")
            .text(),
        "bob"
    );
    assert_eq!(
        server
            .send(&of("X-User", "ann"))
            .expect_mark("replayed")
            .text(),
        "ann"
    );
    // Without a name, the credential counts; the names of those who have none cannot be taken.
    let hashed = server.send(&of("Authorization", "Bearer one"));
    assert!(hashed.expect_mark("executed").text().starts_with("cred_"));
    for reserved in ["", "anonymous", "cred_00"] {
        let refused = server.send(&of("X-User", reserved));
        refused.expect_problem(401, "credential-missing");
    }
}

#[test]
fn what_a_handler_meters_stands_in_the_record() {
    let cost = Usd::from_nanos(5_000_000);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let handler = move |operation: Operation| async move {
            operation.meter(kit::metered(cost));
            "metered"
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    server.send(&keyed("/x", "k").body("b")).expect_status(200);
    let metered = server.record().metered.clone().expect("what it used");
    assert_eq!(*metered, kit::metered(cost));
}

#[test]
fn routers_with_the_same_inner_path_are_not_mistaken_for_each_other() {
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let nested = |name: &'static str| {
            let (run, layer) = (run.clone(), layer.clone());
            let handler = move || async move { format!("{name} {}", run()) };
            Router::new().route("/x", post(handler)).layer(layer)
        };
        Router::new()
            .nest("/a", nested("a"))
            .nest("/b", nested("b"))
    });
    assert_eq!(server.send(&keyed("/a/x", "k").body("b")).text(), "a 1");
    let other = server.send(&keyed("/b/x", "k").body("b"));
    other.expect_problem(422, "key-reused").expect_retry(false);
    assert_eq!(server.send(&keyed("/a/x", "k").body("b")).text(), "a 1");
}

#[test]
fn one_route_can_have_a_layer_and_rules_of_its_own() {
    let runs = Runs::default();
    let run = counting(&runs);
    let server = Server::start(kit::memory(), Rules::default(), move |layer| {
        let (run, other) = (run.clone(), run.clone());
        Router::new()
            .route(
                "/charges/{id}",
                post(move |Path(id): Path<u32>| async move { Json(format!("{id} {}", run())) })
                    .layer(layer),
            )
            .route(
                "/free",
                post(move || async move { format!("free {}", other()) }),
            )
    });
    assert_eq!(
        server.send(&keyed("/charges/7", "k").body("b")).text(),
        "\"7 1\""
    );
    assert_eq!(server.send(&keyed("/free", "k").body("b")).text(), "free 2");
    assert_eq!(server.send(&keyed("/free", "k").body("b")).text(), "free 3");
    assert_eq!(
        server.send(&keyed("/charges/7", "k").body("b")).text(),
        "\"7 1\""
    );
}

#[test]
fn trailers_and_cookies_are_those_of_the_contract() {
    let server = Server::start(kit::memory(), Rules::default(), |layer| {
        let handler = || async {
            let mut trailers = axum::http::HeaderMap::new();
            trailers.insert("x-sum", "7".parse().unwrap());
            let frames = [
                Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(b"body"))),
                Ok(http_body::Frame::trailers(trailers)),
            ];
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            ([("trailer", "x-sum"), ("set-cookie", "a=1")], body)
        };
        Router::new().route("/x", post(handler)).layer(layer)
    });
    let request = keyed("/x", "k").body("b").header("TE", "trailers");
    let (first, second) = (server.send(&request), server.send(&request));
    first.expect_mark("executed");
    second.expect_mark("replayed");
    assert_eq!(first.trailers, [("x-sum".to_owned(), "7".to_owned())]);
    assert_eq!(second.trailers, first.trailers);
    assert_eq!(first.header("set-cookie"), Some("a=1"));
    assert_eq!(second.header("set-cookie"), None);
}

#[test]
fn what_nothing_ran_for_is_said_by_a_service_that_is_no_axum_handler() {
    kit::block_on(async {
        use onlyonce_tower::NotSent;
        use tower::{Layer, ServiceExt};
        let once = Once::in_memory();
        let rules = Rules::default().allow_anonymous();
        let layer = layer(&once, rules);
        let runs = Runs::default();
        let run = counting(&runs);
        let service = layer.layer(tower::service_fn(
            move |_: axum::http::Request<onlyonce_tower::RequestBody<Body>>| {
                let number = run();
                async move {
                    match number {
                        1 => Err(onlyonce_tower::BoxError::from(NotSent {
                            why: "the bank's address is not known".to_owned(),
                        })),
                        2 => Err("it broke".into()),
                        _ => Ok(axum::http::Response::new(Body::empty())),
                    }
                }
            },
        ));
        let mut problems = Vec::new();
        for _ in 0..3 {
            let request = axum::http::Request::post("/x")
                .header("idempotency-key", "k")
                .body(Body::empty())
                .unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            problems.push((
                response.status().as_u16(),
                response.headers()["x-should-retry"]
                    .to_str()
                    .unwrap()
                    .to_owned(),
            ));
        }
        let expected = [(502, "true"), (502, "false"), (502, "false")];
        assert_eq!(
            problems,
            expected.map(|(status, retry)| (status, retry.to_owned()))
        );
        assert_eq!(runs.load(SeqCst), 2);
        let page = once.engine().list(kit::all()).await.unwrap();
        let record = &page.records[0].record;
        assert!(
            matches!(record.state, State::Unknown { .. }),
            "{:?}",
            record.state
        );
        once.shutdown(Duration::ZERO).await.unwrap();
    });
}

#[test]
fn a_replay_does_not_wait_for_a_service_that_is_busy() {
    kit::block_on(async {
        use tower::{Layer, ServiceExt};
        let once: Once<MemoryStore> = Once::in_memory();
        let layer: OnceLayer<_> = layer(&once, Rules::default().allow_anonymous());
        let handler = |request: axum::http::Request<onlyonce_tower::RequestBody<Body>>| async move {
            if request.uri().path() == "/stuck" {
                std::future::pending::<()>().await;
            }
            Ok::<_, onlyonce_tower::BoxError>(axum::http::Response::new(Body::empty()))
        };
        let one_at_a_time = tower::limit::ConcurrencyLimitLayer::new(1);
        let service = layer.layer(one_at_a_time.layer(tower::service_fn(handler)));
        let ask = |path: &'static str, key: &'static str| {
            let request = axum::http::Request::post(path)
                .header("idempotency-key", key)
                .body(Body::empty())
                .unwrap();
            service.clone().oneshot(request)
        };
        assert_eq!(ask("/x", "k").await.unwrap().status(), 200);
        let stuck = tokio::spawn(ask("/stuck", "k2"));
        while once.engine().live() == 0 {
            tokio::task::yield_now().await;
        }
        let replayed = ask("/x", "k").await.unwrap();
        assert_eq!(replayed.headers()["onlyonce-status"], "replayed");
        once.shutdown(Duration::ZERO).await.unwrap();
        assert_eq!(stuck.await.unwrap().unwrap().status(), 502);
    });
}
