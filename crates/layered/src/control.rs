//! What the suite looks at: as much of the gateway's control listener as it needs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use onlyonce_core::{Key, Record, Timestamp};
use onlyonce_engine::Resolution;
use onlyonce_store::{EmbeddedStore, Store as _, Stored};
use onlyonce_tower::Once;
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[derive(Clone)]
struct Control {
    once: Once<EmbeddedStore>,
    connections: Arc<AtomicUsize>,
}

pub async fn serve(
    listener: TcpListener,
    once: Once<EmbeddedStore>,
    connections: Arc<AtomicUsize>,
) {
    let router = Router::new()
        .route("/v1/operations", get(list))
        .route("/v1/operations/{id}", get(one))
        .route("/v1/operations/{id}/resolve", post(release))
        .route("/metrics", get(metrics))
        .route("/readyz", get(ready))
        .with_state(Control { once, connections });
    // It ends with the process.
    let _ = axum::serve(listener, router).await;
}

async fn list(
    State(control): State<Control>,
    Query(asked): Query<HashMap<String, String>>,
) -> Result<Json<Value>, StatusCode> {
    let query = onlyonce_store::Query {
        key: asked.get("key").and_then(|key| Key::new(key).ok()),
        limit: 100,
        ..onlyonce_store::Query::default()
    };
    let page = control.once.engine().list(query).await;
    let page = page.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let operations: Vec<Value> = page.records.iter().map(shown).collect();
    Ok(Json(json!({ "operations": operations })))
}

async fn one(
    State(control): State<Control>,
    Path(id): Path<String>,
) -> Result<Json<Value>, StatusCode> {
    let id = id.parse().map_err(|_| StatusCode::NOT_FOUND)?;
    let found = control.once.engine().operation(id).await;
    let found = found.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let stored = found.ok_or(StatusCode::NOT_FOUND)?.stored;
    let mut operation = shown(&stored);
    if let onlyonce_core::State::Completed(completed) = &stored.record.state {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let headers = completed.head.headers.iter();
        let headers = headers.map(|(name, value)| json!([text(name), text(value)]));
        operation["response_headers"] = headers.collect();
    }
    Ok(Json(operation))
}

/// The suite settles nothing in another way.
async fn release(State(control): State<Control>, Path(id): Path<String>) -> StatusCode {
    let Ok(id) = id.parse() else {
        return StatusCode::NOT_FOUND;
    };
    let engine = control.once.engine();
    match engine
        .resolve(id, Resolution::Released, "suite", "looked it up")
        .await
    {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::CONFLICT,
    }
}

async fn metrics(State(control): State<Control>) -> String {
    format!(
        "onlyonce_connections {}\nonlyonce_live_operations {}\n",
        control.connections.load(Relaxed),
        control.once.engine().live(),
    )
}

async fn ready(State(control): State<Control>) -> StatusCode {
    match control.once.engine().store().status().poisoned {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn shown(stored: &Stored) -> Value {
    let record: &Record = &stored.record;
    let reason = match &record.state {
        onlyonce_core::State::Unknown { reason, .. } => Some(reason.as_str()),
        onlyonce_core::State::Released { reason, .. } => Some(reason.as_str()),
        _ => None,
    };
    json!({
        "id": record.id.to_string(),
        "key": record.key.as_str(),
        "tenant": record.scope.tenant,
        "state": record.state.name().as_str(),
        "reason": reason,
        "attempts": stored.attempts,
        "expires_at": record.expires_at().map(moment),
    })
}

fn moment(at: Timestamp) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis());
    humantime::format_rfc3339_millis(at).to_string()
}
