//! A future that the caller polls for as long as it is there, and that goes on without it.
//!
//! It spares a task, and the wake-ups between two tasks, for every request that is answered at once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

/// Goes on as a task where it is dropped before it has ended. Pending for ever once it has.
pub struct Attached<T: 'static> {
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    /// `None` where it always goes on.
    stays: Option<Stays>,
}

/// Whether what a caller has begun goes on without it, and whether it does.
#[derive(Clone, Default)]
pub struct Stays(Arc<(AtomicBool, AtomicBool)>);

/// As long as it is held, what was begun goes on without its caller.
#[must_use = "dropped, nothing stays"]
pub struct Staying<'a>(&'a Stays);

impl<T> Attached<T> {
    /// Goes on, whenever its caller leaves.
    pub fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            future: Some(Box::pin(future)),
            stays: None,
        }
    }

    /// Goes on where `stays` says so at that moment.
    pub fn while_it_stays(stays: Stays, future: impl Future<Output = T> + Send + 'static) -> Self {
        let mut attached = Self::new(future);
        attached.stays = Some(stays);
        attached
    }
}

impl<T> Future for Attached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<T> Drop for Attached<T> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else {
            return;
        };
        if let Some(stays) = &self.stays
            && !stays.leave()
        {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { drop(future.await) });
        }
    }
}

impl Stays {
    /// From now on, it goes on.
    pub fn stay(&self) -> Staying<'_> {
        self.0.0.store(true, Relaxed);
        Staying(self)
    }

    /// Whether the caller has left.
    pub fn is_alone(&self) -> bool {
        self.0.1.load(Relaxed)
    }

    /// The caller leaves. Says whether it goes on.
    fn leave(&self) -> bool {
        self.0.1.store(true, Relaxed);
        self.0.0.load(Relaxed)
    }
}

impl Drop for Staying<'_> {
    fn drop(&mut self) {
        self.0.0.0.store(false, Relaxed);
    }
}
