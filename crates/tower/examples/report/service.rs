//! The service: a paid report, in three steps.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{Response, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
// The crate `onlyonce` has all of these under the same names.
use onlyonce_tower::{
    Failure, Key, Once, OnceLayer, Operation, OperationId, Rules, StepError, Store,
};
use serde::{Deserialize, Serialize};

/// What is asked for.
#[derive(Clone, Deserialize, Serialize)]
pub struct Order {
    month: String,
    cents: u32,
}

/// What is answered.
#[derive(Deserialize, Serialize)]
pub struct Report {
    month: String,
    /// Numbers of the charge, of the report and of the mail.
    charge: u32,
    report: u32,
    mail: u32,
}

/// A report is paid, made and sent: three places elsewhere, one step for each.
async fn report(
    operation: Operation,
    State(service): State<Service>,
    Json(order): Json<Order>,
) -> Result<Json<Report>, StepError> {
    let Service {
        bank, press, post, ..
    } = &service;
    service.reaches("begun").await;
    let charge = bank.once(&operation, "charge", &order).await?;
    service.reaches("charged").await;
    let report = press.once(&operation, "make", &order).await?;
    service.reaches("made").await;
    let mail = post.once(&operation, "mail", &report).await?;
    service.reaches("mailed").await;
    Ok(Json(Report {
        month: order.month,
        charge,
        report,
        mail,
    }))
}

/// The routes over `once`. With `completes`, what a process left behind that died is continued.
pub fn app<S: Store>(once: &Once<S>, service: Service, completes: bool) -> Router {
    let rules = Rules::default().require_key().complete_abandoned();
    let layer = OnceLayer::new(once.clone(), rules);
    let app = Router::new()
        .route("/reports", post(report))
        .layer(layer.clone())
        .with_state(service);
    if completes {
        let completer = once.completer().every(Duration::from_secs(1));
        completer
            .serve::<axum::body::Body>(&layer, app.clone())
            .start();
    }
    let settle = Router::new().route("/settle/{id}", post(settle::<S>));
    // For the eyes of those who look after it.
    app.merge(settle.with_state(once.clone()))
}

/// Somebody has found out what became of a step: its result is the body, and nothing where it did not run.
async fn settle<S: Store>(
    State(once): State<Once<S>>,
    Path(id): Path<String>,
    result: String,
) -> Result<StatusCode, (StatusCode, String)> {
    let refuse = |why: String| (StatusCode::CONFLICT, format!("{why}\n"));
    let id: OperationId = id.parse().map_err(|_| refuse("no operation".to_owned()))?;
    let (who, why) = ("example", "looked up");
    let month = Duration::from_secs(30 * 86_400);
    let settled = match result.is_empty() {
        true => once.release(id, who, why).await,
        false => {
            once.complete(id, Response::new(result), month, who, why)
                .await
        }
    };
    settled.map_err(|error| refuse(error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where the service gets things done.
#[derive(Clone)]
pub struct Service {
    bank: Elsewhere,
    press: Elsewhere,
    post: Elsewhere,
    reaches: Reaches,
}

/// Is told how far an order has come. A test stops the process there.
pub type Reaches = fn(&'static str) -> Pin<Box<dyn Future<Output = ()> + Send>>;

impl Service {
    pub fn new(bank: Elsewhere, press: Elsewhere, post: Elsewhere, reaches: Reaches) -> Self {
        Self {
            bank,
            press,
            post,
            reaches,
        }
    }

    async fn reaches(&self, place: &'static str) {
        (self.reaches)(place).await;
    }
}

/// A service elsewhere, that does something for each request and numbers what it did.
#[derive(Clone)]
pub struct Elsewhere {
    url: String,
    http: reqwest::Client,
    /// Whether it does what it is asked for only once under one key.
    honours_keys: bool,
}

impl Elsewhere {
    pub fn at(address: SocketAddr, honours_keys: bool) -> Self {
        Self {
            url: format!("http://{address}/"),
            http: reqwest::Client::new(),
            honours_keys,
        }
    }

    /// Has it done as the step `name`, and gives the number of what it did.
    async fn once(
        &self,
        operation: &Operation,
        name: &str,
        what: &impl Serialize,
    ) -> Result<u32, StepError> {
        let what = serde_json::json!(what);
        let step = operation
            .step(name, async || {
                self.ask(&operation.key_for(name), &what).await
            })
            .input(&what);
        match self.honours_keys {
            true => step.downstream_honours_the_key().await,
            false => step.await,
        }
    }

    async fn ask(&self, key: &Key, what: &serde_json::Value) -> Result<u32, Failure> {
        let request = self.http.post(&self.url).json(what);
        let sent = request.header("idempotency-key", key.as_str()).send().await;
        let response = sent.map_err(|error| match error.is_connect() {
            // Nothing was sent: the next attempt tries again.
            true => Failure::did_not_run(error),
            false => error.into(),
        })?;
        Ok(response.error_for_status()?.json().await?)
    }
}
