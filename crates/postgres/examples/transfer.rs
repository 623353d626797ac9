//! Transfers that are made once, on PostgreSQL and with sqlx:
//!
//! ```sh
//! createdb -h 127.0.0.1 -U postgres bank
//! cargo run -p onlyonce-postgres --features sqlx --example transfer -- postgres://postgres@127.0.0.1/bank order-17 ada 1999
//! ```
//!
//! The same command again prints the same receipt, and moves nothing. With another amount it is refused.

use std::process::ExitCode;

use onlyonce_postgres::{Call, Error, Settings, Transactions, migrate};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

#[derive(Serialize)]
struct Transfer {
    to: String,
    cents: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Receipt {
    balance: i64,
    letter: i64,
}

async fn transfer(
    once: &Transactions,
    pool: &PgPool,
    key: &str,
    transfer: &Transfer,
) -> Result<Receipt, Error> {
    let call = Call {
        tenant: "bank",
        key,
        name: "transfer",
        input: transfer,
    };
    once.run(pool, call, async |tx, _operation| {
        let balance = sqlx::query_scalar(
            "INSERT INTO accounts AS a (name, cents) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET cents = a.cents + excluded.cents RETURNING cents",
        )
        .bind(&transfer.to)
        .bind(transfer.cents)
        .fetch_one(&mut **tx)
        .await
        .map_err(Error::driver)?;
        // The e-mail is sent by whoever reads the outbox, under this number.
        let letter = sqlx::query_scalar("INSERT INTO outbox (recipient) VALUES ($1) RETURNING id")
            .bind(&transfer.to)
            .fetch_one(&mut **tx)
            .await
            .map_err(Error::driver)?;
        Ok(Receipt { balance, letter })
    })
    .await
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, key, to, cents] = &args[..] else {
        eprintln!("transfer URL KEY TO CENTS");
        return ExitCode::FAILURE;
    };
    match run(url, key, to, cents).await {
        Ok(receipt) => {
            println!("{receipt:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(
    url: &str,
    key: &str,
    to: &str,
    cents: &str,
) -> Result<Receipt, Box<dyn std::error::Error>> {
    let pool = PgPool::connect(url).await?;
    let tables = "CREATE TABLE IF NOT EXISTS accounts (name text PRIMARY KEY, cents int8 NOT NULL);
        CREATE TABLE IF NOT EXISTS outbox (
            id int8 GENERATED ALWAYS AS IDENTITY, recipient text NOT NULL)";
    sqlx::raw_sql(tables).execute(&pool).await?;
    migrate(url).await?;
    let once = Transactions::open(url, Settings::default()).await?;
    let order = Transfer {
        to: to.to_owned(),
        cents: cents.parse()?,
    };
    Ok(transfer(&once, &pool, key, &order).await?)
}
