//! Calls of one gateway that share a statement and a commit.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use onlyonce_store::{PostgresStore, Store, postgres::Options};
use onlyonce_testkit::{PATIENCE, Postgres};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};

use crate::support::{at, claim, complete, finish, fresh_url, open, schema_of};

const AT_ONCE: usize = 64;

/// A lock on the operations, which lets nobody write.
struct Lock {
    client: Client,
    table: String,
    /// The connections that write.
    lanes: usize,
}

impl Lock {
    async fn on(url: &str) -> Self {
        let connected = tokio_postgres::connect(&Postgres::shared().url(), NoTls).await;
        let (client, driver) = connected.expect("a connection");
        tokio::spawn(driver);
        let table = format!("{}.operations", schema_of(url));
        let lanes = Options::default().writers;
        Self {
            client,
            table,
            lanes,
        }
    }

    /// Has a call stand before the lock on each lane, asks for all others, and lets go: gives what each
    /// call gave, in order. On one thread, all have asked before any lane is served.
    async fn gather<F>(&self, mut calls: impl Iterator<Item = F>) -> Vec<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let begin = format!("BEGIN; LOCK TABLE {} IN EXCLUSIVE MODE", self.table);
        self.client.batch_execute(&begin).await.expect("a lock");
        let mut running = Vec::new();
        for lane in 1..=self.lanes {
            running.extend(calls.next().map(tokio::spawn));
            let standing = self.until_waiting(lane as i64);
            timeout(PATIENCE, standing).await.expect("a lane has it");
        }
        running.extend(calls.map(tokio::spawn));
        self.client.batch_execute("COMMIT").await.expect("let go");
        let mut all = Vec::new();
        for call in running {
            all.push(call.await.expect("served"));
        }
        all
    }

    async fn until_waiting(&self, lanes: i64) {
        let waiting = "SELECT count(*) FROM pg_locks
            WHERE NOT granted AND relation = $1::text::regclass";
        loop {
            let rows = self.client.query(waiting, &[&self.table]).await;
            if rows.expect("a count")[0].get::<_, i64>(0) == lanes {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// How many transactions have written the operations of `keys` as they stand.
    async fn transactions(&self, store: &PostgresStore, keys: &[String]) -> usize {
        let rows = format!("SELECT uuid_send(address), xmin::text FROM {}", self.table);
        let rows = self.client.query(&rows, &[]).await.expect("rows");
        let writers: HashMap<Vec<u8>, String> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let of = |key: &String| &writers[&at(store, key).as_bytes()[..]];
        keys.iter().map(of).collect::<HashSet<_>>().len()
    }
}

/// The commits of a store, and the writes in them.
fn committed(store: &PostgresStore) -> (u64, u64) {
    let status = store.status();
    (status.commits, status.committed_writes)
}

#[tokio::test]
async fn what_a_gateway_writes_at_once_shares_a_statement_and_a_commit() {
    let url = fresh_url();
    let store = open(&url, Options::default()).await;
    // From then on its partition is there.
    finish(&store, "first").await;
    let lock = Lock::on(&url).await;
    let lanes = lock.lanes;
    let keys: Vec<String> = (0..lanes + AT_ONCE).map(|n| format!("k{n}")).collect();
    let gathered = &keys[lanes..];
    // By the store's own figures too: commits, and what was written in them.
    let assert_shared = |store: &_, before: (u64, u64)| {
        let after = committed(store);
        assert_eq!(after.1 - before.1, keys.len() as u64);
        assert!(
            after.0 - before.0 <= 2 * lanes as u64,
            "{before:?} {after:?}"
        );
    };

    let before = committed(&store);
    let claims = keys.iter().cloned().map(|key| {
        let store = store.clone();
        async move { claim(&store, &key).await }
    });
    let claimed = lock.gather(claims).await;
    let transactions = lock.transactions(&store, gathered).await;
    println!("{AT_ONCE} claims at once in {transactions} transactions");
    assert!(transactions <= lanes, "{transactions}");
    assert_shared(&store, before);

    let before = committed(&store);
    let body = Bytes::from_static(b"hello");
    let completions = keys.iter().cloned().zip(claimed).map(|(key, record)| {
        let (store, body) = (store.clone(), body.clone());
        async move { complete(&store, &key, &record, &body).await }
    });
    lock.gather(completions).await;
    let transactions = lock.transactions(&store, gathered).await;
    println!("{AT_ONCE} completions at once in {transactions} transactions");
    assert!(transactions <= lanes, "{transactions}");
    assert_shared(&store, before);
}
