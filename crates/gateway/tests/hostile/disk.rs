//! Cases 88 and 89 beside the store's own writes: a file system that is read-only, and a disk that is
//! full for what is not a record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onlyonce_testkit::{Signal, Upstream, eventually, read_only};

use crate::faults::Faults;
use crate::store::one_clear_line;
use crate::{expect_executed, expect_replay, post, setup};

/// The name and content of every file in a data folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn hostile_088_a_read_only_file_system_is_refused_at_the_start_and_nothing_is_lost() {
    let disk = tempfile::tempdir().unwrap();
    let Some(wrapper) = read_only(disk.path()) else {
        return;
    };
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let upstream = Upstream::counting();
    let data = disk.path().join("data");
    let mut gateway = setup(&upstream).data(&data).start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    gateway.kill();
    let before = contents(&data);
    for folder in [&data, &disk.path().join("new")] {
        let run = match setup(&upstream).data(folder).under(&wrapper).try_start() {
            Ok(_) => panic!("it starts where it cannot write"),
            Err(run) => run,
        };
        assert_eq!(run.code, Some(1), "{run:?}");
        one_clear_line(&run.stderr, &[&folder.display().to_string(), "Read-only"]);
    }
    assert!(contents(&data) == before, "the folder was touched");
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_088_a_file_system_that_turns_read_only_sends_nothing_and_loses_nothing() {
    let upstream = Upstream::counting();
    let faults = Faults::new();
    let mut gateway = faults.on(setup(&upstream)).start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    faults.set("readonly");
    for key in ["k1", "k2"] {
        gateway
            .post("/x", key, "b")
            .expect_problem(503, "store-unavailable")
            .expect_retry(true);
    }
    assert_eq!(upstream.hits(), 1);
    gateway.kill();
    faults.clear();
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    expect_executed(&gateway.post("/x", "k1", "b"), 200);
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn hostile_089_a_full_disk_at_the_start_is_refused_and_nothing_is_lost() {
    let upstream = Upstream::counting();
    let faults = Faults::new();
    let mut gateway = faults.on(setup(&upstream)).start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    gateway.kill();
    faults.set("full");
    let run = gateway
        .try_start_again()
        .expect_err("it starts on a full disk");
    assert_eq!(run.code, Some(1), "{run:?}");
    let folder = gateway.data().display().to_string();
    one_clear_line(&run.stderr, &[&folder, "No space left", "space"]);
    // A folder that is new, too.
    let data = gateway.folder().join("new");
    let run = match faults.on(setup(&upstream)).data(&data).try_start() {
        Ok(_) => panic!("it starts on a full disk"),
        Err(run) => run,
    };
    assert_eq!(run.code, Some(1), "{run:?}");
    one_clear_line(&run.stderr, &[&data.display().to_string(), "No space left"]);
    faults.clear();
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_089_a_body_that_finds_no_room_to_wait_claims_nothing() {
    let upstream = Upstream::counting();
    let faults = Faults::new();
    let gateway = faults.on(setup(&upstream)).start();
    // Above limits.spool_above it waits on disk.
    let body = "x".repeat(2 << 20);
    faults.set("full");
    gateway
        .post("/x", "k", &body)
        .expect_problem(507, "storage-full")
        .expect_retry(true);
    assert_eq!(upstream.hits(), 0);
    assert!(gateway.control().operations("k").is_empty());
    faults.clear();
    expect_executed(&gateway.post("/x", "k", &body), 200);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_089_a_log_that_finds_no_room_stops_nothing() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun, ");
        wait.wait();
        x.chunk("and ended");
        x.end_chunks();
    });
    let mut gateway = setup(&upstream)
        .under(&["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"])
        .start();
    let mut running = gateway.begin(&post("/x", "k", "b"));
    running.read_head();
    running.read_until("begun");
    // Each of these is logged.
    let purged = gateway.control().post("/v1/purge", &serde_json::json!({}));
    assert_eq!(purged.status(), 200, "{purged:?}");
    gateway.terminate();
    eventually("it drains", || {
        std::net::TcpStream::connect(gateway.addr()).is_err()
    });
    go.fire();
    let answer = running.finish();
    assert!(answer.whole(), "{answer:?}");
    assert_eq!(gateway.wait_for_exit(), Some(0));
    gateway.start_again();
    gateway
        .post("/x", "k", "b")
        .expect_status(200)
        .expect_mark("replayed");
    assert_eq!(upstream.hits(), 1);
}
