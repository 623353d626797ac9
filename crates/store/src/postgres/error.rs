//! What can go wrong: at the start, and with a statement.

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::{StoreError, seal::SealError};

/// Why there is no store at a URL. Each is one line: what is wrong; what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is not one.
    #[error(
        "the store's URL does not read: {0}; write postgres://user:password@host:port/database"
    )]
    Url(String),
    /// A file with certificates, or TLS itself, is not usable.
    #[error("TLS to the store's server cannot be set up: {0}; look at sslrootcert in store.url")]
    Tls(String),
    /// No server answers.
    #[error("the server {place} does not answer: {why}; is it running, and is store.url right?")]
    Unreachable {
        /// Where it should be.
        place: String,
        /// What happened.
        why: String,
    },
    /// The server does not let this user in.
    #[error(
        "the server {place} does not let {user} in: {why}; look at the user and the password in store.url"
    )]
    NotLetIn {
        /// Where.
        place: String,
        /// Who.
        user: String,
        /// What it said.
        why: String,
    },
    /// There is no such database.
    #[error("{why} at {place}; create it, or name another one in store.url")]
    NoDatabase {
        /// Where.
        place: String,
        /// What it said.
        why: String,
    },
    /// The role may not do what it must.
    #[error(
        "the role {user} may not do what the store needs ({why}); let it own the schema {schema}"
    )]
    NoRight {
        /// Who.
        user: String,
        /// The schema that it must own.
        schema: String,
        /// What the server said.
        why: String,
    },
    /// Older than PostgreSQL 15.
    #[error(
        "the server {place} is PostgreSQL {version}, and 15 is the oldest that works; upgrade it"
    )]
    OldServer {
        /// Where.
        place: String,
        /// Its version.
        version: String,
    },
    /// A replica, or a server that takes no writes.
    #[error("the server {0} is a replica or takes no writes; store.url must lead to the primary")]
    Replica(String),
    /// Acknowledged commits may be lost there.
    #[error(
        "the server {0} runs with fsync=off and loses what it acknowledged when it crashes; turn it on"
    )]
    Unsynced(String),
    /// There are no tables.
    #[error(
        "there is no store in the schema {schema} of {place}; run `onlyonce store migrate` once"
    )]
    NoSchema {
        /// Where.
        place: String,
        /// The schema.
        schema: String,
    },
    /// The tables are of an older version.
    #[error(
        "the schema {schema} of {place} has version {version}, and this program needs {known}; run \
         `onlyonce store migrate`"
    )]
    OldSchema {
        /// Where.
        place: String,
        /// The schema.
        schema: String,
        /// The version that is there.
        version: i32,
        /// The version that is needed.
        known: i32,
    },
    /// The tables are of a newer version.
    #[error(
        "the schema {schema} of {place} has version {version}, and this program knows up to {known}; \
         start the newer program, nothing was changed"
    )]
    NewSchema {
        /// Where.
        place: String,
        /// The schema.
        schema: String,
        /// The version that is there.
        version: i32,
        /// The newest version that is known here.
        known: i32,
    },
    /// It is encrypted, and not with the keys that are configured.
    #[error(
        "the store in {place} is encrypted and does not open: {error}; configure the key in \
         store.encryption"
    )]
    Key {
        /// Where.
        place: String,
        /// Why it does not open.
        error: SealError,
    },
    /// After a connection was lost, another store was found in its place.
    #[error("another store stands at {0} now; start again if that is meant")]
    OtherStore(String),
    /// Anything else.
    #[error("the server {place} refused: {why}; look at its log")]
    Server {
        /// Where.
        place: String,
        /// What it said.
        why: String,
    },
}

/// Why a statement gave nothing.
#[derive(Clone, Debug)]
pub enum Failed {
    /// It never left.
    NotSent(String),
    /// The server refused it: nothing was written.
    Refused {
        /// The reason, as SQL numbers it.
        code: SqlState,
        /// The reason in words.
        why: String,
    },
    /// It left, and nobody knows what became of it.
    Broken(String),
}

impl Failed {
    /// Whether the connection is of no use any more.
    pub fn breaks_the_connection(&self) -> bool {
        match self {
            Self::Refused { code, .. } => *code == SqlState::READ_ONLY_SQL_TRANSACTION,
            Self::NotSent(_) | Self::Broken(_) => true,
        }
    }

    /// What a reader is told.
    pub fn of_a_read(self) -> StoreError {
        match self {
            Self::NotSent(why) | Self::Broken(why) | Self::Refused { why, .. } => {
                StoreError::Unavailable(why)
            }
        }
    }

    /// What a writer is told.
    pub fn of_a_write(self) -> StoreError {
        match self {
            Self::NotSent(why) => StoreError::Unavailable(why),
            Self::Broken(why) => StoreError::InDoubt(why),
            Self::Refused { code, why } if code == SqlState::DISK_FULL => {
                StoreError::Full(format!("the server's disk: {why}; make room there"))
            }
            Self::Refused { why, .. } => StoreError::Unavailable(why),
        }
    }
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            // What ends the session may come after the commit.
            Some(db) if !ends_the_session(db) => Self::Refused {
                code: db.code().clone(),
                why: match *db.code() == SqlState::READ_ONLY_SQL_TRANSACTION {
                    true => format!("the server takes no writes: {}", db.message()),
                    false => db.message().to_owned(),
                },
            },
            Some(db) => Self::Broken(db.message().to_owned()),
            None => Self::Broken(describe(&error)),
        }
    }
}

fn ends_the_session(error: &DbError) -> bool {
    let by_severity = matches!(
        error.parsed_severity(),
        Some(Severity::Fatal | Severity::Panic)
    );
    let code = error.code().code();
    by_severity || code.starts_with("57P") || code.starts_with("08") || code == "40003"
}

/// An error with its causes, in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}
