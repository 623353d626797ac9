//! What the tests share.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use onlyonce_core::{OperationId, Record, State, StateName, UnknownReason};
use onlyonce_engine::Resolution;
use onlyonce_store::clock::ManualClock;
use onlyonce_store::{MemoryStore, Query, Store};
use onlyonce_tower::{Call, Failure, Key, Once, Operation, RunError, Settings, StepError};

pub const LEASE: Duration = Duration::from_secs(30);
pub const DAY: Duration = Duration::from_secs(86_400);

/// A store, and what runs over it.
pub struct World {
    pub clock: ManualClock,
    pub store: Arc<MemoryStore>,
    pub once: Once<MemoryStore>,
}

impl World {
    /// On the runtime that this is called on.
    pub fn new() -> Self {
        let clock = ManualClock::default();
        let store = Arc::new(MemoryStore::with_clock(clock.clone()));
        let once = Once::over(store.clone(), Settings::default());
        Self { clock, store, once }
    }

    /// Another process over the same store.
    pub fn another(&self) -> Once<MemoryStore> {
        Once::over(self.store.clone(), Settings::default())
    }

    pub async fn records(&self) -> Vec<Arc<Record>> {
        let query = Query {
            limit: 100,
            ..Query::default()
        };
        let page = self.store.list(query).await.unwrap();
        page.records
            .into_iter()
            .map(|stored| stored.record)
            .collect()
    }

    /// The operation, which is the only one that is no step.
    pub async fn operation(&self) -> Arc<Record> {
        let records = self.records().await;
        let mut operations = records.iter().filter(|record| !record.scope.has_steps());
        let operation = operations.next().expect("an operation").clone();
        assert!(operations.next().is_none(), "more than one operation");
        operation
    }

    /// The step of this name, if it was begun.
    pub async fn step(&self, name: &str) -> Option<Arc<Record>> {
        let records = self.records().await;
        let is_it = |record: &&Arc<Record>| {
            record.scope.has_steps() && record.key.as_str().split_once('/').unwrap().1 == name
        };
        records.iter().find(is_it).cloned()
    }

    pub async fn state_of(&self, name: &str) -> Option<StateName> {
        Some(self.step(name).await?.state.name())
    }

    /// What an operator finds out of an unknown operation.
    pub async fn resolve(&self, id: OperationId, result: Option<&'static str>) {
        let resolution = match result {
            None => Resolution::Released,
            Some(body) => Resolution::Completed {
                head: onlyonce_core::Head {
                    status: 200,
                    ..Default::default()
                },
                body: body.into(),
                trailers: Default::default(),
                // As `onlyonce keys complete` has it.
                window: DAY,
            },
        };
        let engine = self.once.engine();
        engine
            .resolve(id, resolution, "me", "I looked")
            .await
            .unwrap();
    }
}

pub fn reason_of(record: &Record) -> Option<UnknownReason> {
    match record.state {
        State::Unknown { reason, .. } => Some(reason),
        _ => None,
    }
}

/// One thing to do that may be continued.
pub fn call() -> Call {
    Call::new(Key::new("k").unwrap()).resume()
}

/// Something outside that is counted.
#[derive(Clone, Default)]
pub struct Counter(Arc<AtomicUsize>);

impl Counter {
    /// Does it, and gives how often it was done by now.
    pub fn hit(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    pub fn hits(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// The step `charge`, which gives the number of the charge.
pub async fn charge(operation: &Operation, bank: &Counter) -> Result<usize, StepError> {
    operation
        .step("charge", async || Ok::<_, Infallible>(bank.hit()))
        .await
}

/// An error that says nothing.
#[derive(Debug, thiserror::Error)]
#[error("it broke")]
pub struct Broke;

/// Runs `work`, and expects that its outcome is unknown, and not since it panicked: what it asserts is
/// caught as a panic of any handler is.
pub async fn lost<W, F>(once: &Once<MemoryStore>, call: Call, work: W) -> RunError
where
    W: FnOnce(Operation) -> F + Send + 'static,
    F: Future<Output = Result<usize, Failure>> + Send + 'static,
{
    let error = once.run(call, work).await.expect_err("no result");
    assert!(matches!(error, RunError::Unknown { .. }), "{error:?}");
    assert!(!error.to_string().ends_with("say: it panicked"), "{error}");
    error
}
