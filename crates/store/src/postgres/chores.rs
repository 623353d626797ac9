//! What is asked seldom: one connection of its own, one statement after the other.

use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{Core, connection::Session, error::Failed};

/// A connection for what is asked seldom; made when it is needed.
#[derive(Default)]
pub struct Chores(Mutex<Option<Session>>);

impl Chores {
    /// The connection, for as long as it is needed. It is busy until the user says that it is not: what
    /// breaks off in the middle of a transaction is not gone on with.
    pub async fn session(&self, core: &Core) -> Result<MappedMutexGuard<'_, Session>, Failed> {
        let mut held = self.0.lock().await;
        let mut session = match held.take() {
            Some(session) if !session.is_closed() && !session.is_busy() => session,
            _ => core
                .session()
                .await
                .map_err(|error| Failed::NotSent(error.to_string()))?,
        };
        session.set_busy(true);
        Ok(MutexGuard::map(held, |held| held.insert(session)))
    }

    /// Asks one thing.
    pub async fn ask(
        &self,
        core: &Core,
        text: &str,
        types: &[Type],
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failed> {
        let mut session = self.session(core).await?;
        let answer = session.ask(text, types, params).await;
        let is_broken = answer.as_ref().is_err_and(Failed::breaks_the_connection);
        session.set_busy(is_broken);
        answer
    }
}
