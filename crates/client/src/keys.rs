//! Where keys are kept: what a store of keys promises.

use std::error::Error;
use std::time::SystemTime;

use http::StatusCode;
use onlyonce_core::{Fingerprint, Key};

use crate::Action;

/// Keeps one key for each action, so that a restarted process sends the same one.
///
/// The promise, which all safety rests on:
///
/// - [`take`](Self::take) returns only after what it returns would survive a crash of the process and of
///   the machine. The first byte of a request is sent after that.
/// - Of any number of callers in any number of processes that take one action, all get the same key.
/// - What cannot be read is an error, and never a new key.
/// - A kept key does not change. Only [`forget`](Self::forget) ends it.
pub trait KeyStore: Send + Sync + 'static {
    /// Why the store cannot be used. Its text says what to do.
    type Error: Error + Send + Sync + 'static;

    /// Keeps `fresh` for `action`, unless something is kept for it: then that is what is returned.
    fn take(
        &self,
        action: &Action,
        fresh: Entry,
    ) -> impl Future<Output = Result<Taken, Self::Error>> + Send;

    /// Keeps what the server said under `key`, in place of what it said before.
    fn note(
        &self,
        action: &Action,
        key: &Key,
        note: Note,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Forgets `action`, and says whether it was known. From here on it is a new action with a new key:
    /// call this once your own records say that the action is done, and never before.
    fn forget(&self, action: &Action) -> impl Future<Output = Result<bool, Self::Error>> + Send;
}

/// What is kept for an action before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The request that the key is for.
    pub fingerprint: Fingerprint,
    /// When the key was made, which is just before it was first sent. The server's window cannot have
    /// begun before this moment, whether or not the process lived to send it.
    pub made_at: SystemTime,
}

/// What [`KeyStore::take`] found or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What is kept.
    pub entry: Entry,
    /// Whether this call made it, so that nothing can have been sent under it yet.
    pub is_new: bool,
    /// What the server said last, where it said something that counts.
    pub note: Option<Note>,
}

/// What a server said of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// When it was said.
    pub at: SystemTime,
    /// What it was.
    pub said: Said,
    /// The end of the server's window, where the server told it.
    pub expires_at: Option<SystemTime>,
}

/// What a server can say of an action that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A final answer.
    Answer(StatusCode),
    /// That nobody can say whether it ran.
    Unknown,
}

impl Said {
    /// Whether it is an answer that is no error: the action ran.
    pub fn is_success(self) -> bool {
        match self {
            Self::Answer(status) => !(status.is_client_error() || status.is_server_error()),
            Self::Unknown => false,
        }
    }
}
