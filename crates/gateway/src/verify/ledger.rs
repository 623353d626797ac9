//! The upstream's ledger: what ran under a key, in the words of docs/verify.md.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::Full;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::words::Plan;
use crate::failure::Failure;
use crate::http_client::HttpClient;

/// For one answer of the ledger.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an execution may run on after everybody has left.
const RUNNING: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);

/// The upstream's ledger.
pub(super) struct Ledger {
    http: HttpClient,
    url: Uri,
    headers: HeaderMap,
}

/// One request that reached the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Entry {
    /// What became of it.
    #[serde(default)]
    pub(super) outcome: Outcome,
    /// Of the body of its answer, in hexadecimal, where that was given whole.
    #[serde(default)]
    pub(super) answer_sha256: Option<String>,
    /// Of its own body.
    #[serde(default)]
    pub(super) request_sha256: Option<String>,
}

/// What became of a request at the upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It runs.
    Running,
    /// It ran, and its answer was given whole.
    #[default]
    Completed,
    /// It ran, and its answer was not.
    Aborted,
    /// It was declined, and nothing ran.
    Failed,
}

#[derive(Deserialize)]
struct Page {
    entries: Vec<Entry>,
}

impl Ledger {
    /// The ledger of a plan.
    pub(super) fn of(plan: &Plan) -> Result<Self, Failure> {
        Ok(Self {
            http: HttpClient::for_url(&plan.ledger, "--upstream-ledger")?,
            url: plan.ledger.clone(),
            headers: plan.ledger_headers.clone(),
        })
    }

    /// What reached the upstream under a key.
    pub(super) async fn entries(&self, key: &str) -> Result<Vec<Entry>, String> {
        let joined = if self.url.query().is_some() { '&' } else { '?' };
        let mut request = Request::new(Full::<Bytes>::default());
        let url = format!("{}{joined}key={key}", self.url);
        *request.uri_mut() = url.parse().map_err(|_| format!("{url} is no URL"))?;
        *request.headers_mut() = self.headers.clone();
        let response = timeout(PATIENCE, self.http.send(request)).await;
        let response = response.map_err(|_| format!("no answer within {PATIENCE:?}"))??;
        if response.status() != http::StatusCode::OK {
            return Err(format!("it answers {}", response.status()));
        }
        let page: Page = serde_json::from_slice(response.body())
            .map_err(|error| format!("it does not answer as it should: {error}"))?;
        Ok(page.entries)
    }

    /// The same, once nothing runs any more.
    pub(super) async fn settled(&self, key: &str) -> Result<Vec<Entry>, String> {
        let give_up_at = Instant::now() + RUNNING;
        loop {
            let entries = self.entries(key).await?;
            let runs = entries.iter().any(|e| e.outcome == Outcome::Running);
            if !runs || Instant::now() > give_up_at {
                return Ok(entries);
            }
            sleep(PAUSE).await;
        }
    }
}
