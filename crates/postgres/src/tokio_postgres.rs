//! Transactions of tokio-postgres.

use bytes::{BufMut, Bytes, BytesMut};
use onlyonce_store::postgres::within::{Param, Row, Statement};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Transaction};

use crate::connection::{Beginning, Ending};
use crate::{Connection, Driver, DriverError, Session};

type AnyError = Box<dyn std::error::Error + Sync + Send>;

impl Connection for Transaction<'_> {
    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Row>, DriverError> {
        let values: Vec<Value<'_>> = statement.params.iter().map(Value).collect();
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> = Vec::with_capacity(values.len());
        for value in &values {
            let oid = value.0.oid;
            let of_type = Type::from_oid(oid)
                .ok_or_else(|| DriverError::new(None, format!("there is no type {oid}")))?;
            params.push((value, of_type));
        }
        let rows = self.query_typed(statement.text, &params).await?;
        let rows = rows.iter().map(|row| {
            let columns = (0..row.len()).map(|at| row.try_get(at).map(|Column(bytes)| bytes));
            columns.collect::<Result<_, _>>().map(Row)
        });
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// tokio-postgres.
#[derive(Debug)]
pub struct TokioPostgres;

impl Driver for TokioPostgres {
    type Transaction<'c> = Transaction<'c>;

    fn commit(transaction: Self::Transaction<'_>) -> Ending<'_> {
        Box::pin(async move { Ok(transaction.commit().await?) })
    }

    fn rollback(transaction: Self::Transaction<'_>) -> Ending<'_> {
        Box::pin(async move { Ok(transaction.rollback().await?) })
    }
}

impl Session for Client {
    type Driver = TokioPostgres;

    fn begin(&mut self) -> Beginning<'_, TokioPostgres> {
        Box::pin(async move { Ok(self.transaction().await?) })
    }
}

impl From<tokio_postgres::Error> for DriverError {
    fn from(error: tokio_postgres::Error) -> Self {
        let is_broken = error.is_closed()
            || std::error::Error::source(&error)
                .is_some_and(|source| source.is::<std::io::Error>());
        let code = match error.code() {
            Some(code) => Some(code.code().to_owned()),
            None => is_broken.then(|| Self::CONNECTION_FAILURE.to_owned()),
        };
        Self::new(code.as_deref(), error)
    }
}

/// A parameter that is written as it is.
#[derive(Debug)]
struct Value<'a>(&'a Param);

impl ToSql for Value<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, AnyError> {
        Ok(match &self.0.value {
            Some(bytes) => {
                out.put_slice(bytes);
                IsNull::No
            }
            None => IsNull::Yes,
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A column as it comes.
struct Column(Option<Bytes>);

impl<'a> FromSql<'a> for Column {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, AnyError> {
        Ok(Self(Some(Bytes::copy_from_slice(raw))))
    }

    fn from_sql_null(_: &Type) -> Result<Self, AnyError> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
