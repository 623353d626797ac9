//! `onlyonce doctor`: looks at all that a gateway depends on, and says what it found.
//!
//! One line a finding on standard output, in the order in which the checks end; what lasts is told
//! on standard error meanwhile. Nothing that it makes is left behind.

mod certificate;
mod finding;
mod folder;
mod limits;
mod store;
mod upstream;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at};

use self::finding::{Finding, Verdict};
use crate::cli::Served;
use crate::config::{Config, Overrides};
use crate::failure::Failure;
use crate::proxy::UpstreamTls;
use crate::start;

/// After how long, and then how often, a check that lasts is told of.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs every check.
///
/// # Errors
///
/// Mistakes in the configuration, and that something would keep a gateway from its work.
pub(crate) fn run(served: Served) -> Result<(), Failure> {
    let config = Arc::new(served.config(Overrides::default())?);
    start::check_files(&config)?;
    let tls = UpstreamTls::read(&config)?;
    let runtime = start::runtime()?;
    let report = runtime.block_on(async {
        let mut report = Report::default();
        store::check(&config, &mut report).await;
        upstreams(&config, &tls, &mut report).await;
        report.add(config.server.tls.as_ref().map(certificate::of_server));
        report.add([limits::files(&config)]);
        report
    });
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    report.end()
}

/// Looks at all upstreams at once: one that does not answer takes its time.
async fn upstreams(config: &Config, tls: &UpstreamTls, report: &mut Report) {
    let looking: Vec<_> = config
        .upstreams
        .iter()
        .map(|upstream| {
            let title = upstream::title(upstream);
            let look = upstream::check(Arc::clone(upstream), tls.of(upstream));
            (title, tokio::spawn(look))
        })
        .collect();
    for (title, task) in looking {
        match watch(&title, task).await {
            Ok(findings) => report.add(findings),
            Err(finding) => report.add([finding]),
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Report {
    findings: usize,
    failed: usize,
}

impl Report {
    /// Prints findings.
    fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        let mut out = io::stdout().lock();
        for finding in findings {
            self.findings += 1;
            self.failed += usize::from(finding.verdict == Verdict::Fail);
            // Where nobody reads, the exit code says it alone.
            let _ = writeln!(out, "{finding}");
        }
        let _ = out.flush();
    }

    fn end(self) -> Result<(), Failure> {
        if self.failed == 0 {
            return Ok(());
        }
        Err(Failure::other(
            format!("{} of {} findings failed", self.failed, self.findings),
            "see the lines that begin with fail",
        ))
    }
}

/// Waits for a check, and says so when it lasts.
async fn watch<T>(title: &str, mut check: JoinHandle<T>) -> Result<T, Finding> {
    let started = Instant::now();
    let mut ticks = interval_at(started + PATIENCE, PATIENCE);
    loop {
        tokio::select! {
            done = &mut check => return done.map_err(|error| {
                Finding::fail(format!("{title}: the check broke off ({error})"), "report this")
            }),
            _ = ticks.tick() => {
                let seconds = started.elapsed().as_secs();
                let _ = writeln!(io::stderr(), "onlyonce: {title}: still looking, {seconds} s so far");
            }
        }
    }
}
