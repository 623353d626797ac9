//! `cargo xtask bench http`: the gateway against nginx and against a published peer, in pairs.

mod events;
mod million;
mod numbers;
mod peers;
mod report;
mod streams;
mod wrk;

use std::fmt::Write as _;
use std::fs;
use std::io::{Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::args::Args;
use crate::command::headline;
use crate::faults::gateway::binary;
use numbers::{median, percentile};
use peers::{Running, Stage};
use wrk::{Keys, Measured};

/// The parts, in the order in which they run.
const PARTS: &[&str] = &[
    "no-key",
    "new-keys",
    "one-key",
    "one-connection",
    "streams",
    "join",
    "million",
];

/// How much is done.
struct Size {
    pairs: u64,
    seconds: u64,
    events: u64,
    records: u64,
}

/// Runs the parts that the command line asks for.
pub fn run(mut args: Args) -> Result<()> {
    match args.command().as_deref() {
        Some("http") => {}
        _ => bail!("the bench is called `bench http`"),
    }
    let only = args.value::<String>("--only")?;
    let quick = args.flag("--quick");
    let pairs = args.value("--pairs")?;
    let named = args.value::<PathBuf>("--binary")?;
    args.finish()?;
    if let Some(only) = &only
        && !PARTS.contains(&only.as_str())
    {
        bail!("there is no part `{only}`; there are {}", PARTS.join(", "));
    }
    let mut size = if quick {
        Size {
            pairs: 2,
            seconds: 3,
            events: 150,
            records: 50_000,
        }
    } else {
        Size {
            pairs: 5,
            seconds: 8,
            events: 500,
            records: 1_000_000,
        }
    };
    size.pairs = pairs.unwrap_or(size.pairs);

    let stage = Stage::set(binary(named, true)?, events::start()?)?;
    for part in PARTS
        .iter()
        .filter(|part| only.as_ref().is_none_or(|only| only == *part))
    {
        headline(part);
        match *part {
            "no-key" => against_nginx(&stage, &size, part, "No key", Keys::None)?,
            "new-keys" => against_nginx(&stage, &size, part, "Every request a new key", Keys::New)?,
            "one-key" => against_nginx(
                &stage,
                &size,
                part,
                "Every request a finished key",
                Keys::One,
            )?,
            "one-connection" => one_connection(&stage, &size)?,
            "streams" => many_streams(&stage, &size)?,
            "join" => join(&stage)?,
            _ => million(&stage, &size)?,
        }
    }
    Ok(())
}

/// Rounds of nginx, the gateway and peer 2, in turns.
fn against_nginx(stage: &Stage, size: &Size, part: &str, title: &str, keys: Keys) -> Result<()> {
    let nginx = stage.nginx()?;
    let gateway = stage.onlyonce(part, true, "")?;
    // Peer 2 refuses requests without a key.
    let with_peer_2 = keys != Keys::None;
    let memory = if with_peer_2 {
        Some(stage.idempotent_proxy(false)?)
    } else {
        None
    };
    let redis = if with_peer_2 {
        Some(stage.idempotent_proxy(true)?)
    } else {
        None
    };
    let mut peers: Vec<(&str, &Running, &str)> = vec![
        ("nginx, pass-through", &nginx, "/"),
        ("onlyonce, embedded store", &gateway, "/"),
    ];
    if let Some((peer, _)) = &memory {
        peers.push(("idempotent-proxy-server 1.2.2, memory", peer, "/URL_BENCH"));
    }
    if let Some((peer, _)) = &redis {
        peers.push(("idempotent-proxy-server 1.2.2, Redis", peer, "/URL_BENCH"));
    }

    let mut rounds: Vec<Vec<Measured>> = Vec::new();
    for round in 0..=size.pairs {
        // Round 0 warms up, and finishes the one key.
        let seconds = if round == 0 { 1 } else { size.seconds };
        let mut measured = Vec::new();
        for (name, peer, path) in &peers {
            let url = format!("http://{}{path}", peer.address);
            let prefix = if keys == Keys::One {
                part.to_string()
            } else {
                format!("{part}{round}")
            };
            let one = wrk::run(&url, keys, &prefix, 64, seconds)?;
            if round > 0 {
                println!(
                    "   {name}: {:.0} requests/s, p99 {:.1} ms",
                    one.rate, one.p99
                );
            }
            measured.push(one);
        }
        if round > 0 {
            rounds.push(measured);
        }
    }

    let mut text = format!(
        "64 connections, {} rounds of {} s each, wrk on one thread, 1 KB of JSON. A ratio is of one\n\
         round.\n\n| peer | requests/s, median | ratio to nginx, median (lowest to highest) | p50 ms | p99 ms |\n\
         |---|---|---|---|---|\n",
        size.pairs, size.seconds
    );
    for (index, (name, ..)) in peers.iter().enumerate() {
        let of = |what: fn(&Measured) -> f64| -> Vec<f64> {
            rounds.iter().map(|round| what(&round[index])).collect()
        };
        let mut ratios: Vec<f64> = rounds
            .iter()
            .map(|round| round[index].rate / round[0].rate)
            .collect();
        let (low, high) = (percentile(&mut ratios, 0.0), percentile(&mut ratios, 1.0));
        writeln!(
            text,
            "| {name} | {:.0} | {:.2} ({low:.2} to {high:.2}) | {:.2} | {:.2} |",
            median(&mut of(|one| one.rate)),
            median(&mut ratios),
            median(&mut of(|one| one.median)),
            median(&mut of(|one| one.p99)),
        )?;
    }
    report::write(part, title, &text)
}

/// One connection: what two durable writes add to a request.
fn one_connection(stage: &Stage, size: &Size) -> Result<()> {
    let nginx = stage.nginx()?;
    let gateway = stage.onlyonce("one-connection", true, "")?;
    let (mut added, mut plain, mut ours, mut syncs) = (vec![], vec![], vec![], vec![]);
    for round in 0..size.pairs {
        let latency = |peer: &Running| -> Result<f64> {
            let url = format!("http://{}/", peer.address);
            Ok(wrk::run(&url, Keys::New, &format!("one{round}"), 1, size.seconds)?.median * 1e3)
        };
        let (nginx, onlyonce) = (latency(&nginx)?, latency(&gateway)?);
        let sync = bare_sync(&stage.data("one-connection"))?;
        println!("   nginx {nginx:.0} µs, onlyonce {onlyonce:.0} µs, one fsync {sync:.0} µs");
        added.push(onlyonce - nginx);
        plain.push(nginx);
        ours.push(onlyonce);
        syncs.push(sync);
    }
    let sync = median(&mut syncs);
    let text = format!(
        "One connection, every request a new key, {} rounds of {} s each; medians in µs.\n\n\
         | nginx | onlyonce | added | one fsync of a bare log | limit: two fsyncs + 100 |\n\
         |---|---|---|---|---|\n| {:.0} | {:.0} | {:.0} | {sync:.0} | {:.0} |\n",
        size.pairs,
        size.seconds,
        median(&mut plain),
        median(&mut ours),
        median(&mut added),
        2.0 * sync + 100.0
    );
    report::write("one-connection", "One connection", &text)
}

/// The median time of appending 1 KB to a file and syncing it, in microseconds.
fn bare_sync(folder: &Path) -> Result<f64> {
    let path = folder.with_extension("bare");
    let mut file = fs::File::create(&path)?;
    file.set_len(1 << 20)?;
    file.write_all(&vec![0; 1 << 20])?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let mut times = Vec::new();
    for _ in 0..500 {
        let start = Instant::now();
        file.write_all(&[7; 1024])?;
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(path)?;
    Ok(median(&mut times))
}

/// 500 streams at once.
fn many_streams(stage: &Stage, size: &Size) -> Result<()> {
    let nginx = stage.nginx()?;
    let gateway = stage.onlyonce("streams", true, "")?;
    let mut text = String::from(
        "500 streams of one event each 20 ms, each stream a new key; nginx with `proxy_buffering off`.\n\n\
         | round | peer | first event p50 ms | event delay p50 ms | event delay p99 ms | CPU µs/event |\n\
         |---|---|---|---|---|---|\n",
    );
    let (mut first, mut delay, mut cpu) = (vec![], vec![], vec![]);
    for round in 1..=size.pairs.min(3) {
        let one = streams::measure(&nginx, &format!("nginx{round}"), size.events)?;
        let two = streams::measure(&gateway, &format!("onlyonce{round}"), size.events)?;
        for (name, of) in [("nginx", &one), ("onlyonce", &two)] {
            let row = format!(
                "| {round} | {name} | {:.2} | {:.2} | {:.2} | {:.1} |",
                of.first_event, of.delay_median, of.delay_p99, of.cpu_per_event
            );
            println!("   {row}");
            writeln!(text, "{row}")?;
        }
        first.push(two.first_event - one.first_event);
        delay.push(two.delay_p99 - one.delay_p99);
        cpu.push(two.cpu_per_event / one.cpu_per_event);
    }
    writeln!(
        text,
        "\nAdded to the first event, p50: {:.2} ms (limit 1). Added to an event's delay, p99: {:.2} ms\n\
         (limit 5). CPU per event: {:.2} times nginx (limit 2). Medians of the rounds.",
        median(&mut first),
        median(&mut delay),
        median(&mut cpu)
    )?;
    report::write("streams", "Streams", &text)
}

fn join(stage: &Stage) -> Result<()> {
    let gateway = stage.onlyonce("join", true, "")?;
    let joined = streams::join(stage, &gateway)?;
    let text = format!(
        "One stream of 200 events in 4 s, and {} readers that join it: {} got the same bytes as the\n\
         first caller; the upstream ran {} time(s); the last reader ended {:.0} ms after the first caller.\n",
        joined.readers, joined.equal, joined.executions, joined.last_reader_after
    );
    report::write("join", "Joined readers", &text)?;
    if joined.equal < joined.readers || joined.executions != 1 {
        bail!("the readers did not all get the first caller's answer");
    }
    Ok(())
}

fn million(stage: &Stage, size: &Size) -> Result<()> {
    let found = million::measure(stage, size.records)?;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let text = format!(
        "{} finished records of 1 KB, each a completed operation.\n\n\
         | what | found | limit |\n|---|---|---|\n\
         | resident memory, all written in one run | {:.0} MB | 300 MB |\n\
         | resident memory, after a restart | {:.0} MB | 300 MB |\n\
         | start-up, kernel cache dropped | {:.2} s | 2 s |\n\
         | replay of a cold key, p50 | {:.2} ms | |\n\
         | replay of a cold key, p99 | {:.2} ms | 5 ms |\n\
         | disk, times the payload | {:.2} | 1.5 |\n\
         | space after the window ({} records, window 30 s) | {:.0} MB of {:.0} MB left {:.0} s after the last completion | two segments of 67 MB |\n",
        found.records,
        mb(found.resident),
        mb(found.resident_restarted),
        found.start_up.as_secs_f64(),
        found.replay.0,
        found.replay.1,
        found.disk_ratio,
        found.space.records,
        mb(found.space.left),
        mb(found.space.full),
        found.space.after.as_secs_f64(),
    );
    report::write("million", "A million records", &text)
}
