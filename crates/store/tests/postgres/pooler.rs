//! A pooler that gives every transaction another connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use onlyonce_store::{PostgresStore, Seen, Shown, Store, postgres::Options};
use onlyonce_testkit::{Pgbouncer, Postgres};
use tokio::task::JoinSet;

use crate::support::{OWNER, assert_holds, at, claim, finish, open};

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

/// Behind a pooler, who follows and who is followed look for themselves; with another way to the server,
/// notices arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_behind_a_pooler_is_served_too() {
    let server = Postgres::start(&[]);
    let pooler = Pgbouncer::start(&server, 3);
    let polling = open(&pooler.url(), Options::default()).await;
    let options = Options {
        listen_url: Some(server.url()),
        ..Options::default()
    };
    let listening = open(&pooler.url(), options).await;
    for (name, store) in [("polling", &polling), ("listening", &listening)] {
        let mut waits = Vec::new();
        for round in 0..20 {
            let key = format!("{name}-{round}");
            let recording = claim(&polling, &key).await.recording();
            let address = at(store, &key);
            let began = Instant::now();
            let following = async {
                loop {
                    let (seen, wait) = (Seen::default(), Duration::from_secs(20));
                    let shown = store.follow(address, recording, OWNER, seen, wait).await;
                    if shown.expect("a store that answers").is_some() {
                        return began.elapsed();
                    }
                }
            };
            let showing = async {
                // One that a notice has named comes once more.
                let mut followed = Vec::new();
                while !followed.contains(&address) {
                    followed = store.followed(OWNER).await.expect("a store that answers");
                }
                let shown = Shown {
                    head: "a head".into(),
                    ..Shown::default()
                };
                let shown = polling.show(address, recording, shown).await;
                shown.expect("a store that answers");
            };
            let (wait, ()) = tokio::join!(following, showing);
            waits.push(wait);
        }
        waits.sort_unstable();
        println!("{name}: median {:?}, longest {:?}", waits[10], waits[19]);
        assert!(waits[19] < Duration::from_secs(2), "{waits:?}");
    }
}
