//! The real binary as a child process.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Unix, kill_process};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::client::{Client, Request, Response};
use crate::control::Control;

/// What a gateway is started with: a configuration file in pieces.
#[derive(Clone)]
pub struct Setup {
    binary: PathBuf,
    ip: IpAddr,
    upstream_url: String,
    server: String,
    store: String,
    limits: String,
    upstream: String,
    route: String,
    extra: String,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    data: Option<PathBuf>,
}

impl Setup {
    /// The binary, in front of one upstream. A test passes `env!("CARGO_BIN_EXE_onlyonce")`.
    pub fn new(binary: &str, upstream_url: &str) -> Self {
        Self {
            binary: binary.into(),
            ip: Ipv4Addr::LOCALHOST.into(),
            upstream_url: upstream_url.to_owned(),
            server: String::new(),
            store: String::new(),
            limits: String::new(),
            upstream: String::new(),
            route: String::new(),
            extra: String::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            data: None,
        }
    }

    /// Another binary.
    pub fn binary(mut self, binary: &str) -> Self {
        self.binary = binary.into();
        self
    }

    /// The address that both listeners take their ports on; 127.0.0.1 unless set.
    pub fn listen(mut self, ip: IpAddr) -> Self {
        self.ip = ip;
        self
    }

    /// Lines for `[server]`.
    pub fn server(mut self, lines: &str) -> Self {
        let _ = writeln!(self.server, "{lines}");
        self
    }

    /// Lines for `[store]`.
    pub fn store(mut self, lines: &str) -> Self {
        let _ = writeln!(self.store, "{lines}");
        self
    }

    /// Lines for `[limits]`.
    pub fn limits(mut self, lines: &str) -> Self {
        let _ = writeln!(self.limits, "{lines}");
        self
    }

    /// Lines for the `[[upstream]]` named `up`.
    pub fn upstream(mut self, lines: &str) -> Self {
        let _ = writeln!(self.upstream, "{lines}");
        self
    }

    /// Lines for its only `[[route]]`.
    pub fn route(mut self, lines: &str) -> Self {
        let _ = writeln!(self.route, "{lines}");
        self
    }

    /// Lines at the end of the file: more upstreams, routes, tenants, presets.
    pub fn extra(mut self, lines: &str) -> Self {
        let _ = writeln!(self.extra, "{lines}");
        self
    }

    /// An environment variable of the process.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A command that runs the binary (`faketime -f +30d`).
    pub fn under(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|&w| w.to_owned()).collect();
        self
    }

    /// The data folder; one of its own in the temporary folder unless set.
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// The configuration file's text.
    pub fn text(&self, data: &Path) -> String {
        let store = if self.store.contains("url =") {
            String::new()
        } else {
            format!("url = \"embedded:{}\"\n", data.display())
        };
        let workers = match self.server.contains("workers =") {
            true => "",
            false => "workers = 2\n",
        };
        format!(
            "[server]\nlisten = \"{ip}:0\"\ncontrol = \"{ip}:0\"\n{workers}{}\n\
             [store]\n{store}{}\n[limits]\n{}\n\
             [[upstream]]\nname = \"up\"\nurl = \"{}\"\n{}\n\
             [[route]]\nupstream = \"up\"\n{}\n{}",
            self.server,
            self.store,
            self.limits,
            self.upstream_url,
            self.upstream,
            self.route,
            self.extra,
            ip = self.ip,
        )
    }

    /// Starts it and waits until it is ready; panics when it does not get there.
    #[track_caller]
    pub fn start(self) -> Gateway {
        match self.try_start() {
            Ok(gateway) => gateway,
            Err(run) => panic!("the gateway did not start: {run:?}"),
        }
    }

    /// Starts it; what it said and how it ended, when it does not get ready.
    pub fn try_start(self) -> Result<Gateway, Run> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = self
            .data
            .clone()
            .unwrap_or_else(|| folder.path().join("data"));
        let mut gateway = Gateway {
            setup: self,
            folder,
            data,
            process: None,
            addr: ([0, 0, 0, 0], 0).into(),
            control: ([0, 0, 0, 0], 0).into(),
        };
        gateway.launch()?;
        Ok(gateway)
    }
}

/// A process that ended by itself.
#[derive(Debug)]
pub struct Run {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Run {
    /// What it wrote to standard output; it must have succeeded.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }
}

/// Runs the binary to its end.
pub fn run_to_exit(binary: &str, words: &[&str], environment: &[(&str, &str)]) -> Run {
    let mut command = Command::new(binary);
    command.args(words).envs(environment.iter().copied());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary");
    let stdout = drain(child.stdout.take().expect("a pipe"));
    let stderr = drain(child.stderr.take().expect("a pipe"));
    let status = wait(&mut child, PATIENCE).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("onlyonce {words:?} did not end");
    });
    Run {
        code: status.code(),
        stdout: stdout.join().expect("reading standard output"),
        stderr: stderr.join().expect("reading standard error"),
    }
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    })
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting for the binary") {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(3));
    }
}

struct Process {
    child: Child,
    stderr: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

/// A running gateway with a folder of its own. It is killed when dropped; when the test
/// failed, what it wrote to standard error is shown.
pub struct Gateway {
    setup: Setup,
    folder: TempDir,
    data: PathBuf,
    process: Option<Process>,
    addr: SocketAddr,
    control: SocketAddr,
}

impl Gateway {
    /// The binary before one upstream, all else by default.
    #[track_caller]
    pub fn before(binary: &str, upstream_url: &str) -> Self {
        Setup::new(binary, upstream_url).start()
    }

    fn launch(&mut self) -> Result<(), Run> {
        let config = self.folder.path().join("onlyonce.toml");
        std::fs::write(&config, self.setup.text(&self.data)).expect("writing the configuration");
        let mut words = self.setup.wrapper.clone();
        words.push(self.setup.binary.display().to_string());
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--config"])
            .arg(&config)
            .envs(self.setup.environment.iter().map(|(n, v)| (n, v)))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting the binary");
        let stderr = Arc::new(Mutex::new(String::new()));
        let reader = collect(child.stderr.take().expect("a pipe"), Arc::clone(&stderr));
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        let mut stdout = String::new();
        let mut addresses = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while addresses.len() < 2 {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(addr) = listening(&line) {
                        addresses.push(addr);
                    }
                    let _ = writeln!(stdout, "{line}");
                }
                Err(end) => {
                    if end == RecvTimeoutError::Timeout {
                        let _ = child.kill();
                    }
                    let status = wait(&mut child, PATIENCE).expect("the end of the binary");
                    reader.join().expect("reading standard error");
                    let stderr = stderr.lock().expect("standard error").clone();
                    return Err(Run {
                        code: status.code(),
                        stdout,
                        stderr,
                    });
                }
            }
        }
        self.addr = addresses[0];
        self.control = addresses[1];
        self.process = Some(Process {
            child,
            stderr,
            reader,
        });
        Ok(())
    }

    /// Where requests go.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The control listener.
    pub fn control(&self) -> Control {
        Control::new(self.control)
    }

    /// Where the control listener is.
    pub fn control_addr(&self) -> SocketAddr {
        self.control
    }

    /// `onlyonce keys WORDS`, against its control listener.
    pub fn keys(&self, words: &[&str]) -> Run {
        let control = format!("http://{}", self.control);
        let words = [&["keys", "--control", &control], words].concat();
        run_to_exit(&self.setup.binary.display().to_string(), &words, &[])
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder of the configuration file, there for as long as the gateway.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("a running gateway").child.id()
    }

    /// What it wrote to standard error so far, since its last start.
    pub fn stderr(&self) -> String {
        self.process.as_ref().map_or_else(String::new, |p| {
            p.stderr.lock().expect("standard error").clone()
        })
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Sends a request on a connection of its own, and reads the response.
    #[track_caller]
    pub fn send(&self, request: &Request) -> Response {
        self.connect().ask(request)
    }

    /// Sends a request on a connection of its own, and reads nothing yet.
    pub fn begin(&self, request: &Request) -> Client {
        let mut client = self.connect();
        client.send(request);
        client
    }

    /// `POST path` with a key and a body.
    #[track_caller]
    pub fn post(&self, path: &str, key: &str, body: &str) -> Response {
        self.send(&Request::post(path).key(key).body(body))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Unix) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("sending a signal");
    }

    /// `SIGTERM`: asks it to drain and leave.
    pub fn terminate(&self) {
        self.signal(Unix::TERM);
    }

    /// `SIGSTOP`: freezes it.
    pub fn pause(&self) {
        self.signal(Unix::STOP);
    }

    /// `SIGCONT`: lets it go on.
    pub fn resume(&self) {
        self.signal(Unix::CONT);
    }

    /// Waits for its end and gives the exit code; panics when it does not end.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> Option<i32> {
        self.wait_for_run().code
    }

    /// Waits for its end and gives all that is known of it.
    #[track_caller]
    pub fn wait_for_run(&mut self) -> Run {
        let mut process = self.process.take().expect("a running gateway");
        let Some(status) = wait(&mut process.child, PATIENCE) else {
            let _ = process.child.kill();
            panic!("the gateway did not end");
        };
        process.reader.join().expect("reading standard error");
        let stderr = process.stderr.lock().expect("standard error").clone();
        Run {
            code: status.code(),
            stdout: String::new(),
            stderr,
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }

    /// Starts it again on the same data folder. Its ports change.
    #[track_caller]
    pub fn start_again(&mut self) {
        if let Err(run) = self.try_start_again() {
            panic!("the gateway did not start again: {run:?}");
        }
    }

    /// As [`Gateway::start_again`], for a start that may fail.
    pub fn try_start_again(&mut self) -> Result<(), Run> {
        self.kill();
        self.launch()
    }

    /// Changes what the next start uses.
    pub fn change(&mut self, change: impl FnOnce(Setup) -> Setup) {
        self.setup = change(self.setup.clone());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- standard error of the gateway ---\n{}", self.stderr());
        }
        self.kill();
    }
}

/// The address in a line that says where something listens.
pub(crate) fn listening(line: &str) -> Option<SocketAddr> {
    let (_, url) = line.split_once(" listening on ")?;
    url.trim()
        .split_once("://")?
        .1
        .trim_end_matches('/')
        .parse()
        .ok()
}

fn lines_of(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // Nobody listens after the start; the pipe has to be emptied all the same.
            let _ = send.send(line);
        }
    });
    receive
}

fn collect(from: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut all = into.lock().expect("standard error");
            all.push_str(&line);
            all.push('\n');
        }
    })
}
