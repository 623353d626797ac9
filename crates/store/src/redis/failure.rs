//! Why a server did not do what it was asked, and what that says about the store.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::url::Place;
use crate::StoreError;

/// Why there is no answer to a command, or no good one.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It was not sent.
    Unsent(Refusal),
    /// It was sent, perhaps, and nobody knows what became of it.
    Unanswered(String),
    /// The store was closed.
    Closed,
    /// The server answered with an error.
    Refused { code: String, text: String },
}

/// Why a server is not one to keep records on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// Nobody answers there, or not in time.
    #[error("no answer from {place}: {why}; start the server, or correct store.url")]
    Unreachable {
        /// The server.
        place: String,
        /// What went wrong.
        why: String,
    },
    /// It wants another password, or the user lacks a right.
    #[error(
        "{place} refuses the login: {why}; correct user and password in store.url, and give the \
         user the rights that docs/redis.md names"
    )]
    Login {
        /// The server.
        place: String,
        /// What it said.
        why: String,
    },
    /// Somebody is there, and ends every new connection.
    #[error(
        "{place} hangs up on new connections ({why}), as it does where maxclients are connected; raise \
         maxclients, or look at its log"
    )]
    HangsUp {
        /// The server.
        place: String,
        /// How it was noticed.
        why: String,
    },
    /// It is busy with something that passes.
    #[error("{place} is not ready: {why}; it is asked again")]
    NotReady {
        /// The server.
        place: String,
        /// What it said.
        why: String,
    },
    /// Too old for the scripts.
    #[error("{place} is Redis {version}; it must be 7.0 or newer, or Valkey")]
    Old {
        /// The server.
        place: String,
        /// What it calls itself.
        version: String,
    },
    /// A replica takes no writes, and may know less than its master.
    #[error("{place} is a replica; name its master in store.url, or its sentinels or cluster")]
    Replica {
        /// The server.
        place: String,
    },
    /// It would throw records away to make room, and their requests would run twice.
    #[error(
        "{place} drops keys when its memory is full (maxmemory-policy {policy}), and what was \
         dropped would run again; set maxmemory-policy to noeviction"
    )]
    Evicting {
        /// The server.
        place: String,
        /// Its policy.
        policy: String,
    },
    /// One server is meant, and it is a node of a cluster.
    #[error("{place} is a node of a cluster; write redis+cluster:// in store.url")]
    InCluster {
        /// The server.
        place: String,
    },
    /// A cluster is meant, and it is not one.
    #[error("{place} is not a node of a cluster; write redis:// in store.url")]
    NotInCluster {
        /// The server.
        place: String,
    },
    /// The sentinels do not know the master.
    #[error("no sentinel knows a master called {master:?}; correct master= in store.url")]
    NoMaster {
        /// The name.
        master: String,
    },
    /// It is not the store that was opened: its data is gone, or others'.
    #[error(
        "{place} does not hold the store that was opened: its data was lost or replaced, and keys \
         used before would run again; restore the data, or restart to begin with what is there"
    )]
    OtherStore {
        /// The server.
        place: String,
    },
}

impl Failure {
    /// What a failed write says about the store.
    pub fn of_write(self) -> StoreError {
        match self {
            Self::Unsent(refusal) => StoreError::Unavailable(refusal.to_string()),
            Self::Unanswered(why) => StoreError::InDoubt(why),
            Self::Closed => StoreError::Unavailable("it was closed".to_owned()),
            Self::Refused { code, text } => refused(&code, &text),
        }
    }

    /// What a failed read says about the store.
    pub fn of_read(self) -> StoreError {
        match self {
            Self::Unanswered(why) => StoreError::Unavailable(why),
            other => match other.of_write() {
                StoreError::InDoubt(why) => StoreError::Unavailable(why),
                error => error,
            },
        }
    }

    /// The code of the server's answer, `READONLY` say; empty where it did not answer.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            _ => "",
        }
    }

    /// Makes one of what the client library says of a command that was sent.
    pub fn of_sent(place: &Place, error: &RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension => {
                let code = error.code().unwrap_or_default();
                let detail = error.detail().unwrap_or_default();
                Self::Refused {
                    code: code.to_owned(),
                    text: format!("{place} says: {code} {detail}"),
                }
            }
            _ if error.is_timeout() => Self::Unanswered(format!("{place} did not answer in time")),
            _ => Self::Unanswered(format!("the connection to {place} broke: {error}")),
        }
    }
}

impl Refusal {
    /// Makes one of what the client library says of a connection that was not made.
    pub fn of_connect(place: &Place, error: &RedisError) -> Self {
        let (place, why) = (place.to_string(), error.to_string());
        let login = matches!(
            error.kind(),
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm)
        );
        match error.code().unwrap_or_default() {
            "WRONGPASS" | "NOAUTH" | "NOPERM" => Self::Login { place, why },
            _ if login => Self::Login { place, why },
            "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" => Self::NotReady { place, why },
            _ if error.is_timeout() => Self::Unreachable {
                place,
                why: "it did not answer in time".to_owned(),
            },
            _ if error.is_connection_refusal() => Self::Unreachable { place, why },
            _ if error.is_connection_dropped() || why.contains("max number of clients") => {
                Self::HangsUp { place, why }
            }
            _ => Self::Unreachable { place, why },
        }
    }
}

/// What a server's error says of a command. All of these come before a script starts, but for the
/// last.
fn refused(code: &str, text: &str) -> StoreError {
    let text = text.to_owned();
    match code {
        "OOM" => StoreError::Full(format!(
            "{text}; raise maxmemory, or keep records for a shorter window"
        )),
        "WRONGTYPE" => StoreError::Corrupt(text),
        "MISCONF" | "NOREPLICAS" | "READONLY" | "LOADING" | "BUSY" | "MASTERDOWN"
        | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "CROSSSLOT" | "NOAUTH" | "WRONGPASS"
        | "NOPERM" | "NOSCRIPT" | "EXECABORT" => StoreError::Unavailable(text),
        // A script that stopped half-way.
        _ => StoreError::InDoubt(text),
    }
}
