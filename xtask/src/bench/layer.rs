//! What the layer adds to a handler: processor time, on the memory store; and what a server with it does on the
//! embedded store, in turns with nginx.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Size;
use super::numbers::median;
use super::peers::{PAGE, Running, Stage, free_port, loopback};
use super::report::{Section, Target};
use super::rounds::{CONNECTIONS, NGINX, Peer, Rounds};
use super::wrk::Keys;
use crate::command::{cargo, quietly, target_dir};

/// In microseconds.
const MOST: f64 = 15.0;

/// The same as of the gateway: requests a second, for each one of nginx.
const LOADS: [(&str, Keys, f64); 3] = [
    ("No key", Keys::None, 0.80),
    ("Every request a new key", Keys::New, 0.42),
    ("Every request a finished key", Keys::One, 1.05),
];

/// Both halves.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let mut build = cargo();
    build.args([
        "build",
        "--locked",
        "--release",
        "--package",
        "onlyonce-tower",
    ]);
    build.args(["--example", "cost", "--example", "throughput"]);
    quietly("building the examples that are measured", &mut build)?;
    let mut section = added()?;
    under_load(stage, size, &mut section)?;
    Ok(section)
}

/// A server with the layer and nginx, in turns.
fn under_load(stage: &Stage, size: &Size, section: &mut Section) -> Result<()> {
    write!(
        section.figures,
        "\nAn axum server whose handler answers with 1 KB of JSON, with the layer on the embedded store, over\n\
         {CONNECTIONS} connections; {} rounds of {} s in turns with nginx, which passes through to its upstream. The server\n\
         has no upstream. It has a runtime and a listener for each core; with new keys, it is run with one runtime for all\n\
         cores too, as `#[tokio::main]` makes it. A cell is requests/s (p50, p99 in ms).\n",
        size.pairs, size.seconds
    )?;
    for (name, keys, least) in LOADS {
        println!("   {name}");
        let mut peers = vec![
            Peer::new("nginx", keys, stage.nginx()?),
            Peer::new("with the layer", keys, server(stage, &[])?),
        ];
        if keys == Keys::New {
            let server = server(stage, &["--one-runtime"])?;
            peers.push(Peer::new("the same on one runtime", keys, server));
        }
        let rounds = Rounds::run(&peers, size)?;
        rounds.write(&mut section.figures, name)?;
        let what = format!("{name}, ratio to nginx, median");
        let target = Target::at_least(what, rounds.ratio(NGINX + 1, NGINX), least, "");
        section.targets.push(target);
    }
    Ok(())
}

/// The server that is measured, started with `options`.
fn server(stage: &Stage, options: &[&str]) -> Result<Running> {
    let port = free_port()?;
    let mut server = Command::new(target_dir().join("release/examples/throughput"));
    server
        .arg(loopback(port).to_string())
        .arg(stage.data(&format!("layer-{port}")))
        .args(options);
    Running::start(&mut server, loopback(port), PAGE)
}

/// Runs the library's own example, which measures in turns with and without the layer.
fn added() -> Result<Section> {
    let mut example = Command::new(target_dir().join("release/examples/cost"));
    let said = quietly("measuring the layer", &mut example)?;
    let mut figures = String::from(
        "An axum handler that takes and gives JSON, called in this process without sockets, one request after\n\
         the other; processor time of one request in µs. Without the layer, with it and a new key each time,\n\
         with it and a key that is replayed.\n\n\
         | pair | without | executed | added | replayed |\n|---|---|---|---|---|\n",
    );
    let mut added = Vec::new();
    for line in said.lines() {
        let words: Vec<f64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("a line of figures: {line}"))?;
        let [pair, without, executed, replayed] = words[..] else {
            anyhow::bail!("not a line of figures: {line}");
        };
        let more = executed - without;
        writeln!(
            figures,
            "| {pair} | {without:.1} | {executed:.1} | {more:.1} | {replayed:.1} |"
        )?;
        added.push(more);
    }
    ensure!(!added.is_empty(), "the example said nothing");
    let what = "processor time that the layer adds to an executed request, median";
    Ok(Section {
        targets: vec![Target::at_most(what, median(&mut added), MOST, "µs")],
        figures,
    })
}
