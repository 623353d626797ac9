//! What the threads of one process share the gate by.
//!
//! `tests/loom` compiles the gate with a module of this name over loom, which tries every order of its
//! steps.

pub use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread_local,
};

pub use parking_lot::Mutex;
