//! The upstream of streams: server-sent events that carry the time at which they were sent.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// All times in events count from here.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time between two events of a stream.
pub const INTERVAL: Duration = Duration::from_millis(20);

/// How many requests for streams came so far.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// How many requests for streams came so far.
pub fn requests() -> u64 {
    REQUESTS.load(Ordering::SeqCst)
}

/// Nanoseconds since the base.
pub fn now() -> u64 {
    BASE.elapsed().as_nanos() as u64
}

/// Does some work on one thread, and gives up after a while: a stream that stalls ends nothing.
pub fn run<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    runtime()?.block_on(async {
        tokio::time::timeout(limit, work)
            .await
            .with_context(|| format!("it did not end within {} s", limit.as_secs()))?
    })
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

/// Starts the upstream, until the process ends.
pub fn start() -> Result<SocketAddr> {
    LazyLock::force(&BASE);
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = runtime()?;
    thread::spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else {
                return;
            };
            while let Ok((stream, _)) = listener.accept().await {
                // An error is a proxy that went away.
                tokio::spawn(async move { serve(stream).await.ok() });
            }
        });
    });
    Ok(address)
}

/// Answers `POST /events/N` with a stream of N events, and `POST /events/chat/N` with events as OpenAI
/// sends them where use is asked for.
async fn serve(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let head = read_head(&mut stream).await?;
        let path = head.split(' ').nth(1).context("no path")?;
        let events: u64 = path
            .rsplit('/')
            .next()
            .context("no number")?
            .parse()
            .with_context(|| format!("not for streams: {path}"))?;
        let tells_of_use = path.contains("/chat/");
        let mut body = vec![0; content_length(&head).unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                      transfer-encoding: chunked\r\n\r\n";
        stream.write_all(answer.as_bytes()).await?;
        REQUESTS.fetch_add(1, Ordering::SeqCst);
        let mut interval = tokio::time::interval(INTERVAL);
        for _ in 0..events {
            interval.tick().await;
            stream.write_all(event(tells_of_use).as_bytes()).await?;
        }
        stream.write_all(b"0\r\n\r\n").await?;
    }
}

/// One event in one chunk, about as long as a token of a paid provider.
fn event(tells_of_use: bool) -> String {
    let usage = if tells_of_use { ",\"usage\":null" } else { "" };
    let event = format!(
        "data: {{\"sent\":{:020},\"delta\":\"{}\"{usage}}}\n\n",
        now(),
        "x".repeat(120)
    );
    format!("{:x}\r\n{event}\r\n", event.len())
}

/// When the event in a line was sent.
pub fn sent_at(line: &[u8]) -> Option<u64> {
    let number = line
        .strip_prefix(b"data: {\"sent\":".as_slice())?
        .get(..20)?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Appends the next chunk of a body; false at its end.
pub async fn read_chunk(stream: &mut BufReader<TcpStream>, into: &mut Vec<u8>) -> Result<bool> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        bail!("the stream broke off");
    }
    let size = usize::from_str_radix(line.trim(), 16);
    let size = size.with_context(|| format!("not the length of a chunk: {line:?}"))?;
    let start = into.len();
    into.resize(start + size + 2, 0);
    stream.read_exact(&mut into[start..]).await?;
    into.truncate(start + size);
    Ok(size > 0)
}

/// Reads a head, empty line included.
pub async fn read_head(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

/// How long the body is, where the head says that.
pub fn content_length(head: &str) -> Option<usize> {
    let lower = head.to_ascii_lowercase();
    let line = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    line.and_then(|length| length.trim().parse().ok())
}
