//! `src/embedded/sync.rs` over loom.

pub use loom::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread_local,
};

use loom::sync::MutexGuard;

/// The mutex of parking_lot, as far as it is used, over that of loom.
#[derive(Debug, Default)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no thread panics")
    }
}
