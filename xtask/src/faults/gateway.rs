//! The real binary as a child process that can be killed.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{cargo, headline, root, target_dir, terminate};

/// The gateway did what none may do (L6), whatever was done to it. For a campaign that is a violation, and no failure
/// of its own.
#[derive(Debug)]
pub struct Misbehaved {
    what: String,
    /// It ended in order before it was ready, and said why: so it may where its folder is damaged.
    pub refused: bool,
}

impl Misbehaved {
    fn of(what: String) -> anyhow::Error {
        Self {
            what,
            refused: false,
        }
        .into()
    }
}

impl fmt::Display for Misbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L6: {}", self.what)
    }
}

impl std::error::Error for Misbehaved {}

/// Whether an error only says that a gateway refused to start, with a reason.
pub fn is_refusal(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Misbehaved>()
        .is_some_and(|misbehaved| misbehaved.refused)
}

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
lease = "10m"

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
    log: Log,
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
    /// So it is, [`Misbehaved`], if something in it had panicked.
    pub fn stop(mut self, limit: Duration) -> Result<()> {
        let stopped = terminate(&mut self.child, limit);
        self.log.has_no_panic()?;
        stopped
    }

    /// Kills it as `kill -9` does, and waits until it is gone. It is an error, [`Misbehaved`], if it had ended before,
    /// or if something in it had panicked.
    pub fn kill(mut self) -> Result<()> {
        kill(&mut self.child, &self.log)
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
    log: Log,
}

impl Starting {
    /// Starts the process.
    pub fn spawn(setup: &Setup) -> Result<Self> {
        setup.write_config()?;
        let log = Log(setup.config.with_extension("log"));
        let child = Command::new(&setup.binary)
            .args(["serve", "--config"])
            .arg(&setup.config)
            .current_dir(root())
            .envs(setup.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log.0)?)
            .spawn()
            .with_context(|| format!("cannot run {}", setup.binary.display()))?;
        Ok(Self {
            child: Some(child),
            since: Instant::now(),
            log,
        })
    }

    /// Kills it before it was ready; as [`Gateway::kill`] does.
    pub fn kill(mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => kill(&mut child, &self.log),
            None => Ok(()),
        }
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
                    self.log.has_no_panic()?;
                    let in_time = reason == RecvTimeoutError::Disconnected;
                    let why = match in_time {
                        true => format!("it ended ({status})"),
                        false => "it was not ready in time".to_owned(),
                    };
                    let said = self.log.last_lines();
                    return Err(Misbehaved {
                        refused: in_time && status.code().is_some() && !said.is_empty(),
                        what: format!("the gateway did not start: {why}: {said}"),
                    }
                    .into());
                }
            }
        };
        Ok(Gateway {
            child,
            log: self.log.clone(),
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

fn kill(child: &mut Child, log: &Log) -> Result<()> {
    let ended = child.try_wait()?;
    child.kill()?;
    child.wait()?;
    log.has_no_panic()?;
    match ended {
        None => Ok(()),
        Some(status) => Err(Misbehaved::of(format!(
            "the gateway ended before it was killed ({status}): {}",
            log.last_lines()
        ))),
    }
}

/// What a gateway says on standard error.
#[derive(Clone)]
struct Log(PathBuf);

impl Log {
    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }

    fn last_lines(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// A panic is an error.
    fn has_no_panic(&self) -> Result<()> {
        let text = self.text();
        let mut lines = text.lines();
        match lines.find(|line| line.contains("panicked at")) {
            None => Ok(()),
            Some(line) => {
                let why = lines.next().unwrap_or_default();
                Err(Misbehaved::of(format!(
                    "the gateway panicked: {line} {why}"
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use onlyonce_testkit::make_program;

    use super::{Gateway, Misbehaved, STOP_LIMIT, Setup, is_refusal};

    /// A program that listens, as far as it says so, and then does this.
    fn gateway(folder: &Path, then: &str) -> Setup {
        let binary = folder.join("gateway");
        let script = format!(
            "echo 'onlyonce: gateway listening on http://127.0.0.1:1'\n\
             {then}\n\
             echo 'onlyonce: control listening on http://127.0.0.1:2'\n\
             exec sleep 60\n"
        );
        make_program(&binary, &script);
        Setup {
            binary,
            config: folder.join("onlyonce.toml"),
            data: folder.join("data"),
            upstream: "127.0.0.1:3".parse().unwrap(),
            server: String::new(),
            more: String::new(),
            environment: Vec::new(),
        }
    }

    #[test]
    fn l6_a_gateway_that_ends_or_panics_by_itself_misbehaves() {
        let folder = tempfile::tempdir().unwrap();
        let start = |then: &str| Gateway::start(&gateway(folder.path(), then));
        start("").unwrap().kill().unwrap();
        start("").unwrap().stop(STOP_LIMIT).unwrap();

        let said = "echo 'the segment is damaged' >&2; exit 1";
        assert!(is_refusal(&start(said).err().unwrap()));
        for wrong in [
            "exit 1",
            "echo dying >&2; kill -9 $$",
            "echo 'thread main panicked at a.rs:1' >&2; exit 101",
        ] {
            let error = start(wrong).err().unwrap();
            assert!(error.is::<Misbehaved>() && !is_refusal(&error), "{wrong}");
        }

        let panicked = || start("echo 'thread 7 panicked at a.rs:1:' >&2").unwrap();
        assert!(panicked().kill().unwrap_err().is::<Misbehaved>());
        let stopped = panicked().stop(Duration::from_secs(9));
        assert!(stopped.unwrap_err().is::<Misbehaved>());

        let mut dead = start("").unwrap();
        dead.child.kill().unwrap();
        while dead.child.try_wait().unwrap().is_none() {}
        assert!(dead.kill().unwrap_err().is::<Misbehaved>());
    }
}
