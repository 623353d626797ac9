//! The examples do what their pages say.

use onlyonce_testkit::{Upstream, example};

/// Runs it twice for one order, as a person would.
fn sends_one_key_however_often_it_is_run(name: &str) {
    let upstream = Upstream::counting();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{}/v1/charges", upstream.url());
    for run in 1..=2 {
        let mut command = example(name);
        // It keeps its keys in the folder of temporary files.
        command.env("TMPDIR", folder.path());
        let said = command.args([&*url, "order-17"]).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(text.starts_with("200 OK\n"), "{text}");
        assert_eq!(upstream.hits(), run);
    }
    let seen = upstream.seen();
    let keys: Vec<_> = seen
        .iter()
        .map(|seen| seen.head.header("idempotency-key"))
        .collect();
    assert!(keys[0].is_some() && keys[0] == keys[1], "{keys:?}");
}

#[test]
fn the_example_charge_sends_one_key_however_often_it_is_run() {
    sends_one_key_however_often_it_is_run("charge");
}

#[test]
fn the_example_reqwest_sends_one_key_however_often_it_is_run() {
    sends_one_key_however_often_it_is_run("reqwest");
}
