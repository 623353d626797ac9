//! A bank that must not pay twice: an account, and an outbox of what is to be told of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use onlyonce_engine::{Engine, owner};
use onlyonce_postgres::{
    Call, Connection, Error, Operation, Options, PostgresStore, Settings, Transactions, migrate,
};
use onlyonce_testkit::Postgres;

use crate::drivers::{Driver, number, sql};

/// A bank in a database of a server.
pub struct Bank {
    /// The store's URL; the business tables are in the same database.
    pub url: String,
    /// The schema of the business tables.
    pub schema: String,
    pub once: Transactions,
}

/// A name that nothing else has on a server that others use too.
fn fresh(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{what}_{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Bank {
    /// A new bank on the server that tests share.
    pub async fn open() -> Self {
        Self::open_on(Postgres::shared(), Settings::default()).await
    }

    pub async fn open_on(server: &Postgres, settings: Settings) -> Self {
        let url = format!("{}?schema={}", server.url(), fresh("once"));
        migrate(&url).await.unwrap();
        let once = Transactions::open(&url, settings).await.unwrap();
        let schema = fresh("bank");
        server.sql(&format!(
            "CREATE SCHEMA {schema};
            CREATE TABLE {schema}.accounts (name text PRIMARY KEY, cents int8 NOT NULL);
            INSERT INTO {schema}.accounts VALUES ('ada', 0);
            CREATE TABLE {schema}.outbox (id int8 GENERATED ALWAYS AS IDENTITY, key text NOT NULL)"
        ));
        Self { url, schema, once }
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
    pub async fn connect<D: Driver>(&self) -> D::Connection {
        D::connect(&business_url(&self.url)).await
    }

    /// Pays `key` on `connection`: gives the number of its letter in the outbox.
    pub async fn pay<D: Driver>(
        &self,
        connection: &mut D::Connection,
        key: &str,
    ) -> Result<i64, Error> {
        pay::<D>(&self.once, &self.schema, connection, key).await
    }

    /// What the schema's tables say: the account, and the letters for `key`, or all.
    pub fn told(&self, server: &Postgres, key: Option<&str>) -> (i64, Vec<i64>) {
        let schema = &self.schema;
        let only = key.map_or_else(String::new, |key| format!("WHERE key = '{key}'"));
        let cents = server.sql(&format!("SELECT cents FROM {schema}.accounts"));
        let letters = server.sql(&format!(
            "SELECT id FROM {schema}.outbox {only} ORDER BY id"
        ));
        let letters = letters.lines().map(|line| line.parse().unwrap());
        (cents.parse().unwrap(), letters.collect())
    }

    /// The operations by state, as the store's table has them.
    pub fn operations(&self, server: &Postgres, state: i16) -> i64 {
        let (_, schema) = self.url.split_once("schema=").unwrap();
        let text = format!("SELECT count(*) FROM {schema}.operations WHERE state = {state}");
        server.sql(&text).parse().unwrap()
    }
}

/// The URL that any driver takes.
pub fn business_url(url: &str) -> String {
    let (base, _) = url.split_once('?').unwrap();
    format!("{base}?sslmode=disable")
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
pub async fn pay<D: Driver>(
    once: &Transactions,
    schema: &str,
    connection: &mut D::Connection,
    key: &str,
) -> Result<i64, Error> {
    let database = D::database(connection);
    let paying =
        async |tx: &mut D::Transaction<'_>, _: &mut Operation| write(tx, schema, key).await;
    once.run(database, call(key), paying).await
}

/// The business of a payment: two statements.
pub async fn write(tx: &mut impl Connection, schema: &str, key: &str) -> Result<i64, Error> {
    let update = format!("UPDATE {schema}.accounts SET cents = cents + 1 WHERE name = 'ada'");
    sql(tx, &update).await.map_err(Error::driver)?;
    let insert = format!("INSERT INTO {schema}.outbox (key) VALUES ('{key}') RETURNING id");
    let rows = sql(tx, &insert).await.map_err(Error::driver)?;
    Ok(number(&rows))
}
