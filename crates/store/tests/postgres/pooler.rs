//! A pooler that gives every transaction another connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use onlyonce_store::{PostgresStore, Seen, Store, postgres::Options};
use onlyonce_testkit::{Pgbouncer, Postgres};
use tokio::task::JoinSet;

use crate::support::{assert_holds, at, claim, complete, finish, open};

/// Many operations at once, through fewer connections than there are lanes.
async fn work(stores: &[Arc<PostgresStore>], name: &str) {
    let mut tasks = JoinSet::new();
    for number in 0..300 {
        let key = format!("{name}-{number}");
        let store = stores[number % stores.len()].clone();
        let other = stores[(number + 1) % stores.len()].clone();
        tasks.spawn(async move {
            let kept = finish(&store, &key).await;
            assert_holds(&other, &key, &kept).await;
            let chunk = other.read(at(&other, &key), kept.recording(), 0).await;
            assert_eq!(chunk.expect("its chunk"), "hello");
        });
    }
    for () in tasks.join_all().await {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_pooler_is_noticed_and_worked_with() {
    let server = Postgres::start(&[]);
    let pooler = Pgbouncer::start(&server, 3);
    let one = open(&pooler.url(), Options::default()).await;
    let other = open(&pooler.url(), Options::default()).await;
    work(&[one.clone(), other.clone()], "noticed").await;
    one.sweep().await.expect("a sweep");
    // Nobody found a statement of somebody else under a name of his own.
    assert!(
        !server.log().contains("prepared statement"),
        "{}",
        server.log()
    );

    // Told, it does not even try.
    let told = open(
        &format!("{}?prepared=off", pooler.url()),
        Options::default(),
    )
    .await;
    work(&[told], "told").await;
}

/// Behind a pooler, waiters look for themselves; with another way to the server, notices arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_behind_a_pooler_is_served_too() {
    let server = Postgres::start(&[]);
    let pooler = Pgbouncer::start(&server, 3);
    let polling = open(&pooler.url(), Options::default()).await;
    let options = Options {
        listen_url: Some(server.url()),
        ..Options::default()
    };
    let listening = open(&pooler.url(), options).await;
    for (name, waiter) in [("polling", &polling), ("listening", &listening)] {
        let mut waits = Vec::new();
        for round in 0..20 {
            let key = format!("{name}-{round}");
            let record = claim(&polling, &key).await;
            let waiting = async {
                let fence = Some(record.fence());
                loop {
                    let stored = waiter.load(at(waiter, &key)).await.expect("a record");
                    if stored.map(|stored| stored.record.fence()) != fence {
                        return Instant::now();
                    }
                    let seen = Seen { fence, chunks: 0 };
                    waiter
                        .changed(at(waiter, &key), seen, Duration::from_secs(20))
                        .await;
                }
            };
            let writing = async {
                complete(&polling, &key, &record, &"x".into()).await;
                Instant::now()
            };
            let (heard, written) = tokio::join!(waiting, writing);
            waits.push(heard.saturating_duration_since(written));
        }
        waits.sort_unstable();
        println!("{name}: median {:?}, longest {:?}", waits[10], waits[19]);
        assert!(waits[19] < Duration::from_secs(2), "{waits:?}");
    }
}
