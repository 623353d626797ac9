//! Encryption at rest: keys change, and it is switched on for what was begun without.

use onlyonce_testkit::{Setup, Upstream};

use crate::{expect_executed, expect_replay, setup};

/// 32 bytes in hexadecimal.
fn key_of(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// Sealed with the first of these keys; the others open what they sealed.
fn sealed(upstream: &Upstream, ids: &[u8]) -> Setup {
    let keys: Vec<_> = ids
        .iter()
        .map(|id| format!("{{ id = {id}, key = \"env:KEY_{id}\" }}"))
        .collect();
    let text = format!(
        "[store.encryption]\nactive = {}\nkeys = [{}]",
        ids[0],
        keys.join(", ")
    );
    ids.iter().fold(setup(upstream).extra(&text), |setup, id| {
        setup.env(&format!("KEY_{id}"), &key_of(*id))
    })
}

#[test]
fn a_new_key_seals_what_is_new_and_the_old_one_opens_what_was() {
    let upstream = Upstream::counting();
    let mut gateway = sealed(&upstream, &[1]).start();
    let first = gateway.post("/x", "k1", "b");
    expect_executed(&first);

    gateway.change(|_| sealed(&upstream, &[2, 1]));
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k1", "b"), &first);
    let second = gateway.post("/x", "k2", "b");
    expect_executed(&second);

    // Once the old key is gone, what it sealed is unknown, and never new.
    gateway.change(|_| sealed(&upstream, &[2]));
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k2", "b"), &second);
    gateway
        .post("/x", "k1", "b")
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    expect_executed(&gateway.post("/x", "k3", "b"));

    // And it is not lost: with both keys it is there again.
    gateway.change(|_| sealed(&upstream, &[2, 1]));
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k1", "b"), &first);
    assert_eq!(upstream.hits(), 3);
}

#[test]
fn a_folder_that_was_begun_in_the_clear_is_sealed_from_then_on() {
    let upstream = Upstream::scripted(|x| {
        let body = format!("the answer to {}", x.path());
        x.answer(200, &[], body.as_bytes());
    });
    let mut gateway = setup(&upstream).start();
    let first = gateway.post("/open", "k1", "b");
    expect_executed(&first);
    gateway.change(|_| sealed(&upstream, &[1]));
    gateway.start_again();
    expect_replay(&gateway.post("/open", "k1", "b"), &first);
    let second = gateway.post("/sealed", "a-key-that-is-sealed", "b");
    expect_executed(&second);
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    for entry in std::fs::read_dir(gateway.data()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for clear in ["/sealed", "a-key-that-is-sealed"] {
            let found = bytes.windows(clear.len()).any(|w| w == clear.as_bytes());
            assert!(!found, "{clear} in {}", path.display());
        }
    }
    // It cannot be switched off again.
    gateway.change(|_| setup(&upstream));
    let run = gateway
        .try_start_again()
        .expect_err("it starts without its key");
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(
        run.stderr.lines().count() == 1 && run.stderr.contains("; "),
        "one line, with what to do: {run:?}"
    );
    gateway.change(|_| sealed(&upstream, &[1]));
    gateway.start_again();
    expect_replay(
        &gateway.post("/sealed", "a-key-that-is-sealed", "b"),
        &second,
    );
    assert_eq!(upstream.hits(), 2);
}
