//! What the tests have in common.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use onlyonce_client::{Action, Clock, Entry, Fingerprint, Key, KeyStore, Note, Said, Taken};

pub fn action(name: &str) -> Action {
    Action::new(name).unwrap()
}

/// 2026-11-25T00:00:00Z.
pub fn day() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_564_800)
}

/// A new key, for a request that `body` tells apart.
pub fn entry(body: &str) -> Entry {
    let mut fingerprint = [0; 32];
    fingerprint[..body.len()].copy_from_slice(body.as_bytes());
    Entry {
        key: Key::new(&uuid::Uuid::new_v4().to_string()).unwrap(),
        fingerprint: Fingerprint::from_bytes(fingerprint),
        made_at: day(),
    }
}

pub fn note(status: u16) -> Note {
    Note {
        at: day() + Duration::from_secs(5),
        said: Said::Answer(StatusCode::from_u16(status).unwrap()),
        expires_at: Some(day() + Duration::from_secs(86400)),
    }
}

/// Runs `test` to its end on a runtime of its own.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

/// Keys in memory, which last as long as the test wants.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<HashMap<String, Taken>>>);

impl Memory {
    /// What is kept for `action`.
    pub fn kept(&self, action: &Action) -> Option<Taken> {
        self.0.lock().unwrap().get(action.as_str()).cloned()
    }
}

impl KeyStore for Memory {
    type Error = Infallible;

    async fn take(&self, action: &Action, fresh: Entry) -> Result<Taken, Infallible> {
        let mut all = self.0.lock().unwrap();
        if let Some(kept) = all.get(action.as_str()) {
            return Ok(kept.clone());
        }
        let taken = |is_new| Taken {
            entry: fresh.clone(),
            is_new,
            note: None,
        };
        all.insert(action.to_string(), taken(false));
        Ok(taken(true))
    }

    async fn note(&self, action: &Action, key: &Key, note: Note) -> Result<(), Infallible> {
        let mut all = self.0.lock().unwrap();
        let kept = all.get_mut(action.as_str());
        for kept in kept.into_iter().filter(|kept| kept.entry.key == *key) {
            kept.note = Some(note.clone());
        }
        Ok(())
    }

    async fn forget(&self, action: &Action) -> Result<bool, Infallible> {
        Ok(self.0.lock().unwrap().remove(action.as_str()).is_some())
    }
}

/// A calendar that goes with tokio's clock, and can be moved by itself.
pub struct Calendar {
    start: tokio::time::Instant,
    moved: Mutex<(Duration, Duration)>,
}

impl Calendar {
    pub fn new() -> Self {
        Self {
            start: tokio::time::Instant::now(),
            moved: Mutex::default(),
        }
    }

    pub fn forward(&self, by: Duration) {
        self.moved.lock().unwrap().0 += by;
    }

    pub fn back(&self, by: Duration) {
        self.moved.lock().unwrap().1 += by;
    }
}

/// A calendar that a client and a test share.
#[derive(Clone)]
pub struct Shared(pub Arc<Calendar>);

impl Clock for Shared {
    fn now(&self) -> SystemTime {
        let (forward, back) = *self.0.moved.lock().unwrap();
        day() + self.0.start.elapsed() + forward - back
    }
}
