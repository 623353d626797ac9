//! The deadlines of one exchange, on one timer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One deadline that may move while it is waited for.
///
/// Moving it later costs nothing: the timer that runs already fires, finds that it is too early,
/// and is set again. That matters on streams, where every chunk moves it.
#[derive(Default)]
pub struct Timer {
    started: Option<Instant>,
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Lets the timer fire after `span`.
    pub fn set(&mut self, span: Duration) {
        let now = Instant::now();
        self.started = Some(now);
        self.set_at(now + span);
    }

    /// Lets the timer fire `span` after it was first set.
    pub fn postpone(&mut self, span: Duration) {
        if let Some(started) = self.started {
            self.set_at(started + span);
        }
    }

    /// Lets the timer fire at `deadline`.
    pub fn set_at(&mut self, deadline: Instant) {
        if let Some(sleep) = &mut self.sleep
            && deadline < sleep.deadline()
        {
            sleep.as_mut().reset(deadline);
        }
        self.deadline = Some(deadline);
    }

    /// Whether it runs.
    pub fn is_set(&self) -> bool {
        self.deadline.is_some()
    }

    /// Lets it not fire.
    pub fn clear(&mut self) {
        self.deadline = None;
    }

    /// Whether it has fired.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
