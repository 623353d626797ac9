//! curl, over HTTP/1.1 and HTTP/2.

use std::io::Read as _;
use std::process::{Command, Output, Stdio};

use onlyonce_testkit::{Gateway, eventually};

use crate::kit::{Provider, attempts, base, gateway, recording};

/// curl's exit code for a transfer that took longer than `--max-time`.
const TIMED_OUT: Option<i32> = Some(28);
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;

/// curl, silent but for errors, unbuffered, with a key and what the sandbox shall stream.
fn curl(gateway: &Gateway, key: &str, interval: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--no-buffer", "--noproxy", "*"])
        .args(["--header", "Content-Type: application/json"])
        .args(["--header", &format!("Idempotency-Key: {key}")])
        .args(["--header", &format!("X-Sandbox-Interval: {interval}")])
        .args(["--data", STREAM])
        .arg(format!("{}/v1/chat/completions", base(gateway)));
    curl
}

fn output(curl: &mut Command) -> Output {
    curl.output().expect("running curl")
}

/// The body of a transfer that went well.
#[track_caller]
fn body(curl: &mut Command) -> String {
    let output = output(curl);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} {errors}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
fn expect_whole(stream: &str) {
    assert!(stream.contains("Execution 1:"), "{stream}");
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
}

#[test]
fn a_retry_gets_the_same_bytes() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let first = body(&mut curl(&gateway, "k-1", "1ms"));
    let second = body(curl(&gateway, "k-1", "1ms").args(["--include"]));
    expect_whole(&first);
    let (head, replay) = second.split_once("\r\n\r\n").expect("a head");
    assert_eq!(replay, first);
    assert!(
        head.to_ascii_lowercase()
            .contains("onlyonce-status: replayed"),
        "{head}"
    );
    assert!(
        head.to_ascii_lowercase()
            .contains("idempotent-replayed: true"),
        "{head}"
    );
    assert_eq!(sandbox.executions(), 1);
}

/// HTTP/1.1 and HTTP/2 are two ways to the same operation.
#[test]
fn http2_with_prior_knowledge_gets_the_same_bytes() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let first = body(curl(&gateway, "k-h2", "1ms").arg("--http2-prior-knowledge"));
    expect_whole(&first);
    let second = body(curl(&gateway, "k-h2", "1ms").args(["--http2-prior-knowledge", "--include"]));
    let (head, replay) = second.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/2 200"), "{head}");
    assert!(head.contains("onlyonce-status: replayed"), "{head}");
    assert_eq!(replay, first);
    assert_eq!(body(&mut curl(&gateway, "k-h2", "1ms")), first);
    assert_eq!(sandbox.executions(), 1);
}

fn out_of_time_and_retried(protocol: &str) {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let cut = output(curl(&gateway, "k-time", "150ms").args([protocol, "--max-time", "1"]));
    assert_eq!(
        cut.status.code(),
        TIMED_OUT,
        "{}",
        String::from_utf8_lossy(&cut.stderr)
    );
    let whole = body(curl(&gateway, "k-time", "150ms").arg(protocol));
    expect_whole(&whole);
    assert!(whole.as_bytes().starts_with(&cut.stdout));
    assert_eq!(whole, recording(&gateway, "k-time"));
    assert_eq!(sandbox.executions(), 1);
}

#[test]
fn out_of_time_within_a_stream_and_retried() {
    out_of_time_and_retried("--http1.1");
}

#[test]
fn out_of_time_within_an_http2_stream_and_retried() {
    out_of_time_and_retried("--http2-prior-knowledge");
}

/// curl's own retry after a time-out sends the same key.
#[test]
fn curls_own_retry_gets_the_whole_stream() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("stream");
    let mut curl = curl(&gateway, "k-retry", "120ms");
    curl.args([
        "--max-time",
        "1",
        "--retry",
        "20",
        "--retry-delay",
        "1",
        "--output",
    ]);
    body(curl.arg(&file));
    let whole = std::fs::read_to_string(&file).expect("the output");
    expect_whole(&whole);
    assert_eq!(whole, recording(&gateway, "k-retry"));
    assert!(attempts(&gateway, "k-retry") >= 2);
    assert_eq!(sandbox.executions(), 1);
}

/// curl, killed when the beginning of the stream has arrived; what it had got by then.
fn killed_within_its_stream(gateway: &Gateway, key: &str) -> Vec<u8> {
    let mut curl = curl(gateway, key, "100ms")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting curl");
    let mut seen = Vec::new();
    let stdout = curl.stdout.as_mut().expect("a pipe");
    while !String::from_utf8_lossy(&seen).contains("Execution 1:") {
        let mut byte = [0];
        stdout
            .read_exact(&mut byte)
            .expect("the beginning of the stream");
        seen.push(byte[0]);
    }
    curl.kill().expect("killing curl");
    curl.wait().expect("the end of curl");
    seen
}

#[test]
fn killed_within_a_stream_and_retried() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let seen = killed_within_its_stream(&gateway, "k-killed");
    let whole = body(&mut curl(&gateway, "k-killed", "100ms"));
    expect_whole(&whole);
    assert!(whole.as_bytes().starts_with(&seen));
    assert_eq!(whole, recording(&gateway, "k-killed"));
    assert_eq!(attempts(&gateway, "k-killed"), 2);
    assert_eq!(sandbox.executions(), 1);
}

/// Nobody asks again: it runs to its end all the same.
#[test]
fn killed_and_never_retried_is_still_completed() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    killed_within_its_stream(&gateway, "k-left");
    gateway.control().wait_for_state("k-left", "completed");
    eventually("the sandbox sent all", || {
        sandbox.outcomes() == ["completed"]
    });
    expect_whole(&recording(&gateway, "k-left"));
}

/// Above 1 MiB the body is spooled; curl asks with `Expect: 100-continue` before it sends it.
#[test]
fn a_large_upload_runs_once() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "generic");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("upload");
    let upload: String = (0..400_000).map(|n| format!("{n:06} ")).collect();
    std::fs::write(&file, &upload).expect("the upload");
    let send = || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*", "--include"])
            .args(["--header", "Idempotency-Key: k-upload"])
            .args(["--header", "Content-Type: text/plain"])
            .args(["--data-binary", &format!("@{}", file.display())])
            .arg(format!("{}/v1/echo", base(&gateway)));
        body(&mut curl)
    };
    let (first, second) = (send(), send());
    let echoed = |answer: &str| answer.rsplit("\r\n\r\n").next().map(str::to_owned);
    assert!(first.contains(&upload), "{}", &first[..500]);
    assert_eq!(echoed(&first), echoed(&second));
    assert!(
        second
            .to_ascii_lowercase()
            .contains("idempotent-replayed: true")
    );
    assert_eq!(sandbox.executions(), 1);
}
