//! The real binary as a child process that can be killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{cargo, headline, root, target_dir, terminate};

/// How long a start may take before it counts as failed.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long an orderly stop may take, with nothing that fails.
pub const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The binary, built; or the one that was named.
pub fn binary(named: Option<PathBuf>, release: bool) -> Result<PathBuf> {
    if let Some(path) = named {
        return path
            .canonicalize()
            .with_context(|| format!("there is no {}", path.display()));
    }
    headline("building onlyonce");
    let mut build = cargo();
    build.args(["build", "--locked", "--package", "onlyonce-gateway"]);
    if release {
        build.arg("--release");
    }
    if !build.status()?.success() {
        bail!("onlyonce does not build");
    }
    Ok(target_dir()
        .join(if release { "release" } else { "debug" })
        .join("onlyonce"))
}

/// What the campaigns' gateways are told; everything else is the default.
pub struct Setup {
    /// The binary.
    pub binary: PathBuf,
    /// Where its configuration is written.
    pub config: PathBuf,
    /// The data folder.
    pub data: PathBuf,
    /// The upstream.
    pub upstream: SocketAddr,
    /// Lines of the table `[server]`.
    pub server: String,
    /// Lines at the end of the configuration: settings of the route, then tables.
    pub more: String,
    /// Variables of the process, besides those of this one.
    pub environment: Vec<(String, String)>,
}

impl Setup {
    /// Writes the configuration file: small segments and a small cache, so that a short campaign
    /// also crosses segments and reads from disk.
    pub fn write_config(&self) -> Result<()> {
        let text = format!(
            r#"[server]
listen = "127.0.0.1:0"
control = "127.0.0.1:0"
{server}
[store]
url = "embedded:{data}"
segment_bytes = "1MiB"
cache_bytes = "4MiB"

[[upstream]]
name = "paid"
url = "http://{upstream}"

[[route]]
path_prefix = "/"
upstream = "paid"
key = "required"
release = [401, 429, 503]
first_byte_timeout = "20s"
between_bytes_timeout = "20s"
total_timeout = "60s"
{more}"#,
            data = self.data.display(),
            upstream = self.upstream,
            server = self.server,
            more = self.more
        );
        fs::write(&self.config, text).context("cannot write the configuration")
    }
}

/// A running gateway.
pub struct Gateway {
    child: Child,
    /// Where it takes requests.
    pub address: SocketAddr,
    /// Where it is asked how it goes.
    pub control: SocketAddr,
    /// How long it took from its start to its readiness.
    pub start_up: Duration,
}

impl Gateway {
    /// Starts it and waits until it says that it listens.
    pub fn start(setup: &Setup) -> Result<Self> {
        Starting::spawn(setup)?.ready()
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it in order, and waits until it is gone; if that takes longer, it is killed, and that is an error.
    pub fn stop(mut self, limit: Duration) -> Result<()> {
        terminate(&mut self.child, limit)
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway that does not listen yet.
pub struct Starting {
    child: Option<Child>,
    since: Instant,
    log: PathBuf,
}

impl Starting {
    /// Starts the process.
    pub fn spawn(setup: &Setup) -> Result<Self> {
        setup.write_config()?;
        let log = setup.config.with_extension("log");
        let child = Command::new(&setup.binary)
            .args(["serve", "--config"])
            .arg(&setup.config)
            .current_dir(root())
            .envs(setup.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot run {}", setup.binary.display()))?;
        Ok(Self {
            child: Some(child),
            since: Instant::now(),
            log,
        })
    }

    /// Kills it before it was ready.
    pub fn kill(mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Waits until it says where it listens.
    pub fn ready(mut self) -> Result<Gateway> {
        let mut child = self.child.take().context("already taken")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (lines, line) = channel();
        // The thread goes on reading, so that the gateway never waits for a full pipe.
        thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = lines.send(text);
            }
        });
        let mut address = None;
        let control = loop {
            let left = START_LIMIT.saturating_sub(self.since.elapsed());
            match line.recv_timeout(left) {
                Ok(text) => {
                    if let Some(at) = text.strip_prefix("onlyonce: gateway listening on http://") {
                        address = Some(at.parse()?);
                    }
                    if let Some(at) = text.strip_prefix("onlyonce: control listening on http://") {
                        break at.parse()?;
                    }
                }
                Err(reason) => {
                    let _ = child.kill();
                    let status = child.wait()?;
                    let why = match reason {
                        RecvTimeoutError::Timeout => "it was not ready in time".to_string(),
                        RecvTimeoutError::Disconnected => format!("it ended ({status})"),
                    };
                    bail!(
                        "the gateway did not start: {why}: {}",
                        last_lines(&self.log)
                    );
                }
            }
        };
        Ok(Gateway {
            child,
            address: address.context("it did not say where it takes requests")?,
            control,
            start_up: self.since.elapsed(),
        })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
