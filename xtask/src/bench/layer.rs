//! What the layer adds to a handler: processor time, on the memory store.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Size;
use super::numbers::median;
use super::peers::Stage;
use super::report::{Section, Target};
use crate::command::{cargo, quietly, target_dir};

/// In microseconds.
const MOST: f64 = 15.0;

/// Runs the library's own example, which measures in turns with and without the layer.
pub fn measure(_: &Stage, _: &Size) -> Result<Section> {
    let mut build = cargo();
    build.args([
        "build",
        "--locked",
        "--release",
        "--package",
        "onlyonce-tower",
    ]);
    build.args(["--example", "cost"]);
    quietly("building the example that measures", &mut build)?;
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
