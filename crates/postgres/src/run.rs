//! The whole of an operation: a transaction that is begun, and committed.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    Begin, Call, Completed, Driver, DriverError, Error, Operation, Pool, Session, Transactions,
};

impl Transactions {
    /// Runs `execute` in a transaction of `pool` (a `PgPool` of sqlx), and commits what it wrote together with
    /// its result; or gives the result that is there already.
    ///
    /// Where `execute` fails or panics, or this is dropped before the commit is sent, everything is rolled
    /// back, and the key is free. What is an answer, and is to stay one (a declined card), is a result.
    ///
    /// Where the acknowledgement of the commit is lost, it looks whether it is there.
    ///
    /// # Errors
    ///
    /// What `execute` gives, or [`Error`].
    pub async fn run<P, I, T, E, F>(&self, pool: &P, call: Call<'_, I>, execute: F) -> Result<T, E>
    where
        P: Pool,
        I: Serialize + ?Sized,
        T: Serialize + DeserializeOwned,
        E: From<Error>,
        // Of transactions with any lifetime, or no task could move between threads that waits for this.
        F: for<'t> AsyncFnOnce(
            &mut <P::Driver as Driver>::Transaction<'t>,
            &mut Operation,
        ) -> Result<T, E>,
    {
        let transaction = pool.begin().await.map_err(Error::driver)?;
        self.run_in::<P::Driver, I, T, E, F>(transaction, call, execute)
            .await
    }

    /// The same in a transaction of `session`: a `Client` of tokio-postgres, or a `PgConnection` of sqlx.
    ///
    /// # Errors
    ///
    /// As [`Transactions::run`].
    pub async fn run_on<S, I, T, E, F>(
        &self,
        session: &mut S,
        call: Call<'_, I>,
        execute: F,
    ) -> Result<T, E>
    where
        S: Session,
        I: Serialize + ?Sized,
        T: Serialize + DeserializeOwned,
        E: From<Error>,
        F: for<'t> AsyncFnOnce(
            &mut <S::Driver as Driver>::Transaction<'t>,
            &mut Operation,
        ) -> Result<T, E>,
    {
        let transaction = session.begin().await.map_err(Error::driver)?;
        self.run_in::<S::Driver, I, T, E, F>(transaction, call, execute)
            .await
    }

    async fn run_in<D, I, T, E, F>(
        &self,
        mut transaction: D::Transaction<'_>,
        call: Call<'_, I>,
        execute: F,
    ) -> Result<T, E>
    where
        D: Driver,
        I: Serialize + ?Sized,
        T: Serialize + DeserializeOwned,
        E: From<Error>,
        F: for<'t> AsyncFnOnce(&mut D::Transaction<'t>, &mut Operation) -> Result<T, E>,
    {
        let executed = self.execute::<D, I, T, E, F>(&mut transaction, call, execute);
        let (completed, result) = match executed.await {
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

    async fn execute<D, I, T, E, F>(
        &self,
        transaction: &mut D::Transaction<'_>,
        call: Call<'_, I>,
        execute: F,
    ) -> Result<Executed<T>, E>
    where
        D: Driver,
        I: Serialize + ?Sized,
        T: Serialize + DeserializeOwned,
        E: From<Error>,
        F: for<'t> AsyncFnOnce(&mut D::Transaction<'t>, &mut Operation) -> Result<T, E>,
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
async fn roll_back<D: Driver>(transaction: D::Transaction<'_>) {
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
