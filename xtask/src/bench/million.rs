//! A million finished records: memory, start-up, cold replays, disk, and the space back.

use std::fs;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::numbers::{median, percentile};
use super::peers::Stage;
use super::wrk::{self, Keys};
use crate::faults::client::{read_body, read_head};
use crate::faults::random::Random;

/// The body that is recorded.
const PAYLOAD: u64 = 1024;

/// How many cold keys are replayed.
const REPLAYS: usize = 2_000;

/// The segment that is written to and the one that stands ready: these always stay.
const STANDING: u64 = 2 * (64 << 20) + (1 << 20);

/// How long the space may take to come back once the window is over.
const SPACE_LIMIT: Duration = Duration::from_secs(240);

/// What was measured.
pub struct Million {
    /// Records.
    pub records: u64,
    /// Bytes on disk for each byte of payload.
    pub disk_ratio: f64,
    /// Resident memory with all records, before a restart.
    pub resident: u64,
    /// Resident memory after a restart.
    pub resident_restarted: u64,
    /// From start to readiness.
    pub start_up: Duration,
    /// Replay of a cold key: median and p99, in milliseconds.
    pub replay: (f64, f64),
    /// The long window's records, the disk they took, what was left, and after how long.
    pub space: Space,
}

/// What came back after the window.
pub struct Space {
    /// Records.
    pub records: u64,
    /// Bytes when they were all there.
    pub full: u64,
    /// Bytes at the end.
    pub left: u64,
    /// From the last completion to that moment.
    pub after: Duration,
}

/// Fills a store and measures it.
pub fn measure(stage: &Stage, records: u64) -> Result<Million> {
    let gateway = stage.onlyonce("million", true, "")?;
    let runs = fill(&format!("http://{}/", gateway.address), records)?;
    let records = runs.iter().sum();
    let resident = gateway.resident();
    gateway.stop()?;
    let disk = bytes_of(&stage.data("million"))?;
    let _ = Command::new("sync").status();
    // Without this the records would be read from the kernel's memory. Only root may.
    let cold = fs::write("/proc/sys/vm/drop_caches", "3").is_ok();
    if !cold {
        println!("   not root: the kernel's cache stays warm");
    }
    let gateway = stage.onlyonce("million", false, "")?;
    let start_up = gateway.start_up;
    let resident_restarted = gateway.resident();
    let mut times = replays(gateway.address, &runs)?;
    gateway.stop()?;
    fs::remove_dir_all(stage.data("million"))?;
    Ok(Million {
        records,
        disk_ratio: disk as f64 / (records * PAYLOAD) as f64,
        resident,
        resident_restarted,
        start_up,
        replay: (median(&mut times), percentile(&mut times, 0.99)),
        space: space(stage, records / 5)?,
    })
}

/// Sends new keys until there are enough; returns how many each run completed.
fn fill(url: &str, records: u64) -> Result<Vec<u64>> {
    let mut runs = Vec::new();
    let mut done = 0;
    while done < records {
        let one = wrk::run(url, Keys::New, &format!("fill{}", runs.len()), 64, 10)?;
        done += one.requests;
        runs.push(one.requests);
        println!("   {done} records");
    }
    Ok(runs)
}

/// Replays random keys, each once, over one connection; milliseconds.
fn replays(address: SocketAddr, runs: &[u64]) -> Result<Vec<f64>> {
    let mut random = Random::new(1);
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let body =
        r#"{"model":"bench","input":"one request, about as long as a short prompt to a paid API"}"#;
    let mut times = Vec::new();
    while times.len() < REPLAYS {
        let run = random.below(runs.len() as u64);
        let number = random.between(1, runs[run as usize]);
        let request = format!(
            "POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nIdempotency-Key: fill{run}-{number}\r\n\r\n{body}",
            body.len()
        );
        let start = Instant::now();
        reader.get_ref().write_all(request.as_bytes())?;
        let head = read_head(&mut reader)?;
        read_body(&head, &mut reader)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if head.header("onlyonce-status") != Some("replayed") {
            bail!("fill{run}-{number} was not replayed: {}", head.first_line);
        }
    }
    Ok(times)
}

/// Fills a store whose window is short, and waits for its space.
fn space(stage: &Stage, records: u64) -> Result<Space> {
    let gateway = stage.onlyonce("window", true, "window = \"30s\"")?;
    let data = stage.data("window");
    let done = fill(&format!("http://{}/", gateway.address), records)?
        .iter()
        .sum();
    let since = Instant::now();
    let full = bytes_of(&data)?;
    let mut left = full;
    while left > STANDING {
        if since.elapsed() > SPACE_LIMIT {
            println!(
                "   the space did not come back in {} s",
                SPACE_LIMIT.as_secs()
            );
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
        left = bytes_of(&data)?;
    }
    let after = since.elapsed();
    gateway.stop()?;
    Ok(Space {
        records: done,
        full,
        left,
        after,
    })
}

/// What a folder takes on disk.
fn bytes_of(folder: &Path) -> Result<u64> {
    let output = Command::new("du")
        .args(["-s", "-B1"])
        .arg(folder)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .next()
        .context("du said nothing")?
        .parse()
        .context("du said no number")
}
