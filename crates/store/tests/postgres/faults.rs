//! Servers that die, stall, or take no writes for a while.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlyonce_core::{OperationId, Record, StateName};
use onlyonce_store::{Books, PostgresStore, Store, StoreError, Swap, postgres::Options};
use onlyonce_testkit::{Postgres, eventually_within};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{
    at, book, booked, claim, completed, finish, first_claim, metered, open, summed, swap, try_claim,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn quick() -> Options {
    Options {
        timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(1),
        ..Options::default()
    }
}

/// What a writer was told of a key.
#[derive(Clone, Debug)]
enum Told {
    /// This record is durable.
    Durable(Box<Record>),
    /// One of these stands there, or nothing.
    Doubt(Vec<Record>),
}

/// Claims and completes one key after the other until told to stop; says what it was told of each.
async fn write(
    store: Arc<PostgresStore>,
    worker: u32,
    stop: watch::Receiver<bool>,
    acknowledged: Arc<AtomicU64>,
) -> HashMap<String, Told> {
    let mut told = HashMap::new();
    let body = Bytes::from(vec![7; 300]);
    for number in 0.. {
        if *stop.borrow() {
            break;
        }
        let key = format!("k{worker}-{number}");
        let record = first_claim(&store, &key);
        match swap(&store, &key, None, &record, None).await {
            Ok(Swap::Done { .. }) => {}
            Ok(Swap::Lost) => panic!("nobody else writes {key}"),
            Err(StoreError::InDoubt(_)) => {
                told.insert(key, Told::Doubt(vec![record]));
                continue;
            }
            Err(StoreError::Unavailable(_)) => {
                // Nothing was written.
                told.insert(key, Told::Doubt(Vec::new()));
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        let next = metered(completed(&store, &record, 1, &body));
        let said = match swap(&store, &key, Some(&record), &next, Some(body.clone())).await {
            Ok(Swap::Done { .. }) => {
                acknowledged.fetch_add(1, Ordering::Relaxed);
                Told::Durable(next.into())
            }
            Ok(Swap::Lost) => panic!("nobody else writes {key}"),
            Err(StoreError::InDoubt(_)) => Told::Doubt(vec![record, next]),
            Err(StoreError::Unavailable(_)) => Told::Durable(record.into()),
            Err(error) => panic!("{error}"),
        };
        told.insert(key, said);
    }
    told
}

/// Books until it is told to stop, as every gateway does.
async fn keep_books(store: Arc<PostgresStore>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        // Its answers may be lost, too.
        let _ = store.book().await;
        sleep(Duration::from_millis(5)).await;
    }
}

/// Each completed record has one entry, and nothing else has one; the sums say the same (I8).
async fn verify_books(store: &PostgresStore, mut completed: Vec<OperationId>) {
    let booking = async {
        // The horizon may still be held by what a dead connection left behind.
        loop {
            book(store).await;
            let mut booked = booked(store).await;
            if booked.len() >= completed.len() {
                booked.sort_unstable();
                return booked;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let booked = timeout(PATIENCE, booking).await.expect("all is booked");
    completed.sort_unstable();
    assert!(
        booked == completed,
        "{} of {}",
        booked.len(),
        completed.len()
    );
    assert_eq!(summed(store).await, completed.len() as i64);
}

/// Waits until the store takes a claim again.
async fn serves_again(store: &PostgresStore, name: &str) {
    let trying = async {
        for number in 0.. {
            if try_claim(store, &format!("{name}-{number}")).await.is_ok() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, trying).await.expect("service resumes");
}

async fn verify(store: &PostgresStore, told: HashMap<String, Told>) -> (usize, usize) {
    let (mut durable, mut doubts) = (0, 0);
    let mut completed = Vec::new();
    for (key, told) in told {
        let stored = store
            .load(at(store, &key))
            .await
            .expect("a readable record");
        let stored = stored.map(|stored| (*stored.record).clone());
        let is_completed = |record: &&Record| record.state.name() == StateName::Completed;
        completed.extend(stored.as_ref().filter(is_completed).map(|record| record.id));
        match told {
            Told::Durable(record) => {
                durable += 1;
                assert_eq!(stored, Some(*record), "{key} was acknowledged");
            }
            Told::Doubt(records) => {
                doubts += 1;
                let is_one = stored.is_none_or(|stored| records.contains(&stored));
                assert!(is_one, "{key} is neither");
            }
        }
    }
    verify_books(store, completed).await;
    (durable, doubts)
}

/// Writers under way, and how many of their operations were acknowledged as completed.
struct Load {
    writers: JoinSet<HashMap<String, Told>>,
    bookkeepers: JoinSet<()>,
    acknowledged: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
}

impl Load {
    fn start(store: &Arc<PostgresStore>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut writers = JoinSet::new();
        for worker in 0..16 {
            let acknowledged = acknowledged.clone();
            writers.spawn(write(store.clone(), worker, stopped.clone(), acknowledged));
        }
        let mut bookkeepers = JoinSet::new();
        for _ in 0..2 {
            bookkeepers.spawn(keep_books(store.clone(), stopped.clone()));
        }
        Self {
            writers,
            bookkeepers,
            acknowledged,
            stop,
        }
    }

    /// Waits until some more operations are completed.
    async fn goes_on(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        let going = async {
            while self.acknowledged.load(Ordering::Relaxed) < before + 200 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, going).await.expect("the load goes on");
    }

    /// Stops the writers, and checks what they were told.
    async fn verify(self, store: &PostgresStore) {
        self.stop.send(true).expect("writers");
        let mut told = HashMap::new();
        for writer in self.writers.join_all().await {
            told.extend(writer);
        }
        self.bookkeepers.join_all().await;
        let (durable, doubts) = verify(store, told).await;
        println!("{durable} durable, {doubts} in doubt or refused");
        assert!(doubts > 0, "nothing was under way when the server died");
    }
}

/// Signal 9 for all of the server, three times under load: all that was acknowledged is there, what is in
/// doubt is whole or absent, and service resumes unaided (I3, I14, L6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i14_a_killed_server_loses_nothing_that_it_acknowledged() {
    let server = Postgres::start(&[]);
    let store = open(&server.url(), quick()).await;
    let load = Load::start(&store);
    for _ in 0..3 {
        load.goes_on().await;
        tokio::task::block_in_place(|| {
            server.kill();
            server.restart();
        });
    }
    load.goes_on().await;
    load.verify(&store).await;
}

/// The primary dies under load, its synchronous standby is promoted, and the store finds it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i14_a_promoted_synchronous_standby_has_all_that_was_acknowledged() {
    let primary = Postgres::start(&[]);
    drop(open(&primary.url(), quick()).await);
    let standby = primary.start_replica(&[]);
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.sql("SELECT pg_reload_conf()");
    let is_synchronous =
        || primary.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1";
    eventually_within(PATIENCE, "the standby is synchronous", is_synchronous);

    let (one, other) = (primary.port(), standby.port());
    let url = format!("postgres://postgres@127.0.0.1:{one},127.0.0.1:{other}/postgres");
    let store = PostgresStore::connect(&url, quick()).await;
    let store = Arc::new(store.expect("it finds the primary"));
    let load = Load::start(&store);
    load.goes_on().await;
    tokio::task::block_in_place(|| {
        primary.kill();
        standby.promote();
    });
    load.goes_on().await;
    load.verify(&store).await;
}

/// A server that stands still gives errors in time, for readers and for writers, and goes on when it
/// goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_stalled_server_gives_errors_in_time() {
    let server = Postgres::start(&[]);
    let store = open(&server.url(), quick()).await;
    let kept = finish(&store, "before").await;
    server.pause();
    let started = Instant::now();
    let mut calls = JoinSet::new();
    for number in 0..50 {
        let store = store.clone();
        calls.spawn(async move {
            let key = format!("k{number}");
            match number % 2 {
                0 => try_claim(&store, &key).await.map(drop),
                _ => store.load(at(&store, &key)).await.map(drop),
            }
        });
    }
    for result in calls.join_all().await {
        let error = result.expect_err("nobody can have answered");
        let fails_closed = matches!(error, StoreError::InDoubt(_) | StoreError::Unavailable(_));
        assert!(fails_closed, "{error}");
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    server.resume();
    serves_again(&store, "after").await;
    crate::support::assert_holds(&store, "before", &kept).await;
}

/// No server at all: refused at once, with nothing in doubt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_without_a_server_nothing_is_claimed_and_service_resumes() {
    let server = Postgres::start(&[]);
    let store = open(&server.url(), quick()).await;
    claim(&store, "before").await;
    tokio::task::block_in_place(|| server.kill());
    // What was under way when it died may be in doubt; what comes later is not.
    let _ = try_claim(&store, "meanwhile").await;
    let refused = try_claim(&store, "later").await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    tokio::task::block_in_place(|| server.restart());
    serves_again(&store, "after").await;
    let later = store
        .load(at(&store, "later"))
        .await
        .expect("a readable store");
    assert!(later.is_none(), "it was refused");
}

/// A server that takes no writes for a while, as one that is being demoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_server_without_writes_claims_nothing_and_service_resumes() {
    let server = Postgres::start(&[]);
    let store = open(&server.url(), quick()).await;
    let kept = finish(&store, "before").await;
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    let refused = async {
        for number in 0.. {
            match try_claim(&store, &format!("k{number}")).await {
                Err(error) => return error,
                Ok(_) => sleep(Duration::from_millis(10)).await,
            }
        }
        unreachable!("numbers do not end")
    };
    let error = timeout(PATIENCE, refused).await.expect("it is refused");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    server.sql("ALTER SYSTEM RESET default_transaction_read_only");
    server.sql("SELECT pg_reload_conf()");
    serves_again(&store, "after").await;
    crate::support::assert_holds(&store, "before", &kept).await;
}
