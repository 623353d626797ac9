//! Connections: made, checked, and asked.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::TryStreamExt;
use tokio::time::{Instant, timeout};
use tokio_postgres::{
    Client, Config, Connection, Row, Socket,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    error::{ConnectError, Failed, describe},
    sql::Statement,
    target::Target,
    tls,
};

/// The side of a connection that does its work; somebody must poll it.
pub type Driver = Connection<Socket, tls::Stream<Socket>>;

const OLDEST_SERVER: i32 = 150_000;

/// A new connection, and what the server said of itself on it.
pub async fn open(target: &Target) -> Result<(Client, Facts), ConnectError> {
    let started = Instant::now();
    let (client, driver) = connect(target).await?;
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection to the store's server ended");
        }
    });
    let facts = check(&client, target, started).await?;
    Ok((client, facts))
}

/// A new connection; somebody must poll its driver.
pub async fn connect(target: &Target) -> Result<(Client, Driver), ConnectError> {
    let connecting = connect_with(&target.config, target);
    // The whole of it: name, TCP, TLS, password.
    match timeout(target.timeout, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(ConnectError::Unreachable {
            place: target.place.clone(),
            why: format!("no answer within {:?}", target.timeout),
        }),
    }
}

async fn connect_with(config: &Config, target: &Target) -> Result<(Client, Driver), ConnectError> {
    config
        .connect(target.tls.clone())
        .await
        .map_err(|error| refused(target, &error))
}

/// What a server says of itself.
pub struct Facts {
    /// Whether the tables are there at all.
    pub has_schema: bool,
    /// The server's default for `synchronous_commit`.
    pub synchronous_commit: String,
    /// Whether a pooler stands in between: the server's side of the connection is older than ours. Of a
    /// pooler that was idle before, the first connection does not show it.
    pub is_pooled: bool,
}

/// Refuses a server that does not keep what it says (a replica, an unsynced one) or is too old.
/// Connecting began at `started`.
pub async fn check(
    client: &Client,
    target: &Target,
    started: Instant,
) -> Result<Facts, ConnectError> {
    let text = format!(
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int4,
            pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on',
            current_setting('fsync'), current_setting('synchronous_commit'),
            EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
                ON n.oid = c.relnamespace WHERE n.nspname = '{}' AND c.relname = 'store'),
            (SELECT extract(epoch FROM clock_timestamp() - backend_start)::float8
                FROM pg_stat_activity WHERE pid = pg_backend_pid())",
        target.schema
    );
    let rows = timeout(target.timeout, client.query_typed(&text, &[]))
        .await
        .map_err(|_| ConnectError::Unreachable {
            place: target.place.clone(),
            why: format!("no answer within {:?}", target.timeout),
        })?
        .map_err(|error| refused(target, &error))?;
    let ours = started.elapsed().as_secs_f64();
    let place = || target.place.clone();
    let unexpected = || ConnectError::Server {
        place: place(),
        why: "it did not say what it is".into(),
    };
    let row = rows.first().ok_or_else(unexpected)?;
    let text = |at| row.try_get::<_, String>(at).map_err(|_| unexpected());
    if row.try_get::<_, i32>(1).map_err(|_| unexpected())? < OLDEST_SERVER {
        return Err(ConnectError::OldServer {
            place: place(),
            version: text(0)?,
        });
    }
    if row.try_get::<_, bool>(2).map_err(|_| unexpected())? {
        return Err(ConnectError::Replica(place()));
    }
    if text(3)? == "off" {
        return Err(ConnectError::Unsynced(place()));
    }
    let theirs: Option<f64> = row.try_get(6).map_err(|_| unexpected())?;
    Ok(Facts {
        is_pooled: theirs.is_some_and(|theirs| theirs > ours),
        synchronous_commit: text(4)?,
        has_schema: row.try_get(5).map_err(|_| unexpected())?,
    })
}

/// What the server's refusal means.
pub fn refused(target: &Target, error: &tokio_postgres::Error) -> ConnectError {
    let place = target.place.clone();
    let Some(db) = error.as_db_error() else {
        return ConnectError::Unreachable {
            place,
            why: describe(error),
        };
    };
    let why = db.message().replace('\n', " ");
    let code = db.code();
    if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
    {
        let user = target.user.clone();
        ConnectError::NotLetIn { place, user, why }
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        ConnectError::NoDatabase { place, why }
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        ConnectError::NoRight {
            user: target.user.clone(),
            schema: target.schema.clone(),
            why,
        }
    } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        ConnectError::Replica(place)
    } else if *code == SqlState::CANNOT_CONNECT_NOW || *code == SqlState::TOO_MANY_CONNECTIONS {
        ConnectError::Unreachable { place, why }
    } else {
        ConnectError::Server { place, why }
    }
}

/// A connection to ask, with what was prepared on it.
pub struct Session {
    client: Client,
    prepared: HashMap<&'static str, Prepared>,
    /// How long an answer may take.
    patience: Duration,
    /// Whether something began on it that is not known to have ended.
    is_busy: bool,
}

struct Prepared {
    statement: tokio_postgres::Statement,
    since: Instant,
}

/// How long a prepared statement is used. The server plans it once for all, and what is a good plan for
/// a table that is nearly empty is a bad one for what it grows to.
const PREPARED_FOR: Duration = Duration::from_secs(5);

/// Whether statements are prepared. Turned off for good when a pooler is seen that may give each of
/// them another connection, on which the name of a prepared statement may mean another one.
pub struct Prepares {
    does: AtomicBool,
    is_told: bool,
}

impl Prepares {
    /// As the user said; on until something is known where nothing was said.
    pub fn new(told: Option<bool>) -> Self {
        Self {
            does: AtomicBool::new(told.unwrap_or(true)),
            is_told: told.is_some(),
        }
    }

    fn get(&self) -> bool {
        self.does.load(Ordering::Relaxed)
    }

    /// A pooler was seen.
    pub fn see_pooler(&self) {
        if !self.is_told {
            self.give_up();
        }
    }

    fn give_up(&self) {
        if self.does.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                "there is a pooler before PostgreSQL: going on without prepared statements, at some \
                 cost; say prepared=on in store.url where it keeps them, or prepared=off"
            );
        }
    }
}

impl Session {
    pub fn new(client: Client, patience: Duration) -> Self {
        Self {
            client,
            prepared: HashMap::new(),
            patience,
            is_busy: false,
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether something began on it that is not known to have ended well.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Something begins on it, or has ended well.
    pub fn set_busy(&mut self, is_busy: bool) {
        self.is_busy = is_busy;
    }

    /// Runs one of the statements that run often.
    pub async fn run(
        &mut self,
        prepares: &Prepares,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failed> {
        if prepares.get() {
            match self.run_prepared(statement, params).await {
                Err(Failed::Refused { code, .. }) if is_unprepared(&code) => prepares.give_up(),
                done => return done,
            }
        }
        self.ask(&statement.text, &statement.types, params).await
    }

    async fn run_prepared(
        &mut self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failed> {
        let is_fresh = |prepared: &Prepared| prepared.since.elapsed() < PREPARED_FOR;
        if !self.prepared.get(statement.name).is_some_and(is_fresh) {
            let preparing = self.client.prepare_typed(&statement.text, &statement.types);
            let prepared = match timeout(self.patience, preparing).await {
                Ok(Ok(statement)) => Prepared {
                    statement,
                    since: Instant::now(),
                },
                Ok(Err(error)) => {
                    return Err(match Failed::from(error) {
                        Failed::Broken(why) => Failed::NotSent(why),
                        other => other,
                    });
                }
                Err(_) => return Err(Failed::NotSent(self.too_late())),
            };
            self.prepared.insert(statement.name, prepared);
        }
        let prepared = &self.prepared[statement.name].statement;
        let params = params.iter().copied();
        let asking = async {
            let rows = self.client.query_raw(prepared, params).await?;
            rows.try_collect::<Vec<Row>>().await
        };
        self.await_answer(asking).await
    }

    /// Runs any statement, which is not prepared.
    pub async fn ask(
        &self,
        text: &str,
        types: &[Type],
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failed> {
        let params: Vec<_> = params.iter().copied().zip(types.iter().cloned()).collect();
        self.await_answer(self.client.query_typed(text, &params))
            .await
    }

    /// Runs several statements without parameters, as one transaction.
    pub async fn execute(&self, text: &str) -> Result<(), Failed> {
        self.await_answer(self.client.batch_execute(text)).await
    }

    async fn await_answer<T>(
        &self,
        asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failed> {
        if self.client.is_closed() {
            return Err(Failed::NotSent("the connection was lost".into()));
        }
        match timeout(self.patience, asking).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failed::Broken(self.too_late())),
        }
    }

    fn too_late(&self) -> String {
        format!("the server did not answer within {:?}", self.patience)
    }
}

fn is_unprepared(code: &SqlState) -> bool {
    *code == SqlState::INVALID_SQL_STATEMENT_NAME || *code == SqlState::DUPLICATE_PSTATEMENT
}
