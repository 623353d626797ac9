//! Each target, short: the seeds, what a campaign has found before, and a fixed number of changes.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use onlyonce_fuzz::{Target, mutate::Mutator, target};

/// How many changed inputs each target gets, unless `ONLYONCE_FUZZ_RUNS` says otherwise.
const RUNS: usize = 20_000;

fn check(name: &str, weight: usize) {
    let target = target(name).expect("a target of that name");
    for (number, seed) in (target.seeds)().iter().enumerate() {
        try_one(target, seed, &format!("seed {number}"));
    }
    for (file, input) in regressions(name) {
        try_one(target, &input, &file);
    }
    let runs = std::env::var("ONLYONCE_FUZZ_RUNS").ok();
    let runs = runs.and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let mut mutator = Mutator::new(target, 1);
    for run in 0..runs / weight {
        try_one(target, &mutator.next_input(), &format!("run {run}"));
    }
}

/// What was found before and mended since: each input is one file, and its name says what it was.
fn regressions(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("regressions")
        .join(name);
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .map(|entry| {
            let path = entry.expect("a folder that can be listed").path();
            let input = fs::read(&path).expect("a file that can be read");
            (path.display().to_string(), input)
        })
        .collect()
}

#[track_caller]
fn try_one(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let name = target.name;
        panic!("{name}, {what}: \"{}\"", input.escape_ascii());
    }
}

#[test]
fn a_key_is_one_key_however_it_is_written() {
    check("key", 1);
}

#[test]
fn equal_requests_have_one_fingerprint_however_they_come_in() {
    check("fingerprint", 1);
}

#[test]
fn i13_bytes_are_a_record_only_if_the_encoder_writes_them() {
    check("records", 1);
}

#[test]
fn i13_no_record_of_a_damaged_file_is_taken_for_absent() {
    check("files", 1);
}

#[test]
fn i17_what_the_gate_passes_is_read_and_sent_on_as_the_same_messages() {
    check("http1", 2);
}

#[test]
fn what_is_of_one_connection_is_not_replayed_and_all_else_is() {
    check("headers", 1);
}

#[test]
fn a_stream_is_read_the_same_wherever_it_is_cut() {
    check("events", 1);
}

#[test]
fn any_text_is_a_configuration_or_one_line_of_what_is_wrong() {
    check("config", 10);
}
