//! `onlyonce call`, as a script or a cron job runs it.

use std::path::Path;
use std::process::{Command, Stdio};

use onlyonce_testkit::{Gateway, Refusing, Run, Signal, Upstream, run_to_exit};
use tempfile::TempDir;

use crate::doctor::{certificate, pem, tls_line};
use crate::{BIN, gateway, setup};

/// Where a test keeps its keys.
struct Caller(TempDir);

impl Caller {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn keys(&self) -> String {
        self.0.path().join("keys").display().to_string()
    }

    /// `onlyonce call --action order-17/charge WORDS`.
    fn call(&self, words: &[&str]) -> Run {
        let keys = self.keys();
        let mut all = vec!["call", "--keys", &keys, "--action", "order-17/charge"];
        all.extend(words);
        run_to_exit(BIN, &all, &[])
    }

    /// The only file of keys.
    fn key_file(&self) -> std::path::PathBuf {
        let paths = std::fs::read_dir(self.keys()).unwrap();
        let mut keys = paths
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|found| found == "key"));
        let key = keys.next().unwrap();
        assert!(keys.next().is_none());
        key
    }
}

#[track_caller]
fn ends(run: &Run, code: i32, words: &[&str]) {
    assert_eq!(run.code, Some(code), "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "{word}: {run:?}");
    }
}

fn charges(gateway: &Gateway) -> String {
    format!("http://{}/v1/charges", gateway.addr())
}

#[test]
fn a_call_goes_over_tls_and_to_nobody_whose_certificate_is_not_vouched_for() {
    let upstream = Upstream::counting();
    let (own, _) = certificate(60);
    let gateway = setup(&upstream).server(&tls_line(&own)).start();
    let caller = Caller::new();
    let keys = caller.keys();
    let url = format!("https://localhost:{}/v1/charges", gateway.addr().port());
    let words = [
        "call",
        "--keys",
        &keys,
        "--action",
        "order-17/charge",
        "-d",
        "a=1",
        "--deadline",
        "5s",
        &url,
    ];
    let call = |roots: &std::path::Path| {
        let roots = roots.display().to_string();
        run_to_exit(BIN, &words, &[("SSL_CERT_FILE", &roots)])
    };
    let (others, _) = certificate(60);
    let stranger = call(&pem(&others, "cert.pem"));
    assert_ne!(stranger.code, Some(0), "{stranger:?}");
    assert_eq!(upstream.hits(), 0);
    let first = call(&pem(&own, "cert.pem"));
    ends(&first, 0, &[]);
    assert_eq!(call(&pem(&own, "cert.pem")).stdout, first.stdout);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn a_call_runs_once_however_often_the_command_does() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let (caller, url) = (Caller::new(), charges(&gateway));
    let first = caller.call(&["-d", "amount=4200", "-v", &url]);
    ends(
        &first,
        0,
        &["order-17/charge: 200; 1 attempt with new key "],
    );
    assert_eq!(first.stdout, "execution 1 of POST /v1/charges");
    let second = caller.call(&["-d", "amount=4200", "-v", &url]);
    ends(&second, 0, &["200 replayed; 1 attempt with kept key "]);
    assert_eq!(second.stdout, first.stdout);
    let quiet = caller.call(&["-d", "amount=4200", "-i", &url]);
    ends(&quiet, 0, &[]);
    assert!(quiet.stderr.is_empty(), "{quiet:?}");
    assert!(quiet.stdout.starts_with("HTTP/1.1 200 OK\r\n"), "{quiet:?}");
    assert!(
        quiet.stdout.contains("\r\nidempotent-replayed: true\r\n"),
        "{quiet:?}"
    );
    assert!(
        quiet
            .stdout
            .ends_with("\r\n\r\nexecution 1 of POST /v1/charges"),
        "{quiet:?}"
    );
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn a_call_sends_what_is_said_and_no_more() {
    let upstream = Upstream::counting();
    let caller = Caller::new();
    let [file, headers] = ["body", "headers"].map(|name| caller.0.path().join(name));
    std::fs::write(&file, b"line\r\n\xff\0").unwrap();
    std::fs::write(&headers, "Authorization: Bearer sk-1\n\nX-Two: 2\n").unwrap();
    let (file, headers) = (
        format!("@{}", file.display()),
        format!("@{}", headers.display()),
    );
    let words = [
        "-X",
        "PUT",
        "-H",
        &headers,
        "-H",
        "content-type: text/x",
        "-d",
        &file,
        "--data",
        "b=2",
        "--server",
        "generic",
        "--window",
        "1h",
        &upstream.url(),
    ];
    ends(&caller.call(&words), 0, &[]);
    let seen = &upstream.seen()[0];
    assert_eq!((seen.head.word(0), seen.head.word(1)), ("PUT", "/"));
    assert_eq!(seen.body.as_deref(), Some(&b"line\r\n\xff\0&b=2"[..]));
    for (name, value) in [
        ("authorization", "Bearer sk-1"),
        ("x-two", "2"),
        ("content-type", "text/x"),
        ("accept", "*/*"),
    ] {
        assert_eq!(seen.head.header(name), Some(value), "{name}");
    }
    assert!(seen.head.header("idempotency-key").is_some());
}

#[test]
fn i16_a_call_keeps_no_credential() {
    let upstream = Upstream::counting();
    let caller = Caller::new();
    let secret = "sk-live-secret";
    let header = format!("Authorization: Bearer {secret}");
    ends(
        &caller.call(&["-H", &header, "-d", "a=1", &upstream.url()]),
        0,
        &[],
    );
    let entries = std::fs::read_dir(caller.keys()).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    assert_eq!(files.len(), 2);
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(!text.contains(secret), "{text}");
    }
    let mistake = caller.call(&["-H", "Authorization: sk-live-secret\u{1}", &upstream.url()]);
    ends(&mistake, 2, &["the header Authorization cannot be sent"]);
    assert!(!mistake.stderr.contains(secret), "{mistake:?}");
}

#[test]
fn a_dying_connection_is_tried_again_with_the_same_key() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.reset(),
        _ => x.answer(200, &[], b"paid"),
    });
    let caller = Caller::new();
    let run = caller.call(&["--server", "stripe", "-v", "-d", "a=1", &upstream.url()]);
    ends(&run, 0, &["it broke (", "; 200; 2 attempts with new key "]);
    assert_eq!(run.stdout, "paid");
    let seen = upstream.seen();
    let keys: Vec<_> = seen
        .iter()
        .map(|seen| seen.head.header("idempotency-key"))
        .collect();
    assert_eq!((keys.len(), keys[0]), (2, keys[1]));
}

#[test]
fn hostile_094_a_call_that_is_killed_goes_on_with_its_key() {
    let (arrived, go) = (Signal::new(), Signal::new());
    let (at, wait) = (arrived.clone(), go.clone());
    let upstream = Upstream::scripted(move |x| {
        at.fire();
        wait.wait();
        let text = format!("execution {}", x.number);
        x.answer(200, &[], text.as_bytes());
    });
    let gateway = gateway(&upstream);
    let (caller, url) = (Caller::new(), charges(&gateway));
    let mut killed = Command::new(BIN)
        .args(["call", "--action", "order-17/charge", "-d", "a=1", &url])
        .env("ONLYONCE_KEYS", caller.keys())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    arrived.wait();
    killed.kill().unwrap();
    killed.wait().unwrap();
    go.fire();
    let run = caller.call(&["-d", "a=1", "-v", &url]);
    ends(&run, 0, &["with kept key "]);
    assert_eq!(run.stdout, "execution 1");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn each_way_to_end_has_its_exit_code_and_says_what_to_do() {
    // 3: the last word.
    let upstream = Upstream::scripted(|x| match x.path() {
        "/declined" => x.answer(402, &[], b"declined"),
        _ => x.answer(503, &[], b"busy"),
    });
    let caller = Caller::new();
    let url = |path: &str| format!("{}{path}", upstream.url());
    let declined = caller.call(&["--server", "stripe", &url("/declined")]);
    ends(&declined, 3, &["last word is 402 Payment Required"]);
    assert_eq!(declined.stdout, "declined");

    // 7: the name was used.
    ends(
        &caller.call(&[&url("/else")]),
        7,
        &["another request", "sent nothing"],
    );

    // 6: the window.
    let over = caller.call(&["--server", "stripe", "--window", "1ms", &url("/declined")]);
    ends(
        &over,
        6,
        &["may have forgotten", "402", "Find out at the server"],
    );

    // 1: the keys.
    std::fs::write(caller.key_file(), "").unwrap();
    ends(
        &caller.call(&[&url("/declined")]),
        1,
        &["is damaged", "sent nothing"],
    );
    let file = caller.key_file().display().to_string();
    let wrong = run_to_exit(
        BIN,
        &["call", "--keys", &file, "--action", "a", &url("/")],
        &[],
    );
    ends(&wrong, 1, &["make the folder"]);

    // 4: an answer that may change, and none at all.
    let caller = Caller::new();
    let busy = caller.call(&["--retries", "1", "-v", &url("/busy")]);
    ends(
        &busy,
        4,
        &[
            "503, waited",
            "503 Service Unavailable for now",
            "Call again later",
        ],
    );
    assert_eq!(busy.stdout, "busy");
    let (caller, refusing) = (Caller::new(), Refusing::new());
    let none = caller.call(&["--retries", "0", &refusing.url()]);
    ends(
        &none,
        4,
        &[
            "no connection",
            "costs nothing",
            "Call again with the same action before",
        ],
    );
}

#[test]
fn a_forgotten_action_is_a_new_one() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let (caller, url) = (Caller::new(), charges(&gateway));
    ends(&caller.call(&["-d", "a=1", &url]), 0, &[]);
    ends(&caller.call(&["-d", "a=2", &url]), 7, &[]);
    ends(&caller.call(&["--forget"]), 0, &[]);
    ends(
        &caller.call(&["--forget"]),
        1,
        &["no key for order-17/charge"],
    );
    let run = caller.call(&["-d", "a=2", &url]);
    ends(&run, 0, &[]);
    assert_eq!(run.stdout, "execution 2 of POST /v1/charges");
    ends(
        &caller.call(&["--forget", &url]),
        2,
        &["cannot be used with"],
    );
}

#[test]
fn an_unknown_outcome_ends_the_call_at_once_and_a_later_one_asks_again() {
    let upstream = Upstream::scripted(|x| x.reset());
    let gateway = gateway(&upstream);
    let (caller, url) = (Caller::new(), charges(&gateway));
    for _ in 0..2 {
        let run = caller.call(&["-d", "a=1", "-v", &url]);
        ends(
            &run,
            5,
            &[
                "502 outcome-unknown; 1 attempt",
                "may be billed, once at most",
                "op_",
            ],
        );
    }
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn a_stream_is_printed_as_it_comes_and_one_that_breaks_off_is_no_success() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[("Content-Type", "text/event-stream")]);
        x.chunk("data: one\n\n");
        wait.wait();
        x.reset();
    });
    let caller = Caller::new();
    let mut child = Command::new(BIN)
        .args([
            "call",
            "--action",
            "a",
            "--keys",
            &caller.keys(),
            &upstream.url(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 11];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert_eq!(&first, b"data: one\n\n");
    go.fire();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("broke off"), "{said}");
}

#[test]
fn without_data_it_asks_as_curl_does() {
    let upstream = Upstream::counting();
    let caller = Caller::new();
    let sends = |words: &[&str]| {
        let keys = caller
            .0
            .path()
            .join(words.join("-").replace('/', ""))
            .display()
            .to_string();
        let url = upstream.url();
        let mut all = vec!["call", "--keys", &keys, "--action", "a"];
        all.extend(words);
        all.push(&url);
        ends(&run_to_exit(BIN, &all, &[]), 0, &[]);
        let seen = upstream.seen();
        seen.last().expect("a request").head.word(0).to_owned()
    };
    assert_eq!(sends(&[]), "GET");
    assert_eq!(sends(&["-d", "a=1"]), "POST");
    assert_eq!(sends(&["-X", "POST"]), "POST");
    assert_eq!(sends(&["-X", "PUT", "-d", "a=1"]), "PUT");
}

#[test]
fn mistakes_are_one_line_that_says_what_to_do() {
    let caller = Caller::new();
    let url = "http://127.0.0.1:9/";
    for (words, said) in [
        (
            &["--server", "generic", url][..],
            "look up how long that server keeps a key",
        ),
        (&["ftp://x/"], "https://api.example.com"),
        (&["--window", "soon", url], "write a span like"),
        (&["-H", "no colon", url], "write it like -H"),
        (&["-d", "@/nowhere", url], "name a file that is there"),
        (&[][..], "<URL>"),
    ] {
        let run = caller.call(words);
        ends(&run, 2, &[said]);
        assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    }
    for action in ["", "a\nb"] {
        let run = run_to_exit(BIN, &["call", "--action", action, url], &[]);
        ends(&run, 2, &["action"]);
    }
    assert!(!Path::new(&caller.keys()).exists());
}
