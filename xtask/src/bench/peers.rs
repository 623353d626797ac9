//! The programs that are measured, and the upstreams behind them.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::cores;
use crate::command::{apt_install, cargo, quietly, root, target_dir};
use crate::faults::random::Random;
use crate::process;

/// How long a program may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long it may take until it ended: the gateway waits for executions first.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// A program that is ended when it is dropped.
pub struct Running {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its control listener is, if it has one.
    pub control: Option<SocketAddr>,
    /// From its start until it listened.
    pub start_up: Duration,
}

impl Running {
    /// Starts a program and waits until it answers a question with anything at all.
    pub fn start(command: &mut Command, address: SocketAddr, question: &[u8]) -> Result<Self> {
        let since = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        loop {
            if answers(address, question) {
                return Ok(Self {
                    child,
                    address,
                    control: None,
                    start_up: since.elapsed(),
                });
            }
            if let Some(status) = child.try_wait()? {
                bail!("{command:?} ended ({status})");
            }
            if since.elapsed() > START_LIMIT {
                let _ = child.kill();
                bail!("{command:?} does not listen on {address}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its page, which is at once the start of all its others.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The process and its children: nginx works in children, and so does PostgreSQL.
    fn processes(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|child| child.parse().ok());
        std::iter::once(id).chain(children).collect()
    }

    /// Processor time used so far.
    pub fn cpu(&self) -> Duration {
        let ticks: u64 = self.processes().iter().map(|id| ticks(*id)).sum();
        // The kernel reports in hundredths of a second (USER_HZ) on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        process::resident(self.child.id())
    }

    /// Asks it to end, and waits for that.
    pub fn stop(mut self) -> Result<()> {
        if !self.end()? {
            bail!("{} had to be killed", self.address);
        }
        Ok(())
    }

    /// Whether it ended when it was asked to; otherwise it is killed.
    fn end(&mut self) -> Result<bool> {
        if self.child.try_wait()?.is_some() {
            return Ok(true);
        }
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        let since = Instant::now();
        while since.elapsed() < STOP_LIMIT {
            if self.child.try_wait()?.is_some() {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(false)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn ticks(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; what follows it does not.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum()
}

fn answers(address: SocketAddr, question: &[u8]) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(question)?;
        Ok(stream.read(&mut [0; 64])? > 0)
    };
    exchange().unwrap_or(false)
}

/// What every HTTP server answers somehow.
pub const PAGE: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";

/// A port that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A port of this machine.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Where everything lives while it is measured.
pub struct Stage {
    folder: PathBuf,
    binary: PathBuf,
    /// Answers at once.
    upstream: Running,
    /// The upstream of streams.
    pub events: SocketAddr,
}

impl Stage {
    /// Starts the upstream; `events` is where the upstream of streams listens.
    pub fn set(binary: PathBuf, events: SocketAddr) -> Result<Self> {
        apt_install(&[("nginx", "nginx-light"), ("wrk", "wrk")])?;
        let folder = target_dir().join("bench-data");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let port = free_port()?;
        let upstream = nginx(&folder, "upstream", port, |text| {
            text.replace("UPSTREAM", &port.to_string())
                .replace("ANSWER", &answer())
                .replace("COMPLETION", &completion())
        })?;
        Ok(Self {
            folder,
            binary,
            upstream,
            events,
        })
    }

    /// Peer 1.
    pub fn nginx(&self) -> Result<Running> {
        let port = free_port()?;
        nginx(&self.folder, "proxy", port, |text| {
            text.replace("UPSTREAM", &self.upstream.address.port().to_string())
                .replace("EVENTS", &self.events.port().to_string())
                .replace("PROXY", &port.to_string())
        })
    }

    /// The gateway as it is shipped, on an empty embedded store.
    pub fn onlyonce(&self, name: &str) -> Result<Running> {
        let _ = fs::remove_dir_all(self.data(name));
        self.onlyonce_with(name, "", "")
    }

    /// The gateway on the embedded store that is there, with lines of its own in the sections of
    /// the store and of the route.
    pub fn onlyonce_with(&self, name: &str, store: &str, route: &str) -> Result<Running> {
        let url = format!("embedded:{}", self.data(name).display());
        self.onlyonce_on(name, &url, store, route)
    }

    /// The same on any store.
    pub fn onlyonce_on(&self, name: &str, url: &str, store: &str, route: &str) -> Result<Running> {
        let (port, control) = (free_port()?, free_port()?);
        let config = self.folder.join(format!("{name}.toml"));
        let text = format!(
            r#"[server]
listen = "127.0.0.1:{port}"
control = "127.0.0.1:{control}"

[store]
url = "{url}"
{store}

[[upstream]]
name = "answers"
url = "http://{answers}"

[[upstream]]
name = "events"
url = "http://{events}"

[[route]]
path_prefix = "/"
upstream = "answers"
{route}

[[route]]
path_prefix = "/events"
upstream = "events"
"#,
            answers = self.upstream.address,
            events = self.events,
        );
        fs::write(&config, text)?;
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--config"]).arg(&config);
        command.stderr(fs::File::create(self.folder.join(format!("{name}.log")))?);
        let mut running = Running::start(&mut command, loopback(port), PAGE)?;
        running.control = Some(loopback(control));
        Ok(running)
    }

    /// The data folder of [`Stage::onlyonce`].
    pub fn data(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.data"))
    }

    /// The program of the gateway.
    pub fn program(&self) -> &Path {
        &self.binary
    }

    /// A file or folder for a part's own use.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Peer 2, which must be installed, with its memory or with Redis.
    pub fn idempotent_proxy(&self, redis: Option<&Running>) -> Result<Running> {
        // It refuses to start without such a file.
        let folder = self.folder.join("idempotent-proxy");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(".env"), "")?;
        let port = free_port()?;
        let mut command = Command::new(idempotent_proxy_program());
        command
            .current_dir(&folder)
            .env("SERVER_ADDR", loopback(port).to_string())
            .env("URL_BENCH", format!("http://{}/", self.upstream.address))
            // How long it keeps an answer, in milliseconds.
            .env("REQUEST_TIMEOUT", "3600000")
            .env("LOG_LEVEL", "error")
            .stderr(Stdio::null());
        if let Some(redis) = redis {
            command.env("REDIS_URL", format!("redis://{}", redis.address));
        }
        Running::start(&mut command, loopback(port), PAGE)
    }

    /// An empty Redis that keeps nothing on disk unless it is told to.
    pub fn redis(&self, name: &str, options: &[&str]) -> Result<Running> {
        apt_install(&[("redis-server", "redis-server")])?;
        let port = free_port()?;
        let folder = self.file(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--dir"])
            .arg(&folder)
            .args(options);
        Running::start(&mut command, loopback(port), b"PING\r\n")
    }

    /// Ends the upstream and removes what the parts left.
    pub fn clear(self) -> Result<()> {
        self.upstream.stop()?;
        fs::remove_dir_all(&self.folder)
            .with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

/// 1 KB of JSON, of which a store that packs its records can save little.
fn answer() -> String {
    let start = r#"{"id":"bench","object":"answer","text":""#;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = Random::new(1);
    let text: String = (start.len() + 2..1024)
        .map(|_| char::from(letters[random.below(64) as usize]))
        .collect();
    format!("{start}{text}\"}}")
}

/// The same, as OpenAI's API answers, with what was used at its end.
fn completion() -> String {
    let answer = answer();
    let text = &answer[answer.len() - 700..answer.len() - 2];
    format!(
        r#"{{"id":"chatcmpl-bench","object":"chat.completion","created":1764000000,"model":"gpt-5","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":120,"completion_tokens":340,"total_tokens":460,"prompt_tokens_details":{{"cached_tokens":64}},"completion_tokens_details":{{"reasoning_tokens":20}}}},"service_tier":"default"}}"#
    )
}

fn nginx(folder: &Path, name: &str, port: u16, fill: impl Fn(String) -> String) -> Result<Running> {
    let text = fs::read_to_string(root().join("bench").join(format!("{name}.conf")))?;
    let text = text.replace("WORKERS", &cores().to_string());
    let text = text.replace("FOLDER", &folder.display().to_string());
    let config = folder.join(format!("{name}.conf"));
    fs::write(&config, fill(text))?;
    let mut command = Command::new(nginx_program());
    command.arg("-c").arg(&config).stderr(Stdio::null());
    Running::start(&mut command, loopback(port), PAGE)
}

/// Not every user has nginx's folder in the path.
pub fn nginx_program() -> &'static str {
    if Path::new("/usr/sbin/nginx").exists() {
        "/usr/sbin/nginx"
    } else {
        "nginx"
    }
}

/// Where peer 2 is installed, inside the target folder.
fn peer_2_folder() -> PathBuf {
    target_dir().join("bench-peers")
}

fn idempotent_proxy_program() -> PathBuf {
    peer_2_folder().join("bin/idempotent-proxy-server")
}

/// Builds peer 2, once.
pub fn install_idempotent_proxy() -> Result<()> {
    if idempotent_proxy_program().exists() {
        return Ok(());
    }
    let place = peer_2_folder();
    let mut install = cargo();
    install
        .args(["install", "--locked", "--version", "1.2.2"])
        .args(["idempotent-proxy-server", "--root"])
        .arg(&place)
        .env("CARGO_TARGET_DIR", place.join("target"));
    quietly("building idempotent-proxy-server 1.2.2", &mut install)?;
    Ok(())
}
