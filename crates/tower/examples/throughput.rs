//! A server for load: each request is answered with 1 KB of JSON, once for each key, over an embedded store.
//!
//! ```text
//! cargo run --release -p onlyonce-tower --example throughput -- 127.0.0.1:8080 data
//! ```

use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::{Router, routing::post};
use onlyonce_tower::{Once, OnceLayer, Rules};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, folder] = words.as_slice() else {
        return Err("write the address to listen on and the data folder".into());
    };
    let once = Once::embedded(folder)?;
    let answer: &str = format!(
        r#"{{"object":"answer","text":"{}"}}"#,
        "0123456789".repeat(99)
    )
    .leak();
    let handler = post(move || async move { ([(CONTENT_TYPE, "application/json")], answer) });
    let app = Router::new().route("/", handler).layer(OnceLayer::new(
        once.clone(),
        Rules::default().allow_anonymous(),
    ));

    let mut ended = signal(SignalKind::terminate())?;
    axum::serve(TcpListener::bind(address).await?, app)
        .with_graceful_shutdown(async move { drop(ended.recv().await) })
        .await?;
    once.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}
