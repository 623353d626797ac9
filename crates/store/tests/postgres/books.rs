//! The books, where a server shows more than the rules for every store.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use onlyonce_core::{OperationId, Timestamp};
use onlyonce_store::{
    Books, PostgresStore, Store, StoreError,
    books::{Begin, Hold},
    clock::ManualClock,
    postgres::{EncryptionKeys, Options},
};
use onlyonce_testkit::Postgres;
use tokio::task::JoinSet;

use crate::support::{OWNER, book, booked, enter, fresh_url, metered, open, schema_of, summed};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn open_on(url: &str, clock: &ManualClock) -> Arc<PostgresStore> {
    let options = Options {
        clock: Some(Arc::new(clock.clone())),
        ..Options::default()
    };
    open(url, options).await
}

/// A transaction that began before others and ends after them brings its entry to its place: nobody has
/// seen by then what stands behind it.
#[tokio::test]
async fn i08_what_commits_late_is_booked_and_nothing_appears_before_what_was_seen() {
    let server = Postgres::start(&[]);
    let store = open(&server.url(), Options::default()).await;
    let connected = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await;
    let (early, driver) = connected.expect("a connection");
    tokio::spawn(driver);
    let begin = "BEGIN; SELECT pg_current_xact_id()";
    early.batch_execute(begin).await.expect("it has a number");
    let id = enter(&store, "behind").await.id;
    let waiting = store.book().await.expect("an answer");
    assert_eq!(waiting.entries, 0, "it may be overtaken");
    assert!(waiting.oldest.is_some(), "it is known to wait");
    assert!(booked(&store).await.is_empty());
    // An entry as another gateway would write it.
    let insert = "INSERT INTO onlyonce.ledger (n, day, id, at, tenant_tag, route_tag, model_tag, entry)
        SELECT n, day, id, at, tenant_tag, route_tag, model_tag, entry FROM onlyonce.ledger; COMMIT";
    early.batch_execute(insert).await.expect("it commits");
    server.settle();
    assert_eq!(book(&store).await, 2);
    assert_eq!(booked(&store).await, [id, id]);
    assert_eq!(summed(&store).await, 2);
}

/// Gateways that write and book at once, and readers that read on meanwhile: each entry is seen once, by
/// each reader, in the same order, and the sums say the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i08_readers_beside_writers_and_bookers_see_each_entry_once() {
    const EACH: usize = 150;
    let server = Postgres::start(&[]);
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(open(&server.url(), Options::default()).await);
    }
    let mut writers = JoinSet::new();
    for (number, store) in stores.iter().enumerate() {
        for worker in 0..4 {
            let store = store.clone();
            writers.spawn(async move {
                let mut ids = Vec::new();
                for turn in 0..EACH {
                    ids.push(enter(&store, &format!("{number}-{worker}-{turn}")).await.id);
                }
                ids
            });
        }
    }
    let mut readers = JoinSet::new();
    for store in &stores {
        let store = store.clone();
        readers.spawn(async move {
            let (mut seen, mut after) = (Vec::new(), None);
            while seen.len() < 3 * 4 * EACH {
                store.book().await.expect("booked");
                let page = store.feed(after, 37).await.expect("a feed");
                after = page.last().map(|(position, _)| *position).or(after);
                seen.extend(page.into_iter().map(|(_, entry)| entry.id));
                tokio::task::yield_now().await;
            }
            seen
        });
    }
    let written: BTreeSet<OperationId> = writers.join_all().await.into_iter().flatten().collect();
    let order = booked_after(readers.join_all().await, &stores[0]).await;
    assert_eq!(order.len(), written.len());
    assert_eq!(order.into_iter().collect::<BTreeSet<_>>(), written);
    assert_eq!(summed(&stores[1]).await, written.len() as i64);
}

/// What each reader saw is what stands in the books.
async fn booked_after(seen: Vec<Vec<OperationId>>, store: &PostgresStore) -> Vec<OperationId> {
    let order = booked(store).await;
    for seen in seen {
        assert_eq!(seen, order);
    }
    order
}

/// What was restored to a cluster whose transactions have lower numbers: what is written there comes
/// behind all that was there, and what was not booked yet is booked.
#[tokio::test]
async fn a_cluster_that_counts_anew_goes_on_behind_what_was_there() {
    let url = fresh_url();
    let (server, schema) = (Postgres::shared(), schema_of(&url));
    let store = open(&url, Options::default()).await;
    let mut ids = vec![enter(&store, "booked").await.id];
    server.settle();
    assert_eq!(book(&store).await, 1);
    let hold = Hold {
        sink: "a".into(),
        owner: OWNER,
        lease: Duration::from_secs(1),
        begin: Begin::Now,
    };
    store.hold(hold.clone()).await.expect("an answer");
    ids.push(enter(&store, "kept").await.id);
    store.close().await.expect("closed");
    for (table, column) in [("ledger", "xid"), ("books", "mark_xid"), ("sinks", "xid")] {
        server.sql(&format!(
            "UPDATE {schema}.{table} SET {column} = {column} + (1::int8 << 40)"
        ));
    }
    for key in ["new", "newer"] {
        let store = open(&url, Options::default()).await;
        ids.push(enter(&store, key).await.id);
    }
    let last = "SELECT max(xid) - max(shift) < 1::int8 << 40";
    let last = server.sql(&format!("{last} FROM {schema}.ledger, {schema}.books"));
    assert_eq!(last, "t", "it is shifted once");
    server.settle();
    let store = open(&url, Options::default()).await;
    assert_eq!(book(&store).await, 3);
    assert_eq!(booked(&store).await, ids);
    let held = store.hold(hold).await.expect("an answer").expect("held");
    let rest = store.feed(held.position, 10).await.expect("a feed");
    let rest: Vec<_> = rest.into_iter().map(|(_, entry)| entry.id).collect();
    assert_eq!(rest, ids[1..], "its sink goes on where it was");
}

/// A damaged entry is passed over, and the others are in the books.
#[tokio::test]
async fn i13_a_damaged_entry_stops_nobody() {
    let url = fresh_url();
    let store = open(&url, Options::default()).await;
    let mut ids = Vec::new();
    for key in ["one", "two", "three"] {
        ids.push(enter(&store, key).await.id);
    }
    let damaged = u128::from_be_bytes(*ids.remove(1).as_bytes());
    Postgres::shared().sql(&format!(
        "UPDATE {}.ledger SET entry = set_byte(entry, 9, get_byte(entry, 9) # 64)
        WHERE id = '{damaged:032x}'",
        schema_of(&url)
    ));
    Postgres::shared().settle();
    book(&store).await;
    assert_eq!(booked(&store).await, ids);
    assert_eq!(summed(&store).await, 2);
}

/// A gateway that was not given the key yet passes over nothing.
#[tokio::test]
async fn what_another_gateway_can_read_is_left_to_it() {
    let url = fresh_url();
    let with = |active, ids: &[u32]| Options {
        encryption: Some(EncryptionKeys {
            active,
            keys: ids.iter().map(|&id| (id, [id as u8; 32])).collect(),
        }),
        ..Options::default()
    };
    let former = open(&url, with(1, &[1])).await;
    let rotated = open(&url, with(2, &[1, 2])).await;
    enter(&rotated, "k").await;
    Postgres::shared().settle();
    let refused = former.book().await;
    assert!(
        matches!(refused, Err(StoreError::Corrupt(_))),
        "{refused:?}"
    );
    assert_eq!(book(&rotated).await, 1);
    assert_eq!(summed(&former).await, 1);
}

/// A day that is over is closed when all in it is booked, then takes nothing, and can be dropped. What is
/// late goes to a day that is open.
#[tokio::test]
async fn a_day_is_closed_and_dropped_when_it_is_booked() {
    let (url, clock) = (fresh_url(), ManualClock::default());
    let (server, schema) = (Postgres::shared(), schema_of(&url));
    let store = open_on(&url, &clock).await;
    let kept = enter(&store, "k").await;
    clock.advance(2 * DAY);
    // Another gateway, whose clock is as far.
    let other = open_on(&url, &clock).await;
    let tables = || {
        server.sql(&format!(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = '{schema}.ledger'::regclass"
        ))
    };
    assert_eq!(tables(), "4");
    other.trim(store.now()).await.expect("trimmed");
    assert_eq!(tables(), "4", "something is not booked");
    server.settle();
    assert_eq!(book(&store).await, 1);
    let long_ago = Timestamp::from_millis(0);
    other.trim(long_ago).await.expect("trimmed");
    assert_eq!(tables(), "4");
    assert_eq!(booked(&store).await, [kept.id]);
    let connected = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await;
    let (client, driver) = connected.expect("a connection");
    tokio::spawn(driver);
    let copy = format!(
        "INSERT INTO {schema}.ledger (n, day, id, at, tenant_tag, route_tag, model_tag, entry)
        SELECT n, day, id, at, tenant_tag, route_tag, model_tag, entry FROM {schema}.ledger"
    );
    let refused = client.batch_execute(&copy).await.expect_err("it is closed");
    let refused = refused
        .as_db_error()
        .map(|error| error.message().to_owned());
    assert!(refused.is_some_and(|why| why.contains("closed")));

    // Of a gateway whose clock stands, and which believes that there is a table for it.
    let behind = open_on(&url, &ManualClock::default()).await;
    let late = enter(&behind, "late").await;
    server.settle();
    assert_eq!(book(&store).await, 1);
    assert_eq!(booked(&store).await, [kept.id, late.id]);
    other.trim(store.now()).await.expect("trimmed");
    assert_eq!(tables(), "2");
    assert_eq!(booked(&store).await, [late.id]);
    assert_eq!(summed(&store).await, 0);
    let later = enter(&behind, "later").await;
    server.settle();
    assert_eq!(book(&store).await, 1);
    assert_eq!(booked(&store).await, [late.id, later.id]);
}

/// A reader of a day keeps it, and nobody waits behind that.
#[tokio::test]
async fn a_day_in_use_is_dropped_later() {
    let (url, clock) = (fresh_url(), ManualClock::default());
    let store = open_on(&url, &clock).await;
    enter(&store, "k").await;
    Postgres::shared().settle();
    book(&store).await;
    clock.advance(2 * DAY);
    let reading = format!("SELECT count(*) FROM {}.ledger", schema_of(&url));
    let server = Postgres::shared().url();
    let connected = tokio_postgres::connect(&server, tokio_postgres::NoTls).await;
    let (client, driver) = connected.expect("a connection");
    tokio::spawn(driver);
    let begin = format!("BEGIN; {reading}");
    client.batch_execute(&begin).await.expect("a reader");
    store.trim(store.now()).await.expect("trimmed");
    assert_eq!(booked(&store).await.len(), 1, "it is read still");
    enter(&store, "other").await;
    client.batch_execute("COMMIT").await.expect("it ends");
    store.trim(store.now()).await.expect("trimmed");
    assert!(booked(&store).await.is_empty());
}

/// An entry is sealed as its record is. Sums stand under names in the clear.
#[tokio::test]
async fn i16_entries_at_rest_are_encrypted() {
    let url = fresh_url();
    let options = Options {
        encryption: Some(EncryptionKeys {
            active: 1,
            keys: [(1, [7; 32])].into(),
        }),
        ..Options::default()
    };
    let store = open(&url, options).await;
    let record = enter(&store, "PLAIN-key").await;
    let finds = |text: &str| {
        let dump = Postgres::shared().dump(schema_of(&url));
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        dump.contains(text) || dump.contains(&hex)
    };
    for secret in ["PLAIN", "acme", "openai", "gpt-5"] {
        assert!(!finds(secret), "{secret} is there");
    }
    Postgres::shared().settle();
    assert_eq!(book(&store).await, 1);
    assert!(finds("gpt-5"));
    assert!(!finds("PLAIN"));
    assert_eq!(metered(record.clone()), record);
}
