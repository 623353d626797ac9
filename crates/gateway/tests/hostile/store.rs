//! Cases 81 to 92: the window's edge, and a store that is down, damaged, full, locked or foreign.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;

use onlyonce_testkit::{Gateway, Response, Signal, Upstream, eventually};

use crate::faults::Faults;
use crate::time::time_of;
use crate::{expect_executed, expect_replay, gateway, noise, post, setup};

/// Asks until the key runs again: before the window's end every answer is a replay, after it
/// none is.
#[track_caller]
fn ask_across_the_window(gateway: &Gateway, first: &Response) {
    // The header shows whole seconds, the control listener milliseconds.
    let operation = gateway.control().operation("k");
    let end = time_of(operation["expires_at"].as_str().expect("an expiry"));
    let announced = time_of(first.header("onlyonce-expires").expect("an expiry"));
    assert!(
        end >= announced && end < announced + Duration::from_secs(1),
        "{operation}"
    );
    let mut replays = 0;
    eventually("the key runs again", || {
        let before = SystemTime::now();
        let answer = gateway.post("/x", "k", "b");
        let after = SystemTime::now();
        match answer.mark() {
            Some("replayed") => {
                replays += 1;
                // The store's clock counts whole milliseconds from a start that was cut to one.
                assert!(
                    before < end + Duration::from_millis(1),
                    "a replay {:?} after the window",
                    before.duration_since(end)
                );
                expect_replay(&answer, first);
                false
            }
            Some("executed") => {
                assert!(
                    after >= end,
                    "it ran {:?} before the end",
                    end.duration_since(after)
                );
                true
            }
            other => panic!("{other:?} {answer:?}"),
        }
    });
    assert!(replays > 0, "the window was over at once");
}

/// Case: attempts around the end of the window. Answer: replays before the moment that was announced, an
/// execution after it.
#[test]
fn hostile_081_the_window_ends_at_the_time_that_was_announced() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("window = \"1s\"").start();
    let before = SystemTime::now();
    let first = gateway.post("/x", "k", "b");
    let after = SystemTime::now();
    expect_executed(&first, 200);
    let operation = gateway.control().operation("k");
    let end = time_of(operation["expires_at"].as_str().unwrap());
    // Counted from completion, which lies between the two; times are cut to milliseconds.
    let (window, cut) = (Duration::from_secs(1), Duration::from_millis(1));
    assert!(
        end + cut >= before + window && end <= after + window,
        "{operation}"
    );
    ask_across_the_window(&gateway, &first);
    assert_eq!(upstream.hits(), 2);
}

/// Case: a restart before the window's end, and one across it. Answer: the same end.
#[test]
fn hostile_082_a_restart_does_not_move_the_windows_end() {
    let upstream = Upstream::counting();
    let mut gateway = setup(&upstream).route("window = \"2s\"").start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    gateway.start_again();
    ask_across_the_window(&gateway, &first);
    // And a restart across the end: the second answer's window passes while it is down.
    let second = gateway.post("/x", "k", "b");
    second.expect_status(200).expect_mark("replayed");
    let end = time_of(
        gateway.control().operation("k")["expires_at"]
            .as_str()
            .unwrap(),
    );
    gateway.kill();
    eventually("the window has passed", || SystemTime::now() > end);
    gateway.start_again();
    expect_executed(&gateway.post("/x", "k", "b"), 200);
    assert_eq!(upstream.hits(), 3);
}

/// A gateway whose disk and clock can fail.
fn faulty(upstream: &Upstream) -> (Gateway, Faults) {
    let faults = Faults::new();
    let gateway = faults.on(setup(upstream)).start();
    (gateway, faults)
}

/// Case: the store is down at the claim. Answer: 503 `store-unavailable`, nothing is sent.
#[test]
fn hostile_083_a_store_down_at_the_claim_sends_nothing() {
    let upstream = Upstream::counting();
    let (mut gateway, faults) = faulty(&upstream);
    expect_executed(&gateway.post("/x", "before", "b"), 200);
    faults.set("fsync");
    let refused = gateway.post("/x", "k", "b");
    refused
        .expect_problem(503, "store-unavailable")
        .expect_retry(true);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(upstream.hits(), 1);
    assert_eq!(gateway.control().get("/readyz").status(), 503);
    faults.clear();
    gateway.start_again();
    expect_executed(&gateway.post("/x", "k2", "b"), 200);
    assert_eq!(upstream.hits(), 2);
}

/// An upstream that answers `begun`, waits for the signal, and ends.
fn held() -> (Upstream, Signal) {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun, ");
        wait.wait();
        x.chunk("and ended");
        x.end_chunks();
    });
    (upstream, go)
}

/// The store takes no write from the middle of an answer on.
#[track_caller]
fn withholds_the_end(fault: &str) {
    let (upstream, go) = held();
    let (mut gateway, faults) = faulty(&upstream);
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    faults.set(fault);
    go.fire();
    let answer = client.finish();
    assert!(
        !answer.whole(),
        "the client saw an end that is not recorded: {answer:?}"
    );
    gateway
        .post("/x", "k2", "b")
        .expect_problem(503, "store-unavailable");
    faults.clear();
    gateway.start_again();
    // The record may have reached the disk although a flush failed: then it is the answer.
    let retry = gateway.post("/x", "k", "b");
    if retry.status() == 200 {
        retry.expect_status(200).expect_mark("replayed");
        assert_eq!(retry.text(), "begun, and ended");
    } else {
        retry
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
    }
    assert_eq!(upstream.hits(), 1);
}

/// Case: the store is down at the completion. Answer: the end is withheld and the write tried again; else
/// `outcome-unknown`.
#[test]
fn hostile_084_a_store_down_at_completion_withholds_the_end() {
    withholds_the_end("fsync");
}

#[test]
fn hostile_088_a_file_system_that_turns_read_only_in_an_answer_withholds_the_end() {
    withholds_the_end("readonly");
}

#[test]
fn hostile_089_a_full_disk_at_completion_withholds_the_end_until_there_is_space() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun, ");
        wait.wait();
        // More than any room that is left.
        for _ in 0..64 {
            x.chunk(noise(256 << 10));
        }
        x.chunk("and ended");
        x.end_chunks();
    });
    let (gateway, faults) = faulty(&upstream);
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    faults.set("full");
    go.fire();
    faults.wait_until_struck();
    client.patience(Duration::from_millis(500));
    while let Ok(more) = client.step() {
        assert!(more, "the client saw an end that is not recorded");
    }
    faults.clear();
    // The write is tried again, and the very client that waited gets the end.
    client.patience(onlyonce_testkit::PATIENCE);
    let answer = client.finish();
    assert!(answer.whole(), "{:?}", answer.end);
    assert!(answer.text().ends_with("and ended"));
    gateway.control().wait_for_state("k", "completed");
    expect_replay(&gateway.post("/x", "k", "b"), &answer);
    assert_eq!(upstream.hits(), 1);
    eventually("it works again", || {
        gateway.post("/x", "k2", "b").status() == 200
    });
}

/// Every file of the data folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path))
        } else {
            all.push(path)
        }
    }
    all
}

/// Flips one bit in every copy of these bytes in the data folder, or in the first `most` in each file;
/// says in how many.
fn damage(folder: &Path, needle: &[u8], most: usize) -> usize {
    let mut damaged = 0;
    for path in files(folder) {
        let mut bytes = std::fs::read(&path).unwrap();
        let places: Vec<usize> = bytes
            .windows(needle.len())
            .enumerate()
            .filter(|(_, window)| *window == needle)
            .map(|(at, _)| at)
            .take(most)
            .collect();
        for at in &places {
            bytes[at + needle.len() / 2] ^= 0x10;
        }
        if !places.is_empty() {
            std::fs::write(&path, bytes).unwrap();
        }
        damaged += places.len();
    }
    damaged
}

/// Case: a damaged record, a damaged recording. Answer: `outcome-unknown` for that key alone.
#[test]
fn hostile_085_a_damaged_record_makes_its_own_key_unknown() {
    for what in ["body", "key"] {
        let upstream = Upstream::scripted(|x| {
            // What stands in the key too would be packed away.
            let mark: String = x.key().unwrap_or("none").chars().rev().collect();
            x.answer(200, &[], format!("{mark}{}", "z".repeat(40)).as_bytes());
        });
        let mut gateway = gateway(&upstream);
        let keys = ["the-1st-key", "the-2nd-key", "the-3rd-key"];
        let firsts = keys.map(|key| gateway.post("/x", key, "b"));
        firsts.iter().for_each(|first| expect_executed(first, 200));
        gateway.kill();
        let needle = if what == "body" {
            "yek-dn2-eht"
        } else {
            "the-2nd-key"
        };
        assert!(
            damage(gateway.data(), needle.as_bytes(), usize::MAX) > 0,
            "{what} not found in the folder"
        );
        gateway.start_again();
        expect_replay(&gateway.post("/x", keys[0], "b"), &firsts[0]);
        expect_replay(&gateway.post("/x", keys[2], "b"), &firsts[2]);
        for _ in 0..2 {
            let damaged = gateway.post("/x", keys[1], "b");
            damaged
                .expect_problem(502, "outcome-unknown")
                .expect_retry(false);
        }
        assert_eq!(upstream.hits(), 3, "a damaged {what} ran again");
    }
}

/// What is found out when the store is opened is told before any head goes out; what is found out
/// while a body is read breaks that body, and is told from then on.
#[test]
fn hostile_085_i13_a_damaged_recording_makes_its_own_key_unknown() {
    for found_at_the_start in [true, false] {
        // Chunks are 64 KiB: the first one of four is hit.
        let body = noise(200_000);
        let whole = body.clone();
        let upstream = Upstream::scripted(move |x| x.answer(200, &[], &whole));
        let mut gateway = gateway(&upstream);
        let firsts = ["k1", "k2"].map(|key| gateway.post("/x", key, "b"));
        firsts.iter().for_each(|first| expect_executed(first, 200));
        if found_at_the_start {
            gateway.kill();
        } else {
            // What was closed in order is not read again.
            gateway.terminate();
            assert_eq!(gateway.wait_for_exit(), Some(0));
        }
        assert_eq!(damage(gateway.data(), &body[1_000..1_040], 1), 1);
        gateway.start_again();
        if !found_at_the_start {
            let broken = gateway.post("/x", "k1", "b");
            assert!(!broken.whole(), "{broken:?}");
        }
        for _ in 0..2 {
            let damaged = gateway.post("/x", "k1", "b");
            damaged
                .expect_problem(502, "outcome-unknown")
                .expect_retry(false);
        }
        expect_replay(&gateway.post("/x", "k2", "b"), &firsts[1]);
        assert_eq!(upstream.hits(), 2, "a damaged recording ran again");

        let operation = gateway.control().operation("k1");
        assert_eq!(operation["state"], "unknown", "{operation}");
        let id = operation["id"].as_str().expect("an id");
        let found_out = json!({"outcome": "released", "reason": "looked it up"});
        gateway.control().resolve(id, &found_out).expect_status(200);
        expect_executed(&gateway.post("/x", "k1", "b"), 200);
    }
}

/// Case: a data folder of a newer format. Answer: refuses to start, and says why.
#[test]
fn hostile_086_a_newer_format_is_refused_at_the_start() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    expect_executed(&gateway.post("/x", "k", "b"), 200);
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    crate::format::make_newer(gateway.data());
    let before = std::fs::read(gateway.data().join("meta")).unwrap();
    let run = gateway
        .try_start_again()
        .expect_err("it starts on a newer format");
    assert_eq!(run.code, Some(1), "{run:?}");
    one_clear_line(&run.stderr, &["newer"]);
    assert_eq!(
        std::fs::read(gateway.data().join("meta")).unwrap(),
        before,
        "it was touched"
    );
}

/// Standard error is one line that starts with the program's name and says these words.
#[track_caller]
pub fn one_clear_line(stderr: &str, words: &[&str]) {
    let lines: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("onlyonce: "))
        .collect();
    assert_eq!(lines.len(), 1, "one line: {stderr:?}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} in {:?}", lines[0]);
    }
    assert!(
        lines[0].contains(';'),
        "what to do, after a semicolon: {:?}",
        lines[0]
    );
}

/// Case: a second process on a data folder. Answer: refuses to start.
#[test]
fn hostile_087_a_second_process_on_a_data_folder_is_refused() {
    let upstream = Upstream::counting();
    let mut first = gateway(&upstream);
    expect_executed(&first.post("/x", "k", "b"), 200);
    let data = first.data().to_owned();
    let run = match setup(&upstream).data(&data).try_start() {
        Ok(_) => panic!("two processes share one folder"),
        Err(run) => run,
    };
    assert_eq!(run.code, Some(1), "{run:?}");
    one_clear_line(&run.stderr, &[&data.display().to_string()]);
    // The first goes on, and after its death another may have the folder.
    first
        .post("/x", "k", "b")
        .expect_status(200)
        .expect_mark("replayed");
    first.kill();
    let second = setup(&upstream).data(&data).start();
    second
        .post("/x", "k", "b")
        .expect_status(200)
        .expect_mark("replayed");
    assert_eq!(upstream.hits(), 1);
}

/// Case: a file system that takes no writes. Answer: refuses to start; while it runs, 503 and nothing is
/// sent.
#[test]
fn hostile_088_a_folder_that_cannot_be_written_is_refused_at_the_start() {
    let upstream = Upstream::counting();
    // No permission stops root, so a place where nobody can make a folder.
    let run = match setup(&upstream)
        .data(Path::new("/proc/onlyonce-data"))
        .try_start()
    {
        Ok(_) => panic!("it starts without a place to write"),
        Err(run) => run,
    };
    assert_eq!(run.code, Some(1), "{run:?}");
    one_clear_line(&run.stderr, &["/proc/onlyonce-data"]);
}

/// Case: a full disk: at the start, at the claim, at the completion. Answer: refuses to start; 507
/// `storage-full` and nothing is sent; the end is withheld. Works again once there is space.
#[test]
fn hostile_089_a_full_disk_at_the_claim_sends_nothing_and_space_makes_it_work_again() {
    let upstream = Upstream::scripted(|x| x.answer(200, &[], &noise(300 << 10)));
    let (gateway, faults) = faulty(&upstream);
    let first = gateway.post("/x", "k0", "b");
    expect_executed(&first, 200);
    faults.set("full");
    // What was set aside before is filled first. An answer that finds no room at its completion
    // stalls, and the claims after it are refused.
    let mut stalled = Vec::new();
    let refused = loop {
        let hits = upstream.hits();
        let key = format!("k{}", hits + stalled.len());
        let mut client = gateway.begin(&post("/x", &key, "b"));
        client.patience(Duration::from_secs(1));
        let answer = client.try_read_head().map(|_| client.finish());
        match answer {
            Ok(answer) if answer.whole() && upstream.hits() == hits => break answer,
            Ok(answer) if answer.whole() => {}
            _ => stalled.push(client),
        }
        assert!(hits < 100, "the disk is never full");
    };
    refused.expect_problem(507, "storage-full");
    expect_replay(&gateway.post("/x", "k0", "b"), &first);
    let hits = upstream.hits();
    faults.clear();
    eventually("it works again", || {
        gateway.post("/x", "fresh", "b").status() == 200
    });
    assert_eq!(upstream.hits(), hits + 1);
}

/// Case: one fsync fails. Answer: 503 `store-unavailable` until the restart, nothing is sent.
#[test]
fn hostile_090_a_failed_fsync_poisons_until_the_restart() {
    let upstream = Upstream::counting();
    let (mut gateway, faults) = faulty(&upstream);
    let first = gateway.post("/x", "k1", "b");
    expect_executed(&first, 200);
    faults.set("fsync");
    gateway
        .post("/x", "k2", "b")
        .expect_problem(503, "store-unavailable");
    faults.clear();
    // The disk is well again, and nothing that it says can be trusted any more.
    for key in ["k2", "k3", "k4"] {
        gateway
            .post("/x", key, "b")
            .expect_problem(503, "store-unavailable")
            .expect_retry(true);
    }
    assert_eq!(upstream.hits(), 1);
    // Said once, and not with every request.
    let said = |what| gateway.stderr().matches(what).count();
    assert_eq!(said("requests are refused"), 1, "{}", gateway.stderr());
    assert_eq!(said("it takes nothing more"), 1, "{}", gateway.stderr());
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k1", "b"), &first);
    expect_executed(&gateway.post("/x", "k3", "b"), 200);
}

const ENCRYPTED: &str = "[store.encryption]\nactive = 1\nkeys = [{ id = 1, key = \"env:KEY_1\" }]";

/// 32 bytes in hexadecimal.
fn key_of(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// Case: an encryption key that is missing or wrong. Answer: refuses to start, or `outcome-unknown`.
#[test]
fn hostile_091_a_missing_encryption_key_is_refused_at_the_start() {
    let upstream = Upstream::counting();
    let run = match setup(&upstream).extra(ENCRYPTED).try_start() {
        Ok(_) => panic!("it starts without its key"),
        Err(run) => run,
    };
    assert_eq!(run.code, Some(2), "{run:?}");
    one_clear_line(&run.stderr, &["KEY_1"]);
}

#[test]
fn hostile_091_a_wrong_encryption_key_is_refused_or_unknown() {
    let upstream = Upstream::counting();
    let mut gateway = setup(&upstream)
        .extra(ENCRYPTED)
        .env("KEY_1", &key_of(1))
        .start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    gateway.change(|_| setup(&upstream).extra(ENCRYPTED).env("KEY_1", &key_of(2)));
    refused_or_unknown(&mut gateway);
    // Without any encryption, too.
    gateway.change(|_| setup(&upstream));
    refused_or_unknown(&mut gateway);
    // Nothing was lost: with the right key it replays.
    gateway.change(|_| setup(&upstream).extra(ENCRYPTED).env("KEY_1", &key_of(1)));
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

#[track_caller]
fn refused_or_unknown(gateway: &mut Gateway) {
    match gateway.try_start_again() {
        Ok(()) => {
            let answer = gateway.post("/x", "k", "b");
            answer
                .expect_problem(502, "outcome-unknown")
                .expect_retry(false);
        }
        Err(run) => {
            assert_eq!(run.code, Some(1), "{run:?}");
            one_clear_line(&run.stderr, &["key"]);
        }
    }
}

/// Case: one tenant floods the store with new keys. Answer: 429 `quota-exceeded` for these; its retries and
/// all others are served.
#[test]
fn hostile_092_operations_in_flight_meet_the_tenants_quota() {
    let (upstream, go) = held();
    let gateway = setup(&upstream).limits("tenant_live = 5").start();
    let of = |tenant: &str, key: &str| post("/x", key, "b").header("x-api-key", tenant);
    let mut live: Vec<_> = (0..5)
        .map(|n| gateway.begin(&of("one", &format!("k{n}"))))
        .collect();
    upstream.wait_for_hits(5);
    gateway
        .send(&of("one", "k5"))
        .expect_problem(429, "quota-exceeded")
        .expect_retry(true);
    assert_eq!(upstream.hits(), 5);
    live.push(gateway.begin(&of("one", "k0")));
    live.push(gateway.begin(&of("two", "k0")));
    upstream.wait_for_hits(6);
    go.fire();
    for client in &mut live {
        client.response().expect_status(200);
    }
    // Room again.
    eventually("the sixth key runs", || {
        gateway.send(&of("one", "k5")).status() == 200
    });
    assert_eq!(upstream.hits(), 7);
}

#[test]
fn hostile_092_retries_never_meet_the_quota() {
    // The quota counts records, not requests.
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .limits("tenant_records = 1\ntenant_live = 1")
        .start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    for _ in 0..10 {
        expect_replay(&gateway.post("/x", "k", "b"), &first);
    }
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_092_a_flood_of_new_keys_meets_the_tenants_quota() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).limits("tenant_records = 20").start();
    let of = |tenant: &str, key: &str| post("/x", key, "b").header("x-api-key", tenant);
    for n in 0..20 {
        expect_executed(&gateway.send(&of("one", &format!("k{n}"))), 200);
    }
    for n in 20..25 {
        let refused = gateway.send(&of("one", &format!("k{n}")));
        refused.expect_problem(429, "quota-exceeded");
    }
    assert_eq!(upstream.hits(), 20);
    // What it has still answers, and nobody else is stalled.
    gateway
        .send(&of("one", "k7"))
        .expect_status(200)
        .expect_mark("replayed");
    expect_executed(&gateway.send(&of("two", "k7")), 200);
}
