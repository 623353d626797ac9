//! What a process does to the world, which a test can hold up or end.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Whether a gateway runs, stands still, or is dead.
#[derive(Default)]
pub struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    mode: Mode,
    waiting: Vec<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Open,
    Held,
    Dead,
}

impl Gate {
    /// Ready while the gateway runs; never again once it is dead.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        match state.mode {
            Mode::Open => return Poll::Ready(()),
            Mode::Held => state.waiting.push(cx.waker().clone()),
            Mode::Dead => {}
        }
        Poll::Pending
    }

    /// Waits for [`Gate::poll`].
    pub async fn pass(&self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    /// Waits until the gateway is dead.
    pub async fn dead(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.mode == Mode::Dead {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub fn hold(&self) {
        self.to(Mode::Held);
    }

    pub fn release(&self) {
        self.to(Mode::Open);
    }

    pub fn kill(&self) {
        self.to(Mode::Dead);
    }

    /// `work`, which stands still while the gateway does, and is dropped by nobody.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(()) => Pin::new(&mut work).poll(cx),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn to(&self, mode: Mode) {
        let waiting = {
            let mut state = self.0.lock();
            if state.mode == Mode::Dead {
                return;
            }
            state.mode = mode;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}
