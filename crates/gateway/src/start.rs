//! From a valid configuration to a running gateway, and back to nothing.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use onlyonce_sandbox::Sandbox;
use onlyonce_store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::failure::Failure;
use crate::shared::{Phase, Shared};
use crate::telemetry::Exporter;
use crate::{control, listen, open, proxy};

/// After the drain, how long callers get to read what their operations became.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// At the end, how long the collector gets to take the last spans.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// Runs the gateway until a signal ends it.
pub fn serve(config: Config) -> Result<(), Failure> {
    log_to_stderr();
    use_small_pages();
    check_files(&config)?;
    let runtime = runtime()?;
    // Before the store: where a port is busy, the folder is not even made.
    let doors = Doors::open(&config)?;
    runtime.block_on(async {
        let store = open::store(&config).await?;
        tracing::info!(store = config.store.url.place(), "the store is open");
        until_signal(config, store, doors).await
    })
}

/// Runs the sandbox until a signal ends it.
pub fn sandbox(addr: SocketAddr) -> Result<(), Failure> {
    log_to_stderr();
    runtime()?.block_on(async {
        let listener = listen::take_one(addr, "listen")?;
        let mut signals = Signals::catch()?;
        let sandbox = TcpListener::from_std(listener)
            .and_then(Sandbox::on)
            .map_err(|error| cannot_start(&error))?;
        announce("sandbox", sandbox.local_addr(), "http");
        sandbox.serve(signals.next()).await;
        Ok(())
    })
}

/// Where the kernel may back any two MiB with one page, a byte in them makes all of them resident: a gateway under
/// load then holds twice as much memory, half of it never written to, and rises for minutes (I15).
fn use_small_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay allowed");
    }
}

/// Refuses files that the configuration names and that cannot be used.
pub fn check_files(config: &Config) -> Result<(), Failure> {
    proxy::check_files(config)?;
    if config.price_file.is_some() {
        config.prices()?;
    }
    Ok(())
}

/// The addresses that a gateway listens on, taken.
pub(crate) struct Doors {
    requests: Vec<std::net::TcpListener>,
    control: std::net::TcpListener,
}

impl Doors {
    /// Takes them.
    pub(crate) fn open(config: &Config) -> Result<Self, Failure> {
        let server = &config.server;
        Ok(Self {
            requests: listen::take_all(server.listen, server.workers)?,
            control: listen::take_one(server.control, "control")?,
        })
    }
}

/// A gateway that serves.
pub(crate) struct Running<S: Store> {
    shared: Arc<Shared<S>>,
    phases: watch::Sender<Phase>,
    workers: proxy::Workers,
    control: tokio::task::JoinHandle<()>,
    upkeep: tokio::task::JoinHandle<()>,
    exporter: Option<Exporter>,
    /// Deliveries to the sinks of the books; they end with it.
    sinks: JoinSet<()>,
    /// Where requests come in.
    pub(crate) addr: SocketAddr,
    /// Where the control listener is.
    pub(crate) control_addr: SocketAddr,
}

impl<S: Store> Running<S> {
    /// Starts every part. Runs on a runtime of its own, apart from the workers', so that nothing
    /// that happens on a request delays a lease's renewal.
    pub(crate) fn start(config: Config, store: S, doors: Doors) -> Result<Self, Failure> {
        let addr = local_addr(&doors.requests[0])?;
        let control_addr = local_addr(&doors.control)?;
        let owner = onlyonce_engine::owner();
        let shared = Shared::new(config, store, owner)?;
        let exporter = Exporter::start(&shared.telemetry, shared.config.telemetry.as_ref())?;
        let (phases, phase) = watch::channel(Phase::Serving);
        let upkeep = {
            let engine = shared.engine.clone();
            tokio::spawn(async move { engine.run_upkeep().await })
        };
        let sinks = shared.sinks.start(shared.engine.store(), owner);
        let listener =
            TcpListener::from_std(doors.control).map_err(|error| cannot_start(&error))?;
        let desk = control::Control::new(Arc::clone(&shared), phase.clone());
        let work = control::work_router(desk.clone());
        let control = tokio::spawn(control::serve(desk, listener));
        let workers = proxy::run(Arc::clone(&shared), doors.requests, phase, &work)?;
        Ok(Self {
            shared,
            phases,
            workers,
            control,
            upkeep,
            exporter,
            sinks,
            addr,
            control_addr,
        })
    }

    /// Takes nothing new, waits for what runs for `drain` at most, and closes the store. `hurry`
    /// ends the waiting.
    pub(crate) async fn stop(self, drain: Duration, hurry: impl Future<Output = ()>) {
        let deadline = Instant::now() + drain;
        self.phases.send_replace(Phase::Draining);
        let engine = &self.shared.engine;
        let mut workers = self.workers;
        let drained = async {
            engine.shutdown(drain).await;
            // Requests without a key are no operations; they get the same time.
            let deadline = deadline.max(Instant::now() + LAST_WORDS);
            let _ = timeout_at(deadline, workers.wait()).await;
        };
        let hurried = tokio::select! {
            () = drained => false,
            () = hurry => true,
        };
        if hurried {
            tracing::warn!("a second signal: going at once");
            engine.shutdown(Duration::ZERO).await;
        }
        self.phases.send_replace(Phase::Stopping);
        let _ = timeout_at(Instant::now() + LAST_WORDS, workers.wait()).await;
        self.upkeep.abort();
        drop(self.sinks);
        if let Err(error) = engine.store().close().await {
            tracing::error!(%error, "the store did not close cleanly");
        }
        if let Some(exporter) = self.exporter {
            exporter.stop(LAST_SPANS).await;
        }
        self.control.abort();
    }
}

async fn until_signal<S: Store>(config: Config, store: S, doors: Doors) -> Result<(), Failure> {
    let drain = config.server.drain_timeout;
    let scheme = if config.server.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let mut signals = Signals::catch()?;
    let running = Running::start(config, store, doors)?;
    announce("gateway", running.addr, scheme);
    announce("control", running.control_addr, "http");
    signals.next().await;
    tracing::info!(live = running.shared.engine.live(), "draining");
    running.stop(drain, signals.next()).await;
    Ok(())
}

/// The signals that ask for an end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from here on.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| cannot_start(&error));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    /// Waits for one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Says on standard output where something listens: scripts wait for the line.
fn announce(what: &str, addr: SocketAddr, scheme: &str) {
    let mut out = io::stdout().lock();
    // Nobody reads it where standard output is closed, and that is no reason to stop.
    let _ = writeln!(out, "onlyonce: {what} listening on {scheme}://{addr}");
    let _ = out.flush();
}

fn local_addr(listener: &std::net::TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(|error| cannot_start(&error))
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("onlyonce-main")
        .enable_all()
        .build()
        .map_err(|error| cannot_start(&error))
}

fn cannot_start(error: &io::Error) -> Failure {
    Failure::other(
        format!("the system refuses what the gateway needs ({error})"),
        "look at the limits of the process (ulimit -n, ulimit -u)",
    )
}

/// Logs go to standard error. `ONLYONCE_LOG` filters them (`info` unless set), and
/// `ONLYONCE_LOG_FORMAT=json` makes each line an object.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("ONLYONCE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // A log that cannot be written (its disk is full, its reader has left) stops nothing. Left
        // on, this tells standard error so, and panics where that fails too.
        .log_internal_errors(false);
    // A logger that is set already (in a test) may stay.
    let _ = if std::env::var_os("ONLYONCE_LOG_FORMAT").is_some_and(|format| format == "json") {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
}
