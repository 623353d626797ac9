//! What these tests stand on: the clients' processes, and the providers behind the gateway.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use onlyonce_testkit::{Client, Gateway, Request, Setup};
use serde_json::{Value, json};

/// The binary under test.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_onlyonce");

/// How long a client or a provider may be silent: interpreters start slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The Python that sees the pinned clients.
pub(crate) fn python() -> PathBuf {
    installed("ONLYONCE_PYTHON", "venv/bin/python")
}

/// The folder of the pinned Node packages.
pub(crate) fn node_modules() -> PathBuf {
    installed("ONLYONCE_NODE_MODULES", "node_modules")
}

/// What `cargo xtask test` installed, by the variable that it sets or where it puts it.
fn installed(variable: &str, place: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(
        || Path::new(HERE).join("../../.test-env").join(place),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask test`, which installs the real clients",
        path.display()
    );
    path
}

/// A child process that is killed when dropped, and what it prints, line by line.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts it. Standard error is read too, and mixed in where `both` says so.
    fn start(command: &mut Command, both: bool) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if both {
                Stdio::piped()
            } else {
                Stdio::inherit()
            })
            .spawn()
            .unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let (send, lines) = mpsc::channel();
        if let Some(stderr) = child.stderr.take() {
            read_lines(stderr, send.clone());
        }
        read_lines(child.stdout.take().expect("a pipe"), send);
        Self { child, lines }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lines(from: impl Read + Send + 'static, into: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // The pipe has to be emptied even when nobody listens any more.
            let _ = into.send(line);
        }
    });
}

/// A provider behind the gateway: ours that counts, or one that nobody here wrote.
pub(crate) struct Provider {
    _process: Process,
    addr: SocketAddr,
}

impl Provider {
    /// `onlyonce sandbox`.
    pub(crate) fn sandbox() -> Self {
        let mut command = Command::new(BIN);
        Self::start(command.args(["sandbox", "--listen", "127.0.0.1:0"]))
    }

    /// The Python package localstripe: a Stripe that knows nothing of idempotency keys.
    pub(crate) fn localstripe() -> Self {
        let mut command = Command::new(python());
        command.args(["-m", "localstripe", "--port", "0", "--from-scratch"]);
        Self::start(&mut command)
    }

    /// The Python package llmock: providers that break on command.
    pub(crate) fn llmock() -> Self {
        let mut command = Command::new(python());
        command.args(["-m", "uvicorn", "llmock.main:app", "--port", "0"]);
        Self::start(&mut command)
    }

    /// The Node package aimock, with these fixtures. An event each 20 ms.
    pub(crate) fn aimock(folder: &Path, fixtures: &Value) -> Self {
        let file = folder.join("fixtures.json");
        std::fs::write(&file, json!({ "fixtures": fixtures }).to_string()).expect("the fixtures");
        let mut command = Command::new("node");
        command
            .arg(node_modules().join("@copilotkit/aimock/dist/cli.js"))
            .args(["--port", "0", "--latency", "20", "--fixtures"])
            .arg(file);
        Self::start(&mut command)
    }

    /// A server of the Model Context Protocol with the official SDK for Python, which answers in JSON or in
    /// event streams.
    pub(crate) fn mcp(in_json: bool) -> Self {
        let mut command = Command::new(python());
        command
            .arg(Path::new(HERE).join("tests/clients/scripts/mcp_server.py"))
            .arg(json!({ "json": in_json }).to_string());
        Self::start(&mut command)
    }

    /// Starts a server on a free port, and waits for the line in which it says where it is.
    fn start(command: &mut Command) -> Self {
        let process = Process::start(command.env("PYTHONUNBUFFERED", "1"), true);
        let mut said = String::new();
        loop {
            let Ok(line) = process.lines.recv_timeout(PATIENCE) else {
                panic!("{command:?} did not start: {said}");
            };
            if let Some(port) = port_in(&line) {
                let addr = ([127, 0, 0, 1], port).into();
                return Self {
                    _process: process,
                    addr,
                };
            }
            said = said + &line + "\n";
        }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Asks it directly, past the gateway.
    #[track_caller]
    pub(crate) fn ask(&self, request: &Request) -> Value {
        let answer = Client::connect(self.addr).ask(&request.clone().header("Connection", "close"));
        assert!((200..300).contains(&answer.status()), "{:?}", answer.text());
        answer.json()
    }

    /// The sandbox's ledger.
    #[track_caller]
    pub(crate) fn ledger(&self) -> Value {
        self.ask(&Request::get("/_sandbox/ledger"))
    }

    /// How each execution of the sandbox ended, oldest first.
    #[track_caller]
    pub(crate) fn outcomes(&self) -> Vec<String> {
        let ledger = self.ledger();
        let entries = ledger["entries"].as_array().expect("entries");
        entries
            .iter()
            .map(|entry| entry["outcome"].as_str().expect("an outcome").to_owned())
            .collect()
    }

    /// How much the sandbox executed.
    #[track_caller]
    pub(crate) fn executions(&self) -> u64 {
        self.ledger()["executions"].as_u64().expect("a count")
    }

    /// The whole text of the sandbox's execution `n`, in that many pieces: taken from an execution
    /// of its own, so read the ledger first.
    #[track_caller]
    pub(crate) fn text_of(&self, n: u64, pieces: u32) -> String {
        let request = Request::post("/v1/chat/completions")
            .header("Content-Type", "application/json")
            .header("X-Sandbox-Chunks", &pieces.to_string())
            .body(r#"{"model":"m","messages":[]}"#);
        let answer = self.ask(&request);
        let text = answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("a text");
        let (_, words) = text.split_once(':').expect("the number of the execution");
        format!("Execution {n}:{words}")
    }

    /// Panics unless the sandbox ran once and this is the whole text of it.
    #[track_caller]
    pub(crate) fn expect_ran_once(&self, text: &str, pieces: u32) {
        assert_eq!(self.executions(), 1, "{}", self.ledger());
        assert_eq!(text, self.text_of(1, pieces));
    }
}

/// Panics unless the one answer under a key was metered as the sandbox counts it: a token a piece. A
/// chat of OpenAI's that is streamed tells its use only where it was asked to.
#[track_caller]
pub(crate) fn expect_metered(gateway: &Gateway, key: &str, pieces: u32, is_told: bool) {
    let metered = &gateway.control().operation(key)["metered"];
    let source = if is_told { "provider" } else { "unknown" };
    assert_eq!(metered["source"], source, "{metered}");
    let output = if is_told { json!(pieces) } else { Value::Null };
    assert_eq!(metered["usage"]["output"], output, "{metered}");
    assert_eq!(metered["usage"]["input"].is_u64(), is_told, "{metered}");
}

/// The port of the address in a line, if there is one that is taken.
fn port_in(line: &str) -> Option<u16> {
    let (_, address) = line.split_once("http://")?;
    let (_, port) = address.rsplit_once(':')?;
    let digits: String = port.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|port| *port != 0)
}

/// A gateway before this provider, to be configured.
pub(crate) fn setup(provider: &Provider, preset: &str) -> Setup {
    Setup::new(BIN, &provider.url()).upstream(&format!("preset = \"{preset}\""))
}

/// A gateway before this provider.
pub(crate) fn gateway(provider: &Provider, preset: &str) -> Gateway {
    setup(provider, preset).start()
}

/// The base URL of a gateway.
pub(crate) fn base(gateway: &Gateway) -> String {
    format!("http://{}", gateway.addr())
}

/// The whole recording of the only operation of this key.
#[track_caller]
pub(crate) fn recording(gateway: &Gateway, key: &str) -> String {
    let operation = gateway.control().operation(key);
    let id = operation["id"].as_str().expect("an id");
    let path = format!("/v1/operations/{id}/recording");
    gateway.control().get(&path).expect_status(200).text()
}

/// How many attempts the only operation of this key has seen.
#[track_caller]
pub(crate) fn attempts(gateway: &Gateway, key: &str) -> u64 {
    gateway.control().operation(key)["attempts"]
        .as_u64()
        .expect("a count")
}

/// Whether an attempt of this key said that it is a retry which the SDK made by itself.
#[track_caller]
pub(crate) fn sdk_retried(gateway: &Gateway, key: &str) -> bool {
    let operation = gateway.control().operation(key);
    let id = operation["id"].as_str().expect("an id");
    let operation = gateway.control().json(&format!("/v1/operations/{id}"));
    let attempts = operation["attempts_log"]
        .as_array()
        .expect("a list of attempts");
    attempts
        .iter()
        .any(|attempt| attempt["sdk_retry_count"].as_u64() > Some(0))
}

/// A running client.
pub(crate) struct Call(Process);

/// What a client said about one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The whole text, and `Onlyonce-Status`.
    Text(String, Option<String>),
    /// The SDK's error, and the status in it.
    Error(String, Option<u64>),
}

impl Said {
    /// The text; panics on an error.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text, _) => text,
            Self::Error(..) => panic!("{self:?}"),
        }
    }

    /// Panics unless it is a text with this `Onlyonce-Status`; gives the text.
    #[track_caller]
    pub(crate) fn marked(&self, mark: &str) -> &str {
        match self {
            Self::Text(text, Some(is)) if is == mark => text,
            _ => panic!("not marked {mark}: {self:?}"),
        }
    }

    /// Panics unless it is a text from the recording; gives the text. An SDK may leave a stream at
    /// its last event, a moment before the record is complete: the next call joins then.
    #[track_caller]
    pub(crate) fn recorded(&self) -> &str {
        match self {
            Self::Text(text, Some(mark)) if mark == "replayed" || mark == "joined" => text,
            _ => panic!("not from the recording: {self:?}"),
        }
    }

    /// Panics unless it is an error with this status.
    #[track_caller]
    pub(crate) fn failed_with(&self, status: u64) {
        assert!(
            matches!(self, Self::Error(_, Some(is)) if *is == status),
            "no {status}: {self:?}"
        );
    }

    /// Panics unless it is an error that says that nobody knows whether it ran.
    #[track_caller]
    pub(crate) fn is_unknown(&self) {
        self.failed_with(502);
        let told = "Nobody can say whether the operation ran";
        assert!(
            matches!(self, Self::Error(said, _) if said.contains(told)),
            "it is not told: {self:?}"
        );
    }
}

impl Call {
    /// Starts one of the scripts with a job.
    pub(crate) fn start(script: &str, job: &Value) -> Self {
        let path = Path::new(HERE).join("tests/clients/scripts").join(script);
        let mut command = if script.ends_with(".py") {
            Command::new(python())
        } else {
            let mut node = Command::new("node");
            node.env("NODE_PATH", node_modules());
            node
        };
        // A proxy of the machine is for the outer world, not for the gateway.
        command
            .arg(path)
            .arg(job.to_string())
            .env("NO_PROXY", "127.0.0.1");
        Self(Process::start(&mut command, false))
    }

    /// Starts one of the scripts up to the moment before its first call, which [`Call::go`] makes.
    #[track_caller]
    pub(crate) fn prepare(script: &str, job: &Value) -> Self {
        let mut job = job.clone();
        job["wait"] = json!(true);
        let call = Self::start(script, &job);
        assert_eq!(call.next(), Some(json!({ "ready": true })));
        call
    }

    /// Lets a prepared client make its calls.
    pub(crate) fn go(mut self) -> Self {
        let mut stdin = self.0.child.stdin.take().expect("a pipe");
        stdin.write_all(b"go\n").expect("the client listens");
        self
    }

    /// The next line; none at the end of the client.
    #[track_caller]
    pub(crate) fn next(&self) -> Option<Value> {
        match self.0.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(serde_json::from_str(&line).expect("a JSON line")),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the client hangs"),
        }
    }

    /// Waits until a part of a stream with this in it has arrived.
    #[track_caller]
    pub(crate) fn wait_for_piece(&self, with: &str) {
        loop {
            let line = self.next().expect("a piece of a stream");
            match line["piece"].as_str() {
                Some(piece) if piece.contains(with) => return,
                Some(_) => {}
                None => panic!("no stream: {line}"),
            }
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.0.kill();
    }

    /// What it said about every call.
    #[track_caller]
    pub(crate) fn finish(self) -> Vec<Said> {
        let mut said = Vec::new();
        while let Some(line) = self.next() {
            if let Some(text) = line["text"].as_str() {
                let mark = line["mark"].as_str().map(str::to_owned);
                said.push(Said::Text(text.to_owned(), mark));
            } else if let Some(error) = line["error"].as_str() {
                let message = line["message"].as_str().unwrap_or("");
                said.push(Said::Error(
                    format!("{error}: {message}"),
                    line["status"].as_u64(),
                ));
            }
        }
        assert!(!said.is_empty(), "the client said nothing");
        said
    }
}

/// Runs a script to its end; what it said about every call.
#[track_caller]
pub(crate) fn run(script: &str, job: &Value) -> Vec<Said> {
    Call::start(script, job).finish()
}

/// Runs a script that makes one call.
#[track_caller]
pub(crate) fn run_once(script: &str, job: &Value) -> Said {
    let mut said = run(script, job);
    assert_eq!(said.len(), 1, "{said:?}");
    said.remove(0)
}
