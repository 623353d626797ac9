//! `cargo xtask test`: everything a change has to pass, and one line that counts it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::args::Args;
use crate::campaign::{self, Binary, Held};
use crate::command::{apt_install, cargo, each_line, headline};
use crate::{audit, clients};

/// How long the test run may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// The feature of the gateway that brings in the tests with real clients.
const REAL_CLIENTS: &str = "real-clients";

/// The campaigns of which each run does a small piece. The seeds and the fuzz targets are tests of cargo's.
const SHORT: [&str; 9] = [
    "kills",
    "exports",
    "power-cuts",
    "block-cuts",
    "failing-calls",
    "soak",
    "flood",
    "crowds",
    "planted",
];

/// Runs all tests and prints `N passed, N failed`.
pub fn run(mut args: Args) -> Result<()> {
    let only_cargo = args.flag("--only-cargo");
    args.finish()?;

    let mut total = Count::default();
    total.add(cargo_test()?);
    if !only_cargo {
        campaigns(&mut total);
    }

    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 || total.passed == 0 {
        bail!("the tests did not pass");
    }
    Ok(())
}

/// The campaigns, short.
fn campaigns(total: &mut Count) {
    let gateway = Binary::new(None, false);
    let start = Instant::now();
    for name in SHORT {
        total.note(campaign::short(name, &gateway));
    }
    let took = start.elapsed().as_secs();
    println!("   all campaigns, short: {took} s");
}

/// `cargo test` over the whole workspace, with the real clients where the gateway has such tests.
fn cargo_test() -> Result<Count> {
    apt_install(&[
        ("pg_createcluster", "postgresql"),
        ("pgbouncer", "pgbouncer"),
        ("redis-server", "redis-server"),
        ("ip", "iproute2"),
        ("promtool", "prometheus"),
    ])?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if audit::has_feature("onlyonce-gateway", REAL_CLIENTS)? {
        let clients = clients::install()?;
        command.args(["--features", &format!("onlyonce-gateway/{REAL_CLIENTS}")]);
        command.env("ONLYONCE_PYTHON", clients.python);
        command.env("ONLYONCE_NODE_MODULES", clients.node_modules);
    }

    headline("cargo test --workspace");
    let mut count = Count::default();
    let mut passing = 0_u64;
    let mut last = Instant::now();
    let succeeded = each_line(&mut command, |line| {
        // Thousands of lines that say "ok" hide the ones that do not.
        if line.starts_with("test ") && line.ends_with("... ok") {
            passing += 1;
            if last.elapsed() < SILENCE {
                return;
            }
            println!("   {passing} tests have passed so far");
        } else {
            println!("{line}");
        }
        last = Instant::now();
        if let Some(one) = Count::of_line(line) {
            count.add(one);
        }
    })?;
    // A test binary that crashed, or did not compile, prints no count of its own.
    if !succeeded && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// The variable that says, with `required`, that a campaign which cannot be run here has failed.
const REQUIRED: &str = "ONLYONCE_CAMPAIGNS";

fn is_required() -> bool {
    std::env::var(REQUIRED).is_ok_and(|value| value == "required")
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    /// Reads the line with which every test binary ends.
    fn of_line(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("test result: ")?;
        let number_before = |word: &str| -> Option<u64> {
            let before = rest.split_once(word)?.0.trim_end();
            before.rsplit([' ', '.']).next()?.parse().ok()
        };
        Some(Self {
            passed: number_before("passed")?,
            failed: number_before("failed;")?,
        })
    }

    /// Counts a campaign as one test, unless it was skipped where it may be.
    fn note(&mut self, ended: Result<Held>) {
        match ended {
            Ok(Held::Yes) => self.passed += 1,
            Ok(Held::Skipped) if is_required() => {
                println!("   FAILED: it has to run here ({REQUIRED}=required)");
                self.failed += 1;
            }
            Ok(Held::Skipped) => {}
            Err(error) => {
                println!("   FAILED: {error:#}");
                self.failed += 1;
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::{Count, REAL_CLIENTS};
    use crate::audit;

    /// Features that `cargo test --workspace` does without, and why.
    const NOT_TESTED: &[(&str, &str)] = &[
        (
            "libfuzzer",
            "the campaigns' own; the targets run without it",
        ),
        ("planted", "bugs: `cargo xtask planted` turns them on"),
    ];

    fn names(of: &Value) -> BTreeSet<&str> {
        let named = of.as_array().expect("a list");
        named.iter().filter_map(Value::as_str).collect()
    }

    /// A test behind a feature that nobody turns on passes unseen, since it is never built.
    #[test]
    fn every_feature_is_on_in_the_test_command() {
        let clients = format!("onlyonce-gateway/{REAL_CLIENTS}");
        let metadata = audit::metadata(&[&clients]).expect("cargo metadata");
        let packages = metadata["packages"].as_array().expect("the packages");
        let nodes = metadata["resolve"]["nodes"]
            .as_array()
            .expect("what is built");
        let mut off = Vec::new();
        for member in names(&metadata["workspace_members"]) {
            let find = |list: &[Value]| list.iter().find(|one| one["id"] == member).cloned();
            let (package, node) = (find(packages).expect(member), find(nodes).expect(member));
            let on = names(&node["features"]);
            let features = package["features"].as_object().expect("the features");
            for feature in features.keys().map(String::as_str) {
                let left_out = NOT_TESTED.iter().any(|(name, _)| *name == feature);
                if !left_out && !on.contains(feature) {
                    off.push(format!("{}/{feature}", package["name"]));
                }
            }
        }
        assert!(
            off.is_empty(),
            "no test sees {off:?}: turn them on where the package is its own dev-dependency"
        );
    }

    #[test]
    fn the_line_of_a_test_binary_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(
            Count::of_line(line),
            Some(Count {
                passed: 12,
                failed: 3
            })
        );
        assert_eq!(Count::of_line("test a_test_that_passed ... ok"), None);
    }
}
