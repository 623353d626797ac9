//! What is kept, and how: durable, sealed, counted.

use std::sync::Arc;

use bytes::Bytes;
use onlyonce_store::{
    Query, Shown, Store, StoreError, Swap,
    postgres::{EncryptionKeys, Options},
};
use onlyonce_testkit::Postgres;
use tokio::task::JoinSet;

use crate::support::{
    assert_holds, at, claim, complete, completed, finish, fresh_url, lose, note, open, open_fresh,
    schema_of, swap, try_claim,
};

/// What was acknowledged is on the disk, also where the server's own default is not to wait for it.
#[tokio::test]
async fn commits_are_durable_whatever_the_server_s_default_is() {
    // Nobody else writes to the log of this server, and nobody writes it out by the way.
    let server = Postgres::start(&[
        "synchronous_commit=off",
        "wal_writer_delay=10s",
        "autovacuum=off",
        "wal_level=minimal",
        "max_wal_senders=0",
    ]);
    let store = open(&server.url(), Options::default()).await;
    let flushed = |what: &str| {
        let rest = server.sql("SELECT pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn()");
        let rest: u64 = rest.parse().expect("bytes");
        // Less than any commit; looking itself may leave a few bytes.
        assert!(rest < 100, "{what} was not flushed: {rest} bytes");
    };
    let record = claim(&store, "k").await;
    flushed("a claim");
    let recording = record.recording();
    let append = store.append(at(&store, "k"), recording, 0, "chunk".into());
    append.await.expect("it runs");
    flushed("a chunk");
    let next = lose(&store, "k", &record).await;
    flushed("a change");
    assert!(
        store
            .remove(at(&store, "k"), next.fence())
            .await
            .expect("removed")
    );
    flushed("a removal");
}

#[tokio::test]
async fn i16_keys_and_bodies_at_rest_are_encrypted() {
    let url = fresh_url();
    let encryption = EncryptionKeys {
        active: 1,
        keys: [(1, [7; 32])].into(),
    };
    let options = Options {
        encryption: Some(encryption),
        ..Options::default()
    };
    let store = open(&url, options).await;
    let record = claim(&store, "PLAIN-key").await;
    let append = store.append(
        at(&store, "PLAIN-key"),
        record.recording(),
        0,
        "PLAIN".into(),
    );
    append.await.expect("it runs");
    store
        .note_attempt(at(&store, "PLAIN-key"), record.id, note())
        .await
        .expect("noted");
    let shown = Shown {
        head: "PLAIN head".into(),
        bytes: "PLAIN frame".into(),
        ..Shown::default()
    };
    let show = store.show(at(&store, "PLAIN-key"), record.recording(), shown);
    show.await.expect("shown");
    let other = claim(&store, "PLAIN-other").await;
    complete(&store, "PLAIN-other", &other, &"PLAIN body".into()).await;

    let dump = Postgres::shared().dump(schema_of(&url));
    assert!(dump.len() > 2_000, "{dump}");
    let hex = |text: &str| {
        text.bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    for secret in ["PLAIN", "acme", "openai", "192.0.2.7"] {
        assert!(
            !dump.contains(secret) && !dump.contains(&hex(secret)),
            "{secret} is there"
        );
    }
}

#[tokio::test]
async fn i15_a_full_store_takes_no_claim_and_works_again_when_there_is_room() {
    let options = Options {
        max_records: 3,
        ..Options::default()
    };
    let store = open(&fresh_url(), options).await;
    let first = finish(&store, "k1").await;
    claim(&store, "k2").await;
    claim(&store, "k3").await;
    let refused = try_claim(&store, "k4").await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert!(
        store
            .remove(at(&store, "k1"), first.fence())
            .await
            .expect("removed")
    );
    claim(&store, "k4").await;
}

#[tokio::test]
async fn i15_a_tenant_s_records_are_limited_over_all_gateways() {
    let url = fresh_url();
    let options = Options {
        max_tenant_records: 2,
        ..Options::default()
    };
    let store = open(&url, options.clone()).await;
    finish(&store, "k1").await;
    claim(&store, "k2").await;
    let refused = try_claim(&store, "k3").await;
    assert!(
        matches!(refused, Err(StoreError::OverLimit("tenant_records"))),
        "{refused:?}"
    );
    let other = open(&url, options).await;
    let refused = try_claim(&other, "k4").await;
    assert!(
        matches!(refused, Err(StoreError::OverLimit("tenant_records"))),
        "{refused:?}"
    );
}

/// Gateways that call the same dead owner's claims unknown at the same moment get in each other's way
/// one by one, and never in a ring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_many_gateways_never_deadlock() {
    let url = fresh_url();
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(open(&url, Options::default()).await);
    }
    let deadlocks = || Postgres::shared().sql("SELECT sum(deadlocks) FROM pg_stat_database");
    let before = deadlocks();
    for round in 0..20 {
        let mut records = Vec::new();
        for number in 0..50 {
            let key = format!("k{round}-{number}");
            records.push((key.clone(), claim(&stores[0], &key).await));
        }
        let records = Arc::new(records);
        let mut tasks = JoinSet::new();
        for (turn, store) in stores.iter().enumerate() {
            for number in 0..records.len() {
                let (store, records) = (store.clone(), records.clone());
                // Each in another order.
                let number = (number * [1, 7, 49][turn] + turn) % records.len();
                tasks.spawn(async move {
                    let (key, record) = &records[number];
                    let next = onlyonce_core::transition::lose(
                        Some(record),
                        record.fence(),
                        onlyonce_core::UnknownReason::LeasePassed,
                        store.now(),
                    );
                    let next = next.expect("running");
                    let swapped =
                        crate::support::swap(&store, key, Some(record), &next, None).await;
                    swapped.expect("no deadlock") != onlyonce_store::Swap::Lost
                });
            }
        }
        let won = tasks
            .join_all()
            .await
            .into_iter()
            .filter(|&won| won)
            .count();
        assert_eq!(won, records.len(), "each claim is lost once");
    }
    assert_eq!(deadlocks(), before);
}

/// Two gateways see the same store: secret, records, the other's claims.
#[tokio::test]
async fn gateways_that_share_a_schema_share_all() {
    let url = fresh_url();
    let one = open(&url, Options::default()).await;
    let other = open(&url, Options::default()).await;
    assert_eq!(one.secret(), other.secret());
    let kept = finish(&one, "k").await;
    crate::support::assert_holds(&other, "k", &kept).await;
    assert_eq!(
        other.find(kept.id).await.expect("an answer"),
        Some(at(&one, "k"))
    );
    let query = Query {
        limit: 10,
        ..Query::default()
    };
    assert_eq!(other.list(query).await.expect("a page").records.len(), 1);
}

/// The store's clock is the server's, and not behind it by more than the way there and back.
#[tokio::test]
async fn i11_the_clock_is_the_server_s() {
    let store = open_fresh().await;
    for _ in 0..20 {
        let before = store.now();
        let server = Postgres::shared()
            .sql("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::int8");
        let after = store.now();
        let server: u64 = server.parse().expect("milliseconds");
        assert!(
            before.as_millis() <= server,
            "{before:?} is ahead of {server}"
        );
        assert!(
            after.as_millis() + 100 >= server,
            "{after:?} is behind {server}"
        );
    }
}

/// A completed record that lacks a chunk is unknown, keeps its attempts, and takes a late answer under
/// the fence that it has.
#[tokio::test]
async fn i13_a_completed_record_without_a_chunk_is_unknown_and_takes_an_answer() {
    let url = fresh_url();
    let store = open(&url, Options::default()).await;
    let (address, body) = (at(&store, "k"), Bytes::from_static(b"hello"));
    let claimed = claim(&store, "k").await;
    let append = store.append(address, claimed.recording(), 0, body.clone());
    append.await.expect("it runs");
    let held = completed(&store, &claimed, 2, &body);
    let swapped = swap(&store, "k", Some(&claimed), &held, Some(body.clone())).await;
    assert!(matches!(swapped, Ok(Swap::Done { .. })), "{swapped:?}");
    let attempts = store.attempts(address, held.id).await.expect("an answer");

    let delete = format!("DELETE FROM {}.chunks", schema_of(&url));
    Postgres::shared().sql(&delete);
    let read = store.read(address, held.recording(), 0).await;
    assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    let unknown = held.without_recording();
    // For another gateway, too.
    for store in [&store, &open(&url, Options::default()).await] {
        assert_holds(store, "k", &unknown).await;
        let kept = store.attempts(address, unknown.id).await;
        assert_eq!(kept.expect("an answer"), attempts);
    }
    let answered = complete(&store, "k", &unknown, &body).await;
    assert_holds(&store, "k", &answered).await;
    let read = store.read(address, answered.recording(), 0).await;
    assert_eq!(read.expect("its chunk"), body);
    let kept = store.attempts(address, answered.id).await;
    assert_eq!(kept.expect("an answer"), attempts);
}
