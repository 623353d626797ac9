//! Expired space comes back, and nothing that counts goes with it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::Got;
use onlyonce_store::{
    AttemptNote, PostgresStore, Seen, Shown, Store, Swap, clock::ManualClock, postgres::Options,
};
use onlyonce_testkit::Postgres;

use crate::support::{
    OWNER, WINDOW, assert_holds, at, claim, complete, completed, finish, fresh_url, lose, open,
    schema_of, swap,
};

async fn open_on(url: &str, clock: &ManualClock) -> Arc<PostgresStore> {
    let options = Options {
        clock: Some(Arc::new(clock.clone())),
        ..Options::default()
    };
    open(url, options).await
}

/// The rows of a table, and the partitions that it has.
fn count(url: &str, table: &str) -> (u64, u64) {
    let schema = schema_of(url);
    let counts = Postgres::shared().sql(&format!(
        "SELECT (SELECT count(*) FROM {schema}.{table}), count(*) FROM pg_inherits
        WHERE inhparent = '{schema}.{table}'::regclass"
    ));
    let (rows, partitions) = counts.split_once('|').expect("two counts");
    (
        rows.parse().expect("a count"),
        partitions.parse().expect("a count"),
    )
}

/// Sweeps until nothing more happens.
async fn sweep(store: &PostgresStore) -> u64 {
    let mut bytes = 0;
    for _ in 0..20 {
        bytes += store.sweep().await.expect("a sweep").bytes;
    }
    bytes
}

/// Fat rows are never deleted: their partition is dropped, with all that stood in it.
#[tokio::test]
async fn l7_expired_space_comes_back_by_partitions() {
    let url = fresh_url();
    let clock = ManualClock::default();
    let store = open_on(&url, &clock).await;
    let body = Bytes::from(vec![7; 100]);
    for number in 0..50 {
        let key = format!("k{number}");
        let record = claim(&store, &key).await;
        let append = store.append(at(&store, &key), record.recording(), 0, body.clone());
        append.await.expect("it runs");
        let next = completed(&store, &record, 2, &body);
        let swapped = swap(&store, &key, Some(&record), &next, Some(body.clone())).await;
        assert!(matches!(swapped, Ok(Swap::Done { .. })));
    }
    assert_eq!(count(&url, "records").0, 50);
    assert_eq!(count(&url, "chunks").0, 50);
    clock.advance(WINDOW);
    sweep(&store).await;
    assert_eq!(count(&url, "operations").0, 0, "thin rows go at once");
    assert_eq!(store.status().records, 0);
    // The windows end within a period that is not over yet.
    assert_eq!(count(&url, "records").0, 50);
    clock.advance(Duration::from_secs(12 * 3600));
    let bytes = sweep(&store).await;
    assert_eq!(count(&url, "records").0, 0);
    assert_eq!(count(&url, "chunks").0, 0);
    assert!(bytes > 50 * 100, "{bytes}");
    let partitions = count(&url, "records").1;
    for _ in 0..8 {
        clock.advance(WINDOW);
        sweep(&store).await;
    }
    assert!(count(&url, "records").1 <= partitions, "partitions pile up");
    finish(&store, "again").await;
}

/// What runs, is unknown, or has a longer window than was guessed, is moved before its partition goes.
#[tokio::test]
async fn i11_what_counts_outlives_its_partition() {
    let url = fresh_url();
    let clock = ManualClock::default();
    let store = open_on(&url, &clock).await;
    let body = Bytes::from(vec![7; 100]);
    let joined = AttemptNote {
        peer: "joiner".into(),
        sdk_retry_count: None,
        trace: None,
        got: Got::Joined,
        at: None,
    };
    let mut kept = Vec::new();
    for key in ["running", "unknown", "long"] {
        let record = claim(&store, key).await;
        let append = store.append(at(&store, key), record.recording(), 0, body.clone());
        append.await.expect("it runs");
        store
            .note_attempt(at(&store, key), record.id, joined.clone())
            .await
            .expect("noted");
        let record = match key {
            "unknown" => lose(&store, key, &record).await,
            "long" => {
                // The window turns out ten times as long as the store had guessed.
                let response = onlyonce_core::transition::Response {
                    head: onlyonce_core::Head::default(),
                    trailers: onlyonce_core::HeaderBlock::default(),
                    body_len: 200,
                    chunks: 2,
                };
                let next = onlyonce_core::transition::complete(
                    Some(&record),
                    record.fence(),
                    response,
                    store.now(),
                    10 * WINDOW,
                )
                .expect("in flight");
                let swapped = swap(&store, key, Some(&record), &next, Some(body.clone())).await;
                assert!(matches!(swapped, Ok(Swap::Done { .. })));
                next
            }
            _ => record,
        };
        kept.push((key, record));
    }
    for _ in 0..9 {
        clock.advance(WINDOW);
        sweep(&store).await;
        for (key, record) in &kept {
            assert_holds(&store, key, record).await;
            let chunk = store.read(at(&store, key), record.recording(), 0).await;
            assert_eq!(chunk.expect("its chunk"), body, "{key}");
            let attempts = store.attempts(at(&store, key), record.id).await;
            let attempts = attempts.expect("an answer");
            let got: Vec<Got> = attempts.iter().map(|attempt| attempt.got).collect();
            assert_eq!(got, [Got::Executed, Got::Joined], "{key}");
        }
        let schema = schema_of(&url);
        let first = Postgres::shared().sql(&format!(
            "SELECT count(*) FROM {schema}.periods WHERE ends_at + 700000 < {}",
            store.now().as_millis()
        ));
        assert_eq!(first, "0", "the old partitions are gone");
    }
    // Both still end as they should.
    let (_, running) = &kept[0];
    let next = completed(&store, running, 2, &body);
    let swapped = swap(&store, "running", Some(running), &next, Some(body.clone())).await;
    assert!(matches!(swapped, Ok(Swap::Done { .. })), "{swapped:?}");
    assert_holds(&store, "running", &next).await;
    let (_, unknown) = &kept[1];
    complete(&store, "unknown", unknown, &body).await;
}

/// A long reader of the tables keeps a partition, and nobody waits behind it.
#[tokio::test]
async fn a_partition_in_use_is_dropped_later() {
    let url = fresh_url();
    let clock = ManualClock::default();
    let store = open_on(&url, &clock).await;
    finish(&store, "k").await;
    clock.advance(2 * WINDOW);
    let schema = schema_of(&url);
    let (client, driver) =
        tokio_postgres::connect(&Postgres::shared().url(), tokio_postgres::NoTls)
            .await
            .expect("a connection");
    let driver = tokio::spawn(driver);
    let reading = format!("BEGIN; SELECT count(*) FROM {schema}.records");
    client.batch_execute(&reading).await.expect("a reader");
    sweep(&store).await;
    assert_eq!(count(&url, "records").0, 1, "it is read still");
    finish(&store, "other").await;
    client.batch_execute("COMMIT").await.expect("it ends");
    sweep(&store).await;
    assert_eq!(
        count(&url, "records").0,
        1,
        "the old one is gone, the new one is not"
    );
    driver.abort();
}

/// What is shown is forgotten some seconds after its operation has ended, and no sooner.
#[tokio::test]
async fn what_is_shown_is_forgotten_when_its_operation_is_over() {
    let clock = ManualClock::default();
    let url = fresh_url();
    let store = open_on(&url, &clock).await;
    let ends = claim(&store, "ends").await;
    let runs = claim(&store, "runs").await;
    for (key, record) in [("ends", &ends), ("runs", &runs)] {
        let (address, recording) = (at(&store, key), record.recording());
        let (seen, wait) = (Seen::default(), Duration::ZERO);
        let followed = store.follow(address, recording, OWNER, seen, wait).await;
        assert_eq!(followed.expect("a store that answers"), None);
        let shown = Shown {
            bytes: "x".into(),
            ..Shown::default()
        };
        let shown = store.show(address, recording, shown).await;
        shown.expect("a store that answers");
    }
    complete(&store, "ends", &ends, &"x".into()).await;
    for (later, tails, follows) in [(9, 2, 2), (2, 1, 2), (50, 1, 0)] {
        clock.advance(Duration::from_secs(later));
        sweep(&store).await;
        let counts = ["tails", "frames", "follows"].map(|table| count(&url, table).0);
        assert_eq!(counts, [tails, tails, follows]);
    }
}
