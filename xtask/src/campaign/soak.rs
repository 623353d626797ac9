//! One gateway for as long as there is time, while clients and keys come and go: what it holds does not grow.
//!
//! Records expire after seconds, upstreams reset and truncate, clients leave early, and an operator removes what is
//! unknown, which never expires. Memory, descriptors and the log's size are looked at all the time. A line is fitted
//! to the second half; what it rises over that half is held against a bound.

use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::scene::Scene;
use super::{Batch, Campaign, Ended};
use crate::command::Progress;
use crate::faults::client::read_head;
use crate::faults::gateway::{Gateway, STOP_LIMIT};
use crate::faults::load::Load;
use crate::faults::upstream::lock;
use crate::process::{descriptors, resident};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "soak",
    about: "one gateway for the whole time, keys and clients come and go: memory, descriptors and disk stay flat",
    targets: &[],
    runs_gateway: true,
    batch,
};

/// How many clients send at once.
const CLIENTS: u64 = 24;

/// How many of the last keys are sent again: those that cannot have expired.
const REACH: u64 = 200;

/// How long a completed record is kept, and one that is unknown until it is removed.
const WINDOW: &str = "2s";

/// How long it runs before what it holds is looked at: caches fill, and the first records expire.
const WARM_UP: Duration = Duration::from_secs(15);

/// How long it is looked at, at the least.
const SHORT: Duration = Duration::from_secs(40);

/// The time between two looks.
const BETWEEN: Duration = Duration::from_millis(250);

/// What a figure may rise over the second half: by so much, and so many percent of its mean.
struct Bound {
    name: &'static str,
    /// In the figure's unit.
    most: f64,
    percent: f64,
}

/// Space comes back a few segments at a time, which are 1 MiB and a descriptor each: the log goes up and down.
const BOUNDS: [Bound; 3] = [
    Bound {
        name: "memory in KiB",
        most: 4096.0,
        percent: 5.0,
    },
    Bound {
        name: "descriptors",
        most: 8.0,
        percent: 25.0,
    },
    Bound {
        name: "log in KiB",
        most: 4096.0,
        percent: 25.0,
    },
];

/// One seed, for the time that is left.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let seed = batch.from;
    let mut scene = Scene::new(CAMPAIGN.name, seed, batch.gateway)?;
    // The books are kept for longer than records, by design.
    scene.setup.more = format!("window = \"{WINDOW}\"\n\n[ledger]\nenabled = false\n");
    scene.shared.reach = REACH;
    let Scene {
        upstream,
        setup,
        shared,
        ..
    } = &scene;
    let gateway = Gateway::start(setup)?;
    shared.target.set(Some((gateway.address, 1)));
    let load = Load::start(shared, CLIENTS);
    thread::sleep(WARM_UP);
    let length = if batch.short {
        SHORT
    } else {
        SHORT.max(batch.until.saturating_duration_since(Instant::now()))
    };
    let looks = look(&gateway, &setup.data, length)?;
    load.stop();
    gateway.stop(STOP_LIMIT)?;
    upstream.wait_until_idle()?;

    let mut history = lock(&shared.history);
    history.check_ledger(&upstream.ledger());
    let mut figures = history.figures()?;
    figures.add("seconds", length.as_secs());
    let mut violations = history.violations_of(seed);
    for (index, bound) in BOUNDS.iter().enumerate() {
        let values: Vec<f64> = looks.iter().map(|look| look[index] as f64).collect();
        let most = looks.iter().map(|look| look[index]).max().unwrap_or(0);
        let half = &values[values.len() / 2..];
        let rise = rise(half);
        let mean = half.iter().sum::<f64>() / half.len() as f64;
        figures.add(&format!("most {}", bound.name), most);
        figures.add(
            &format!("most rise of {}", bound.name),
            rise.max(0.0) as u64,
        );
        if rise > bound.most + mean * bound.percent / 100.0 {
            violations.push(format!(
                "seed {seed}: I15: {} rose by {rise:.0} over {} s, of {mean:.0}",
                bound.name,
                length.as_secs() / 2
            ));
        }
    }
    scene.done(figures, violations).map(Ended::Done)
}

/// What it holds, again and again, each in the order of the bounds.
fn look(gateway: &Gateway, data: &Path, length: Duration) -> Result<Vec<[u64; 3]>> {
    let _progress = Progress::start("soaking", Duration::from_secs(10));
    let start = Instant::now();
    let mut looks = Vec::new();
    while start.elapsed() < length {
        looks.push([
            resident(gateway.id()) / 1024,
            descriptors(gateway.id()),
            size(data) / 1024,
        ]);
        remove_unknown(gateway)?;
        thread::sleep(BETWEEN);
    }
    Ok(looks)
}

/// As an operator would who knows that nobody asks again.
fn remove_unknown(gateway: &Gateway) -> Result<()> {
    let body = format!("{{\"state\":\"unknown\",\"before\":\"{WINDOW}\"}}");
    let mut reader = BufReader::new(TcpStream::connect(gateway.control)?);
    write!(
        reader.get_ref(),
        "POST /v1/purge HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        gateway.control,
        body.len()
    )?;
    let head = read_head(&mut reader)?;
    ensure!(head.status() == Some(200), "a purge: {}", head.first_line);
    Ok(())
}

/// The bytes of all files in a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// By how much the line rises that fits these values best (least squares), from the first to the last.
fn rise(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let mean_at = (n - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / n;
    let (mut up, mut across) = (0.0, 0.0);
    for (index, value) in values.iter().enumerate() {
        let at = index as f64 - mean_at;
        up += at * (value - mean);
        across += at * at;
    }
    up / across * (n - 1.0)
}

#[cfg(test)]
mod tests {
    use super::rise;

    #[test]
    fn a_leak_rises_and_what_goes_up_and_down_does_not() {
        let leak: Vec<f64> = (0..100).map(|n| f64::from(n * 3 + n % 2)).collect();
        assert!((rise(&leak) - 297.0).abs() < 2.0, "{}", rise(&leak));
        let waves: Vec<f64> = (0..100).map(|n| f64::from(1_000 + n % 10)).collect();
        assert!(rise(&waves).abs() < 2.0, "{}", rise(&waves));
        assert!(rise(&[1.0]).abs() < f64::EPSILON);
    }
}
