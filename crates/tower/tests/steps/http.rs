//! Steps behind the layer: what callers are told.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use http_body_util::BodyExt;
use onlyonce_core::{StateName, UnknownReason};
use onlyonce_store::memory::{Call as StoreCall, Fault};
use onlyonce_tower::{DidNotRun, Failure, OnceLayer, Operation, Rules, StepError};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;

use crate::world::{Broke, Counter, DAY, World, charge, reason_of};

pub fn request() -> Request<Body> {
    Request::post("/reports?month=10")
        .header("authorization", "Bearer me-and-nobody-else")
        .header("idempotency-key", "k")
        .header("content-type", "text/plain")
        .body(Body::from("october"))
        .unwrap()
}

pub async fn send(app: &Router) -> (StatusCode, Response<()>, String) {
    let response = app.clone().oneshot(request()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    (parts.status, Response::from_parts(parts, ()), text)
}

fn app<H, F, R>(world: &World, rules: Rules, handler: H) -> Router
where
    H: Fn(Operation) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = R> + Send,
    R: IntoResponse,
{
    let layer = OnceLayer::new(world.once.clone(), rules);
    Router::new().route("/reports", post(handler)).layer(layer)
}

#[tokio::test]
async fn an_unknown_step_is_named_with_what_to_do_and_nothing_is_done_twice() {
    let world = World::new();
    let bank = Counter::default();
    let hits = bank.clone();
    let app = app(
        &world,
        Rules::default().resume(),
        move |operation: Operation| {
            let bank = bank.clone();
            async move {
                let step = operation.step("charge", async || {
                    bank.hit();
                    Err::<usize, _>(Failure::from(Broke))
                });
                Ok::<_, StepError>(step.await?.to_string())
            }
        },
    );
    for _ in 0..3 {
        let (status, response, body) = send(&app).await;
        assert_eq!(status, 502, "{body}");
        assert_eq!(response.headers()["x-should-retry"], "false");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["type"], "/problems/outcome-unknown");
        let step = world.step("charge").await.unwrap();
        let detail = problem["detail"].as_str().unwrap();
        for part in ["the step charge", &step.id.to_string()] {
            assert!(detail.contains(part), "{part} is not in: {detail}");
        }
        let next = problem["next"].as_str().unwrap();
        assert!(next.contains("settles the step"), "{next}");
        assert_eq!(problem["operation"], world.operation().await.id.to_string());
    }
    assert_eq!(hits.hits(), 1);
    world
        .resolve(world.step("charge").await.unwrap().id, Some("5"))
        .await;
    let (status, response, body) = send(&app).await;
    assert_eq!((status, &*body), (StatusCode::OK, "5"));
    assert_eq!(response.headers()["onlyonce-status"], "executed");
    let (_, response, _) = send(&app).await;
    assert_eq!(response.headers()["onlyonce-status"], "replayed");
    assert_eq!(hits.hits(), 1);
}

#[tokio::test]
async fn whatever_a_handler_answers_after_an_unknown_step_it_is_unknown() {
    let world = World::new();
    let app = app(
        &world,
        Rules::default(),
        move |operation: Operation| async move {
            let step = operation.step("charge", async || Err::<usize, _>(Failure::from(Broke)));
            step.await.map_or_else(
                |_| (StatusCode::INTERNAL_SERVER_ERROR, "sorry").into_response(),
                |number| number.to_string().into_response(),
            )
        },
    );
    for _ in 0..2 {
        let (status, _, body) = send(&app).await;
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("outcome-unknown"), "{body}");
    }
    let operation = world.operation().await;
    assert_eq!(reason_of(&operation), Some(UnknownReason::StepUnknown));
}

#[tokio::test]
async fn i18_who_joined_is_told_of_the_step_too() {
    let world = World::new();
    let go = Arc::new(Notify::new());
    let waits = go.clone();
    let app = app(
        &world,
        Rules::default().resume(),
        move |operation: Operation| {
            let go = waits.clone();
            async move {
                let step = operation.step("charge", async || {
                    go.notified().await;
                    Err::<usize, _>(Failure::from(Broke))
                });
                Ok::<_, StepError>(step.await?.to_string())
            }
        },
    );
    let first = tokio::spawn({
        let app = app.clone();
        async move { send(&app).await }
    });
    while world.step("charge").await.is_none() {
        tokio::task::yield_now().await;
    }
    let id = world.operation().await.id;
    let second = tokio::spawn({
        let app = app.clone();
        async move { send(&app).await }
    });
    let engine = world.once.engine();
    while engine.operation(id).await.unwrap().unwrap().stored.attempts < 2 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    for told in [first, second] {
        let (status, _, body) = told.await.unwrap();
        assert_eq!(status, 502);
        assert!(body.contains("the step charge"), "{body}");
    }
}

#[tokio::test]
async fn a_handler_that_stops_between_two_steps_is_retried_and_continues() {
    let world = World::new();
    let (bank, tries) = (Counter::default(), Counter::default());
    let (hits, line) = (bank.clone(), tries.clone());
    let app = app(
        &world,
        Rules::default().resume(),
        move |operation: Operation| {
            let (bank, tries) = (bank.clone(), tries.clone());
            async move {
                let number = charge(&operation, &bank).await?;
                let mail = operation.step("mail", async || match tries.hit() {
                    1 => Err(Failure::did_not_run("no line")),
                    tries => Ok(tries),
                });
                let tries = mail.await?;
                Ok::<_, StepError>(format!("charge {number}, try {tries}"))
            }
        },
    );
    let (status, response, body) = send(&app).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(response.headers()["x-should-retry"], "true");
    assert_eq!(response.headers()["retry-after"], "1");
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(problem["type"], "/problems/operation-unfinished");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("the step mail did not run"), "{detail}");
    let (status, _, body) = send(&app).await;
    assert_eq!((status, &*body), (StatusCode::OK, "charge 1, try 2"));
    assert_eq!((hits.hits(), line.hits()), (1, 2));
}

#[tokio::test]
async fn i10_a_handler_that_says_that_nothing_ran_is_not_believed_after_a_step_has() {
    let world = World::new();
    let bank = Counter::default();
    let hits = bank.clone();
    let app = app(
        &world,
        Rules::default().resume(),
        move |operation: Operation| {
            let bank = bank.clone();
            async move {
                charge(&operation, &bank).await?;
                Ok::<_, StepError>(DidNotRun((StatusCode::SERVICE_UNAVAILABLE, "later")))
            }
        },
    );
    for _ in 0..2 {
        let (status, _, body) = send(&app).await;
        assert_eq!(status, 503);
        assert!(body.contains("operation-unfinished"), "{body}");
    }
    let operation = world.operation().await;
    assert_eq!(reason_of(&operation), Some(UnknownReason::Unfinished));
    assert_eq!(hits.hits(), 1);
}

#[tokio::test]
async fn a_handler_whose_only_step_did_not_run_releases_its_key_with_its_answer() {
    let world = World::new();
    let app = app(
        &world,
        Rules::default(),
        move |operation: Operation| async move {
            let step = operation.step("charge", async || {
                Err::<(), _>(Failure::did_not_run("no line"))
            });
            step.await
        },
    );
    for _ in 0..2 {
        let (status, response, body) = send(&app).await;
        assert_eq!(status, 503);
        assert_eq!(response.headers()["onlyonce-status"], "released");
        assert_eq!(body, "the step charge did not run\n");
    }
}

#[tokio::test]
async fn an_operation_that_was_begun_too_long_ago_is_refused_with_the_reason() {
    let world = World::new();
    let (bank, runs) = (Counter::default(), Counter::default());
    let (hits, ran) = (bank.clone(), runs.clone());
    let rules = Rules::default().resume().steps_window(10 * DAY);
    let app = app(&world, rules, move |operation: Operation| {
        let bank = bank.clone();
        runs.hit();
        async move {
            charge(&operation, &bank).await?;
            if operation.attempt() == 1 {
                panic!("a bug in a handler");
            }
            Ok::<_, StepError>("done")
        }
    });
    let (status, ..) = send(&app).await;
    assert_eq!(status, 502);
    world
        .clock
        .advance(9 * DAY + std::time::Duration::from_millis(1));
    let (status, response, body) = send(&app).await;
    assert_eq!(status, 502, "{body}");
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(body.contains("so long ago"), "{body}");
    assert_eq!((hits.hits(), ran.hits()), (1, 1));
}

#[tokio::test]
async fn without_the_rule_an_operation_made_of_steps_does_not_continue() {
    let world = World::new();
    let bank = Counter::default();
    let hits = bank.clone();
    let app = app(&world, Rules::default(), move |operation: Operation| {
        let bank = bank.clone();
        async move {
            charge(&operation, &bank).await?;
            let mail = operation.step("mail", async || {
                Err::<(), _>(Failure::did_not_run("no line"))
            });
            mail.await
        }
    });
    for _ in 0..2 {
        let (status, response, body) = send(&app).await;
        assert_eq!(status, 502);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(body.contains("outcome-unknown"), "{body}");
    }
    assert_eq!(hits.hits(), 1);
}

#[tokio::test]
async fn a_service_that_fails_with_the_error_of_a_step_says_what_the_step_says() {
    let world = World::new();
    let layer = OnceLayer::new(world.once.clone(), Rules::default().resume());
    let tries = Counter::default();
    let service = tower::service_fn(move |request: Request<onlyonce_tower::RequestBody<Body>>| {
        let (operation, tries) = (
            request.extensions().get::<Operation>().unwrap().clone(),
            tries.clone(),
        );
        async move {
            charge(&operation, &Counter::default()).await?;
            let mail = operation.step("mail", async || match tries.hit() {
                1 => Err(Failure::did_not_run("no line")),
                _ => Ok(()),
            });
            mail.await?;
            Ok::<_, StepError>(Response::new(Body::from("done")))
        }
    });
    let service = tower::Layer::layer(&layer, service);
    let ask = || async {
        let response = service.clone().oneshot(request()).await;
        response.map(|response| response.status()).map_err(|_| ())
    };
    assert_eq!(ask().await, Ok(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(ask().await, Ok(StatusCode::OK));
}

#[tokio::test]
async fn i10_a_task_left_behind_runs_no_step_once_its_key_is_free_again() {
    // Each such task ran its step: once for every attempt, all under one key.
    let world = World::new();
    let bank = Counter::default();
    let hits = bank.clone();
    let go = Arc::new(Notify::new());
    let (tell, mut told) = mpsc::unbounded_channel();
    let goes = go.clone();
    let app = app(&world, Rules::default(), move |operation: Operation| {
        let (bank, go, tell) = (bank.clone(), goes.clone(), tell.clone());
        async move {
            tokio::spawn(async move {
                go.notified().await;
                tell.send(charge(&operation, &bank).await).unwrap();
            });
            DidNotRun((StatusCode::SERVICE_UNAVAILABLE, "later"))
        }
    });
    for _ in 0..3 {
        let (_, response, _) = send(&app).await;
        assert_eq!(response.headers()["onlyonce-status"], "released");
        go.notify_one();
        let late = told.recv().await.unwrap();
        assert!(matches!(late, Err(StepError::Ended { .. })), "{late:?}");
        // The next one finds nothing of this one.
        world.clock.advance(DAY);
    }
    assert_eq!(hits.hits(), 0);
    assert!(world.step("charge").await.is_none());
}

#[tokio::test]
async fn i10_a_step_that_is_being_claimed_while_its_key_becomes_free_does_not_run() {
    // The claim came through after the release, and the step ran under a key that was free.
    let world = World::new();
    let bank = Counter::default();
    let hits = bank.clone();
    let faults = world.store.faults();
    let (tell, mut told) = mpsc::unbounded_channel();
    let (hand, mut gates) = mpsc::unbounded_channel();
    let app = app(&world, Rules::default(), move |operation: Operation| {
        let (bank, tell, hand) = (bank.clone(), tell.clone(), hand.clone());
        let gate = faults.hold(StoreCall::WriteOf(StateName::InFlight));
        async move {
            tokio::spawn(async move { tell.send(charge(&operation, &bank).await).unwrap() });
            gate.until_waiting(1).await;
            hand.send(gate).unwrap();
            DidNotRun((StatusCode::SERVICE_UNAVAILABLE, "later"))
        }
    });
    let (_, response, _) = send(&app).await;
    assert_eq!(response.headers()["onlyonce-status"], "released");
    drop(gates.recv().await);
    let late = told.recv().await.unwrap();
    assert!(matches!(late, Err(StepError::DidNotRun { .. })), "{late:?}");
    assert_eq!(hits.hits(), 0);
    assert_eq!(world.state_of("charge").await, Some(StateName::Released));
}

/// What a step failed with. None of it is anybody's business outside.
const INTERNAL: &str = "connection to postgres://admin:S3CRET@10.0.0.7/bank failed";

/// A handler whose step `charge`, the second one, fails as told.
async fn fails_with(operation: Operation, failure: Failure) -> Result<String, StepError> {
    charge(&operation, &Counter::default()).await?;
    let step = operation.step("mail", async || Err::<String, _>(failure));
    step.await
}

#[tokio::test]
async fn i16_what_a_step_failed_with_is_not_told_to_callers() {
    // A problem document held the address and the password of a database.
    for failure in [Failure::unknown, Failure::did_not_run] {
        let world = World::new();
        let app = app(&world, Rules::default().resume(), move |operation| {
            fails_with(operation, failure(INTERNAL))
        });
        let (status, _, body) = send(&app).await;
        assert!(status.is_server_error(), "{status}");
        assert!(body.contains("the step mail"), "{body}");
        assert!(
            !body.contains("S3CRET") && !body.contains("10.0.0.7"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn i16_what_an_only_step_failed_with_is_not_told_to_callers() {
    // The response of a handler, the error of a service, and a service that is not ready: each had it.
    let world = World::new();
    let layer = OnceLayer::new(world.once.clone(), Rules::default());
    let handler = app(&world, Rules::default(), async |operation: Operation| {
        let step = operation.step("charge", async || {
            Err::<(), _>(Failure::did_not_run(INTERNAL))
        });
        step.await
    });
    let (_, response, body) = send(&handler).await;
    assert_eq!(response.headers()["onlyonce-status"], "released");
    assert_eq!(body, "the step charge did not run\n");

    let fails = tower::service_fn(
        async |request: Request<onlyonce_tower::RequestBody<Body>>| -> Result<Response<Body>, StepError> {
            let operation = request.extensions().get::<Operation>().unwrap();
            let step = operation.step("charge", async || Err::<(), _>(Failure::did_not_run(INTERNAL)));
            step.await.map(|()| Response::new(Body::empty()))
        },
    );
    let response = tower::Layer::layer(&layer, fails)
        .oneshot(request())
        .await
        .unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains("upstream-unreachable"), "{body}");
    assert!(body.contains("the step charge did not run"), "{body}");
    assert!(!body.contains("S3CRET"), "{body}");

    let response = tower::Layer::layer(&layer, NeverReady)
        .oneshot(request())
        .await
        .unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains("it is not ready"), "{body}");
    assert!(!body.contains("S3CRET"), "{body}");
}

/// A service that cannot be called, and says why.
#[derive(Clone)]
struct NeverReady;

impl tower::Service<Request<onlyonce_tower::RequestBody<Body>>> for NeverReady {
    type Response = Response<Body>;
    type Error = onlyonce_tower::BoxError;
    type Future = std::future::Ready<Result<Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Err(INTERNAL.into()))
    }

    fn call(&mut self, _: Request<onlyonce_tower::RequestBody<Body>>) -> Self::Future {
        std::future::ready(Ok(Response::new(Body::empty())))
    }
}

#[tokio::test]
async fn i16_what_a_store_says_is_not_told_to_callers() {
    // The request was to be kept, and the store's own words came back to the caller.
    let world = World::new();
    let faults = world.store.faults();
    let app = app(
        &world,
        Rules::default().complete_abandoned(),
        async |operation: Operation| operation.id().to_string(),
    );
    let gate = faults.hold(StoreCall::WriteOf(StateName::InFlight));
    let asked = tokio::spawn(async move { send(&app).await });
    gate.until_waiting(1).await;
    // The claim of the operation passes, and that of what is kept fails.
    let next = faults.hold(StoreCall::WriteOf(StateName::InFlight));
    drop(gate);
    next.until_waiting(1).await;
    faults.fail(StoreCall::WriteOf(StateName::InFlight), Fault::Full, 1);
    drop(next);
    let (status, _, body) = asked.await.unwrap();
    assert!(status.is_server_error(), "{status}");
    assert!(!body.contains("a test wants it so"), "{body}");
}
