//! `onlyonce verify`: it finds nothing where there is nothing, every liar, and never says "passed" for nothing.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use onlyonce_testkit::{
    Client, Exchange, Gateway, Refusing, Request, Run, Setup, Staying, Upstream, run_to_exit,
};
use rustix::process::{Pid, Signal as Unix, kill_process};
use serde_json::Value;

use crate::BIN;

/// What every liar has to be found with: 300 requests in 3 seconds.
const BUDGET: [&str; 6] = ["--minutes", "0.05", "--rate", "100", "--seed", "7"];

fn sandbox() -> (Staying, SocketAddr) {
    let sandbox = Staying::start(BIN, &["sandbox", "--listen", "127.0.0.1:0"], 1);
    let addr = sandbox.addresses()[0];
    (sandbox, addr)
}

/// The words that point it at a gateway before a sandbox, whose streams are quick.
fn words(gateway: SocketAddr, sandbox: SocketAddr) -> Vec<String> {
    let [url, ledger] = [
        format!("http://{gateway}"),
        format!("http://{sandbox}/_sandbox/ledger"),
    ];
    let words = [
        "verify",
        "--url",
        &url,
        "--upstream-ledger",
        &ledger,
        "--json",
    ];
    let header = ["--header", "X-Sandbox-Interval: 2ms"];
    words
        .iter()
        .chain(&header)
        .map(|&word| word.to_owned())
        .collect()
}

fn verify(gateway: SocketAddr, sandbox: SocketAddr, more: &[&str]) -> Run {
    let words = words(gateway, sandbox);
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    run_to_exit(BIN, &words, &[])
}

fn report(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"))
}

/// It passed, and there was something of everything to judge.
#[track_caller]
fn expect_passed(run: &Run) -> Value {
    let report = report(run);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(report["verdict"], "passed", "{report:#}");
    assert_eq!(report["violations"], serde_json::json!([]), "{report:#}");
    for guarantee in ["I1", "I4", "I5", "I6"] {
        assert!(
            report["judged"][guarantee].as_u64() > Some(3),
            "{guarantee} in {report:#}"
        );
    }
    report
}

const FAULTS: [&str; 4] = [
    "--fault",
    "X-Sandbox-Fault: cut-stream",
    "--fault",
    "X-Sandbox-Fault: reset-before-head",
];

#[test]
fn the_gateway_passes_before_an_upstream_that_fails() {
    let (_sandbox, upstream) = sandbox();
    let gateway = Gateway::before(BIN, &format!("http://{upstream}"));
    let run = verify(gateway.addr(), upstream, &[&BUDGET[..], &FAULTS].concat());
    let report = expect_passed(&run);
    let counts = &report["counts"];
    assert!(counts["sent"].as_u64() <= Some(300), "{counts}");
    for what in [
        "keys", "misuses", "joined", "replayed", "unknown", "left", "executed",
    ] {
        assert!(counts[what].as_u64() > Some(0), "{what} in {counts}");
    }
    // It says beforehand how many requests there will be, and how it goes meanwhile.
    assert!(run.stderr.contains("at most 300 requests to"), "{run:?}");
    assert!(run.stderr.contains("2 s: "), "{run:?}");
    // What it counted is what the upstream counted.
    let ledger = Client::connect(upstream)
        .ask(&Request::get("/_sandbox/ledger"))
        .json();
    assert_eq!(ledger["executions"], counts["executed"]);
}

/// How a gateway that is none treats its callers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Knows no keys.
    Forgets,
    /// Replays an answer that is not quite the first.
    Alters,
    /// Takes what came of a broken answer for all of it.
    EndsCleanly,
    /// Looks at the key alone.
    IgnoresTheBody,
}

/// What it keeps of a key: the request's body, and the answer, which is none where it broke.
type Kept = (Vec<u8>, Option<(u16, String, Vec<u8>)>);

/// A small idempotent proxy that is no Onlyonce: it marks nothing, and one of its sort lies.
fn proxy(upstream: SocketAddr, manner: Manner) -> Upstream {
    let memory: Mutex<HashMap<String, Arc<Mutex<Option<Kept>>>>> = Mutex::default();
    Upstream::scripted(move |x| {
        let body = x.read_body();
        let key = x.key().unwrap_or_default().to_owned();
        let slot = Arc::clone(memory.lock().unwrap().entry(key).or_default());
        // Who comes while the first runs waits.
        let mut slot = slot.lock().unwrap();
        let is_known = slot.is_some() && manner != Manner::Forgets;
        if !is_known {
            *slot = Some((body.clone(), forward(x, upstream, &body, manner)));
        }
        let Some((first, answer)) = &*slot else {
            return;
        };
        if *first != body && manner != Manner::IgnoresTheBody {
            return x.answer(422, &[], b"another request under a used key");
        }
        match answer {
            None => x.answer(502, &[], b"nobody knows"),
            Some((status, kind, text)) => {
                let mut text = text.clone();
                if is_known && manner == Manner::Alters {
                    text.push(b' ');
                }
                x.answer(*status, &[("Content-Type", kind)], &text);
            }
        }
    })
}

fn forward(
    x: &Exchange,
    upstream: SocketAddr,
    body: &[u8],
    manner: Manner,
) -> Option<(u16, String, Vec<u8>)> {
    let request = x.head.headers.iter().filter(|(name, _)| {
        let name = name.to_ascii_lowercase();
        name.starts_with("x-sandbox") || name == "content-type" || name == "idempotency-key"
    });
    let request = request.fold(Request::post(x.path()), |request, (name, value)| {
        request.header(name, value)
    });
    let mut client = Client::connect(upstream);
    client.send(&request.body(body)).try_read_head().ok()?;
    let answer = client.finish();
    let kind = answer.header("content-type").unwrap_or_default().to_owned();
    let is_taken = answer.whole() || manner == Manner::EndsCleanly;
    is_taken.then(|| (answer.status(), kind, answer.body))
}

#[test]
fn another_gateway_that_is_honest_passes() {
    let (_sandbox, upstream) = sandbox();
    let proxy = proxy(upstream, Manner::Honest);
    let run = verify(proxy.addr(), upstream, &[&BUDGET[..], &FAULTS].concat());
    expect_passed(&run);
}

/// The guarantees that a liar is found to break within the budget.
#[track_caller]
fn found(manner: Manner) -> Vec<String> {
    let (_sandbox, upstream) = sandbox();
    let proxy = proxy(upstream, manner);
    let run = verify(proxy.addr(), upstream, &[&BUDGET[..], &FAULTS].concat());
    let report = report(&run);
    assert_eq!(run.code, Some(1), "{report:#}");
    assert_eq!(report["verdict"], "violated");
    let violations = report["violations"].as_array().unwrap();
    let one = &violations[0];
    let key = one["key"].as_str().unwrap();
    let story = key.rsplit('-').next().unwrap();
    assert_eq!(
        one["reproduce"],
        format!("--seed 7 --story {story}"),
        "{one}"
    );
    let names = violations
        .iter()
        .map(|one| one["guarantee"].as_str().unwrap().to_owned());
    names.collect()
}

#[test]
fn i01_a_proxy_without_idempotency_is_found() {
    let found = found(Manner::Forgets);
    assert!(found.iter().any(|name| name == "I1"), "{found:?}");
}

#[test]
fn i04_a_proxy_that_replays_another_body_is_found() {
    let found = found(Manner::Alters);
    assert!(found.iter().any(|name| name == "I4"), "{found:?}");
}

#[test]
fn i05_a_proxy_that_ends_a_broken_answer_cleanly_is_found() {
    let found = found(Manner::EndsCleanly);
    assert!(found.iter().all(|name| name == "I5"), "{found:?}");
}

#[test]
fn i06_a_proxy_that_looks_at_the_key_alone_is_found() {
    let found = found(Manner::IgnoresTheBody);
    assert!(found.iter().all(|name| name == "I6"), "{found:?}");
}

#[test]
fn without_a_ledger_it_does_not_start() {
    let run = run_to_exit(BIN, &["verify", "--url", "http://127.0.0.1:1"], &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("--upstream-ledger <URL>"), "{run:?}");
    let help = run_to_exit(BIN, &["verify", "--help"], &[]);
    assert!(
        help.stdout.contains("1,200 unless said otherwise"),
        "{help:?}"
    );
}

/// It gives no verdict, in one line with these words, and never says that it passed.
#[track_caller]
fn expect_no_verdict(run: &Run, words: &[&str]) {
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(!run.stdout.contains("passed"), "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} in {run:?}");
    }
}

#[test]
fn what_it_cannot_judge_has_not_passed() {
    let (_sandbox, upstream) = sandbox();
    let upstream_url = format!("http://{upstream}");
    let gateway = Gateway::before(BIN, &upstream_url);
    let nobody = Refusing::new().addr();
    expect_no_verdict(
        &verify(nobody, upstream, &BUDGET),
        &["does not answer", "--url"],
    );
    let no_ledger = verify(gateway.addr(), nobody, &BUDGET);
    expect_no_verdict(&no_ledger, &["cannot be read", "docs/verify.md"]);
    let (_other, another) = sandbox();
    let of_another = verify(gateway.addr(), another, &BUDGET);
    expect_no_verdict(&of_another, &["does not know it"]);
    let closed = Setup::new(BIN, &upstream_url)
        .server("allow_anonymous = false")
        .start();
    let refused = verify(closed.addr(), upstream, &BUDGET);
    expect_no_verdict(&refused, &["answers 401", "--header"]);
    let header = ["--header", "Authorization: Bearer s"];
    let run = verify(closed.addr(), upstream, &[&BUDGET[..], &header].concat());
    expect_passed(&run);
}

#[test]
fn a_ledger_without_digests_judges_no_end() {
    let (_sandbox, upstream) = sandbox();
    let gateway = Gateway::before(BIN, &format!("http://{upstream}"));
    let ledger = Upstream::scripted(|x| x.answer(200, &[], br#"{"entries":[{}]}"#));
    let mut words = words(gateway.addr(), upstream);
    words[4] = ledger.url();
    let words: Vec<&str> = words.iter().map(String::as_str).chain(BUDGET).collect();
    let run = run_to_exit(BIN, &words, &[]);
    expect_no_verdict(&run, &[]);
    let reasons = report(&run)["reasons"].to_string();
    assert!(reasons.contains("no digests"), "{reasons}");
}

#[test]
fn one_story_alone_is_played_again() {
    let (_sandbox, upstream) = sandbox();
    let proxy = proxy(upstream, Manner::Forgets);
    // Which stories send their key twice follows from the seed.
    let all = report(&verify(proxy.addr(), upstream, &BUDGET));
    let violations = all["violations"].as_array().unwrap();
    let reproduce = violations.last().unwrap()["reproduce"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut words: Vec<&str> = reproduce.split(' ').collect();
    words.extend(&BUDGET[..4]);
    let one = report(&verify(proxy.addr(), upstream, &words));
    // Beside its key there is that of the first contact.
    assert_eq!(one["counts"]["keys"], 2, "{one:#}");
    assert_eq!(one["verdict"], "violated", "{one:#}");
}

#[test]
fn an_interrupt_ends_it_and_what_it_has_is_judged() {
    let (_sandbox, upstream) = sandbox();
    let gateway = Gateway::before(BIN, &format!("http://{upstream}"));
    let mut child = Command::new(BIN)
        .args(words(gateway.addr(), upstream))
        .args(["--minutes", "60", "--rate", "100"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains("4 s: "));
    assert!(told.is_some(), "it says how it goes");
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Unix::INT).unwrap();
    let stderr: Vec<_> = lines.map_while(Result::ok).collect();
    let mut stdout = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    let run = Run {
        code: child.wait().unwrap().code(),
        stdout,
        stderr: stderr.join("\n"),
    };
    let report = expect_passed(&run);
    assert!(report["seconds"].as_u64() < Some(60), "{report:#}");
    assert!(run.stderr.contains("asking the ledger"), "{run:?}");
}

#[test]
fn the_ledger_of_the_page_is_enough() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/verify.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("```python\n").expect("the example");
    let (example, rest) = rest.split_once("```").expect("the end of the example");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("upstream.py");
    std::fs::write(&file, example).unwrap();
    let file = file.display().to_string();
    let upstream = Staying::start("python3", &[&file, "0"], 1);
    let upstream = *upstream
        .addresses()
        .first()
        .expect("python3, and where it listens");
    let gateway = Gateway::before(BIN, &format!("http://{upstream}"));
    // The command is as printed, but for the ports and a budget of its own.
    let (_, command) = rest.split_once("onlyonce verify ").expect("the command");
    let (command, _) = command.split_once("```").expect("the end of the command");
    let command = command
        .replace("127.0.0.1:8787", &gateway.addr().to_string())
        .replace("127.0.0.1:9000", &upstream.to_string())
        .replace("\\\n", " ");
    let line = format!("exec {BIN} verify --json {} {command}", BUDGET.join(" "));
    let run = run_to_exit("sh", &["-c", &line], &[]);
    expect_passed(&run);
}
