//! What both servers have behind their middleware: a handler that does the work once per call.

use std::net::SocketAddr;
use std::sync::LazyLock;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// The variable with the address of the work.
const WORK: &str = "WORK_URL";

static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
    // A fresh connection for each call: nothing below the handler may send twice.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0);
    client.no_proxy().build().expect("a client")
});

/// Asks for the work, and answers what it answers: a stream as it comes, everything else whole.
pub async fn work(body: Bytes) -> Response {
    let url = std::env::var(WORK).expect("WORK_URL");
    let request = CLIENT.post(url).header("content-type", "application/json");
    match forward(request.body(body)).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("the work: {error}\n")).into_response(),
    }
}

async fn forward(request: reqwest::RequestBuilder) -> reqwest::Result<Response> {
    let answer = request.send().await?;
    let mut response = Response::builder().status(answer.status());
    let kept = [
        "content-type",
        "set-cookie",
        "x-work-execution",
        "x-work-note",
    ];
    for (name, value) in answer.headers() {
        if kept.contains(&name.as_str()) {
            response = response.header(name, value);
        }
    }
    let kind = answer.headers().get(header::CONTENT_TYPE);
    let streams = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let body = match streams {
        true => Body::from_stream(answer.bytes_stream()),
        false => Body::from(answer.bytes().await?),
    };
    Ok(response.body(body).expect("a response"))
}

/// Serves `app` on a free port of this machine, and says which.
pub async fn serve(app: axum::Router) {
    let free: SocketAddr = ([127, 0, 0, 1], 0).into();
    let listener = tokio::net::TcpListener::bind(free).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    println!("listening on {address}");
    axum::serve(listener, app).await.expect("a server");
}
