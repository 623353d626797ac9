//! `onlyonce store copy`: whatever was used stays used in the store that all was moved to.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use onlyonce_testkit::{
    Gateway, Postgres, RedisServer, Request, Response, Run, Setup, Upstream, eventually,
    run_to_exit,
};
use serde_json::json;
use tempfile::TempDir;

use crate::servers::{OnPostgres, OnRedis, Server};
use crate::{BIN, alone, held, on_every_server, post, work};

on_every_server! { alone:
    what_runs_on_the_source_ends_there_and_is_replayed_from_the_target
    a_dead_owners_operation_is_unknown_in_the_target
    i01_after_the_move_no_gateway_on_the_source_executes
    a_copy_is_given_up_as_long_as_nothing_was_served_from_the_target
}

fn copy(from: &str, to: &str, words: &[&str]) -> Run {
    run_to_exit(BIN, &[&["store", "copy", from, to], words].concat(), &[])
}

#[track_caller]
fn succeeds(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{run:?}");
    &run.stdout
}

/// Refused, in one line that says all of this.
#[track_caller]
fn refuses(run: &Run, words: &[&str]) {
    assert_ne!(run.code, Some(0), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "{word} in {run:?}");
    }
}

fn embedded(folder: &TempDir) -> String {
    format!("embedded:{}", folder.path().join("data").display())
}

fn on(upstream: &Upstream, url: &str) -> Setup {
    Setup::new(BIN, &upstream.url()).store(&format!("url = \"{url}\"\nlease = \"2s\""))
}

/// A gateway does not start on this store, and says so.
#[track_caller]
fn expect_closed(upstream: &Upstream, url: &str, words: &[&str]) {
    match on(upstream, url).try_start() {
        Ok(_) => panic!("a gateway serves from {url}"),
        Err(run) => assert!(
            words.iter().all(|word| run.stderr.contains(word)),
            "{words:?} in {run:?}"
        ),
    }
}

/// Answers of all kinds: small, empty, of many chunks, with repeated headers, lost, and "did not run".
fn provider() -> Upstream {
    Upstream::scripted(|exchange| {
        exchange.read_body();
        let number = exchange.number;
        match exchange.path() {
            "/big" => {
                let body: Vec<u8> = (0..400_000u32)
                    .flat_map(|at| (at ^ number as u32).to_le_bytes())
                    .collect();
                exchange.answer(200, &[("content-type", "x/y")], &body);
            }
            "/empty" => exchange.answer(204, &[("x-part", "1"), ("x-part", "2")], b""),
            "/lost" => exchange.reset(),
            "/free" => exchange.answer(429, &[], b"no"),
            "/stream" => {
                exchange.start_chunked(201, &[("content-type", "text/plain")]);
                for part in 0..50 {
                    exchange.chunk(format!("{part} of {number} {}", "x".repeat(2_000)));
                }
                exchange.end_chunks();
            }
            _ => exchange.answer(402, &[], format!("execution {number}").as_bytes()),
        }
    })
}

/// What was asked under a key, and what came.
type Asked = (Request, Response);

/// Uses keys that begin with `prefix`.
fn use_keys(gateway: &Gateway, prefix: &str) -> Vec<Asked> {
    let paths = ["/big", "/empty", "/stream", "/other", "/x"];
    let asked = paths.iter().flat_map(|path| {
        (0..3).map(move |number| {
            Request::post(path)
                .key(&format!("{prefix}-{}-{number}", &path[1..]))
                .body("b")
        })
    });
    let asked: Vec<Asked> = asked
        .map(|request| {
            let response = gateway.send(&request);
            response.expect_mark("executed");
            assert!(response.whole());
            (request, response)
        })
        .collect();
    // An attempt more is noted of each.
    expect_all(gateway, &asked);
    gateway
        .send(&Request::post("/lost").key("lost").body("b"))
        .expect_problem(502, "outcome-unknown");
    gateway
        .send(&Request::post("/free").key("free").body("b"))
        .expect_mark("released");
    asked
}

/// Every key is answered as it was, and a key under another request is refused.
#[track_caller]
fn expect_all(gateway: &Gateway, asked: &[Asked]) {
    const KEPT: [&str; 3] = ["onlyonce-operation", "content-type", "x-part"];
    for (request, first) in asked {
        let again = gateway.send(request);
        again.expect_mark("replayed");
        assert!(again.whole());
        assert_eq!(again.status(), first.status());
        assert!(again.body == first.body, "another body");
        for name in KEPT {
            assert_eq!(again.header(name), first.header(name), "{name}");
        }
        gateway
            .send(&request.clone().body("another"))
            .expect_problem(422, "key-reused");
    }
}

#[test]
fn i09_what_workers_completed_moves_and_their_claims_do_not() {
    let upstream = Upstream::counting();
    let (folder, postgres) = (TempDir::new().unwrap(), Postgres::start(&[]));
    let (from, to) = (embedded(&folder), postgres.url());
    let source = on(&upstream, &from).start();
    let (done, claim) = work::grant(&source, &json!({ "key": "done", "lease": "1h" }));
    // In one piece, and longer than a chunk of a streamed answer.
    let result = json!("x".repeat(200 << 10));
    let body = json!({ "claim": claim, "result": result });
    let completed = work::post(&source, &format!("/v1/work/{done}/complete"), &body);
    assert_eq!(completed.status(), 200, "{}", completed.text());
    let (lost, old) = work::grant(&source, &json!({ "key": "lost", "lease": "1s" }));
    source.control().wait_for_state("lost", "unknown");
    drop(source);
    succeeds(&copy(&from, &to, &[]));
    let target = on(&upstream, &to).start();
    let replayed = work::begin(&target.control(), &json!({ "key": "done" }));
    assert_eq!(replayed["decision"], "replay");
    assert_eq!(replayed["result"], result);
    // Which claims were made before that, the target does not know.
    let late = work::settle(&target, &lost, "complete", &old);
    assert_eq!(
        late.json()["type"],
        "/problems/claim-lost",
        "{}",
        late.text()
    );
    assert_eq!(target.control().operation("lost")["state"], "unknown");
}

#[test]
fn every_key_is_answered_alike_after_moves_through_all_stores() {
    let upstream = provider();
    let (postgres, redis) = (Postgres::start(&[]), RedisServer::start(&[]));
    let (first, last) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let stores = [
        embedded(&first),
        postgres.url(),
        redis.url(),
        embedded(&last),
    ];
    let mut asked = {
        let gateway = on(&upstream, &stores[0]).start();
        use_keys(&gateway, "first")
    };
    for hop in stores.windows(2) {
        let [from, to] = hop else { unreachable!() };
        let summary = copy(from, to, &[]);
        let summary = succeeds(&summary);
        let counted = format!(": {} completed, 1 unknown, 0 unreadable", asked.len());
        assert!(summary.contains(&counted), "{counted} in {summary}");
        assert!(!summary.contains("password"), "{summary}");
        expect_closed(
            &upstream,
            from,
            &["moved to", "set store.url to that store"],
        );

        let gateway = on(&upstream, to).start();
        let hits = upstream.hits();
        expect_all(&gateway, &asked);
        gateway
            .send(&Request::post("/lost").key("lost").body("b"))
            .expect_problem(502, "outcome-unknown");
        assert_eq!(upstream.hits(), hits, "something ran twice");
        let key = "first-big-0";
        let operation = gateway.control().operation(key);
        let id = operation["id"].as_str().unwrap();
        let shown = gateway.control().json(&format!("/v1/operations/{id}"));
        let attempts = shown["attempts_log"].as_array().unwrap();
        assert_eq!(attempts[0]["got"], "executed", "{shown}");
        // What did not run is free, and what is new runs.
        let free = gateway.send(&Request::post("/free").key("free").body("b"));
        free.expect_mark("released");
        let new = post(&format!("new in {to}").replace([' ', ':', '/', '@', '?', '='], "-"));
        let answer = gateway.send(&new);
        answer.expect_mark("executed");
        asked.push((new, answer));
        drop(gateway);
        // Once more changes nothing.
        let again = copy(from, to, &[]);
        assert!(succeeds(&again).contains("before"), "{again:?}");
    }
}

/// A `store copy` that runs.
struct Copying(Child);

impl Copying {
    fn start(from: &str, to: &str) -> Self {
        let child = Command::new(BIN)
            .args(["store", "copy", from, to])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// `kill -9`; says whether it had ended by itself.
    fn kill(mut self) -> bool {
        let ended = self.has_ended();
        let _ = self.0.kill();
        let _ = self.0.wait();
        ended
    }
}

/// Waits until the gateway's store takes no claim any more. Each key that is tried until then runs, or
/// did not.
fn wait_until_closed(gateway: &Gateway) -> Response {
    let mut number = 0;
    let mut last = None;
    eventually("the source is closed", || {
        number += 1;
        let response = gateway.send(&post(&format!("probe-{number}")));
        let is_closed = response.status() == 503;
        last = Some(response);
        is_closed
    });
    last.unwrap()
}

fn what_runs_on_the_source_ends_there_and_is_replayed_from_the_target(server: &mut impl Server) {
    let (upstream, go) = held();
    let quick = Upstream::counting();
    let folder = TempDir::new().unwrap();
    let (from, to) = (server.url(), embedded(&folder));
    let slow = on(&upstream, &from).start();
    let gateway = on(&quick, &from).start();
    let mut first = slow.begin(&post("slow"));
    first.read_head();
    first.read_until("begun");
    let done = gateway.send(&post("done"));
    done.expect_mark("executed");

    let copying = {
        let (from, to) = (from.clone(), to.clone());
        thread::spawn(move || copy(&from, &to, &[]))
    };
    // No new key runs, what is finished is replayed, and what runs goes on.
    wait_until_closed(&gateway)
        .expect_problem(503, "store-unavailable")
        .expect_retry(true);
    gateway.send(&post("done")).expect_mark("replayed");
    assert!(!copying.is_finished(), "it did not wait for what runs");
    go.fire();
    let first = first.finish();
    assert!(first.whole());
    first.expect_mark("executed");
    let summary = copying.join().unwrap();
    succeeds(&summary);
    drop((slow, gateway));

    let hits = (upstream.hits(), quick.hits());
    let after = on(&upstream, &to).start();
    let again = after.send(&post("slow"));
    again.expect_mark("replayed");
    assert_eq!(again.body, first.body);
    assert_eq!((upstream.hits(), quick.hits()), hits);
}

fn a_dead_owners_operation_is_unknown_in_the_target(server: &mut impl Server) {
    let (upstream, _go) = held();
    let folder = TempDir::new().unwrap();
    let (from, to) = (server.url(), embedded(&folder));
    let mut gateway = on(&upstream, &from).start();
    let mut first = gateway.begin(&post("k"));
    first.read_head();
    gateway.kill();
    let summary = copy(&from, &to, &[]);
    assert!(succeeds(&summary).contains("1 unknown"), "{summary:?}");
    let after = on(&upstream, &to).start();
    after
        .send(&post("k"))
        .expect_problem(502, "outcome-unknown");
    assert_eq!(upstream.hits(), 1);
}

fn i01_after_the_move_no_gateway_on_the_source_executes(server: &mut impl Server) {
    let upstream = provider();
    let folder = TempDir::new().unwrap();
    let (from, to) = (server.url(), embedded(&folder));
    let (running, paused) = (on(&upstream, &from).start(), on(&upstream, &from).start());
    let asked = use_keys(&running, "k");
    paused.pause();
    let summary = copy(&from, &to, &[]);
    succeeds(&summary);
    paused.resume();

    let after = on(&upstream, &to).start();
    let new = after.send(&post("new"));
    new.expect_mark("executed");
    let hits = upstream.hits();
    for gateway in [&running, &paused] {
        for key in ["new", "newer", "free"] {
            gateway
                .send(&post(key))
                .expect_problem(503, "store-unavailable")
                .expect_retry(true);
        }
        eventually("it says why", || gateway.stderr().contains("moved to"));
    }
    assert_eq!(upstream.hits(), hits);
    expect_all(&after, &asked);
}

fn a_copy_is_given_up_as_long_as_nothing_was_served_from_the_target(server: &mut impl Server) {
    let (upstream, go) = held();
    let quick = Upstream::counting();
    let folder = TempDir::new().unwrap();
    let (from, to) = (server.url(), embedded(&folder));
    let slow = on(&upstream, &from).start();
    let gateway = on(&quick, &from).start();
    let mut first = slow.begin(&post("slow"));
    first.read_head();
    let copying = Copying::start(&from, &to);
    wait_until_closed(&gateway);
    assert!(!copying.kill(), "it did not wait for what runs");

    expect_closed(&quick, &from, &["moved to"]);
    expect_closed(&quick, &to, &["not all records", "store copy"]);
    for _ in 0..2 {
        let given_up = copy(&from, &to, &["--cancel"]);
        assert!(succeeds(&given_up).contains("gave up"), "{given_up:?}");
    }
    gateway.send(&post("new")).expect_mark("executed");
    go.fire();
    first.finish().expect_mark("executed");
    expect_closed(&quick, &to, &["moved to"]);
    refuses(&copy(&from, &to, &[]), &["was given up", "drop it"]);

    // To another target it may go, and from there not back.
    let other = TempDir::new().unwrap();
    let summary = copy(&from, &embedded(&other), &[]);
    succeeds(&summary);
    refuses(
        &copy(&from, &embedded(&other), &["--cancel"]),
        &["came to its end", "serve from that one"],
    );
    refuses(&copy(&from, &to, &[]), &["are elsewhere", "moved to"]);
}

#[test]
fn a_copy_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    let upstream = provider();
    let redis = RedisServer::start(&[]);
    let folder = TempDir::new().unwrap();
    let (from, to) = (embedded(&folder), redis.url());
    let asked: Vec<Asked> = {
        let gateway = on(&upstream, &from).start();
        let mut asked = use_keys(&gateway, "k");
        for number in 0..300 {
            let request = post(&format!("small-{number}"));
            let response = gateway.send(&request);
            asked.push((request, response));
        }
        asked
    };
    let held = || -> usize { redis.command(&["DBSIZE"]).trim().parse().unwrap() };
    let mut killed = 0;
    for goal in [1, 40, 300, 500, 700, 900, 1_100] {
        let mut copying = Copying::start(&from, &to);
        eventually("it copied some", || held() >= goal || copying.has_ended());
        if copying.kill() {
            break;
        }
        killed += 1;
        expect_closed(&upstream, &to, &["not all records", "store copy"]);
    }
    assert!(killed >= 2, "it was killed {killed} times");
    let summary = copy(&from, &to, &[]);
    succeeds(&summary);
    let gateway = on(&upstream, &to).start();
    let hits = upstream.hits();
    expect_all(&gateway, &asked);
    gateway
        .send(&Request::post("/lost").key("lost").body("b"))
        .expect_problem(502, "outcome-unknown");
    assert_eq!(upstream.hits(), hits);
    for (request, _) in &asked {
        let key = request_key(request);
        assert_eq!(gateway.control().operations(&key).len(), 1, "{key}");
    }
}

fn request_key(request: &Request) -> String {
    let head = String::from_utf8(request.head_bytes()).unwrap();
    let line = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("idempotency-key: ")
            .map(str::to_owned)
    });
    line.unwrap()
}

#[test]
fn what_is_no_new_store_is_no_target() {
    let upstream = provider();
    let folder = TempDir::new().unwrap();
    let from = embedded(&folder);
    let asked = {
        let gateway = on(&upstream, &from).start();
        use_keys(&gateway, "k")
    };
    let (postgres, redis) = (OnPostgres::start(), OnRedis::start());
    let other = TempDir::new().unwrap();
    for to in [postgres.url(), redis.url(), embedded(&other)] {
        let others = on(&upstream, &to).start();
        others.send(&post("another")).expect_mark("executed");
        drop(others);
        refuses(
            &copy(&from, &to, &[]),
            &["another store", "1 records", "name a new"],
        );
        // Neither has changed.
        let others = on(&upstream, &to).start();
        others.send(&post("another")).expect_mark("replayed");
        drop(others);
        let gateway = on(&upstream, &from).start();
        expect_all(&gateway, &asked);
        refuses(&copy(&from, "redis://127.0.0.1:1", &[]), &["in use"]);
    }
    refuses(&copy(&from, &from, &[]), &["named twice"]);
    refuses(&copy(&from, "memory:", &[]), &["in memory"]);
    refuses(
        &copy(&from, "env:ONLYONCE_NOWHERE", &[]),
        &["ONLYONCE_NOWHERE"],
    );
    let nowhere = TempDir::new().unwrap();
    refuses(&copy(&embedded(&nowhere), &from, &[]), &["no store"]);
    assert!(fs::read_dir(nowhere.path()).unwrap().next().is_none());
    let empty = OnRedis::start();
    let target = TempDir::new().unwrap();
    refuses(
        &copy(&empty.url(), &embedded(&target), &[]),
        &["holds no record"],
    );
}

/// A record that cannot be read is not lost on the way: its key was used (I13).
#[test]
fn i13_what_cannot_be_read_is_unknown_in_the_target() {
    let upstream = provider();
    let postgres = OnPostgres::start();
    let folder = TempDir::new().unwrap();
    let (from, to) = (postgres.url(), embedded(&folder));
    {
        let gateway = on(&upstream, &from).start();
        for key in ["damaged", "whole"] {
            gateway.send(&post(key)).expect_mark("executed");
        }
        gateway
            .send(&Request::post("/big").key("hole").body("b"))
            .expect_mark("executed");
        let id_of = |key| {
            let operation = gateway.control().operation(key);
            let id = operation["id"].as_str().unwrap().to_owned();
            id.strip_prefix("op_").unwrap().to_owned()
        };
        postgres.sql(&format!(
            "UPDATE onlyonce.records SET body = set_byte(body, 20, get_byte(body, 20) # 255)
            WHERE id = '{}'",
            id_of("damaged")
        ));
        postgres.sql(&format!(
            "DELETE FROM onlyonce.chunks WHERE id = '{}' AND number = 1",
            id_of("hole")
        ));
    }
    let summary = copy(&from, &to, &[]);
    let summary = succeeds(&summary);
    assert!(
        summary.contains("1 completed, 1 unknown, 1 unreadable"),
        "{summary}"
    );
    let gateway = on(&upstream, &to).start();
    for request in [post("damaged"), Request::post("/big").key("hole").body("b")] {
        gateway
            .send(&request)
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
    }
    gateway.send(&post("whole")).expect_mark("replayed");
    assert_eq!(upstream.hits(), 3);
}

/// What an operator settles is settled in the target too.
#[test]
fn what_was_settled_between_two_copies_is_settled_in_the_target() {
    let (upstream, go) = held();
    let lost = provider();
    let redis = OnRedis::start();
    let folder = TempDir::new().unwrap();
    let (from, to) = (redis.url(), embedded(&folder));
    let slow = on(&upstream, &from).start();
    let gateway = on(&lost, &from).start();
    let request = Request::post("/lost").key("lost").body("b");
    gateway
        .send(&request)
        .expect_problem(502, "outcome-unknown");
    let mut first = slow.begin(&post("slow"));
    first.read_head();
    let copying = Copying::start(&from, &to);
    wait_until_closed(&gateway);
    copying.kill();
    // It was copied as unknown by now.
    let operation = gateway.control().operation("lost");
    let id = operation["id"].as_str().unwrap();
    let settled = json!({ "outcome": "released", "reason": "the provider has no trace of it" });
    gateway.control().resolve(id, &settled).expect_status(200);
    go.fire();
    first.finish().expect_mark("executed");
    let summary = copy(&from, &to, &[]);
    assert!(succeeds(&summary).contains(" 0 unknown"), "{summary:?}");
    drop((gateway, slow));
    let upstream = Upstream::counting();
    let after = on(&upstream, &to).start();
    after.send(&request).expect_status(200);
}

#[test]
fn a_sealed_store_is_moved_with_its_keys() {
    let upstream = provider();
    let redis = RedisServer::start(&[]);
    let folder = TempDir::new().unwrap();
    let sealing = format!(
        "[store.encryption]\nactive = 1\nkeys = [{{ id = 1, key = \"{}\" }}]",
        "07".repeat(32)
    );
    let (from, to) = (embedded(&folder), redis.url());
    let asked = {
        let gateway = on(&upstream, &from).extra(&sealing).start();
        use_keys(&gateway, "secret-key")
    };
    refuses(&copy(&from, &to, &[]), &["encrypted", "store.encryption"]);
    let config = folder.path().join("onlyonce.toml");
    let text = on(&upstream, &from)
        .extra(&sealing)
        .text(Path::new("unused"));
    fs::write(&config, text).unwrap();
    let summary = copy(&from, &to, &["--config", config.to_str().unwrap()]);
    succeeds(&summary);
    let gateway = on(&upstream, &to).extra(&sealing).start();
    let hits = upstream.hits();
    expect_all(&gateway, &asked);
    assert_eq!(upstream.hits(), hits);
}
