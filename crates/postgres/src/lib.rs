//! A local side effect exactly once: claim, business writes and result in one PostgreSQL transaction.
//!
//! What an operation writes to your own database and Onlyonce's record of it are committed together, in your
//! own transaction, or none of it is. So whatever crashes at whatever statement, an operation has run once or
//! not at all, its result is there if and only if its effect is, and there is no unknown outcome to resolve.
//!
//! ```no_run
//! # #[cfg(feature = "sqlx")] mod example {
//! use onlyonce_postgres::{Call, Error, Transactions};
//! use serde::{Deserialize, Serialize};
//! # use sqlx::PgPool;
//!
//! #[derive(Serialize)]
//! struct Transfer { to: String, cents: i64 }
//! #[derive(Serialize, Deserialize)]
//! struct Receipt { balance: i64 }
//!
//! async fn transfer(once: &Transactions, pool: &PgPool, key: &str, transfer: &Transfer) -> Result<Receipt, Error> {
//!     let call = Call { tenant: "bank", key, name: "transfer", input: transfer };
//!     once.run(pool, call, async |tx, _operation| {
//!         let balance = sqlx::query_scalar("UPDATE accounts SET cents = cents + $2 WHERE name = $1 RETURNING cents")
//!             .bind(&transfer.to)
//!             .bind(transfer.cents)
//!             .fetch_one(&mut **tx)
//!             .await
//!             .map_err(Error::driver)?;
//!         Ok(Receipt { balance })
//!     })
//!     .await
//! }
//! # }
//! ```
//!
//! [`Transactions::run`] is the whole of it; [`Transactions::begin`] and [`Operation::complete`] are its parts,
//! for transactions that are begun and committed elsewhere. Both work with sqlx (feature `sqlx`) and with
//! tokio-postgres (feature `tokio-postgres`), or with any driver that is a [`Connection`].
//!
//! The records are those of the store on PostgreSQL, in its tables: gateways, `onlyonce keys`, the console, the
//! ledger and an `OnceLayer` on that store know of these operations, and the other way round.
//!
//! Only what is written through the transaction is covered. What an operation does elsewhere (an e-mail, a
//! charge) belongs into an outbox table that the same transaction writes, or goes out under
//! [`Operation::key_for`] to a service that honours keys.

mod begin;
mod connection;
mod error;
mod operation;
mod run;
#[cfg(feature = "sqlx")]
mod sqlx;
#[cfg(feature = "tokio-postgres")]
mod tokio_postgres;
mod transactions;

pub use begin::{Begin, Call, Recorded};
pub use connection::{Beginning, Connection, Driver, DriverError, Ending, Pool, Session};
pub use error::Error;
pub use operation::{Completed, MAX_RESULT, Operation};
#[cfg(feature = "sqlx")]
pub use sqlx::Sqlx;
#[cfg(feature = "tokio-postgres")]
pub use tokio_postgres::TokioPostgres;
pub use transactions::{Settings, Transactions, migrate};

pub use onlyonce_core::{Key, Metered, OperationId, UnknownReason};
pub use onlyonce_engine::Engine;
pub use onlyonce_store::{
    PostgresStore, StoreError,
    postgres::{
        ConnectError, EncryptionKeys, Migrated, Options,
        within::{Param, Row, Statement},
    },
};

/// What an operation used and cost: for [`Operation::meter`].
pub mod metered {
    pub use onlyonce_core::{Basis, Cost, Metered, Source, Unit, Usage, Usd};
}
