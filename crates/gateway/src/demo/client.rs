//! A client of the demo: it asks for a stream, and may die while it reads.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{PAUSE, WORDS};

/// What the client got of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// The generated text.
    pub(super) text: String,
    /// Whether it came to its end.
    pub(super) whole: bool,
    /// `Onlyonce-Status`, where there was one.
    pub(super) status: Option<String>,
}

impl Answer {
    pub(super) fn words(&self) -> usize {
        self.text.split_whitespace().count()
    }
}

/// Asks for a generated text, and drops the connection once `dies_after` words are there.
pub(super) async fn ask(
    addr: SocketAddr,
    tag: &str,
    dies_after: Option<usize>,
) -> io::Result<Answer> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let response = sender
        .send_request(request(addr, tag)?)
        .await
        .map_err(io::Error::other)?;
    if !response.status().is_success() {
        return Err(io::Error::other(format!(
            "it was answered {}",
            response.status()
        )));
    }
    let status = response
        .headers()
        .get("onlyonce-status")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut body = response.into_body();
    let mut events = Vec::new();
    let mut answer = Answer {
        text: String::new(),
        whole: false,
        status,
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        events.extend_from_slice(bytes);
        answer.text = text_of(&events);
        if dies_after.is_some_and(|words| answer.words() >= words) {
            // The connection dies with its task, whatever was still to come.
            connection.abort();
            return Ok(answer);
        }
    }
    answer.whole = events.ends_with(b"data: [DONE]\n\n");
    Ok(answer)
}

fn request(addr: SocketAddr, tag: &str) -> io::Result<Request<Full<Bytes>>> {
    let body = serde_json::json!({
        "model": "gpt-5-mini",
        "stream": true,
        "messages": [{ "role": "user", "content": "Tell me about retries." }],
    });
    Request::builder()
        .method(Method::POST)
        .uri("/v1/chat/completions")
        .header("host", addr.to_string())
        .header("content-type", "application/json")
        .header("authorization", "Bearer sk-demo")
        .header("idempotency-key", "demo-1")
        .header("x-sandbox-tag", tag)
        .header("x-sandbox-chunks", WORDS.to_string())
        .header("x-sandbox-interval", format!("{}ms", PAUSE.as_millis()))
        .body(Full::new(body.to_string().into()))
        .map_err(io::Error::other)
}

/// The text in the events so far; one that is not whole yet does not count.
fn text_of(events: &[u8]) -> String {
    let events = String::from_utf8_lossy(events);
    let (whole, _) = events.rsplit_once("\n\n").unwrap_or_default();
    whole
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_read_event_by_event() {
        let event = |text: &str| {
            let json = serde_json::json!({ "choices": [{ "delta": { "content": text } }] });
            format!("data: {json}\n\n")
        };
        let events = format!("{}{}", event("one "), event("two"));
        assert_eq!(text_of(events.as_bytes()), "one two");
        assert_eq!(text_of(&events.as_bytes()[..events.len() - 1]), "one ");
        assert_eq!(text_of(b"data: [DONE]\n\n"), "");
    }
}
