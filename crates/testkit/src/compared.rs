//! The eight scenarios of the comparison (`bench/compare`), on a program of ours.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// Runs them on `program`, as the peer that is called `name` there, and compares what happens with the
/// results that docs/compare.md shows.
///
/// # Panics
///
/// If anything differs, or nothing ran.
#[track_caller]
pub fn scenarios_are_as_published(name: &str, program: &str) {
    let told = std::env::var_os("ONLYONCE_PYTHON");
    let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/compare/compare.py");
    let run = Command::new(told.clone().unwrap_or_else(|| "python3".into()))
        .arg(harness)
        .args(["--check", "--only", name, "--long-work", "1"])
        .env("ONLYONCE_COMPARED_PROGRAM", program)
        // Nothing is to be left in the checkout.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output();
    match run {
        Err(error) if error.kind() == ErrorKind::NotFound && told.is_none() => {
            println!("skipped: there is no python3");
        }
        run => {
            let run = run.expect("the comparison");
            let said = String::from_utf8_lossy(&run.stdout);
            let complaint = String::from_utf8_lossy(&run.stderr);
            assert!(run.status.success(), "{said}\n{complaint}");
            assert!(said.ends_with("1 compared, 0 scenarios differ\n"), "{said}");
        }
    }
}
