//! The drivers, as the suite knows them.

use onlyonce_postgres::{Connection, Database, DriverError, Row, Statement};
use sqlx::{Connection as _, PgConnection, Postgres};
use tokio_postgres::{Client, NoTls};

/// A driver that the suite runs on.
pub trait Driver: 'static {
    /// What a child process knows it by.
    const NAME: &str;

    type Connection: Send + 'static;
    type Transaction<'c>: Connection;

    async fn connect(url: &str) -> Self::Connection;

    fn database(
        connection: &mut Self::Connection,
    ) -> impl Database<Transaction = Self::Transaction<'_>>;
}

pub struct Sqlx;

impl Driver for Sqlx {
    const NAME: &str = "sqlx";

    type Connection = PgConnection;
    type Transaction<'c> = sqlx::Transaction<'c, Postgres>;

    async fn connect(url: &str) -> PgConnection {
        PgConnection::connect(url).await.unwrap()
    }

    fn database(
        connection: &mut PgConnection,
    ) -> impl Database<Transaction = Self::Transaction<'_>> {
        connection
    }
}

pub struct TokioPostgres;

impl Driver for TokioPostgres {
    const NAME: &str = "tokio-postgres";

    type Connection = Client;
    type Transaction<'c> = tokio_postgres::Transaction<'c>;

    async fn connect(url: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn database(connection: &mut Client) -> impl Database<Transaction = Self::Transaction<'_>> {
        connection
    }
}

/// Runs a statement without parameters.
pub async fn sql(connection: &mut impl Connection, text: &str) -> Result<Vec<Row>, DriverError> {
    let params = Vec::new();
    connection.run(&Statement { text, params }).await
}

/// The number in the first column of the only row.
pub fn number(rows: &[Row]) -> i64 {
    let bytes = rows[0].0[0].as_deref().unwrap();
    i64::from_be_bytes(bytes.try_into().unwrap())
}

/// The text in the first column of the only row.
pub fn text(rows: &[Row]) -> String {
    String::from_utf8(rows[0].0[0].as_deref().unwrap().to_vec()).unwrap()
}

/// Makes a test of each driver of functions that are generic in it.
macro_rules! on_both_drivers {
    ($($name:ident)*) => {
        mod with_sqlx {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<crate::drivers::Sqlx>().await;
            })*
        }

        mod with_tokio_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<crate::drivers::TokioPostgres>().await;
            })*
        }
    };
}
pub(crate) use on_both_drivers;
