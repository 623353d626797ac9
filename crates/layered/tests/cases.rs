//! The hostile suite of the gateway, run against a server that has the layer.
//!
//! It is the very same suite: the tests of `crates/gateway/tests/hostile`, told by an environment variable
//! to start this crate's server. Every case of it concerns the layer, but for those in [`OTHERS`].

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The cases that do not concern the layer, by the beginnings of their names, and why.
const OTHERS: &[(&str, &str)] = &[
    (
        "hostile_008_",
        "the server that reads requests limits their heads, and answers those it refuses",
    ),
    ("hostile_034_", SERVER),
    ("hostile_035_", SERVER),
    ("hostile_036_", SERVER),
    ("hostile_037_", SERVER),
    ("hostile_038_", SERVER),
    ("hostile_039_", SERVER),
    ("hostile_040_", SERVER),
    ("hostile_042_", SERVER),
    ("hostile_043_", SERVER),
    ("hostile_048_", SERVER),
    ("hostile_049_", SERVER),
    ("hostile_050_", SERVER),
    (
        "hostile_053_",
        "the server that reads requests has the deadline for their heads",
    ),
    (
        "hostile_055_",
        "the server that writes answers has the deadline for readers that stand still",
    ),
    (
        "hostile_056_",
        "whether a client that has closed its half is still there, the server decides; hyper takes it for gone",
    ),
    (
        "hostile_061_a_failed_tls_",
        "this handler speaks no TLS; what it did not send, it says by NotSent",
    ),
    (
        "hostile_071_",
        "the handler's own client keeps or closes its connections",
    ),
    (
        "hostile_072_",
        "whether a body that ends by close is whole, the handler knows: it says Outcome::Unknown",
    ),
    (
        "hostile_079_",
        "the handler's own client says whether it takes an answer before its request is out",
    ),
    ("hostile_086_", START),
    ("hostile_057_a_request_that_is_reset_", FRAMES),
    ("hostile_069_an_answer_that_is_reset_", SENDS),
    ("hostile_064_i01_", SENDS),
    ("l5_an_answer_that_nobody_reads_", SENDS),
    ("l5_an_exchange_", SENDS),
    ("l6_a_connection_", SENDS),
    ("hostile_069_i05_a_caller_of_http_1_0_", CLOSES),
    ("hostile_087_", START),
    ("hostile_088_", START),
    ("hostile_089_a_full_disk_at_the_start_", START),
    (
        "hostile_089_a_body_that_finds_no_room_",
        "the layer holds bodies in memory, up to its limit",
    ),
    ("hostile_089_a_log_", "the log is the program's"),
    ("hostile_091_", START),
    (
        "i17_",
        "the server and the handler's client write messages anew",
    ),
    (
        "the_sum_is_the_known_one",
        "a test of the suite's own tools",
    ),
    ("times_are_read", "a test of the suite's own tools"),
];

const FRAMES: &str = "a body has a length or an end that its server tells: hyper takes a reset without an error for one";
const SENDS: &str =
    "the handler's client speaks to what is behind it, and goes on while the handler does";
const CLOSES: &str = "how a connection ends is its server's";
const SERVER: &str = "the server that reads requests refuses what is not framed as it should be";
const START: &str =
    "what a program says when it does not start is its own; Once::embedded tells why";

#[test]
fn the_layer_passes_the_hostile_cases_that_concern_it() {
    let Some(suite) = suite() else {
        println!(
            "skipped: build the suite with `cargo test -p onlyonce-gateway --test hostile --no-run`"
        );
        return;
    };
    let names = names(&suite);
    for (prefix, why) in OTHERS {
        assert!(
            names.iter().any(|name| last(name).starts_with(prefix)),
            "no case is called {prefix} any more ({why})"
        );
    }
    let is_other = |name: &&String| {
        let mut prefixes = OTHERS.iter().map(|(prefix, _)| prefix);
        !prefixes.any(|prefix| last(name).starts_with(prefix))
    };
    let cases: Vec<&String> = names.iter().filter(is_other).collect();
    assert!(cases.len() > 90, "only {} cases", cases.len());
    let run = Command::new(&suite)
        .arg("--exact")
        .args(&cases)
        .env(
            "ONLYONCE_HOSTILE_PROGRAM",
            env!("CARGO_BIN_EXE_onlyonce-layered"),
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let passed = format!("test result: ok. {} passed", cases.len());
    assert!(said.contains(&passed), "{said}");
}

/// The suite's program, where it is built: the youngest one beside this test's own.
fn suite() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    let entries = std::fs::read_dir(own.parent().unwrap()).unwrap();
    let programs = entries.filter_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name()?.to_str()?;
        let is_program = name.starts_with("hostile-") && path.extension().is_none();
        let built = is_program.then(|| path.metadata().ok()?.modified().ok())??;
        Some((built, path))
    });
    programs.max().map(|(_, path)| path)
}

/// The names of its tests.
fn names(suite: &Path) -> BTreeSet<String> {
    let listed = Command::new(suite)
        .args(["--list", "--format", "terse"])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    names.map(str::to_owned).collect()
}

/// The name without its module.
fn last(name: &str) -> &str {
    name.rsplit("::").next().unwrap_or(name)
}
