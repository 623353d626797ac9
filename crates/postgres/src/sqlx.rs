//! Transactions of sqlx.

use bytes::Bytes;
use onlyonce_store::postgres::within::{Param, Row, Statement};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgRow, PgTypeInfo};
use sqlx::{
    Acquire, Arguments, Encode, PgConnection, PgPool, Postgres, Row as _, Transaction, Type,
};

use crate::connection::{Beginning, Ending};
use crate::{Connection, Driver, DriverError, Pool, Session};

impl Connection for PgConnection {
    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Row>, DriverError> {
        let mut arguments = PgArguments::default();
        for param in &statement.params {
            let added = arguments.add(Value(param));
            added.map_err(|error| DriverError::new(None, error))?;
        }
        let query = sqlx::query_with(statement.text, arguments);
        let rows = query.fetch_all(&mut *self).await?;
        rows.iter().map(take).collect()
    }
}

impl Connection for Transaction<'_, Postgres> {
    fn run(
        &mut self,
        statement: &Statement<'_>,
    ) -> impl Future<Output = Result<Vec<Row>, DriverError>> + Send {
        (**self).run(statement)
    }
}

/// sqlx.
#[derive(Debug)]
pub struct Sqlx;

impl Driver for Sqlx {
    type Transaction<'c> = Transaction<'c, Postgres>;

    fn commit(transaction: Self::Transaction<'_>) -> Ending<'_> {
        Box::pin(async move { Ok(transaction.commit().await?) })
    }

    fn rollback(transaction: Self::Transaction<'_>) -> Ending<'_> {
        Box::pin(async move { Ok(transaction.rollback().await?) })
    }
}

impl Pool for PgPool {
    type Driver = Sqlx;

    fn begin(&self) -> Beginning<'_, Sqlx> {
        Box::pin(async move { Ok(Self::begin(self).await?) })
    }
}

impl Session for PgConnection {
    type Driver = Sqlx;

    fn begin(&mut self) -> Beginning<'_, Sqlx> {
        Box::pin(async move { Ok(Acquire::begin(self).await?) })
    }
}

impl From<sqlx::Error> for DriverError {
    fn from(error: sqlx::Error) -> Self {
        let code = match &error {
            sqlx::Error::Database(error) => error.code().map(|code| code.into_owned()),
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                Some(Self::CONNECTION_FAILURE.to_owned())
            }
            _ => None,
        };
        Self::new(code.as_deref(), error)
    }
}

fn take(row: &PgRow) -> Result<Row, DriverError> {
    let columns = (0..row.len()).map(|at| {
        let column = row.try_get_raw(at)?;
        let bytes = column.as_bytes().ok();
        Ok(bytes.map(Bytes::copy_from_slice))
    });
    columns
        .collect::<Result<_, sqlx::Error>>()
        .map(Row)
        .map_err(DriverError::from)
}

/// A parameter that is written as it is.
struct Value<'a>(&'a Param);

impl Type<Postgres> for Value<'_> {
    fn type_info() -> PgTypeInfo {
        // `produces` says which one it is.
        PgTypeInfo::with_oid(Oid(0))
    }
}

impl Encode<'_, Postgres> for Value<'_> {
    fn encode_by_ref(&self, out: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(match &self.0.value {
            Some(bytes) => {
                out.extend_from_slice(bytes);
                IsNull::No
            }
            None => IsNull::Yes,
        })
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.0.oid)))
    }
}
