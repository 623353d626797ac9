//! Callers of one gateway join streams that run on another.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::TcpStream;

use super::super::events::{self, content_length, read_chunk, sent_at};
use super::super::numbers::percentile;
use super::super::streams::ask;

/// How many streams are joined, each once, one after another.
pub const JOINS: usize = 200;

/// How many events each stream has: they end while the next ones are joined.
const EVENTS: u64 = 50;

/// When all must have ended.
const LIMIT: Duration = Duration::from_secs(300);

/// What was measured, in milliseconds.
pub struct Joins {
    /// How many joiners had their first byte while the stream ran.
    pub in_time: usize,
    first_byte_p50: f64,
    pub first_byte_p99: f64,
    /// From an event's sending to its arrival at a caller of the stream's own gateway.
    own_p50: f64,
    own_p99: f64,
    /// The same at a caller of the other gateway, of events that were sent after it had joined.
    other_p50: f64,
    other_p99: f64,
}

impl fmt::Display for Joins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{JOINS} streams of {EVENTS} events, one each {} ms, start on one gateway. When a stream's first event is\n\
             there, a caller of another gateway joins it with the same key. From its request to its first byte:\n\
             p50 {:.1} ms, p99 {:.1} ms. From an event's sending to its arrival: p50 {:.1} ms, p99 {:.1} ms at the\n\
             gateway that has the stream, p50 {:.1} ms, p99 {:.1} ms at the other. Every joiner got every byte,\n\
             and the upstream ran once for each.",
            events::INTERVAL.as_millis(),
            self.first_byte_p50,
            self.first_byte_p99,
            self.own_p50,
            self.own_p99,
            self.other_p50,
            self.other_p99,
        )
    }
}

/// Starts each stream on one gateway and joins it on the other.
pub fn measure(from: SocketAddr, to: SocketAddr) -> Result<Joins> {
    let before = events::requests();
    let mut in_time = 0;
    let (mut first, mut own, mut other) = (Vec::new(), Vec::new(), Vec::new());
    events::run(LIMIT, async {
        let mut readers = Vec::new();
        for number in 0..JOINS {
            let key = format!("join-{number}");
            let mut owner = Reader::open(from, &key, "first").await?;
            owner.read().await?;
            let owner = tokio::spawn(owner.read_all());
            let asked = events::now();
            let mut joiner = Reader::open(to, &key, "joiner").await?;
            joiner.read().await?;
            let joined = events::now();
            first.push((joined - asked) as f64 / 1e6);
            readers.push((key, joined, owner, tokio::spawn(joiner.read_all())));
        }
        for (key, joined, owner, joiner) in readers {
            let (owner, joiner) = (owner.await??, joiner.await??);
            if owner.body != joiner.body {
                bail!("{key}: the joiner got another body");
            }
            in_time += usize::from(joined < owner.ended);
            own.extend(owner.delays_after(joined));
            other.extend(joiner.delays_after(joined));
        }
        Ok(())
    })?;
    let executions = events::requests() - before;
    if executions != JOINS as u64 {
        bail!("the upstream ran {executions} times for {JOINS} keys");
    }
    Ok(Joins {
        in_time,
        first_byte_p50: percentile(&mut first, 0.5),
        first_byte_p99: percentile(&mut first, 0.99),
        own_p50: percentile(&mut own, 0.5),
        own_p99: percentile(&mut own, 0.99),
        other_p50: percentile(&mut other, 0.5),
        other_p99: percentile(&mut other, 0.99),
    })
}

/// A caller.
struct Reader {
    /// Key, and which of its two callers.
    who: String,
    stream: BufReader<TcpStream>,
    /// The length of a body that was complete when it was asked for.
    length: Option<usize>,
    body: Vec<u8>,
    /// How much of the body was looked through for events.
    looked: usize,
    /// When each event was sent and when it arrived, in nanoseconds.
    events: Vec<(u64, u64)>,
    /// When the last read ended.
    ended: u64,
}

impl Reader {
    async fn open(to: SocketAddr, key: &str, which: &str) -> Result<Self> {
        let who = format!("{key}, {which}");
        let asked = ask(to, key, EVENTS).await;
        let (head, stream) = asked.with_context(|| who.clone())?;
        Ok(Self {
            stream,
            length: content_length(&head),
            who,
            body: Vec::new(),
            looked: 0,
            events: Vec::new(),
            ended: 0,
        })
    }

    /// Reads the next piece of the body; false at its end.
    async fn read(&mut self) -> Result<bool> {
        let more = match self.length {
            None => read_chunk(&mut self.stream, &mut self.body).await,
            Some(length) => read_piece(&mut self.stream, &mut self.body, length).await,
        };
        let more =
            more.with_context(|| format!("{}, after {} bytes", self.who, self.body.len()))?;
        self.ended = events::now();
        // A gateway may cut the stream into other pieces than the upstream did.
        while let Some(len) = self.body[self.looked..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = &self.body[self.looked..self.looked + len];
            self.events
                .extend(sent_at(line).map(|sent| (sent, self.ended)));
            self.looked += len + 1;
        }
        Ok(more)
    }

    async fn read_all(mut self) -> Result<Self> {
        while self.read().await? {}
        Ok(self)
    }

    /// The delays of the events that were sent after a moment, in milliseconds.
    fn delays_after(&self, moment: u64) -> impl Iterator<Item = f64> {
        let after = self.events.iter().filter(move |(sent, _)| *sent > moment);
        after.map(|(sent, arrived)| arrived.saturating_sub(*sent) as f64 / 1e6)
    }
}

/// Appends what has come of a body of known length; false at its end.
async fn read_piece(
    stream: &mut BufReader<TcpStream>,
    into: &mut Vec<u8>,
    length: usize,
) -> Result<bool> {
    if into.len() < length && stream.read_buf(into).await? == 0 {
        bail!("the stream broke off");
    }
    Ok(into.len() < length)
}
