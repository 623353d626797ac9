//! The store on PostgreSQL, for any number of gateways.
//!
//! **Two kinds of rows.** A unique index over a partitioned table must contain the partition's key, so
//! it cannot say that an address is unique across partitions. So there is one thin row an operation in a
//! plain table, `operations`, whose primary key is the address: that index decides who claims a key, and
//! a conditional update on its epoch decides everything after that, at READ COMMITTED and without
//! a second look. What is fat (the completed record with its last chunk, the other chunks, attempts)
//! lies beside it in tables that are partitioned by the time at which it expires, and whole partitions
//! are dropped when all that counts in them is over: space comes back without deleting fat rows one by
//! one, which would write each of them to the log again and leave holes for the vacuum. The thin rows
//! are deleted in small batches. A record that is not completed lies in its thin row, so that nothing
//! which runs or is unknown is ever in a partition that is dropped; its chunks and attempts are moved to
//! a younger partition before theirs goes (I11; `partitions`).
//!
//! **Batches.** Calls wait at a `desk` until a connection is free, which then takes all that waits of one
//! kind as one statement, one round trip and one commit.
//!
//! **The clock** that decides is the server's, in the statement that writes; `Store::now` follows it
//! from below (`clock`).
//!
//! **Doubt.** What left for the server and got no answer is in doubt, whatever broke; what never left was
//! not written. A statement that takes too long is left alone and its connection dropped, never
//! cancelled: a cancelled wait for a synchronous standby commits without it.
//!
//! **What gateways show each other** of recordings that grow lies in unlogged tables (`tails`), and only of
//! those that another gateway follows. NOTIFY takes a lock that all notifying commits share; what every
//! operation goes through never notifies.

mod body;
mod books;
mod calls;
mod chores;
mod clock;
mod connection;
mod desk;
mod disk;
mod error;
mod figures;
mod lists;
mod mark;
mod migrate;
mod partitions;
mod period;
mod sql;
mod store;
mod sweep;
mod tails;
mod target;
mod tls;
mod values;
mod watch;
mod windows;
pub mod within;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use onlyonce_core::Timestamp;
use tokio::{
    runtime::{Builder, Handle},
    sync::Notify,
};
use tokio_postgres::types::{ToSql, Type};

use self::{
    books::Day,
    chores::Chores,
    clock::ServerClock,
    connection::{Facts, Prepares, Session},
    desk::{Lanes, Queue},
    error::Failed,
    figures::Figures,
    partitions::Partitions,
    period::Period,
    sql::{SERVER_CLOCK, Statement, Statements},
    target::Target,
    values::Id,
    watch::Watchers,
    windows::Windows,
};
pub use self::{error::ConnectError, migrate::Migrated};
pub use crate::seal::{EncryptionKeys, SealError};
use crate::{Mark, clock::Clock, seal::Sealer};

/// How a store is connected to.
#[derive(Clone)]
pub struct Options {
    /// Connections that write, each with one batch under way. Default 3.
    pub writers: usize,
    /// Connections that read, and carry what gateways show each other. Default 2. A handful comes on
    /// top, for what is asked seldom.
    pub readers: usize,
    /// How long a new connection may take. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a call may wait for a connection, and the server may take for a statement. Default 5 s.
    pub timeout: Duration,
    /// The most records, at best effort: gateways count them every minute. Default 100,000,000.
    pub max_records: u64,
    /// The most records of one tenant, at best effort likewise. Default 2,000,000.
    pub max_tenant_records: u64,
    /// Keys for encryption at rest. Default none.
    pub encryption: Option<EncryptionKeys>,
    /// Another URL of the same server, on which notices are listened to: for a pooler
    /// that gives every transaction another connection. Default: the store's own.
    pub listen_url: Option<String>,
    /// A clock in the place of the server's, for tests.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            writers: 3,
            readers: 2,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            max_records: 100_000_000,
            max_tenant_records: 2_000_000,
            encryption: None,
            listen_url: None,
            clock: None,
        }
    }
}

/// Makes the store's tables at `url`, or brings them to the version of this program. Doing it twice,
/// or from two sides at once, is as good as once, and gateways may run meanwhile.
///
/// # Errors
///
/// See [`ConnectError`]; a schema that is newer than this program is left as it is.
pub async fn migrate(url: &str, options: &Options) -> Result<Migrated, ConnectError> {
    migrate::migrate(&Target::parse(url, options.connect_timeout)?).await
}

/// Makes a store at `url` with the secret `secret`, marked as `mark`. Says whether it did: where there is a
/// store already, nothing is changed.
///
/// # Errors
///
/// See [`ConnectError`].
pub async fn make(
    url: &str,
    options: &Options,
    secret: &[u8; 32],
    mark: &Mark,
) -> Result<bool, ConnectError> {
    let birth = migrate::Birth {
        secret: *secret,
        mark: Some(mark.encode()),
    };
    let target = Target::parse(url, options.connect_timeout)?;
    let made = migrate::begin(&target, &birth).await?;
    Ok(made.from == 0)
}

/// The store on PostgreSQL. Gone with its last handle; what it keeps stays.
pub struct PostgresStore {
    core: Arc<Core>,
}

/// What all calls share.
struct Core {
    target: Target,
    listen_target: Target,
    options: Options,
    statements: Statements,
    prepares: Prepares,
    /// Which store it is.
    id: [u8; 16],
    /// A name of this very handle, among all that share the store.
    name: String,
    secret: [u8; 32],
    sealer: Option<Sealer>,
    warnings: Vec<String>,
    clock: ServerClock,
    desk: Desk,
    /// Clock, partitions and figures.
    chores: Chores,
    /// What operators ask, which may take long.
    operators: Chores,
    /// Sweeps and what is overdue.
    upkeep: Chores,
    /// The books.
    bookkeeping: Chores,
    disk: disk::Disk,
    partitions: Partitions<Period>,
    days: Partitions<Day>,
    windows: Windows,
    watchers: Watchers,
    figures: Figures,
    closed: AtomicBool,
    /// Where connections live, whichever runtime asks.
    runtime: Handle,
    stopped: Arc<Notify>,
}

/// The queues of the calls that run in batches.
struct Desk {
    claims: Arc<Queue<calls::Claim>>,
    changes: Arc<Queue<calls::Change>>,
    appends: Arc<Queue<calls::Append>>,
    notes: Arc<Queue<calls::Note>>,
    loads: Arc<Queue<calls::Load>>,
    reads: Arc<Queue<calls::Read>>,
    follows: Arc<Queue<tails::Follow>>,
    asks: Arc<Queue<tails::Ask>>,
    followed: Arc<Queue<tails::Followed>>,
    shows: Arc<Queue<tails::Show>>,
    writers: Arc<Lanes>,
    readers: Arc<Lanes>,
}

impl Desk {
    fn new() -> Self {
        let (writing, reading) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (claims, changes) = (Queue::new(&writing), Queue::new(&writing));
        let (appends, notes) = (Queue::new(&writing), Queue::new(&writing));
        let (loads, reads) = (Queue::new(&reading), Queue::new(&reading));
        let (follows, asks) = (Queue::new(&reading), Queue::new(&reading));
        let (followed, shows) = (Queue::new(&reading), Queue::new(&reading));
        Self {
            writers: Lanes::new(
                vec![
                    claims.clone(),
                    changes.clone(),
                    appends.clone(),
                    notes.clone(),
                ],
                writing,
            ),
            // With those that show, nobody waits for the disk either.
            readers: Lanes::new(
                vec![
                    loads.clone(),
                    reads.clone(),
                    follows.clone(),
                    asks.clone(),
                    followed.clone(),
                    shows.clone(),
                ],
                reading,
            ),
            claims,
            changes,
            appends,
            notes,
            loads,
            reads,
            follows,
            asks,
            followed,
            shows,
        }
    }
}

/// What is known of a store when its first connection stands.
struct Found {
    id: [u8; 16],
    secret: [u8; 32],
    now: i64,
}

impl PostgresStore {
    /// Connects to the store at `url`, whose tables [`migrate`] has made.
    ///
    /// Operations that are in flight stay in flight: other gateways may be at them.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]: each is one line that says what to do.
    pub async fn connect(url: &str, options: Options) -> Result<Self, ConnectError> {
        let target = Target::parse(url, options.connect_timeout)?;
        let listen_target = match &options.listen_url {
            Some(url) => Target::parse(url, options.connect_timeout)?,
            None => target.clone(),
        };
        let sealer = options.encryption.as_ref().map(Sealer::new).transpose();
        let sealer = sealer.map_err(|error| key(&target, error))?;
        let (runtime, stopped) = start_runtime()?;
        let stop = StopUnless(Some(stopped.clone()));

        let patience = options.timeout;
        let (session, target, sealer, found, warnings) = runtime
            .spawn(async move {
                let (session, facts) = open(&target, patience).await?;
                let warnings = warnings(&facts, &target);
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
                let found = find(&session, &target, sealer.as_ref()).await?;
                Ok((session, target, sealer, found, warnings))
            })
            .await
            .map_err(|error| ConnectError::Tls(error.to_string()))??;
        drop(session);
        let core = Arc::new(Core {
            statements: Statements::new(&target.schema),
            prepares: Prepares::new(target.prepared),
            id: found.id,
            name: uuid::Uuid::now_v7().to_string(),
            secret: found.secret,
            sealer,
            warnings,
            clock: ServerClock::new(found.now),
            desk: Desk::new(),
            chores: Chores::default(),
            operators: Chores::default(),
            upkeep: Chores::default(),
            bookkeeping: Chores::default(),
            disk: disk::Disk::default(),
            partitions: Partitions::default(),
            days: Partitions::default(),
            windows: Windows::default(),
            watchers: Watchers::default(),
            figures: Figures::default(),
            closed: AtomicBool::new(false),
            runtime,
            stopped,
            target,
            listen_target,
            options,
        });
        let refuse = |failed: Failed| core.target.server_error(failed);
        core.count().await.map_err(refuse)?;
        core.make_ahead().await.map_err(refuse)?;
        core.start();
        stop.keep();
        Ok(Self { core })
    }

    /// Whether every connection stands that calls wait for. A store serves from its first one on, and
    /// makes the others meanwhile.
    pub fn is_fully_connected(&self) -> bool {
        let stand = |lanes: &Lanes, count: usize| lanes.connected.load(Ordering::Relaxed) >= count;
        let (desk, options) = (&self.core.desk, &self.core.options);
        stand(&desk.writers, options.writers) && stand(&desk.readers, options.readers)
    }

    /// What an operator should know about the server's settings: a sentence each, with what to do.
    pub fn warnings(&self) -> &[String] {
        &self.core.warnings
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.core.stopped.notify_one();
    }
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore")
            .field("place", &self.core.target.place)
            .finish_non_exhaustive()
    }
}

/// Ends the runtime of a store that did not come about.
struct StopUnless(Option<Arc<Notify>>);

impl StopUnless {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for StopUnless {
    fn drop(&mut self) {
        if let Some(stopped) = &self.0 {
            stopped.notify_one();
        }
    }
}

/// A thread on which all connections live: they outlast the runtime of whoever opens the store, and
/// what the server says is taken apart beside the threads that serve requests.
fn start_runtime() -> Result<(Handle, Arc<Notify>), ConnectError> {
    let failed = |error: std::io::Error| ConnectError::Tls(format!("no thread for it: {error}"));
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let handle = runtime.handle().clone();
    let stopped = Arc::new(Notify::new());
    let stop = stopped.clone();
    std::thread::Builder::new()
        .name("onlyonce-postgres".into())
        .spawn(move || runtime.block_on(stop.notified()))
        .map_err(failed)?;
    Ok((handle, stopped))
}

/// A checked connection, whose driver runs on this runtime.
async fn open(target: &Target, patience: Duration) -> Result<(Session, Facts), ConnectError> {
    let (client, facts) = connection::open(target).await?;
    if !facts.has_schema {
        return Err(migrate::missing(target));
    }
    Ok((Session::new(client, patience), facts))
}

/// What is worth a warning about a server: it is used all the same.
fn warnings(facts: &Facts, target: &Target) -> Vec<String> {
    if facts.synchronous_commit != "off" {
        return Vec::new();
    }
    vec![format!(
        "the server {} runs with synchronous_commit=off, and this store turns it on for its own \
         writes; set it to on, so that it does not have to",
        target.place
    )]
}

/// Checks the tables, and reads which store they are.
async fn find(
    session: &Session,
    target: &Target,
    sealer: Option<&Sealer>,
) -> Result<Found, ConnectError> {
    migrate::check_version(session.client(), target).await?;
    let schema = &target.schema;
    // Partitions are made and dropped by their owner alone.
    let text = format!(
        "SELECT id, secret, sealed, {SERVER_CLOCK},
            has_schema_privilege('{schema}', 'CREATE') AND (SELECT bool_and(
                pg_has_role(relowner, 'USAGE')) FROM pg_class
                WHERE relnamespace = '{schema}'::regnamespace AND relkind IN ('r', 'p'))
        FROM {schema}.store"
    );
    let asked = session.ask(&text, &[], &[]).await;
    let rows = asked.map_err(|failed| target.server_error(failed))?;
    let row = rows.first().ok_or_else(|| migrate::missing(target))?;
    let broken = |error: tokio_postgres::Error| target.server_error(Failed::from(error));
    if !row.try_get::<_, bool>(4).map_err(broken)? {
        return Err(ConnectError::NoRight {
            user: target.user.clone(),
            schema: schema.clone(),
            why: "its tables belong to another role".into(),
        });
    }
    let id: Id = row.try_get(0).map_err(broken)?;
    let stored: &[u8] = row.try_get(1).map_err(broken)?;
    let is_sealed: bool = row.try_get(2).map_err(broken)?;
    let plain = match (is_sealed, sealer) {
        (false, _) => stored.to_vec(),
        (true, Some(sealer)) => {
            let opened = sealer.open(SECRET_LABEL, stored);
            opened.map_err(|error| key(target, error))?.to_vec()
        }
        (true, None) => return Err(key(target, SealError::NoKey)),
    };
    let secret = <[u8; 32]>::try_from(&plain[..]).map_err(|_| key(target, SealError::Short))?;
    books::follow_shift(session, target).await?;
    if let Some(sealer) = sealer {
        seal_secret(session, target, sealer, &secret).await?;
    }
    Ok(Found {
        id: id.0,
        secret,
        now: row.try_get(3).map_err(broken)?,
    })
}

/// What the stored secret is sealed for.
const SECRET_LABEL: &[u8] = b"onlyonce secret";

/// Seals the secret anew each time, so that it follows the active key.
async fn seal_secret(
    session: &Session,
    target: &Target,
    sealer: &Sealer,
    secret: &[u8; 32],
) -> Result<(), ConnectError> {
    let sealed = sealer
        .seal(SECRET_LABEL, secret)
        .map_err(|error| key(target, error))?;
    let text = format!(
        "UPDATE {}.store SET secret = $1, sealed = true",
        target.schema
    );
    session
        .ask(&text, &[Type::BYTEA], &[&&sealed[..]])
        .await
        .map_err(|failed| target.server_error(failed))?;
    Ok(())
}

fn key(target: &Target, error: SealError) -> ConnectError {
    ConnectError::Key {
        place: target.place.clone(),
        error,
    }
}

impl Core {
    /// Starts what works as long as the store is there.
    fn start(self: &Arc<Self>) {
        let lanes = [
            (&self.desk.writers, self.options.writers.max(1)),
            (&self.desk.readers, self.options.readers.max(1)),
        ];
        for (lanes, count) in lanes {
            for _ in 0..count {
                self.runtime.spawn(lanes.clone().run(self.clone()));
            }
        }
        self.runtime.spawn(self.clone().follow_clock());
        self.runtime.spawn(watch::listen(self.clone()));
    }

    /// A new connection to this very store.
    async fn session(&self) -> Result<Session, ConnectError> {
        let (target, patience, id) = (self.target.clone(), self.options.timeout, self.id);
        let opening = self.runtime.spawn(async move {
            let (session, facts) = open(&target, patience).await?;
            // A newer program may have migrated the store since.
            migrate::check_version(session.client(), &target).await?;
            let text = format!("SELECT id FROM {}.store", target.schema);
            let asked = session.ask(&text, &[], &[]).await;
            let rows = asked.map_err(|failed| target.server_error(failed))?;
            let found: Option<Id> = rows.first().and_then(|row| row.try_get(0).ok());
            if found != Some(Id(id)) {
                return Err(ConnectError::OtherStore(target.place.clone()));
            }
            books::follow_shift(&session, &target).await?;
            Ok((session, facts))
        });
        let opened = opening.await;
        let (session, facts) =
            opened.unwrap_or_else(|error| Err(ConnectError::Tls(error.to_string())))?;
        if facts.is_pooled {
            self.prepares.see_pooler();
        }
        Ok(session)
    }

    fn now(&self) -> Timestamp {
        match &self.options.clock {
            Some(clock) => clock.now(),
            None => self.clock.now(),
        }
    }

    /// The moment that a test gives; by default there is none, and the server looks at its own clock.
    fn given_now(&self) -> Option<i64> {
        let clock = self.options.clock.as_ref()?;
        Some(body::millis(clock.now()))
    }

    /// Runs a statement that commits `writes` writes.
    async fn commit(
        &self,
        session: &mut Session,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
        writes: usize,
    ) -> Result<Vec<tokio_postgres::Row>, Failed> {
        let started = Instant::now();
        let rows = session.run(&self.prepares, statement, params).await?;
        self.figures.committed(writes as u64, started.elapsed());
        Ok(rows)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Looks at the server's clock every second.
    async fn follow_clock(self: Arc<Self>) {
        const EVERY: Duration = Duration::from_secs(1);
        let text = format!("SELECT {SERVER_CLOCK}");
        loop {
            tokio::time::sleep(EVERY).await;
            if let Ok(rows) = self.chores.ask(&self, &text, &[], &[]).await
                && let Some(Ok(millis)) = rows.first().map(|row| row.try_get(0))
            {
                self.clock.look(millis);
            }
        }
    }
}
