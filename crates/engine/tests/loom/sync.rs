//! `src/sync.rs` over loom.

pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};

use loom::sync::MutexGuard;

/// The mutex of parking_lot, as far as it is used, over that of loom.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no thread panics")
    }
}
