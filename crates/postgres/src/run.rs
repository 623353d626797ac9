//! The whole of an operation: a transaction that is begun, and committed.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    Begin, Call, Completed, Connection, Database, DriverError, Error, Operation, Transactions,
};

impl Transactions {
    /// Runs `execute` in a transaction of `database`, and commits what it wrote together with its result; or
    /// gives the result that is there already.
    ///
    /// Where `execute` fails or panics, or this is dropped before the commit is sent, everything is rolled
    /// back, and the key is free. What is an answer, and is to stay one (a declined card), is a result.
    ///
    /// Where the acknowledgement of the commit is lost, it looks whether it is there.
    ///
    /// `database` is a `&PgPool` or a `&mut PgConnection` of sqlx, or a `&mut Client` of tokio-postgres.
    ///
    /// # Errors
    ///
    /// What `execute` gives, or [`Error`].
    pub async fn run<D, I, T, E, F>(
        &self,
        database: D,
        call: Call<'_, I>,
        execute: F,
    ) -> Result<T, E>
    where
        D: Database,
        I: Serialize + ?Sized,
        T: Serialize + DeserializeOwned,
        E: From<Error>,
        F: AsyncFnOnce(&mut D::Transaction, &mut Operation) -> Result<T, E>,
    {
        let mut transaction = database.begin().await.map_err(Error::driver)?;
        let executed = self.execute(&mut transaction, call, execute).await;
        let (completed, result) = match executed {
            Ok(Executed::Now(completed, result)) => (completed, result),
            Ok(Executed::Before(result)) => {
                roll_back::<D>(transaction).await;
                return Ok(result);
            }
            Err(error) => {
                roll_back::<D>(transaction).await;
                return Err(error);
            }
        };
        match D::commit(transaction).await {
            Ok(()) => Ok(result),
            Err(error) if error.is_refusal() => Err(Error::driver(error).into()),
            Err(error) => match completed.is_committed().await {
                Ok(true) => Ok(result),
                Ok(false) => Err(Error::driver(error).into()),
                Err(_) => Err(in_doubt(&completed, error).into()),
            },
        }
    }

    async fn execute<C, I, T, E, F>(
        &self,
        transaction: &mut C,
        call: Call<'_, I>,
        execute: F,
    ) -> Result<Executed<T>, E>
    where
        C: Connection,
        I: Serialize + ?Sized,
        T: Serialize + DeserializeOwned,
        E: From<Error>,
        F: AsyncFnOnce(&mut C, &mut Operation) -> Result<T, E>,
    {
        let mut operation = match self.begin(transaction, call).await? {
            Begin::Execute(operation) => operation,
            Begin::Replay(recorded) => return Ok(Executed::Before(recorded.json()?)),
        };
        let result = execute(transaction, &mut operation).await?;
        let completed = operation.complete(transaction, &result).await?;
        Ok(Executed::Now(completed, result))
    }
}

/// Where a result is from.
enum Executed<T> {
    Now(Completed, T),
    Before(T),
}

/// A transaction that cannot be rolled back has no connection any more, and the server does it.
async fn roll_back<D: Database>(transaction: D::Transaction) {
    if let Err(error) = D::rollback(transaction).await {
        tracing::debug!(%error, "a transaction was left to the server to roll back");
    }
}

fn in_doubt(completed: &Completed, why: DriverError) -> Error {
    Error::InDoubt {
        operation: completed.id(),
        why,
    }
}
