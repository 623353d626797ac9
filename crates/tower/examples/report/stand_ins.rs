//! Stand-ins for the bank, the press and the post office.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use tokio::sync::Mutex;

/// Does something for each request, and writes that down: a line each, with the key and what was asked for.
pub struct StandIn {
    pub ledger: PathBuf,
    pub honours_keys: bool,
    /// Takes the whole process down right after it has done something.
    pub dies: bool,
}

impl StandIn {
    /// Starts it on a port of its own.
    pub async fn start(self) -> io::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        // One request after the other.
        let stand_in = Arc::new(Mutex::new(self));
        let app = Router::new().route("/", post(done)).with_state(stand_in);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(address)
    }

    /// The number of what is done under `key`.
    fn done(&self, key: &str, what: &str) -> io::Result<u32> {
        let lines = match fs::read_to_string(&self.ledger) {
            Ok(lines) => lines,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let has_key = |line: &str| line.split(' ').nth(1) == Some(key);
        let number = match lines.lines().position(has_key) {
            Some(before) if self.honours_keys => before + 1,
            _ => {
                let number = lines.lines().count() + 1;
                let mut ledger = OpenOptions::new();
                let mut ledger = ledger.create(true).append(true).open(&self.ledger)?;
                writeln!(ledger, "{number} {key} {what}")?;
                ledger.sync_data()?;
                number
            }
        };
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }
}

async fn done(
    State(stand_in): State<Arc<Mutex<StandIn>>>,
    headers: HeaderMap,
    what: String,
) -> Result<Json<u32>, String> {
    let stand_in = stand_in.lock().await;
    let key = headers.get("idempotency-key");
    let key = key.and_then(|key| key.to_str().ok()).unwrap_or("-");
    let number = stand_in
        .done(key, &what)
        .map_err(|error| error.to_string())?;
    if stand_in.dies {
        eprintln!("{}: done, and the process dies", stand_in.ledger.display());
        std::process::abort();
    }
    Ok(Json(number))
}
