//! A future that the caller polls for as long as it is there, and that goes on without it.
//!
//! It spares a task, and the wake-ups between two tasks, for every request that is answered at once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use onlyonce_core::planted::{Bug, planted};

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
        if planted(Bug::ClientGoneCancels) {
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::oneshot;

    use super::*;

    /// Something that runs until it is told to end; the receiver hears whether it got there.
    fn work() -> (
        oneshot::Sender<()>,
        oneshot::Receiver<()>,
        impl Future<Output = ()> + Send,
    ) {
        let (go, gone) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let work = async move {
            let _ = gone.await;
            let _ = tell.send(());
        };
        (go, told, work)
    }

    async fn poll_once<T>(attached: &mut Attached<T>) {
        poll_fn(|cx| {
            assert!(Pin::new(&mut *attached).poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn what_stays_goes_on_without_its_caller() {
        let (go, told, work) = work();
        let stays = Stays::default();
        let mut attached = Attached::while_it_stays(stays.clone(), work);
        poll_once(&mut attached).await;
        let staying = stays.stay();
        assert!(!stays.is_alone());
        drop(attached);
        assert!(stays.is_alone());
        drop(staying);
        assert_eq!(go.send(()), Ok(()));
        assert_eq!(told.await, Ok(()));
    }

    #[tokio::test]
    async fn what_does_not_stay_ends_with_its_caller() {
        let (go, told, work) = work();
        let mut attached = Attached::while_it_stays(Stays::default(), work);
        poll_once(&mut attached).await;
        drop(attached);
        assert!(go.send(()).is_err());
        assert!(told.await.is_err());
    }

    #[tokio::test]
    async fn an_execution_goes_on_in_any_case() {
        let (go, told, work) = work();
        let mut attached = Attached::new(work);
        poll_once(&mut attached).await;
        drop(attached);
        assert_eq!(go.send(()), Ok(()));
        assert_eq!(told.await, Ok(()));
    }
}
