//! How the gateway and its store are doing.

use axum::Json;
use onlyonce_core::Timestamp;
use onlyonce_store::Store;
use serde::Serialize;

use super::Control;
use super::access::{May, Read};
use super::answer::Refusal;
use super::overview::moment;
use crate::shared::Phase;

/// How the gateway and its store are doing.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Health {
    pub(super) store: StoreHealth,
    pub(super) gateway: GatewayHealth,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct StoreHealth {
    /// Where it is, without its password.
    pub(super) place: String,
    pub(super) takes_writes: bool,
    /// Why it does not.
    pub(super) reason: Option<String>,
    pub(super) records: u64,
    pub(super) max_records: u64,
    pub(super) bytes: u64,
    /// `None` for no limit.
    pub(super) max_bytes: Option<u64>,
    pub(super) commits: u64,
    pub(super) committed_writes: u64,
    pub(super) latest_commit_us: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct GatewayHealth {
    pub(super) version: &'static str,
    pub(super) phase: &'static str,
    #[serde(serialize_with = "moment")]
    pub(super) started_at: Timestamp,
    pub(super) live_operations: usize,
    pub(super) max_live_operations: usize,
    pub(super) connections: i64,
    pub(super) max_connections: usize,
    pub(super) workers: usize,
}

impl Health {
    pub(super) fn of<S: Store>(control: &Control<S>) -> Self {
        let config = &control.shared.config;
        let engine = &control.shared.engine;
        let status = engine.store().status();
        let micros = status.latest_commit.as_micros();
        Self {
            store: StoreHealth {
                place: config.store.url.place(),
                takes_writes: status.poisoned.is_none(),
                reason: status.poisoned,
                records: status.records,
                max_records: config.store.max_records,
                bytes: status.bytes,
                max_bytes: Some(config.store.max_bytes).filter(|bytes| *bytes > 0),
                commits: status.commits,
                committed_writes: status.committed_writes,
                latest_commit_us: u64::try_from(micros).unwrap_or(u64::MAX),
            },
            gateway: GatewayHealth {
                version: env!("CARGO_PKG_VERSION"),
                phase: match control.phase() {
                    Phase::Serving => "serving",
                    Phase::Draining => "draining",
                    Phase::Stopping => "stopping",
                },
                started_at: control.started,
                live_operations: engine.live(),
                max_live_operations: config.limits.live_operations,
                connections: control.shared.metrics.connections.get(),
                max_connections: config.server.max_connections,
                workers: config.server.workers,
            },
        }
    }
}

/// `GET /v1/health`.
pub(super) async fn show<S: Store>(desk: May<S, Read>) -> Result<Json<Health>, Refusal> {
    Ok(Json(Health::of(desk.whole()?)))
}
