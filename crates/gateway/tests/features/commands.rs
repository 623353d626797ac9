//! The command line, as scripts use it.

use std::net::SocketAddr;

use onlyonce_testkit::{Client, Gateway, Request, Run, Staying, Upstream, run_to_exit};
use serde_json::Value;

use crate::{BIN, expect_executed, gateway, post};

fn json(run: Run) -> Value {
    let text = run.succeeded();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A completed, a released and an unknown operation: keys `done`, `free` and `lost`.
fn three() -> (Upstream, Gateway) {
    let upstream = Upstream::scripted(|x| match x.path() {
        "/done" => x.answer(200, &[("Content-Type", "text/plain")], b"the answer"),
        "/free" => x.answer(429, &[], b"no"),
        _ if x.number == 3 => x.reset(),
        _ => x.answer(200, &[], b"again"),
    });
    let gateway = gateway(&upstream);
    gateway.post("/done", "done", "b");
    gateway.post("/free", "free", "b");
    gateway
        .post("/lost", "lost", "b")
        .expect_problem(502, "outcome-unknown");
    (upstream, gateway)
}

#[test]
fn keys_list_shows_operations_for_people_and_for_programs() {
    let (_upstream, gateway) = three();
    let text = gateway.keys(&["list"]).succeeded();
    for word in ["done", "free", "lost", "completed", "released", "unknown"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let text = gateway.keys(&["list", "--state", "unknown"]).succeeded();
    assert!(text.contains("lost") && !text.contains("done"), "{text}");
    let list = json(gateway.keys(&["--json", "list", "--key", "done"]));
    let operations = list["operations"]
        .as_array()
        .or_else(|| list.as_array())
        .unwrap();
    assert_eq!(operations.len(), 1);
    assert_eq!(operations[0]["state"], "completed");
    let list = json(gateway.keys(&["--json", "list", "--since", "1h", "--limit", "2"]));
    let operations = list["operations"]
        .as_array()
        .or_else(|| list.as_array())
        .unwrap();
    assert_eq!(operations.len(), 2);
}

#[test]
fn keys_show_and_body_take_a_key_or_an_operation() {
    let (_upstream, gateway) = three();
    let id = gateway.control().operation("done")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for name in ["done", &id] {
        let text = gateway.keys(&["show", name]).succeeded();
        assert!(text.contains(&id) && text.contains("completed"), "{text}");
    }
    assert_eq!(gateway.keys(&["body", &id]).succeeded(), "the answer");
    let missing = gateway.keys(&["show", "no-such-key"]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.starts_with("onlyonce: "), "{missing:?}");
}

#[test]
fn keys_release_frees_a_key() {
    let (upstream, gateway) = three();
    let id = gateway.control().operation("lost")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    gateway
        .keys(&["release", &id, "--reason", "not in their log"])
        .succeeded();
    expect_executed(&gateway.post("/lost", "lost", "b"));
    assert_eq!(upstream.hits(), 4);
    let refused = gateway.keys(&["release", &id]);
    assert_ne!(refused.code, Some(0), "it is completed: {refused:?}");
}

#[test]
fn keys_complete_settles_an_operation_with_an_answer() {
    let (upstream, gateway) = three();
    let id = gateway.control().operation("lost")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let file = gateway.folder().join("answer.json");
    std::fs::write(&file, "{\"found\":true}").unwrap();
    let file = file.display().to_string();
    gateway
        .keys(&[
            "complete",
            &id,
            "--status",
            "201",
            "--body",
            &file,
            "--header",
            "x-found: yes",
            "--reason",
            "r",
        ])
        .succeeded();
    let replay = gateway.post("/lost", "lost", "b");
    replay.expect_status(201).expect_mark("replayed");
    assert_eq!(
        (replay.text().as_str(), replay.header("x-found")),
        ("{\"found\":true}", Some("yes"))
    );
    assert_eq!(upstream.hits(), 3);
}

#[test]
fn keys_purge_asks_for_a_yes() {
    let (_upstream, gateway) = three();
    let unsure = gateway.keys(&["purge", "--state", "completed"]);
    assert_eq!(unsure.code, Some(2), "{unsure:?}");
    assert_eq!(gateway.control().operation("done")["state"], "completed");
    gateway
        .keys(&["purge", "--state", "completed", "--yes"])
        .succeeded();
    assert!(gateway.control().operations("done").is_empty());
}

#[test]
fn keys_say_so_when_there_is_no_gateway() {
    let refusing = onlyonce_testkit::Refusing::new();
    let run = run_to_exit(BIN, &["keys", "--control", &refusing.url(), "list"], &[]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(
        run.stderr.starts_with("onlyonce: ") && run.stderr.contains(';'),
        "{run:?}"
    );
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
}

#[test]
fn keys_present_a_token() {
    let upstream = Upstream::counting();
    let token = "a-token-of-more-than-thirty-two-characters";
    let gateway = crate::setup(&upstream)
        .server("control_token = \"env:TOKEN\"")
        .env("TOKEN", token)
        .start();
    gateway.post("/x", "k", "b");
    assert_eq!(gateway.keys(&["list"]).code, Some(1));
    let text = gateway.keys(&["--token", token, "list"]).succeeded();
    assert!(text.contains('k'));
    let control = format!("http://{}", gateway.control_addr());
    let run = run_to_exit(
        BIN,
        &["keys", "--control", &control, "list"],
        &[("ONLYONCE_CONTROL_TOKEN", token)],
    );
    run.succeeded();
}

#[test]
fn serve_needs_no_file() {
    let upstream = Upstream::counting();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let words = [
        "serve",
        "--upstream",
        &upstream.url(),
        "--listen",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
        "--data",
        &data,
    ];
    let serving = Staying::start(BIN, &words, 2);
    assert_eq!(
        serving.addresses().len(),
        2,
        "two lines say where it listens"
    );
    expect_executed(&Client::connect(serving.addresses()[0]).ask(&post("/x", "k", "b")));
    let health = Client::connect(serving.addresses()[1]).ask(&Request::get("/healthz"));
    assert_eq!(health.status(), 200);
    assert!(std::path::Path::new(&data).join("meta").exists());
}

#[test]
fn beyond_loopback_a_credential_and_a_token_are_needed() {
    let upstream = Upstream::counting();
    let folder = tempfile::tempdir().unwrap();
    let (file, data) = (folder.path().join("c.toml"), folder.path().join("data"));
    let token = "a-token-of-more-than-thirty-two-characters";
    let text = format!(
        "[server]\ncontrol_token = \"{token}\"\n[[upstream]]\nname = \"up\"\nurl = \"{}\"\n",
        upstream.url()
    );
    std::fs::write(&file, text).unwrap();
    let words = [
        "serve",
        "--config",
        &file.display().to_string(),
        "--listen",
        "0.0.0.0:0",
        "--control",
        "0.0.0.0:0",
        "--data",
        &data.display().to_string(),
    ];
    let serving = Staying::start(BIN, &words, 2);
    let [gateway, control] = serving.addresses()[..] else {
        panic!("it does not listen")
    };
    let on_loopback = |addr: SocketAddr| SocketAddr::from(([127, 0, 0, 1], addr.port()));
    let (gateway, control) = (on_loopback(gateway), on_loopback(control));
    let ask = |request: &Request| Client::connect(gateway).ask(request);
    ask(&post("/x", "k", "b"))
        .expect_problem(401, "credential-missing")
        .expect_retry(false);
    expect_executed(&ask(&post("/x", "k", "b").header("x-api-key", "s")));
    assert_eq!(upstream.hits(), 1);
    // Without a key there is nothing to keep apart.
    assert_eq!(ask(&Request::get("/x")).status(), 200);
    let list = Request::get("/v1/operations");
    assert_eq!(Client::connect(control).ask(&list).status(), 401);
    let list = list.header("Authorization", &format!("Bearer {token}"));
    assert_eq!(Client::connect(control).ask(&list).status(), 200);
}

#[test]
fn the_sandbox_counts_and_prices_executions() {
    let sandbox = Staying::start(BIN, &["sandbox", "--listen", "127.0.0.1:0"], 1);
    let gateway = Gateway::before(BIN, &format!("http://{}", sandbox.addresses()[0]));
    let request = post(
        "/v1/chat/completions",
        "k",
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#,
    )
    .header("Content-Type", "application/json");
    let first = gateway.send(&request);
    expect_executed(&first);
    crate::expect_replay(&gateway.send(&request), &first);
    let ledger = Client::connect(sandbox.addresses()[0])
        .ask(&Request::get("/_sandbox/ledger"))
        .json();
    assert_eq!(ledger["executions"], 1, "{ledger}");
    assert_eq!(ledger["entries"][0]["key"], "k");
}

#[test]
fn check_reads_a_file_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("good.toml");
    let data = folder.path().join("data");
    std::fs::write(
        &file,
        format!(
            "[store]\nurl = \"embedded:{}\"\n[[upstream]]\nname = \"a\"\nurl = \"https://a.test\"\n",
            data.display()
        ),
    )
    .unwrap();
    let run = run_to_exit(BIN, &["check", &file.display().to_string()], &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(!data.exists(), "it made a data folder");
}

#[test]
fn logs_are_objects_where_asked_and_silent_where_asked() {
    let upstream = Upstream::counting();
    let said_at_the_end = |environment: (&str, &str)| {
        let mut gateway = crate::setup(&upstream)
            .env(environment.0, environment.1)
            .start();
        gateway.terminate();
        let run = gateway.wait_for_run();
        assert_eq!(run.code, Some(0), "{run:?}");
        run.stderr
    };
    let objects = said_at_the_end(("ONLYONCE_LOG_FORMAT", "json"));
    let lines: Vec<Value> = objects
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert!(
        lines
            .iter()
            .any(|line| line["fields"]["message"] == "draining"),
        "{objects}"
    );
    assert_eq!(said_at_the_end(("ONLYONCE_LOG", "off")), "");
}

#[test]
fn help_and_version_are_there() {
    for words in [
        &["--help"][..],
        &["serve", "--help"],
        &["keys", "--help"],
        &["--version"],
    ] {
        let run = run_to_exit(BIN, words, &[]);
        assert_eq!(run.code, Some(0), "{words:?}: {run:?}");
        assert!(run.stdout.contains("onlyonce"), "{run:?}");
    }
}
