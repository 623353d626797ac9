//! A server that charges cards, each action once.
//!
//! ```text
//! cargo run -p onlyonce-tower --example axum
//! curl -i http://127.0.0.1:8080/charges -H 'Authorization: Bearer me' -H 'Idempotency-Key: order-17' \
//!      -H 'Content-Type: application/json' -d '{"card": "visa", "cents": 1999}'
//! ```
//!
//! The second time, the same answer comes with `Idempotent-Replayed: true`, also after a restart. With the
//! card `declined`, the refusal is the answer that is replayed. With the card `offline` nothing ran, and
//! every attempt tries again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use onlyonce_tower::{DidNotRun, Once, OnceLayer, Operation, Rules};
use serde::{Deserialize, Serialize};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join("onlyonce-example");
    let once = Once::embedded(&folder)?;
    let charges = OnceLayer::new(once.clone(), Rules::default().require_key());
    let app = Router::new().route("/charges", post(charge).layer(charges));

    let address = std::env::args().nth(1);
    let address = address.as_deref().unwrap_or("127.0.0.1:8080");
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("example listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    once.shutdown(Duration::from_secs(30)).await?;
    Ok(())
}

#[derive(Deserialize)]
struct Order {
    card: String,
    cents: u32,
}

#[derive(Serialize)]
struct Receipt {
    number: u32,
    cents: u32,
    key_at_the_bank: String,
}

async fn charge(
    operation: Operation,
    Json(order): Json<Order>,
) -> Result<Json<Receipt>, ChargeError> {
    // The bank honours keys: whatever happens here, it charges once under this one.
    let key_at_the_bank = operation.key_for("charge").to_string();
    let number = charge_at_the_bank(&order.card)?;
    Ok(Json(Receipt {
        number,
        cents: order.cents,
        key_at_the_bank,
    }))
}

enum ChargeError {
    Declined,
    BankUnreachable,
}

impl IntoResponse for ChargeError {
    fn into_response(self) -> Response {
        match self {
            // The answer to this charge, now and later.
            Self::Declined => (StatusCode::PAYMENT_REQUIRED, "declined\n").into_response(),
            // Nothing was sent to the bank: the next attempt with this key runs.
            Self::BankUnreachable => {
                DidNotRun((StatusCode::SERVICE_UNAVAILABLE, "try again\n")).into_response()
            }
        }
    }
}

/// Stands for a call of a bank; gives the number of the charge.
fn charge_at_the_bank(card: &str) -> Result<u32, ChargeError> {
    static CHARGES: AtomicU32 = AtomicU32::new(1);
    match card {
        "declined" => Err(ChargeError::Declined),
        "offline" => Err(ChargeError::BankUnreachable),
        _ => Ok(CHARGES.fetch_add(1, Ordering::Relaxed)),
    }
}
