//! What is asked of a driver.

use std::error::Error as AnyError;
use std::fmt;
use std::pin::Pin;

use onlyonce_store::postgres::within::{Row, Statement};

/// A connection on which a transaction of the caller's runs, or that transaction. Implement it for a driver
/// that is not here: nothing above it knows which one it is.
pub trait Connection: Send {
    /// Runs one statement in the transaction, and gives all rows. Parameters and columns are in the binary
    /// format; the types of the parameters are those of the statement.
    fn run(
        &mut self,
        statement: &Statement<'_>,
    ) -> impl Future<Output = Result<Vec<Row>, DriverError>> + Send;
}

/// A driver, by the transactions that it has.
///
/// It is a type without a lifetime, and its transactions are named for all lifetimes at once: a closure that
/// takes one can be part of a task that moves between threads.
pub trait Driver {
    /// A transaction. Dropped, it is rolled back.
    type Transaction<'c>: Connection;

    /// Commits it.
    fn commit(transaction: Self::Transaction<'_>) -> Ending<'_>;

    /// Rolls it back.
    fn rollback(transaction: Self::Transaction<'_>) -> Ending<'_>;
}

/// A transaction that ends.
pub type Ending<'c> = Pin<Box<dyn Future<Output = Result<(), DriverError>> + Send + 'c>>;

/// A transaction that begins. In a box, so that the compiler sees that tasks that wait for it may move
/// between threads.
pub type Beginning<'c, D> =
    Pin<Box<dyn Future<Output = Result<<D as Driver>::Transaction<'c>, DriverError>> + Send + 'c>>;

/// Where transactions begin: a pool of connections.
pub trait Pool: Sync {
    /// Its driver.
    type Driver: Driver;

    /// Begins one.
    fn begin(&self) -> Beginning<'_, Self::Driver>;
}

/// Where transactions begin: a connection that is the caller's alone.
pub trait Session: Send {
    /// Its driver.
    type Driver: Driver;

    /// Begins one.
    fn begin(&mut self) -> Beginning<'_, Self::Driver>;
}

/// What a driver says went wrong.
#[derive(Debug)]
pub struct DriverError {
    code: Option<Box<str>>,
    source: Box<dyn AnyError + Send + Sync>,
}

impl DriverError {
    /// The SQLSTATE of a connection that broke.
    pub const CONNECTION_FAILURE: &str = "08006";

    /// The driver's own error. `code` is the SQLSTATE where the server gave one, and
    /// [`Self::CONNECTION_FAILURE`] where there is no connection any more.
    pub fn new(code: Option<&str>, source: impl Into<Box<dyn AnyError + Send + Sync>>) -> Self {
        Self {
            code: code.map(Into::into),
            source: source.into(),
        }
    }

    /// The SQLSTATE, where there is one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Whether the server said that it did not do it. What ends the session may come after the commit.
    pub(crate) fn is_refusal(&self) -> bool {
        self.code().is_some_and(|code| {
            !(code.starts_with("57P") || code.starts_with("08") || code == "40003")
        })
    }

    /// Whether it was the connection, or the server had no room for it at this moment.
    pub(crate) fn may_pass(&self) -> bool {
        let passing = ["08", "53", "57P"];
        let code = self.code().unwrap_or_default();
        passing.iter().any(|class| code.starts_with(class))
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)?;
        // Some drivers leave to its source what the server said.
        match self.source.source() {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl AnyError for DriverError {
    fn source(&self) -> Option<&(dyn AnyError + 'static)> {
        Some(&*self.source)
    }
}
