//! What leaves the ledger, read by others: signed events by the official library of Standard Webhooks, files
//! by pyarrow.

use std::path::{Path, PathBuf};

use onlyonce_testkit::{Gateway, Receiver, Request, Upstream, eventually};
use serde_json::{Value, json};

use crate::faults::Faults;
use crate::kit::{Call, Provider, setup};

/// A chat with the sandbox, as somebody whose trace has an id; the operation's id.
fn chat(gateway: &Gateway, key: &str, model: &str, stream: bool) -> String {
    let body = json!({ "model": model, "messages": [], "stream": stream });
    let request = Request::post("/v1/chat/completions")
        .key(key)
        .header("Content-Type", "application/json")
        .header("Authorization", "Bearer secret-of-acme")
        .header(
            "Traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .body(body.to_string());
    let answer = gateway.send(&request);
    answer.expect_status(200).expect_mark("executed");
    let id = answer.header("onlyonce-operation").expect("an operation");
    id.to_owned()
}

/// What a script says in its one line.
fn said(script: &str, job: &Value) -> Value {
    Call::start(script, job).next().expect("a line of JSON")
}

const OTHER_SECRET: &str = "whsec_YW5vdGhlci1zZWNyZXQtb2Ytc29tZWJvZHktZWxzZQ==";
const NEW_SECRET: &str = "whsec_dGhlLXNlY3JldC10aGF0LWlzLXRvLWNvbWUtbmV4dA==";

/// While one secret takes the place of another, whoever knows either of them is served.
#[test]
fn the_official_library_of_standard_webhooks_verifies_with_either_secret() {
    let provider = Provider::sandbox();
    let receiver = Upstream::scripted(|x| x.answer(204, &[], b""));
    let gateway = setup(&provider, "openai")
        .env("NEW_SECRET", NEW_SECRET)
        .env("OLD_SECRET", Receiver::SECRET)
        .extra(&format!(
            "[[ledger.sink]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"{}/hook\"\n\
             secret = [\"env:NEW_SECRET\", \"env:OLD_SECRET\"]",
            receiver.url()
        ))
        .start();
    let id = chat(&gateway, "k", "gpt-5-mini", false);
    receiver.wait_for_hits(1);
    eventually("the event is here", || receiver.seen()[0].body.is_some());
    let event = receiver.seen().remove(0);
    let header = |name: &str| event.head.header(name).expect("a header").to_owned();
    let body = String::from_utf8(event.body.expect("a body")).expect("text");
    assert_eq!(header("webhook-signature").split(' ').count(), 2);
    let answer = said(
        "webhook.cjs",
        &json!({
            "headers": {
                "webhook-id": header("webhook-id"),
                "webhook-timestamp": header("webhook-timestamp"),
                "webhook-signature": header("webhook-signature"),
            },
            "body": body, "secrets": [NEW_SECRET, Receiver::SECRET, OTHER_SECRET],
        }),
    );
    assert_eq!(answer["changed"], json!([null, null, null]), "{answer}");
    let sent: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["came"], json!([sent, sent, null]), "{answer}");
    assert_eq!(sent["data"]["id"], id);
    assert_eq!(header("webhook-id"), id);
}

/// The one finished file of a folder.
fn finished(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files = files.filter(|file| !file.file_name().to_string_lossy().starts_with('.'));
    files.next().map(|file| file.path())
}

#[test]
fn pyarrow_reads_from_parquet_what_json_lines_and_csv_say() {
    let provider = Provider::sandbox();
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Faults::new();
    let mut setup = faults
        .on(setup(&provider, "openai"))
        .extra("[[tenant]]\nname = \"acme\"\ncredentials = [\"secret-of-acme\"]");
    let formats = ["parquet", "jsonl", "csv"];
    let place = |format: &str| folder.path().join(format);
    for format in formats {
        setup = setup.extra(&format!(
            "[[ledger.sink]]\nname = \"{format}\"\nkind = \"file\"\nformat = \"{format}\"\nfolder = \"{}\"",
            place(format).display()
        ));
    }
    let mut gateway = setup.start();
    let ids = [
        chat(&gateway, "a", "gpt-5-mini", false),
        chat(&gateway, "b", "gpt-5-mini", false),
        // One without a price and with a name that has to be quoted, and one that tells nothing.
        chat(&gateway, "c", "a model, \"nobody's\"", false),
        chat(&gateway, "d", "gpt-5-mini", true),
    ];
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    // A file is written once its hour is over.
    faults.set("clock=7200");
    gateway.start_again();
    let all = || formats.map(|format| finished(&place(format)));
    eventually("the files", || all().iter().all(Option::is_some));
    let [parquet, jsonl, csv] = all();
    let read = said(
        "files.py",
        &json!({ "parquet": parquet, "jsonl": jsonl, "csv": csv }),
    );
    assert_eq!(read["ids"], json!(ids));
    for (name, kind) in [
        ("tenant", "string"),
        ("completed_at", "timestamp[ms, tz=UTC]"),
        ("status", "int32"),
        ("cost_usd", "decimal128(18, 9)"),
        ("output", "int64"),
    ] {
        assert_eq!(read["kinds"][name], kind, "{name}");
    }
}
