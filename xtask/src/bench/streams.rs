//! Many streams at once: what the gateway adds to their first event and to each event.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::Size;
use super::events::{self, read_chunk, read_head, sent_at};
use super::numbers::{median, percentile};
use super::peers::{Running, Stage};
use super::report::{Section, Target};

/// What streams are asked for with; the number of events follows.
const PATH: &str = "/events/";

/// How many streams at once.
const STREAMS: u64 = 500;

/// The time between the starts of two: all at once would measure a crowd at the door.
const BETWEEN_STARTS: Duration = Duration::from_millis(4);

/// What the streams of one peer measured, in milliseconds and microseconds.
pub struct Streams {
    /// From the request to its first event, median, ms.
    first_event: f64,
    /// From an event's sending to its arrival, p99, ms.
    delay_p99: f64,
    /// The same, median, ms.
    delay_median: f64,
    /// Processor time of the peer for each event, in microseconds.
    pub cpu_per_event: f64,
}

/// Rounds without a proxy, with nginx and with the gateway.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let nginx = stage.nginx()?;
    let gateway = stage.onlyonce("streams")?;
    let events = size.seconds * 1000 / events::INTERVAL.as_millis() as u64;
    let mut figures = format!(
        "{STREAMS} streams of one event each {} ms, {events} events each, every stream a new key; nginx with\n\
         `proxy_buffering off`. \"Added\" is the difference to the same streams without a proxy, in the same\n\
         round; the targets are for the medians of the rounds.\n\n\
         | round | through | first event p50 ms | event delay p50 ms | event delay p99 ms | CPU µs/event |\n\
         |---|---|---|---|---|---|\n",
        events::INTERVAL.as_millis()
    );
    let (mut first, mut delay, mut cpu) = (vec![], vec![], vec![]);
    for round in 1..=size.pairs {
        let prefix = format!("round{round}");
        let direct = all(stage.events, None, PATH, &prefix, events)?;
        let plain = all(nginx.address, Some(&nginx), PATH, &prefix, events)?;
        let ours = all(gateway.address, Some(&gateway), PATH, &prefix, events)?;
        for (name, of) in [("nothing", &direct), ("nginx", &plain), ("onlyonce", &ours)] {
            let row = format!(
                "| {round} | {name} | {:.2} | {:.2} | {:.2} | {:.1} |",
                of.first_event, of.delay_median, of.delay_p99, of.cpu_per_event
            );
            println!("   {row}");
            writeln!(figures, "{row}")?;
        }
        first.push(ours.first_event - direct.first_event);
        delay.push(ours.delay_p99 - direct.delay_p99);
        cpu.push(ours.cpu_per_event / plain.cpu_per_event);
    }
    let (first, delay, cpu) = (median(&mut first), median(&mut delay), median(&mut cpu));
    Ok(Section {
        targets: vec![
            Target::at_most("added to the first event, p50", first, 1.0, "ms"),
            Target::at_most("added to an event's delay, p99", delay, 5.0, "ms"),
            Target::at_most("CPU per event, ratio to nginx", cpu, 2.0, ""),
        ],
        figures,
    })
}

/// Opens the streams one after another and reads all of them to their end.
pub fn all(
    address: SocketAddr,
    peer: Option<&Running>,
    path: &'static str,
    prefix: &str,
    events_of_each: u64,
) -> Result<Streams> {
    let used = || peer.map(Running::cpu).unwrap_or_default();
    let before = used();
    let limit = events::INTERVAL * events_of_each as u32 + Duration::from_secs(60);
    let (mut first, mut delays) = events::run(limit, async {
        let mut tasks = Vec::new();
        for number in 0..STREAMS {
            let key = format!("{prefix}-{number}");
            tasks.push(tokio::spawn(stream(address, path, key, events_of_each)));
            tokio::time::sleep(BETWEEN_STARTS).await;
        }
        let (mut first, mut delays) = (Vec::new(), Vec::new());
        for task in tasks {
            let (one, some) = task.await??;
            first.push(one);
            delays.extend(some);
        }
        Ok((first, delays))
    })?;
    let cpu = used() - before;
    let events = (STREAMS * events_of_each) as f64;
    Ok(Streams {
        first_event: median(&mut first),
        delay_p99: percentile(&mut delays, 0.99),
        delay_median: median(&mut delays),
        cpu_per_event: cpu.as_secs_f64() * 1e6 / events,
    })
}

/// Reads one stream to its end: the time to its first event, and each event's delay, in milliseconds.
async fn stream(
    to: SocketAddr,
    path: &'static str,
    key: String,
    count: u64,
) -> Result<(f64, Vec<f64>)> {
    let start = events::now();
    let mut stream = ask_at(to, path, &key, count).await?.1;
    let mut first = None;
    let mut delays = Vec::with_capacity(count as usize);
    let mut unread = Vec::new();
    while read_chunk(&mut stream, &mut unread).await? {
        let now = events::now();
        // A proxy may cut the stream into other chunks than the upstream did.
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            if let Some(sent) = sent_at(&unread[..end]) {
                first.get_or_insert(now);
                delays.push(now.saturating_sub(sent) as f64 / 1e6);
            }
            unread.drain(..=end);
        }
    }
    if delays.len() as u64 != count {
        bail!("{key}: {} events of {count} came", delays.len());
    }
    let first = first.context("no event")?;
    Ok(((first - start) as f64 / 1e6, delays))
}

/// Asks for a stream and reads the head of the answer, whose body comes in chunks while it runs.
pub async fn open(to: SocketAddr, key: &str, count: u64) -> Result<BufReader<TcpStream>> {
    Ok(ask(to, key, count).await?.1)
}

/// Asks for a stream and gives the head of the answer.
pub async fn ask(to: SocketAddr, key: &str, count: u64) -> Result<(String, BufReader<TcpStream>)> {
    ask_at(to, PATH, key, count).await
}

async fn ask_at(
    to: SocketAddr,
    path: &str,
    key: &str,
    count: u64,
) -> Result<(String, BufReader<TcpStream>)> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let request = format!(
        "POST {path}{count} HTTP/1.1\r\nhost: bench\r\nidempotency-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{key}: {}", head.lines().next().unwrap_or_default());
    }
    Ok((head, stream))
}
