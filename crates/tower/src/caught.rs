//! Panics of what belongs to others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// A handler, or its body, panicked. The panic hook has told of it.
pub(crate) struct Panicked;

/// What `work` comes to, unless it panics.
pub(crate) async fn caught<F: Future>(work: impl FnOnce() -> F) -> Result<F::Output, Panicked> {
    // Nothing of a handler that panicked is used again but to drop it.
    let future = catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked)?;
    let mut future = pin!(future);
    std::future::poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        },
    )
    .await
}
