//! One connection of a caller, from its first byte to its last.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use onlyonce_http::problem::{Problem, ProblemContext};
use onlyonce_http::scan::{Fault, Scan};
use onlyonce_store::Store;
use onlyonce_tower::shell::timer::Timer;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::gate::Gate;
use super::service::{Caller, Service};
use super::transport::Stream;
use super::watch::{Deadlines, Due, Watch};
use super::worker::Worker;
use crate::config::Server;
use crate::shared::{Phase, Phases};

/// What an HTTP/2 connection starts with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a client gets to read why its connection ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// hyper's own limit, for which it needs no memory from the heap.
const USUAL_FIELDS: usize = 100;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 200;
/// How often an HTTP/2 client is asked whether it is still there.
const PING: Duration = Duration::from_secs(20);

/// Serves one connection to its end.
pub(super) async fn serve<S: Store>(
    worker: Arc<Worker<S>>,
    came: Stream,
    caller: Caller,
    tls: Option<TlsAcceptor>,
    mut phases: Phases,
) {
    let opened = tokio::select! {
        biased;
        opened = open(&worker.shared.config.server, came, tls) => opened,
        _ = phases.wait_for(|phase| *phase != Phase::Serving) => return,
    };
    let Ok(Some((stream, early, http2))) = opened else {
        return;
    };
    if http2 {
        serve_http2(worker, stream, early, caller, phases).await;
    } else {
        serve_http1(worker, stream, early, caller, phases).await;
    }
}

/// The stream, the bytes that were read from it to tell the protocol, and whether that is HTTP/2.
/// `None` where the client left, or sent nothing for too long.
async fn open(
    server: &Server,
    came: Stream,
    tls: Option<TlsAcceptor>,
) -> io::Result<Option<(Stream, Bytes, bool)>> {
    let mut stream = match (came, tls) {
        (Stream::Plain(tcp), Some(tls)) => return open_tls(server, tcp, tls).await,
        (stream, _) => stream,
    };
    let mut early = [0; PREFACE.len()];
    let mut read = 0;
    let deadline = Instant::now() + server.idle_timeout;
    while read < early.len() && early[..read] == PREFACE[..read] {
        let more = stream.read(&mut early[read..]);
        match tokio::time::timeout_at(deadline, more).await {
            Err(_) | Ok(Ok(0)) if read == 0 => return Ok(None),
            Err(_) | Ok(Ok(0)) => break,
            Ok(more) => read += more?,
        }
    }
    let http2 = early[..read] == *PREFACE;
    let early = Bytes::copy_from_slice(&early[..read]);
    Ok(Some((stream, early, http2)))
}

async fn open_tls(
    server: &Server,
    tcp: TcpStream,
    tls: TlsAcceptor,
) -> io::Result<Option<(Stream, Bytes, bool)>> {
    let Ok(accepted) = timeout(server.header_timeout, tls.accept(tcp)).await else {
        return Ok(None);
    };
    let accepted = accepted?;
    let http2 = accepted.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = Stream::Accepted(Box::new(accepted));
    Ok(Some((stream, Bytes::new(), http2)))
}

async fn serve_http1<S: Store>(
    worker: Arc<Worker<S>>,
    stream: Stream,
    early: Bytes,
    caller: Caller,
    mut phases: Phases,
) {
    let server = worker.shared.config.server.clone();
    let deadlines = deadlines(&server);
    let watch = Arc::clone(&caller.watch);
    let scan = Scan::new(server.max_header_bytes, server.max_headers);
    let gate = Gate::new(stream, early, scan, Arc::clone(&watch));
    let mut builder = http1::Builder::new();
    builder.max_buf_size((2 * server.max_header_bytes).max(64 * 1024));
    if server.max_headers > USUAL_FIELDS {
        builder.max_headers(server.max_headers);
    }
    let service = Service { worker, caller };
    let mut connection = builder
        .serve_connection(TokioIo::new(gate), service)
        .with_upgrades();
    let end = attend(
        &mut connection,
        |connection| Pin::new(connection).graceful_shutdown(),
        &watch,
        &deadlines,
        &mut phases,
    )
    .await;
    // A switch of protocols has taken the stream along.
    let Some(parts) = connection.into_parts() else {
        return;
    };
    let gate = parts.io.into_inner();
    let last = match end {
        End::Done => gate
            .unanswered_fault()
            .map(|fault| of_fault(&server, fault)),
        End::SlowHead => Some(Problem::RequestTimeout {
            limit_name: "server.header_timeout",
            limit: server.header_timeout,
        }),
        // Whoever does not read will not read this either.
        End::Cut => return,
    };
    let last = last.map(|problem| {
        let context = ProblemContext {
            public_url: server.public_url.as_deref(),
            ..ProblemContext::default()
        };
        written(&problem.to_response(&context))
    });
    // The client has gone, or has not: there is nobody to tell.
    let _ = timeout(LAST_WORDS, gate.close(last)).await;
}

async fn serve_http2<S: Store>(
    worker: Arc<Worker<S>>,
    stream: Stream,
    early: Bytes,
    caller: Caller,
    mut phases: Phases,
) {
    let server = worker.shared.config.server.clone();
    let watch = Arc::clone(&caller.watch);
    let gate = Gate::new(stream, early, Scan::blind(), Arc::clone(&watch));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(server.max_header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let service = Service { worker, caller };
    let connection = builder.serve_connection(TokioIo::new(gate), service);
    let mut connection = pin!(connection);
    attend(
        &mut connection,
        |connection| connection.as_mut().graceful_shutdown(),
        &watch,
        &deadlines(&server),
        &mut phases,
    )
    .await;
}

/// How a connection ended.
enum End {
    /// By HTTP's own rules, or because the client left.
    Done,
    /// A head did not come in time.
    SlowHead,
    /// Where it stood.
    Cut,
}

/// Drives `connection`, holds it to its deadlines, and ends it when the gateway goes.
async fn attend<C, T>(
    connection: &mut C,
    mut shut_down: impl FnMut(&mut C),
    watch: &Watch,
    deadlines: &Deadlines,
    phases: &mut Phases,
) -> End
where
    C: Future<Output = T> + Unpin,
{
    let mut timer = Timer::default();
    timer.set(deadlines.shortest());
    let mut closing = false;
    let mut phase = phases.clone();
    let mut changed = pin!(phase.wait_for(|phase| *phase == Phase::Stopping));
    let mut draining = pin!(phases.wait_for(|phase| *phase != Phase::Serving));
    std::future::poll_fn(|cx| {
        loop {
            if Pin::new(&mut *connection).poll(cx).is_ready() {
                return Poll::Ready(End::Done);
            }
            if !closing && draining.as_mut().poll(cx).is_ready() {
                closing = true;
                shut_down(connection);
                continue;
            }
            if closing && changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Cut);
            }
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            match watch.due(deadlines) {
                Due::Nothing(next) => timer.set(next),
                Due::SlowHead => return Poll::Ready(End::SlowHead),
                Due::SlowReader => return Poll::Ready(End::Cut),
                Due::Idle if closing => return Poll::Ready(End::Cut),
                Due::Idle => {
                    closing = true;
                    shut_down(connection);
                    timer.set(deadlines.shortest());
                }
            }
        }
    })
    .await
}

fn deadlines(server: &Server) -> Deadlines {
    Deadlines {
        header: server.header_timeout,
        idle: server.idle_timeout,
        write: server.write_timeout,
    }
}

fn of_fault(server: &Server, fault: Fault) -> Problem {
    match fault {
        Fault::Malformed(why) => Problem::BadRequest { why: why.into() },
        Fault::TooLarge(limit_name) => Problem::HeadersTooLarge {
            limit_name,
            limit: match limit_name {
                "server.max_headers" => server.max_headers as u64,
                _ => server.max_header_bytes as u64,
            },
        },
    }
}

/// A last answer as bytes: hyper has nothing to say on this connection any more.
fn written(response: &Response<Bytes>) -> Bytes {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or("");
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let body = response.body();
    bytes.extend_from_slice(
        format!(
            "content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        )
        .as_bytes(),
    );
    bytes.extend_from_slice(body);
    bytes.into()
}
