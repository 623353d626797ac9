//! Steps behind the layer: what callers are told.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use http_body_util::BodyExt;
use onlyonce_core::UnknownReason;
use onlyonce_tower::{DidNotRun, Failure, OnceLayer, Operation, Rules, StepError};
use serde_json::Value;
use tokio::sync::Notify;
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
    assert!(detail.contains("mail did not run: no line"), "{detail}");
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
        assert!(body.contains("charge did not run: no line"), "{body}");
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
