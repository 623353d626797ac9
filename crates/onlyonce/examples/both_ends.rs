//! Both ends in one program: a server that charges once for each key, and a caller whose key survives it.
//!
//! ```text
//! cargo run -p onlyonce --example both_ends
//! ```
//!
//! The first caller goes away while the charge runs. The second one has nothing but the folder of keys that
//! the first one left, and gets the answer to that charge.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::{Json, Router, routing::post};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use onlyonce::client::{Action, BoxError, KeyFolder, OnceClient, Report};
use onlyonce::{Once, OnceLayer, Operation, Rules};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};

static CHARGES: AtomicU32 = AtomicU32::new(0);
static BEGUN: Notify = Notify::const_new();

async fn charge(operation: Operation) -> Json<String> {
    let number = CHARGES.fetch_add(1, Ordering::Relaxed) + 1;
    BEGUN.notify_one();
    Json(format!("charge {number}, made by {}", operation.id()))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let once = Once::embedded(folder.path().join("data"))?;
    let rules = Rules::default().require_key().allow_anonymous();
    let charges = post(charge).layer(OnceLayer::new(once.clone(), rules));
    let app = Router::new().route("/charges", charges);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/charges", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });

    let keys = folder.path().join("keys");
    tokio::select! {
        biased;
        () = BEGUN.notified() => println!("first:   went away while it ran"),
        answer = call(&url, &keys) => println!("first:   {}", answer?),
    }
    println!("second:  {}", call(&url, &keys).await?);
    println!("charges: {}", CHARGES.load(Ordering::Relaxed));
    once.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}

async fn call(url: &str, keys: &Path) -> Result<String, BoxError> {
    let client = OnceClient::builder(KeyFolder::open(keys)?).build();
    let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = Request::post(url).body(Full::default())?;
    request
        .extensions_mut()
        .insert(Action::new("order-17/charge")?);

    let response = client.layer().layer(http).oneshot(request).await?;
    let report = response.extensions().get::<Report>().map(Report::to_string);
    let body = response.into_body().collect().await?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    Ok(format!("{body} ({})", report.unwrap_or_default()))
}
