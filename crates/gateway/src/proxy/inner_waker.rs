//! A waker that tells wake-ups from within a poll from those from outside.
//!
//! hyper hands messages between the two ends of a connection through channels. Here both ends are
//! polled by one task, so each hand-over would wake the very task that is running: a whole new round
//! through the caller's connection, to find nothing to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// After so many rounds the task gets its turn again with the others: what a runtime wants that
/// lets nobody run for ever comes as a wake-up from within, too.
const MAX_ROUNDS: usize = 8;

/// The waker of a group of futures that are always polled together.
pub(super) struct InnerWaker {
    inner: Arc<Inner>,
    waker: Waker,
}

struct Inner {
    /// The task that polls the group.
    task: Mutex<Waker>,
    /// Whether the group is being polled right now.
    polling: AtomicBool,
    /// Whether something in it wants to be polled again.
    woken: AtomicBool,
}

impl InnerWaker {
    pub(super) fn new() -> Self {
        let inner = Arc::new(Inner {
            task: Mutex::new(Waker::noop().clone()),
            polling: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        });
        let waker = Waker::from(Arc::clone(&inner));
        Self { inner, waker }
    }

    /// Polls the group until it is ready or waits for something outside.
    pub(super) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        {
            let mut task = self.inner.task.lock();
            if !task.will_wake(cx.waker()) {
                task.clone_from(cx.waker());
            }
        }
        let mut inner_cx = Context::from_waker(&self.waker);
        for _ in 0..MAX_ROUNDS {
            self.inner.polling.store(true, SeqCst);
            let polled = poll(&mut inner_cx);
            // In this order: a wake-up from another thread either sees that nobody polls any more
            // and wakes the task, or is seen here.
            self.inner.polling.store(false, SeqCst);
            let woken = self.inner.woken.swap(false, SeqCst);
            if polled.is_ready() || !woken {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, SeqCst);
        if !self.polling.load(SeqCst) {
            self.task.lock().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn a_wake_up_from_within_polls_again_and_leaves_the_task_alone() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let group = InnerWaker::new();
        let mut rounds = 0;
        let polled = group.poll(&mut Context::from_waker(&task), |cx| {
            rounds += 1;
            if rounds < 3 {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert_eq!((polled, rounds), (Poll::Pending, 3));
        assert_eq!(count.0.load(SeqCst), 0);
    }

    #[test]
    fn a_group_that_never_rests_gives_way_to_the_task() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let mut rounds = 0;
        let polled = InnerWaker::new().poll(&mut Context::from_waker(&task), |cx| {
            rounds += 1;
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!((polled, rounds), (Poll::Pending, MAX_ROUNDS));
        assert_eq!(count.0.load(SeqCst), 1);
    }

    #[test]
    fn a_wake_up_from_outside_wakes_the_task() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let group = InnerWaker::new();
        let mut kept = None;
        let polled = group.poll(&mut Context::from_waker(&task), |cx| {
            kept = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        kept.expect("a waker").wake();
        assert_eq!(count.0.load(SeqCst), 1);
    }
}
