//! Many streams at once, and many readers of one stream.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::events::{self, read_head, sent_at};
use super::numbers::{median, percentile};
use super::peers::{Running, Stage};
use crate::faults::random::hash;

/// How many streams at once.
const STREAMS: u64 = 500;

/// How many readers join one stream.
const READERS: usize = 1_000;

/// What the streams of one peer measured, in milliseconds and microseconds.
pub struct Streams {
    /// From the request to its first event, median, ms.
    pub first_event: f64,
    /// From an event's sending to its arrival, p99, ms.
    pub delay_p99: f64,
    /// The same, median, ms.
    pub delay_median: f64,
    /// Processor time of the peer for each event, in microseconds.
    pub cpu_per_event: f64,
}

/// Opens the streams one after another and reads all of them to their end.
pub fn measure(peer: &Running, prefix: &str, events_of_a_stream: u64) -> Result<Streams> {
    let cpu = peer.cpu();
    let address = peer.address;
    let (mut first, mut delays) = events::runtime()?.block_on(async {
        let mut tasks = Vec::new();
        for number in 0..STREAMS {
            let key = format!("{prefix}-{number}");
            tasks.push(tokio::spawn(stream(address, key, events_of_a_stream)));
            // All at once would measure a crowd at the door, not the streams.
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        let (mut first, mut delays) = (Vec::new(), Vec::new());
        for task in tasks {
            let (one, some) = task.await??;
            first.push(one);
            delays.extend(some);
        }
        anyhow::Ok((first, delays))
    })?;
    let cpu = peer.cpu() - cpu;
    let events = delays.len() as f64;
    if events < (STREAMS * events_of_a_stream) as f64 {
        bail!(
            "events were lost: {events} of {}",
            STREAMS * events_of_a_stream
        );
    }
    Ok(Streams {
        first_event: median(&mut first),
        delay_p99: percentile(&mut delays, 0.99),
        delay_median: median(&mut delays),
        cpu_per_event: cpu.as_secs_f64() * 1e6 / events,
    })
}

/// Reads one stream: the time to its first event, and each event's delay, in milliseconds.
async fn stream(to: SocketAddr, key: String, count: u64) -> Result<(f64, Vec<f64>)> {
    let start = events::now();
    let mut stream = open(to, &key, count).await?;
    let mut first = None;
    let mut delays = Vec::with_capacity(count as usize);
    let mut line = String::new();
    while (delays.len() as u64) < count {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            bail!("the stream of {key} ended early");
        }
        let Some(sent) = sent_at(&line) else { continue };
        let now = events::now();
        first.get_or_insert(now);
        delays.push(now.saturating_sub(sent) as f64 / 1e6);
    }
    let first = first.context("no event")?;
    Ok(((first - start) as f64 / 1e6, delays))
}

async fn open(to: SocketAddr, key: &str, count: u64) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let request = format!(
        "POST /events/{count} HTTP/1.1\r\nhost: bench\r\nidempotency-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{key}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(stream)
}

/// What joining measured.
pub struct Joined {
    /// How many readers got the very same body.
    pub equal: usize,
    /// How many of them came while the stream was running.
    pub readers: usize,
    /// How often the upstream ran.
    pub executions: u64,
    /// From the end of the first caller's stream to the end of the last reader's, ms.
    pub last_reader_after: f64,
}

/// One stream, and a thousand readers with the same key.
pub fn join(stage: &Stage, gateway: &Running) -> Result<Joined> {
    let _ = stage;
    let before = events::requests();
    let to = gateway.address;
    let (first, others) = events::runtime()?.block_on(async {
        let first = tokio::spawn(whole(to));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let others: Vec<_> = (0..READERS).map(|_| tokio::spawn(whole(to))).collect();
        let first = first.await??;
        let mut ended = Vec::new();
        for other in others {
            ended.push(other.await??);
        }
        anyhow::Ok((first, ended))
    })?;
    let equal = others.iter().filter(|other| other.0 == first.0).count();
    let last = others.iter().map(|other| other.1).max().unwrap_or(first.1);
    Ok(Joined {
        equal,
        readers: others.len(),
        executions: events::requests() - before,
        last_reader_after: last.saturating_sub(first.1) as f64 / 1e6,
    })
}

/// Reads a stream to its end: a hash of its events, and when it ended.
async fn whole(to: SocketAddr) -> Result<(u64, u64)> {
    let mut stream = open(to, "one-stream", 200).await?;
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let size = u64::from_str_radix(line.trim(), 16).context("a broken chunk")?;
        let mut chunk = vec![0; size as usize + 2];
        stream.read_exact(&mut chunk).await?;
        if size == 0 {
            return Ok((hash(&body), events::now()));
        }
        body.extend_from_slice(&chunk[..size as usize]);
    }
}
