//! `onlyonce exec`: commands that run once at most, through the real binary and real processes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use onlyonce_testkit::{Gateway, Upstream, eventually, make_program};
use rustix::process::{Pid, Signal, kill_process};

use crate::doctor::{certificate, pem, tls_line};
use crate::{BIN, gateway, setup};

/// `onlyonce exec` of a shell script, with an environment variable `DIR` that names a folder.
struct Exec {
    command: Command,
}

impl Exec {
    fn new(gateway: &Gateway, key: &str) -> Self {
        Self::by(gateway, gateway.control_addr(), key)
    }

    /// Through `control`, which stands before the control listener of `gateway`.
    fn by(gateway: &Gateway, control: SocketAddr, key: &str) -> Self {
        let mut command = Command::new(BIN);
        command
            .args(["exec", "--key", key, "--control"])
            .arg(format!("http://{control}"))
            .env("DIR", gateway.folder())
            .stdin(Stdio::null());
        Self { command }
    }

    fn with(mut self, words: &[&str]) -> Self {
        self.command.args(words);
        self
    }

    fn script(mut self, script: &str) -> Command {
        self.command.args(["--", "sh", "-c", script]);
        self.command
    }
}

fn run(gateway: &Gateway, key: &str, script: &str) -> Output {
    let mut command = Exec::new(gateway, key).script(script);
    command.output().unwrap()
}

/// It runs, and what it writes can be read as it comes.
fn start(command: &mut Command) -> (Child, BufReader<ChildStdout>) {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

fn line(lines: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How often the script of a test has run that appends a line to the file `ran`.
fn runs(gateway: &Gateway) -> usize {
    let ran = fs::read_to_string(gateway.folder().join("ran"));
    ran.unwrap_or_default().lines().count()
}

/// A pipe that a script waits at until a line is written into it.
fn pipe(gateway: &Gateway, name: &str) -> std::path::PathBuf {
    let path = gateway.folder().join(name);
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    path
}

fn open(path: &Path) {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
}

const RAN: &str = "echo ran >> \"$DIR/ran\"\n";

#[test]
fn i01_a_command_runs_once_and_later_runs_print_and_exit_the_same() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    let script = format!(
        "{RAN} printf 'one\\0two\\377'; printf 'oops\\n' >&2; head -c 200000 /dev/zero; exit 7"
    );
    let first = run(&gateway, "k", &script);
    assert_eq!(first.status.code(), Some(7), "{}", text(&first.stderr));
    assert_eq!(first.stdout.len(), 200_008);
    assert_eq!(first.stderr, b"oops\n");
    let again = run(&gateway, "k", &script);
    assert_eq!(again, first);
    gateway.kill();
    gateway.start_again();
    // The script has the same text: where the gateway is does not count.
    assert_eq!(run(&gateway, "k", &script), first);
    assert_eq!(runs(&gateway), 1);
    let operation = gateway.control().operation("k");
    assert_eq!(operation["state"], "completed");
    assert_eq!(operation["path"], "sh");
}

/// A proxy as nginx is by default: it answers `100 Continue` by itself to every request, takes the whole of
/// it in, and passes it on to `to`. Where it has no `to`, it answers 502.
fn buffering_proxy(to: Option<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for caller in listener.incoming() {
            thread::spawn(move || pass_on(caller.unwrap(), to));
        }
    });
    at
}

fn pass_on(mut caller: TcpStream, to: Option<SocketAddr>) {
    let mut request = Vec::new();
    let mut goes_on = false;
    while !is_whole(&request) {
        let mut piece = [0; 4096];
        match caller.read(&mut piece) {
            Ok(read @ 1..) => request.extend_from_slice(&piece[..read]),
            // It is gone: nothing of that is passed on.
            _ => return,
        }
        if !goes_on && request.windows(4).any(|end| end == b"\r\n\r\n") {
            let proceed = b"HTTP/1.1 100 Continue\r\n\r\n";
            caller.write_all(proceed).unwrap();
            goes_on = true;
        }
    }
    let Some(to) = to else {
        let refused = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        return caller.write_all(refused).unwrap();
    };
    let line = request.windows(2).position(|end| end == b"\r\n").unwrap();
    request.splice(line..line, *b"\r\nConnection: close");
    let mut gateway = TcpStream::connect(to).unwrap();
    gateway.write_all(&request).unwrap();
    // Who has seen enough leaves.
    let _ = std::io::copy(&mut gateway, &mut caller);
    let _ = caller.shutdown(Shutdown::Write);
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    if head.contains("transfer-encoding: chunked") {
        return request.ends_with(b"\r\n0\r\n\r\n");
    }
    let length = head.lines().find_map(|line| {
        let length = line.strip_prefix("content-length:")?;
        length.trim().parse::<usize>().ok()
    });
    body.len() >= length.unwrap_or(0)
}

/// A stock nginx before the control listener answers `100 Continue` by itself, and exec took that for the
/// claim: one key ran three times of three, and so it did with another command, and with the gateway down.
#[test]
fn i01_what_a_proxy_says_by_itself_is_not_taken_for_the_claim() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let proxy = buffering_proxy(Some(gateway.control_addr()));
    let by_proxy = |script: &str| {
        let mut run = Exec::by(&gateway, proxy, "k").script(script);
        run.output().unwrap()
    };
    let script = format!("{RAN} echo out; exit 3");
    let first = by_proxy(&script);
    assert_eq!(first.status.code(), Some(3), "{}", text(&first.stderr));
    assert_eq!(by_proxy(&script), first);
    assert_eq!(run(&gateway, "k", &script), first, "without the proxy too");
    let other = by_proxy(RAN);
    assert_eq!(other.status.code(), Some(125));
    assert!(text(&other.stderr).contains("nothing was run here"));
    assert_eq!(runs(&gateway), 1);
}

/// As above: the command ran although nobody had heard of it.
#[test]
fn i12_behind_a_proxy_whose_gateway_is_down_nothing_runs() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let proxy = buffering_proxy(None);
    let mut refused = Exec::by(&gateway, proxy, "k").script(RAN);
    let refused = refused.output().unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert!(text(&refused.stderr).contains("nothing was run here"));
    assert_eq!(runs(&gateway), 0);
}

/// As above: a token that opens nothing ran the command.
#[test]
fn i02_a_token_that_is_none_runs_nothing_behind_a_proxy() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .server("control_token = \"env:TOKEN\"")
        .env("TOKEN", "the-token-of-workers-which-is-long-enough")
        .start();
    let proxy = buffering_proxy(Some(gateway.control_addr()));
    let mut refused = Exec::by(&gateway, proxy, "k").script(RAN);
    let refused = refused.env("ONLYONCE_CONTROL_TOKEN", "wrong").output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert_eq!(runs(&gateway), 0);
}

/// What an `exec` sent before claims had a request of their own: it would have run on any `100 Continue`.
#[test]
fn i02_an_exec_that_is_older_than_the_gateway_is_told_so_and_not_to_go_on() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut old = TcpStream::connect(gateway.control_addr()).unwrap();
    let command = "ab".repeat(32);
    let head = format!(
        "POST /v1/exec?command={command} HTTP/1.1\r\nHost: {}\r\nIdempotency-Key: k\r\n\
         Content-Type: application/vnd.onlyonce.exec\r\nExpect: 100-continue\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        gateway.control_addr()
    );
    old.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let read = old.read(&mut answer).unwrap();
    let answer = text(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 410 "), "{answer}");
    assert!(answer.contains("older than the gateway"), "{answer}");
    assert!(gateway.control().operations("k").is_empty());
}

/// A gateway that is older than `exec` knows no such claim.
#[test]
fn i02_with_a_gateway_that_is_older_nothing_runs() {
    let upstream = Upstream::scripted(|x| x.answer(404, &[], b"{}"));
    let gateway = gateway(&upstream);
    let mut refused = Exec::by(&gateway, upstream.addr(), "k").script(RAN);
    let refused = refused.output().unwrap();
    assert_eq!(refused.status.code(), Some(125));
    let message = text(&refused.stderr);
    assert!(message.contains("older than this program"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(runs(&gateway), 0);
}

#[test]
fn i01_a_route_of_workers_runs_a_command_once_too() {
    const TOKEN: &str = "the-token-of-workers-which-is-long-enough";
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .server("control_token = \"env:TOKEN\"")
        .extra("[[route]]\nkind = \"work\"")
        .env("TOKEN", TOKEN)
        .start();
    let on_the_route = || {
        let url = format!("http://{}", gateway.addr());
        let mut command = Command::new(BIN);
        command
            .args(["exec", "--key", "nightly", "--control", &url])
            .args(["--", "sh", "-c", RAN])
            .env("ONLYONCE_CONTROL_TOKEN", TOKEN)
            .env("DIR", gateway.folder());
        command.output().unwrap()
    };
    let first = on_the_route();
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let second = on_the_route();
    assert_eq!(
        (second.status.code(), second.stdout),
        (Some(0), first.stdout)
    );
    assert_eq!(runs(&gateway), 1);
    assert_eq!(upstream.hits(), 0);
}

#[test]
fn a_route_of_workers_is_reached_over_tls() {
    const TOKEN: &str = "the-token-of-workers-which-is-long-enough";
    let upstream = Upstream::counting();
    let (own, _) = certificate(60);
    let roots = pem(&own, "cert.pem");
    let gateway = setup(&upstream)
        .server(&format!(
            "control_token = \"env:TOKEN\"\n{}",
            tls_line(&own)
        ))
        .extra("[[route]]\nkind = \"work\"\npath_prefix = \"/for/workers\"")
        .env("TOKEN", TOKEN)
        .start();
    let run = |roots: &Path| {
        let url = format!("https://localhost:{}/for/workers", gateway.addr().port());
        let mut command = Command::new(BIN);
        command
            .args(["exec", "--key", "nightly", "--control", &url])
            .args(["--", "sh", "-c", RAN])
            .env("ONLYONCE_CONTROL_TOKEN", TOKEN)
            .env("SSL_CERT_FILE", roots)
            .env("DIR", gateway.folder());
        command.output().unwrap()
    };
    let (others, _) = certificate(60);
    let stranger = run(&pem(&others, "cert.pem"));
    assert_eq!(stranger.status.code(), Some(125));
    assert!(
        text(&stranger.stderr).contains("certificate"),
        "{stranger:?}"
    );
    let first = run(&roots);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert_eq!(run(&roots).status.code(), Some(0));
    assert_eq!(runs(&gateway), 1);
}

#[test]
fn i03_a_run_that_comes_meanwhile_joins_and_sees_each_line_as_it_comes() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let gate = pipe(&gateway, "gate");
    let script = format!("{RAN} echo first; read x < \"$DIR/gate\"; echo last; exit 3");
    let (mut runner, mut seen) = start(&mut Exec::new(&gateway, "k").script(&script));
    assert_eq!(line(&mut seen), "first\n");
    let (mut joiner, mut joined) = start(&mut Exec::new(&gateway, "k").script(&script));
    assert_eq!(line(&mut joined), "first\n");
    assert!(joiner.try_wait().unwrap().is_none(), "it ends with the run");
    open(&gate);
    assert_eq!(line(&mut seen), "last\n");
    assert_eq!(line(&mut joined), "last\n");
    assert_eq!(runner.wait().unwrap().code(), Some(3));
    assert_eq!(joiner.wait().unwrap().code(), Some(3));
    assert_eq!(runs(&gateway), 1);
}

#[test]
fn i06_another_command_under_a_used_key_does_not_run() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    run(&gateway, "k", "exit 0");
    let other = run(&gateway, "k", RAN);
    assert_eq!(other.status.code(), Some(125));
    let said = text(&other.stderr);
    assert!(said.contains("nothing was run here"), "{said}");
    assert!(said.contains("another command"), "{said}");
    assert!(!said.contains(".;") && !said.contains("header"), "{said}");
    assert_eq!(runs(&gateway), 0);
}

#[test]
fn i05_a_command_that_is_killed_is_unknown_until_somebody_says_or_runs_it_again() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let script =
        format!("{RAN} echo begun; if [ -e \"$DIR/again\" ]; then echo done; else kill -9 $$; fi");
    let killed = run(&gateway, "k", &script);
    assert_eq!(killed.status.code(), Some(137));
    assert_eq!(killed.stdout, b"begun\n");
    let message = text(&killed.stderr);
    assert!(
        message.contains("signal 9") && message.lines().count() == 1,
        "{message}"
    );
    let later = run(&gateway, "k", &script);
    assert_eq!(later.status.code(), Some(125));
    let said = text(&later.stderr);
    for part in ["The command may have run", "op_", "--on-unknown rerun"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!said.contains("upstream"), "{said}");
    assert_eq!(runs(&gateway), 1);
    fs::write(gateway.folder().join("again"), "").unwrap();
    let rerun = Exec::new(&gateway, "k").with(&["--on-unknown", "rerun"]);
    let rerun = rerun.script(&script).output().unwrap();
    assert_eq!(rerun.status.code(), Some(0), "{}", text(&rerun.stderr));
    assert_eq!(rerun.stdout, b"begun\ndone\n");
    assert_eq!(run(&gateway, "k", &script).stdout, b"begun\ndone\n");
    assert_eq!(runs(&gateway), 2);
}

#[test]
fn i05_when_exec_is_killed_its_joiners_break_and_the_outcome_is_unknown() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let gate = pipe(&gateway, "gate");
    let script = format!("{RAN} echo first; read x < \"$DIR/gate\"");
    let (mut runner, mut seen) = start(&mut Exec::new(&gateway, "k").script(&script));
    assert_eq!(line(&mut seen), "first\n");
    let (mut joiner, mut joined) = start(&mut Exec::new(&gateway, "k").script(&script));
    assert_eq!(line(&mut joined), "first\n");
    signal(&runner, Signal::KILL);
    runner.wait().unwrap();
    assert_eq!(joiner.wait().unwrap().code(), Some(125));
    let mut message = String::new();
    let stderr = joiner.stderr.as_mut().unwrap();
    stderr.read_to_string(&mut message).unwrap();
    assert!(message.contains("broke off"), "{message}");
    assert_eq!(gateway.control().operation("k")["state"], "unknown");
    let later = run(&gateway, "k", &script);
    assert_eq!(later.status.code(), Some(125));
    assert_eq!(runs(&gateway), 1);
    // The command itself was nobody's to kill.
    open(&gate);
}

#[test]
fn hostile_094_when_the_gateway_is_killed_the_command_ends_here_and_its_outcome_is_unknown() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    let gate = pipe(&gateway, "gate");
    let script = format!("{RAN} echo first; read x < \"$DIR/gate\"; echo last");
    let (mut runner, mut seen) = start(&mut Exec::new(&gateway, "k").script(&script));
    assert_eq!(line(&mut seen), "first\n");
    // The gateway has it too.
    let (mut joiner, mut joined) = start(&mut Exec::new(&gateway, "k").script(&script));
    assert_eq!(line(&mut joined), "first\n");
    gateway.kill();
    assert_eq!(joiner.wait().unwrap().code(), Some(125));
    open(&gate);
    assert_eq!(line(&mut seen), "last\n");
    assert_eq!(runner.wait().unwrap().code(), Some(125));
    let mut message = String::new();
    let stderr = runner.stderr.as_mut().unwrap();
    stderr.read_to_string(&mut message).unwrap();
    assert!(message.contains("exited with 0"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    gateway.start_again();
    let later = run(&gateway, "k", &script);
    assert_eq!(later.status.code(), Some(125), "{}", text(&later.stderr));
    assert_eq!(runs(&gateway), 1);
}

#[test]
fn i12_where_no_gateway_answers_nothing_runs() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    gateway.kill();
    let refused = run(&gateway, "k", RAN);
    assert_eq!(refused.status.code(), Some(125));
    let message = text(&refused.stderr);
    assert!(message.contains("did not answer"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(runs(&gateway), 0);
}

#[test]
fn standard_input_reaches_the_command() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut command = Exec::new(&gateway, "k").script("cat; echo end");
    let (mut child, mut lines) = start(command.stdin(Stdio::piped()));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"in\n").unwrap();
    assert_eq!(line(&mut lines), "in\n");
    drop(stdin);
    assert_eq!(line(&mut lines), "end\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn signals_reach_the_command_and_how_it_takes_them_is_recorded() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let script = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let (mut child, mut lines) = start(&mut Exec::new(&gateway, "k").script(script));
    assert_eq!(line(&mut lines), "ready\n");
    signal(&child, Signal::TERM);
    assert_eq!(line(&mut lines), "told\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    let again = run(&gateway, "k", script);
    assert_eq!(again.status.code(), Some(5));
    assert_eq!(again.stdout, b"ready\ntold\n");
}

#[test]
fn i10_a_command_that_cannot_be_started_leaves_the_key_free() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut missing = Exec::new(&gateway, "k").command;
    let missing = missing.args(["--", "/no/such/command"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(text(&missing.stderr).lines().count(), 1);
    assert_eq!(gateway.control().operation("k")["state"], "released");
    assert_eq!(run(&gateway, "k", RAN).status.code(), Some(0));
    assert_eq!(runs(&gateway), 1);
}

/// exec said that the key was free while the release had reached nobody.
#[test]
fn i10_a_command_that_cannot_be_started_says_so_where_nobody_could_be_told() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    let (proxy, claimed) = claims_only(gateway.control_addr());
    let mut missing = Exec::by(&gateway, proxy, "k").command;
    let missing = missing.args(["--", "/no/such/command"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(125));
    let message = text(&missing.stderr);
    assert!(
        message.contains("nothing ran, but that could not be recorded"),
        "{message}"
    );
    assert!(!message.contains("the key is free"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(claimed.load(Ordering::SeqCst), 1);
    assert_eq!(gateway.control().operation("k")["state"], "in_flight");
    gateway.kill();
}

/// Passes the first request on to `to`, and closes all others. How many it has passed on.
fn claims_only(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let passed = Arc::new(AtomicUsize::new(0));
    let count = passed.clone();
    thread::spawn(move || {
        for caller in listener.incoming() {
            if count.load(Ordering::SeqCst) == 0 {
                count.store(1, Ordering::SeqCst);
                pass_on(caller.unwrap(), Some(to));
            }
        }
    });
    (at, passed)
}

/// An earlier run of which nobody knows stays unknown where a rerun could not be started, and the key is not
/// free.
#[test]
fn i10_a_rerun_that_cannot_be_started_does_not_free_the_key() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let script = format!("{RAN} kill -9 $$");
    let program = gateway.folder().join("program");
    let rerun = |words: &[&str]| {
        let mut run = Exec::new(&gateway, "k").with(words).command;
        run.arg("--").arg(&program).output().unwrap()
    };
    make_program(&program, &script);
    assert_eq!(rerun(&[]).status.code(), Some(137));
    fs::remove_file(&program).unwrap();
    let missing = rerun(&["--on-unknown", "rerun"]);
    assert_eq!(missing.status.code(), Some(127));
    let message = text(&missing.stderr);
    assert!(!message.contains("the key is free"), "{message}");
    assert_eq!(gateway.control().operation("k")["state"], "unknown");
}

#[test]
fn hostile_073_a_command_that_writes_too_much_goes_on_and_is_unknown() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).limits("response_body = \"64KiB\"").start();
    let script = format!("head -c 400000 /dev/zero; {RAN} exit 4");
    let run = run(&gateway, "k", &script);
    assert_eq!(run.status.code(), Some(125));
    assert_eq!(run.stdout.len(), 400_000, "its own reader gets all of it");
    let message = text(&run.stderr);
    assert!(message.contains("exited with 4"), "{message}");
    assert!(message.contains("limits.response_body"), "{message}");
    assert_eq!(runs(&gateway), 1);
    eventually("it is unknown", || {
        gateway.control().operation("k")["state"] == "unknown"
    });
}

#[test]
fn i11_the_window_of_a_run_is_what_was_asked_for() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let words = [
        "--window",
        "1ms",
        "--namespace",
        "nightly",
        "--name",
        "backup",
    ];
    for _ in 0..2 {
        let run = Exec::new(&gateway, "k").with(&words).script(RAN).output();
        assert_eq!(run.unwrap().status.code(), Some(0));
        eventually("its window has passed", || {
            gateway.control().operations("k").is_empty()
        });
    }
    assert_eq!(runs(&gateway), 2);
}

#[test]
fn a_key_with_a_comma_is_one_key() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for _ in 0..2 {
        let run = run(&gateway, "a,\"b\"\\;c", RAN);
        assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    }
    assert_eq!(runs(&gateway), 1);
    assert_eq!(gateway.control().operations("a,\"b\"\\;c").len(), 1);
}

#[test]
fn the_mistakes_of_exec_are_one_line_and_run_nothing() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for (words, code) in [
        (&["--key", "a b"][..], 2),
        (&["--key", "k", "--window", "long"], 2),
        (&["--key", "k", "--window", "4000d"], 2),
        (&["--key", "k\n"], 2),
        (&["--key", "k", "--tenant", ""], 125),
    ] {
        let mut command = Command::new(BIN);
        let run = command
            .arg("exec")
            .args(words)
            .args(["--control", &format!("http://{}", gateway.control_addr())])
            .args(["--", "sh", "-c", RAN])
            .env("DIR", gateway.folder())
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(code), "{words:?}");
        assert_eq!(text(&run.stderr).lines().count(), 1, "{words:?}");
    }
    assert_eq!(runs(&gateway), 0);
}
