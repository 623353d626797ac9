//! What the threads of one process share live operations by.
//!
//! `tests/loom` compiles the modules that use it with a module of this name over loom, which tries every
//! order of their steps.

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use parking_lot::Mutex;
