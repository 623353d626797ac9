//! The drivers, as the suite knows them.

use onlyonce_postgres::{Connection, Driver, DriverError, Row, Session, Statement};
use sqlx::PgConnection;
use tokio_postgres::NoTls;

/// A connection of a driver that the suite runs on.
pub trait Client: Session + Sized + 'static {
    /// What a child process knows the driver by.
    const NAME: &str;

    async fn connect(url: &str) -> Self;
}

/// A transaction of such a driver.
pub type Tx<'c, C> = <<C as Session>::Driver as Driver>::Transaction<'c>;

impl Client for PgConnection {
    const NAME: &str = "sqlx";

    async fn connect(url: &str) -> Self {
        <Self as sqlx::Connection>::connect(url).await.unwrap()
    }
}

impl Client for tokio_postgres::Client {
    const NAME: &str = "tokio-postgres";

    async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

pub async fn begin<C: Client>(client: &mut C) -> Tx<'_, C> {
    client.begin().await.unwrap()
}

pub async fn commit<C: Client>(transaction: Tx<'_, C>) {
    C::Driver::commit(transaction).await.unwrap();
}

pub async fn roll_back<C: Client>(transaction: Tx<'_, C>) {
    C::Driver::rollback(transaction).await.unwrap();
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
                super::$name::<sqlx::PgConnection>().await;
            })*
        }

        mod with_tokio_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<tokio_postgres::Client>().await;
            })*
        }
    };
}
pub(crate) use on_both_drivers;
