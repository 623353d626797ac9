//! What the layer costs: processor time of an axum handler with and without it, on the memory store, one
//! request after the other, without sockets. `cargo xtask bench http --only layer` runs it.
//!
//! ```text
//! cargo run --release -p onlyonce-tower --example cost
//! ```

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::routing::post;
use axum::{Json, Router};
use onlyonce_store::MemoryStore;
use onlyonce_tower::{Once, OnceLayer, Rules, Settings};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

/// Requests of one measurement.
const REQUESTS: u32 = 20_000;

#[derive(Deserialize, Serialize)]
struct Order {
    card: String,
    cents: u32,
}

async fn charge(Json(order): Json<Order>) -> Json<Order> {
    Json(order)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bare = || Router::new().route("/charges", post(charge));
    // Warm, and then in turns, so that what else runs is in both.
    measure(&bare(), "warm").await?;
    for pair in 1..=5 {
        let without = measure(&bare(), "k").await?;
        let once = Once::new(MemoryStore::new(), Settings::default());
        let layered = bare().layer(OnceLayer::new(once.clone(), Rules::default()));
        let executed = measure(&layered, "k").await?;
        let replayed = measure(&layered, "k").await?;
        once.shutdown(Duration::ZERO).await?;
        println!("{pair} {without:.2} {executed:.2} {replayed:.2}");
    }
    Ok(())
}

/// Processor time of one request, in microseconds.
async fn measure(app: &Router, prefix: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let begun = spent();
    for number in 0..REQUESTS {
        let request = Request::post("/charges")
            .header("authorization", "Bearer me")
            .header("idempotency-key", format!("{prefix}-{number}"))
            .header("content-type", "application/json")
            .body(Body::from(r#"{"card":"visa","cents":1999}"#))?;
        let response = app.clone().oneshot(request).await?;
        assert_eq!(response.status(), 200);
        axum::body::to_bytes(response.into_body(), 1024).await?;
    }
    Ok((spent() - begun).as_secs_f64() * 1e6 / f64::from(REQUESTS))
}

/// Processor time of this process so far.
fn spent() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(spent.tv_nsec).unwrap_or_default())
}
