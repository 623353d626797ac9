//! A million finished records: memory, start-up, cold replays, disk, and the space back.

use std::fs;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Size;
use super::numbers::{median, percentile};
use super::peers::{Running, Stage};
use super::report::{Section, Target};
use super::wrk::{self, Keys};
use crate::command::Progress;
use crate::faults::client::{read_body, read_head};
use crate::faults::random::Random;

/// The body that is recorded, in bytes.
const PAYLOAD: u64 = 1024;

/// How many cold keys are replayed.
const REPLAYS: usize = 2_000;

/// The longest run of the load generator, in seconds.
const LONGEST_RUN: u64 = 10;

/// How many runs fill a store at most.
const MOST_RUNS: usize = 200;

/// How long after the end of the window the space may take to come back.
const SPACE_LIMIT: Duration = Duration::from_secs(120);

const MIB: u64 = 1 << 20;

/// The finished records of a store that was filled, and read again after a restart.
struct Kept {
    records: u64,
    /// Bytes on disk.
    disk: u64,
    /// Resident memory of the process that wrote them, in bytes.
    written: u64,
    /// Resident memory after a restart and the replays, in bytes.
    restarted: u64,
    /// Whether the kernel had forgotten the records before the restart.
    cold: bool,
    /// From start to readiness.
    start_up: Duration,
    /// Replays of keys chosen at random, in milliseconds.
    replays: Vec<f64>,
}

/// The records of a store whose window ended.
struct Gone {
    records: u64,
    /// Bytes when they were all there.
    full: u64,
    /// Bytes at the end.
    left: u64,
    /// From the last completion to that moment.
    after: Duration,
}

/// Fills two stores: one whose window is long, and one whose window ends.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let mut kept = keep(stage, size)?;
    let gone = forget(stage, size)?;
    let standing = standing(size);
    let start_up = if kept.cold {
        "start-up, the records not in the kernel's cache"
    } else {
        "start-up (not run as root: the records in the kernel's cache)"
    };
    let replay = percentile(&mut kept.replays, 0.99);
    let ratio = kept.disk as f64 / (kept.records * PAYLOAD) as f64;
    let memory = kept.written.max(kept.restarted);
    let targets = vec![
        Target::at_most(
            "resident memory, the larger of both",
            mb(memory),
            300.0,
            "MB",
        ),
        Target::at_most(start_up, kept.start_up.as_secs_f64(), 2.0, "s"),
        Target::at_most("replay of a cold key, p99", replay, 5.0, "ms"),
        Target::at_most("disk, times the payload", ratio, 1.5, ""),
        Target::at_most(
            "disk after the window (limit: the two segments that always stay)",
            mb(gone.left),
            mb(standing).round(),
            "MB",
        ),
    ];
    let figures = format!(
        "{} finished records, each with 1 KB of JSON that does not pack, in segments of {} MiB. Resident\n\
         memory {:.0} MB in the process that wrote them all, {:.0} MB after a restart and the replays: {REPLAYS}\n\
         keys chosen at random, over one connection; p50 {:.2} ms. On disk {:.0} MB. The space: {} records\n\
         whose window is {} s took {:.0} MB, and {:.0} MB were left {:.0} s after the last completion.\n",
        kept.records,
        size.segment_mib,
        mb(kept.written),
        mb(kept.restarted),
        median(&mut kept.replays),
        mb(kept.disk),
        gone.records,
        size.window,
        mb(gone.full),
        mb(gone.left),
        gone.after.as_secs_f64(),
    );
    Ok(Section { targets, figures })
}

/// What an empty store takes on disk: the segment that is written to, the one that stands ready,
/// and a little beside them. In bytes.
fn standing(size: &Size) -> u64 {
    2 * size.segment_mib * MIB + MIB
}

/// Fills a store, and reads it with a new process from a cold disk.
fn keep(stage: &Stage, size: &Size) -> Result<Kept> {
    const NAME: &str = "million";
    let gateway = start(stage, size, NAME, "")?;
    let runs = fill(&gateway, size.records)?;
    let written = gateway.resident();
    gateway.stop()?;
    let disk = bytes_of(&stage.data(NAME))?;
    let cold = drop_caches();
    let gateway = start(stage, size, NAME, "")?;
    let replays = replay(gateway.address, &runs)?;
    let kept = Kept {
        records: runs.iter().sum(),
        disk,
        written,
        restarted: gateway.resident(),
        cold,
        start_up: gateway.start_up,
        replays,
    };
    gateway.stop()?;
    fs::remove_dir_all(stage.data(NAME))?;
    Ok(kept)
}

/// Fills a store whose window is short, and waits for its space.
fn forget(stage: &Stage, size: &Size) -> Result<Gone> {
    const NAME: &str = "window";
    let window = format!("window = \"{}s\"", size.window);
    let gateway = start(stage, size, NAME, &window)?;
    let records = fill(&gateway, size.records)?.iter().sum();
    let since = Instant::now();
    let full = bytes_of(&stage.data(NAME))?;
    let mut left = full;
    let _progress = Progress::start("waiting for the space", Duration::from_secs(10));
    let limit = Duration::from_secs(size.window) + SPACE_LIMIT;
    while left > standing(size) && since.elapsed() < limit {
        thread::sleep(Duration::from_secs(1));
        left = bytes_of(&stage.data(NAME))?;
    }
    let after = since.elapsed();
    gateway.stop()?;
    Ok(Gone {
        records,
        full,
        left,
        after,
    })
}

fn start(stage: &Stage, size: &Size, name: &str, route: &str) -> Result<Running> {
    let store = format!("segment_bytes = \"{}MiB\"", size.segment_mib);
    stage.onlyonce_with(name, &store, route)
}

/// Makes the kernel forget what it read and wrote; only root may.
fn drop_caches() -> bool {
    let synced = Command::new("sync").status();
    synced.is_ok() && fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Sends new keys until there are enough; returns how many each run completed.
fn fill(gateway: &Running, records: u64) -> Result<Vec<u64>> {
    let urls = [gateway.url()];
    let mut runs: Vec<u64> = Vec::new();
    let (mut done, mut seconds) = (0, 1);
    while done < records {
        if runs.len() == MOST_RUNS {
            bail!("only {done} records in {MOST_RUNS} runs");
        }
        let one = wrk::run(&urls, Keys::New, &prefix(runs.len()), 64, seconds)?;
        done += one.requests;
        runs.push(one.requests);
        println!("   {done} records");
        // As long as the rest takes, so that there are hardly more than were asked for.
        let rest = records.saturating_sub(done) as f64 / one.rate.max(1.0);
        seconds = (rest.ceil() as u64).clamp(1, LONGEST_RUN);
    }
    Ok(runs)
}

/// With what the keys of a run begin.
fn prefix(run: usize) -> String {
    format!("fill{run}")
}

/// Replays keys chosen at random, over one connection; milliseconds.
fn replay(address: SocketAddr, runs: &[u64]) -> Result<Vec<f64>> {
    let mut random = Random::new(1);
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut times = Vec::new();
    for _ in 0..REPLAYS {
        let run = random.below(runs.len() as u64) as usize;
        // Each of the two threads of a run completed about half of it; a quarter surely. The first
        // request of a thread may be one that wrk only looked at and did not send.
        let thread = random.between(1, 2);
        let number = random.between(2, runs[run] / 4);
        let key = format!("{}-{thread}-{number}", prefix(run));
        let request = request(&key);
        let start = Instant::now();
        reader.get_ref().write_all(request.as_bytes())?;
        let head = read_head(&mut reader)?;
        read_body(&head, &mut reader)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if head.header("onlyonce-status") != Some("replayed") {
            bail!("{key} was not replayed: {}", head.first_line);
        }
    }
    Ok(times)
}

/// A request as `bench/keys.lua` sends it.
fn request(key: &str) -> String {
    let body =
        r#"{"model":"bench","input":"one request, about as long as a short prompt to a paid API"}"#;
    format!(
        "POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nIdempotency-Key: {key}\r\n\r\n{body}",
        body.len()
    )
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
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
