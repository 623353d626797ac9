//! `onlyonce demo` keeps its promise, and is short.

use std::time::{Duration, Instant};

use onlyonce_testkit::run_to_exit;

#[test]
fn the_demo_shows_two_executions_without_and_one_with_the_gateway() {
    let start = Instant::now();
    let run = run_to_exit(env!("CARGO_BIN_EXE_onlyonce"), &["demo"], &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(start.elapsed() < Duration::from_secs(15), "it is too long");
    assert!(run.stderr.is_empty(), "{run:?}");
    assert!(
        !run.stdout.contains('\u{1b}'),
        "colours where nobody sees them: {run:?}"
    );
    let cells = |label: &str| -> Vec<String> {
        let line = run
            .stdout
            .lines()
            .find(|line| line.trim_start().starts_with(label));
        let line = line.unwrap_or_else(|| panic!("{label} in {}", run.stdout));
        let after = line.trim_start().strip_prefix(label).unwrap();
        after
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(cells("executed"), ["2", "1"]);
    assert_eq!(
        cells("the client got"),
        ["two different answers", "one answer, whole"]
    );
    let billed: Vec<f64> = cells("billed")
        .iter()
        .map(|cell| cell[1..].parse().unwrap())
        .collect();
    assert!(
        (billed[0] - 2.0 * billed[1]).abs() < 1e-9 && billed[1] > 0.0,
        "{billed:?}"
    );
}
