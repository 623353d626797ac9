//! Many readers of one stream.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::Size;
use super::events::{self, read_chunk};
use super::peers::Stage;
use super::report::{Section, Target};
use super::streams::open;

/// How many readers join the stream.
const READERS: usize = 1_000;

/// How many events it has: time enough for all readers to come.
const EVENTS: u64 = 200;

/// How long after the first caller the readers come.
const HEAD_START: Duration = Duration::from_millis(100);

/// When a stream of 4 s must have ended.
const LIMIT: Duration = Duration::from_secs(60);

/// One stream, and a thousand readers with the same key.
pub fn measure(stage: &Stage, _: &Size) -> Result<Section> {
    let gateway = stage.onlyonce("joined")?;
    let before = events::requests();
    let to = gateway.address;
    let (first, others) = events::run(LIMIT, async {
        let first = tokio::spawn(whole(to));
        tokio::time::sleep(HEAD_START).await;
        let others: Vec<_> = (0..READERS).map(|_| tokio::spawn(whole(to))).collect();
        let mut ended = Vec::new();
        for other in others {
            ended.push(other.await??);
        }
        Ok((first.await??, ended))
    })?;
    let executions = events::requests() - before;
    let joined = |other: &&Whole| other.began < first.ended && other.body == first.body;
    let joined = others.iter().filter(joined).count();
    let last = others.iter().map(|other| other.ended).max().unwrap_or(0);

    Ok(Section {
        targets: vec![
            Target::at_least(
                "readers that came while it ran and got every byte of it",
                joined as f64,
                READERS as f64,
                "",
            ),
            Target::at_most("times that the upstream ran", executions as f64, 1.0, ""),
        ],
        figures: format!(
            "One stream of {EVENTS} events, one each {} ms, {} bytes in all, and {READERS} readers that join it at\n\
             once. The last of them had its end {:.0} ms after the first caller.\n",
            events::INTERVAL.as_millis(),
            first.body.len(),
            last.saturating_sub(first.ended) as f64 / 1e6,
        ),
    })
}

/// A stream that was read to its end.
struct Whole {
    body: Vec<u8>,
    /// When its head was there, in nanoseconds.
    began: u64,
    /// When its end was there, in nanoseconds.
    ended: u64,
}

async fn whole(to: SocketAddr) -> Result<Whole> {
    let mut stream = open(to, "one-stream", EVENTS).await?;
    let began = events::now();
    let mut body = Vec::new();
    while read_chunk(&mut stream, &mut body).await? {}
    Ok(Whole {
        body,
        began,
        ended: events::now(),
    })
}
