//! HTTP/1: what the gate lets through (I17).
//!
//! The gate and hyper are two readers of one connection, and a third one, of the rules alone, is written
//! down here: where the gate passes bytes, the three agree on every message, or hyper refuses it.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use onlyonce_http::headers::{ForwardRules, InboundHop, to_upstream};
use onlyonce_http::scan::{Fault, Place, Scan};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::Target;
use crate::input::{Input, pieces};

pub(crate) const TARGET: Target = Target {
    name: "http1",
    holds: "of what the gate passes, hyper reads the same messages, and each is sent on as one",
    run,
    seeds,
    words: &[
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        "Host: h\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "0\r\n\r\n",
        "5\r\n",
        " HTTP/1.1",
        " HTTP/1.0",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: x\r\n",
        ": ",
        ";a=b",
        "Connection: keep-alive\r\n",
        "Trailer: x\r\n",
        "TE: trailers\r\n",
        "#",
        "%0d%0a",
    ],
};

/// The gateway's own limits, unless configured otherwise.
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_FIELDS: usize = 128;
/// Longer than any of this takes.
const PATIENCE: Duration = Duration::from_secs(20);
const ROOM: usize = 1 << 20;

fn seeds() -> Vec<Vec<u8>> {
    let post = "POST /v1/x?a=1 HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\n";
    [
        format!("{post}Content-Length: 5\r\n\r\nhello"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"),
        format!("{post}Content-Length: 2\r\n\r\nhi").repeat(3),
        format!("{post}Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx"),
        format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Connection: close, x-a\r\nX-A: b\r\n\r\n"),
        "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".repeat(2),
        "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        "\r\nGET http://h/a#b HTTP/1.1\r\nHost: h\r\nUpgrade: x\r\n\r\n".to_owned(),
        "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n".to_owned(),
    ]
    .iter()
    // The first byte says how it is cut.
    .map(|text| [b"\x03", text.as_bytes()].concat())
    .collect()
}

fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let cut = input.byte();
    let bytes = input.0;
    let (sound, seen) = passed(bytes);
    assert_eq!(in_pieces(bytes, cut), seen, "cut in pieces");

    let messages = messages(sound);
    let read = block_on(serve(sound));
    assert!(read.len() <= messages.len(), "hyper reads more messages");
    for (read, message) in read.iter().zip(&messages) {
        agree(read, message);
        if let Ok(body) = &read.body {
            sent_on_as_one(&read.head, body);
        }
    }
}

/// What the gate lets through of `bytes`; what it found wrong, and where it stands.
fn passed(bytes: &[u8]) -> (&[u8], (Option<Fault>, Place)) {
    let mut scan = Scan::new(MAX_HEAD_BYTES, MAX_FIELDS);
    let (sound, fault) = match scan.feed(bytes) {
        Ok(()) => (bytes, None),
        Err(found) => (&bytes[..found.sound], Some(found.fault)),
    };
    (sound, (fault, scan.place()))
}

fn in_pieces(bytes: &[u8], cut: u8) -> (Option<Fault>, Place) {
    let mut scan = Scan::new(MAX_HEAD_BYTES, MAX_FIELDS);
    let fault = pieces(bytes, cut).find_map(|piece| scan.feed(piece).err());
    (fault.map(|found| found.fault), scan.place())
}

/// A message as the rules alone read it.
struct Message {
    method: Vec<u8>,
    target: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// `None` where it is not all there.
    body: Option<Vec<u8>>,
}

/// All messages in `bytes`, which the gate has passed, up to a switch of protocols.
fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(message) = message(&mut bytes) {
        let is_last = message.body.is_none() || message.field("upgrade").is_some();
        messages.push(message);
        if is_last {
            break;
        }
    }
    messages
}

fn message(bytes: &mut &[u8]) -> Option<Message> {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        *bytes = rest;
    }
    let first = line(bytes)?;
    let mut parts = first.splitn(3, |byte| *byte == b' ');
    let (method, target) = (parts.next()?.to_vec(), parts.next().unwrap_or(b"").to_vec());
    let mut fields = Vec::new();
    loop {
        match line(bytes)? {
            b"" => break,
            field => {
                let colon = field.iter().position(|byte| *byte == b':')?;
                let value = field[colon + 1..].trim_ascii().to_vec();
                fields.push((field[..colon].to_ascii_lowercase(), value));
            }
        }
    }
    let mut message = Message {
        method,
        target,
        fields,
        body: None,
    };
    message.body = match message.field("upgrade") {
        Some(_) => Some(Vec::new()),
        None => message.take_body(bytes),
    };
    Some(message)
}

/// The next line, without its end.
fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let line = &bytes[..end];
    *bytes = &bytes[end + 2..];
    Some(line)
}

impl Message {
    fn field(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.fields.iter();
        let (_, value) = fields.find(|(field, _)| field == name.as_bytes())?;
        Some(value)
    }

    fn take_body(&self, bytes: &mut &[u8]) -> Option<Vec<u8>> {
        if self.field("transfer-encoding").is_some() {
            return chunks(bytes);
        }
        let length = match self.field("content-length") {
            Some(length) => str::from_utf8(length).ok()?.parse().ok()?,
            None => 0,
        };
        let (body, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        Some(body.to_vec())
    }
}

fn chunks(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_of_size = line(bytes)?;
        let size = line_of_size
            .split(|byte| *byte == b';')
            .next()?
            .trim_ascii();
        let size = usize::from_str_radix(str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(..size)?);
        *bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
    while !line(bytes)?.is_empty() {}
    Some(body)
}

/// A message as hyper read it.
struct Read {
    head: http::request::Parts,
    body: Result<Bytes, ()>,
}

fn agree(read: &Read, message: &Message) {
    let head = &read.head;
    assert_eq!(
        head.method.as_str().as_bytes(),
        message.method,
        "the method"
    );
    if message.target.starts_with(b"/") {
        // What stands behind a `#` is no part of what a server is asked for.
        let target = message.target.split(|byte| *byte == b'#').next();
        let read = head.uri.path_and_query().map(|target| target.as_str());
        assert_eq!(read.map(str::as_bytes), target, "the target");
    }
    let mut fields: Vec<_> = message.fields.clone();
    let mut read_fields: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect();
    // The order is kept among those of one name.
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    read_fields.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(read_fields, fields, "the fields");
    // Of a switch of protocols nothing was looked at behind the head.
    let is_switch = message.field("upgrade").is_some();
    match (&read.body, &message.body) {
        (Ok(read), Some(body)) => assert!(is_switch || read == body, "the body"),
        (Ok(_), None) => panic!("hyper takes a body for whole that is not"),
        (Err(()), _) => {}
    }
}

/// Serves `bytes` with hyper, as the gateway does, and tells what it read.
async fn serve(bytes: &[u8]) -> Vec<Read> {
    let (mut caller, server) = duplex(ROOM);
    let read = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let read = Arc::clone(&read);
        async move {
            let (head, body) = request.into_parts();
            let asks_for_a_switch = head.headers.contains_key(UPGRADE);
            let body = body.collect().await.map(|body| body.to_bytes());
            let body = body.map_err(|_| ());
            if let Ok(mut read) = read.lock() {
                read.push(Read { head, body });
            }
            let mut answer = Response::new(Full::new(Bytes::from_static(b"ok")));
            if asks_for_a_switch {
                // As the gateway does: nothing was looked at behind such a head.
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.max_buf_size(2 * MAX_HEAD_BYTES);
    builder.max_headers(MAX_FIELDS);
    // The bytes end with the caller; what came last is read all the same.
    builder.half_close(true);
    let serving = builder.serve_connection(TokioIo::new(server), service);
    let calling = async {
        // A server that refuses stops to read.
        let _ = caller.write_all(bytes).await;
        let _ = caller.shutdown().await;
        let mut answers = Vec::new();
        let _ = caller.read_to_end(&mut answers).await;
    };
    let (_, ()) = tokio::join!(serving, calling);
    read.lock()
        .map(|mut read| std::mem::take(&mut *read))
        .unwrap_or_default()
}

/// Sends a request on as the gateway does, and looks at the bytes: they are one message.
fn sent_on_as_one(head: &http::request::Parts, body: &Bytes) {
    let Some(target) = head
        .uri
        .path_and_query()
        .filter(|_| head.uri.host().is_none())
    else {
        return;
    };
    if !target.as_str().starts_with('/') || head.method == http::Method::CONNECT {
        return;
    }
    let mut headers = head.headers.clone();
    let hop = InboundHop {
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        host: None,
        tls: false,
    };
    to_upstream(&mut headers, None, &ForwardRules::default(), &hop);
    headers.insert(HOST, HeaderValue::from_static("upstream"));
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = target.clone().into();
    *request.headers_mut() = headers;
    let sent = block_on(send(request));

    let mut scan = Scan::new(2 * MAX_HEAD_BYTES, MAX_FIELDS + 8);
    assert_eq!(scan.feed(&sent), Ok(()), "{}", sent.escape_ascii());
    assert_eq!(scan.place(), Place::Between, "{}", sent.escape_ascii());
    let messages = messages(&sent);
    let [message] = &messages[..] else {
        panic!("{} messages: {}", messages.len(), sent.escape_ascii());
    };
    assert_eq!(
        message.body.as_deref(),
        Some(&body[..]),
        "the body is sent on"
    );
    assert_eq!(message.target, target.as_str().as_bytes());
}

/// The bytes that hyper sends for `request`, up to the end of the message.
async fn send(request: Request<Full<Bytes>>) -> Vec<u8> {
    let (client, mut upstream) = duplex(ROOM);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(client)).await;
    let (mut sender, connection) = handshake.expect("nothing is sent yet");
    let serving = async {
        let mut sent = Vec::new();
        let mut buffer = [0; 4096];
        let mut scan = Scan::new(2 * MAX_HEAD_BYTES, MAX_FIELDS + 8);
        loop {
            let read = upstream.read(&mut buffer).await.unwrap_or(0);
            sent.extend_from_slice(&buffer[..read]);
            let ended = scan.feed(&buffer[..read]).is_err() || scan.place() == Place::Between;
            if read == 0 || ended {
                break;
            }
        }
        let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        let _ = upstream.write_all(answer).await;
        // Whatever came behind it would stand here.
        let _ = upstream.read_to_end(&mut sent).await;
        sent
    };
    let asking = async {
        let answered = sender.send_request(request).await.is_ok();
        drop(sender);
        answered
    };
    let (sent, _, answered) = tokio::join!(serving, connection, asking);
    assert!(answered, "{} got no answer", sent.escape_ascii());
    sent
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without sockets");
    }
    RUNTIME.with(|runtime| {
        let done = runtime.block_on(async { timeout(PATIENCE, future).await });
        done.expect("it ends")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing is read, nothing is compared.
    #[test]
    fn the_messages_of_the_seeds_are_read() {
        let read = |seed: &Vec<u8>| block_on(serve(passed(&seed[1..]).0)).len();
        let read: Vec<_> = seeds().iter().map(read).collect();
        assert_eq!(read, [1, 1, 3, 1, 0, 1, 2, 1, 1, 1]);
    }
}
