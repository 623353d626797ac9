//! A step that is a transaction of one's own database is never unknown.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use onlyonce::postgres::{Options, PostgresStore, migrate};
use onlyonce::transactions::{self, Error, Transactions};
use onlyonce::{Call, Failure, Key, Once, RunError, Settings};
use onlyonce_testkit::Postgres;
use tokio_postgres::NoTls;

/// What several runs share.
struct Shop {
    once: Once<PostgresStore>,
    bank: Transactions,
    url: String,
}

impl Shop {
    async fn order(self: &Arc<Self>, answer_is_lost: bool) -> Result<i64, RunError> {
        let shop = self.clone();
        let call = Call::new(Key::new("order-17").unwrap()).resume();
        let working = self.once.run(call, async move |operation| {
            let key = operation.key_for("debit");
            let debit = operation.step("debit", async || shop.debit(&key, answer_is_lost).await);
            debit.downstream_honours_the_key().await
        });
        working.await
    }

    async fn debit(&self, key: &Key, answer_is_lost: bool) -> Result<i64, Failure> {
        let (mut client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        tokio::spawn(connection);
        let call = transactions::Call {
            tenant: "bank",
            key: key.as_str(),
            name: "debit",
            input: "one cent",
        };
        let debited = self.bank.run_on(&mut client, call, async |tx, _| {
            let update = "UPDATE accounts SET cents = cents - 1 RETURNING cents";
            let row = tx.query_one(update, &[]).await.map_err(Error::driver)?;
            Ok::<i64, Error>(row.get(0))
        });
        let cents = debited.await?;
        match answer_is_lost {
            true => Err(Failure::unknown("it is committed, and nobody has heard so")),
            false => Ok(cents),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_a_step_that_is_a_transaction_is_done_once_though_its_answer_is_lost() {
    let server = Postgres::start(&[]);
    let url = server.url();
    migrate(&url, &Options::default()).await.unwrap();
    server.sql("CREATE TABLE accounts (cents int8 NOT NULL); INSERT INTO accounts VALUES (100)");
    let store = PostgresStore::connect(&url, Options::default()).await;
    let once = Once::new(store.unwrap(), Settings::default());
    let settings = transactions::Settings::default();
    let bank = Transactions::over(once.engine().clone(), settings);
    let shop = Arc::new(Shop { once, bank, url });

    let lost = shop.order(true).await;
    assert!(matches!(lost, Err(RunError::Unfinished { .. })), "{lost:?}");
    for _ in 0..2 {
        assert_eq!(shop.order(false).await.unwrap(), 99);
    }
    assert_eq!(server.sql("SELECT cents FROM accounts"), "99");
}
