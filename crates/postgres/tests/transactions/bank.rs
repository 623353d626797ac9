//! A bank that must not pay twice: an account, and an outbox of what is to be told of.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use onlyonce_engine::{Engine, owner};
use onlyonce_postgres::{
    Call, Connection, Error, Operation, Options, PostgresStore, Settings, Transactions, migrate,
};
use onlyonce_testkit::Postgres;
use tokio::runtime::Runtime;
use tokio::task::block_in_place;

use crate::drivers::{Client, Tx, number, sql};

/// A bank in a database of a server.
pub struct Bank {
    /// The store's URL; the business tables are in the same database.
    pub url: String,
    /// The schema of the business tables.
    pub schema: String,
    pub once: Transactions,
    pub server: Server,
}

/// The server that tests share, or one of a test's own.
pub enum Server {
    Shared,
    Own(Postgres),
}

impl Deref for Server {
    type Target = Postgres;

    fn deref(&self) -> &Postgres {
        match self {
            Self::Shared => Postgres::shared(),
            Self::Own(server) => server,
        }
    }
}

/// A name that nothing else has on a server that others use too.
fn fresh(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{what}_{}_", NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Bank {
    /// A new bank on the server that tests share.
    pub async fn open() -> Self {
        Self::open_on(Server::Shared).await
    }

    /// A new bank on a server of its own.
    pub async fn open_alone() -> Self {
        Self::open_on(Server::Own(Postgres::start(&[]))).await
    }

    async fn open_on(server: Server) -> Self {
        let url = format!("{}?schema={}", server.url(), fresh("once"));
        migrate(&url).await.unwrap();
        let once = Transactions::open(&url, Settings::default()).await.unwrap();
        let schema = fresh("bank");
        server.sql(&format!(
            "CREATE SCHEMA {schema};
            CREATE TABLE {schema}.accounts (name text PRIMARY KEY, cents int8 NOT NULL);
            INSERT INTO {schema}.accounts VALUES ('ada', 0);
            CREATE TABLE {schema}.outbox (id int8 GENERATED ALWAYS AS IDENTITY, key text NOT NULL)"
        ));
        Self {
            url,
            schema,
            once,
            server,
        }
    }

    /// Transactions with other settings, on the same tables, without upkeep.
    pub async fn once_with(
        &self,
        settings: Settings,
        engine: onlyonce_engine::Settings,
    ) -> Transactions {
        let store = PostgresStore::connect(&self.url, Options::default())
            .await
            .unwrap();
        Transactions::over(Engine::new(Arc::new(store), owner(), engine), settings)
    }

    /// A connection for the caller's transactions.
    pub async fn connect<C: Client>(&self) -> C {
        C::connect(&self.business_url(self.server.port())).await
    }

    /// Pays `key` on `connection`: gives the number of its letter in the outbox.
    pub async fn pay<C: Client>(&self, client: &mut C, key: &str) -> Result<i64, Error> {
        pay(&self.once, &self.schema, client, key).await
    }

    /// The URL of its database by way of a port.
    pub fn business_url(&self, port: u16) -> String {
        let own = self.server.port().to_string();
        let url = self.server.url().replace(&own, &port.to_string());
        format!("{url}?sslmode=disable")
    }

    /// What the schema's tables say: the account, and the letters for `key`, or all.
    pub fn told(&self, key: Option<&str>) -> (i64, Vec<i64>) {
        let schema = &self.schema;
        let only = key.map_or_else(String::new, |key| format!("WHERE key = '{key}'"));
        let cents = self.sql(&format!("SELECT cents FROM {schema}.accounts"));
        let letters = self.sql(&format!(
            "SELECT id FROM {schema}.outbox {only} ORDER BY id"
        ));
        (cents[0], letters)
    }

    /// The operations in a state, as the store's table has them.
    pub fn operations(&self, state: i16) -> i64 {
        let store = self.store_schema();
        self.sql(&format!(
            "SELECT count(*) FROM {store}.operations WHERE state = {state}"
        ))[0]
    }

    /// How many entries the store has for the books, and of how many operations.
    pub fn booked(&self) -> [i64; 2] {
        ["id", "DISTINCT id"].map(|ids| {
            let store = self.store_schema();
            self.sql(&format!("SELECT count({ids}) FROM {store}.ledger"))[0]
        })
    }

    /// The numbers that a statement gives, a row each.
    pub fn sql(&self, text: &str) -> Vec<i64> {
        let rows = block_in_place(|| self.server.sql(text));
        rows.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// The schema of the store's tables.
    pub fn store_schema(&self) -> &str {
        self.url.split_once("schema=").unwrap().1
    }
}

/// The payment `key`.
pub fn call(key: &str) -> Call<'_, str> {
    Call {
        tenant: "bank",
        key,
        name: "pay",
        input: "one cent",
    }
}

/// As [`Bank::pay`], where no bank was opened.
pub async fn pay<C: Client>(
    once: &Transactions,
    schema: &str,
    connection: &mut C,
    key: &str,
) -> Result<i64, Error> {
    let paying = async |tx: &mut Tx<'_, C>, _: &mut Operation| write(tx, schema, key).await;
    once.run_on(connection, call(key), paying).await
}

/// The business of a payment: two statements.
pub async fn write(tx: &mut impl Connection, schema: &str, key: &str) -> Result<i64, Error> {
    let update = format!("UPDATE {schema}.accounts SET cents = cents + 1 WHERE name = 'ada'");
    sql(tx, &update).await.map_err(Error::driver)?;
    let insert = format!("INSERT INTO {schema}.outbox (key) VALUES ('{key}') RETURNING id");
    let rows = sql(tx, &insert).await.map_err(Error::driver)?;
    Ok(number(&rows))
}

/// Whether somebody waits for the end of a transaction with a statement about this bank's operations.
pub fn waits(bank: &Bank) -> bool {
    let store = bank.store_schema();
    let waiting = bank.server.sql(&format!(
        "SELECT count(*) FROM pg_locks w JOIN pg_locks h USING (pid)
        WHERE NOT w.granted AND w.locktype = 'transactionid'
            AND h.relation = '{store}.operations'::regclass"
    ));
    waiting != "0"
}

/// Does something on a thread and a runtime of its own.
pub fn aside<T: Send + 'static>(
    bank: Arc<Bank>,
    what: impl AsyncFnOnce(&Bank) -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::spawn(move || {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(what(&bank))
    })
}
