//! How an execution takes an answer into its recording, and settles.

use bytes::Bytes;
use onlyonce_core::planted::{Bug, planted};
use onlyonce_core::{Head, HeaderBlock, ReleaseReason, UnknownReason};
use onlyonce_engine::{Execution, Kind, Late, PushError, Unsettled};
use onlyonce_store::Store;
use parking_lot::Mutex;

use super::audience::Left;
use super::incoming::{Ended, Gathered, Incoming, Original, Passage, Source};

/// How an execution ended, before that is written. `W` is what a late answer may still come of.
pub enum Outcome<W> {
    /// The whole answer, at once.
    Whole(Head, Bytes, HeaderBlock),
    /// The whole answer is in the recording; its trailers.
    Complete(HeaderBlock),
    /// The answer says that nothing ran, and is in the recording as a whole.
    Release,
    /// As before, but the body broke off.
    ReleaseBroken,
    /// Nothing was sent; carries what happened, for people.
    NotSent(String),
    /// Nobody can say whether it ran.
    Lost(UnknownReason),
    /// It did not answer in time, and may still.
    Late(W),
    /// The operation is not this execution's any more.
    Fenced,
}

/// Writes how an execution ended. Where an answer may still come, gives what it is recorded with.
pub async fn settle<S: Store, W>(
    execution: Execution<S>,
    outcome: Outcome<W>,
) -> Result<Option<(Late<S>, W)>, Unsettled> {
    match outcome {
        Outcome::Whole(head, body, trailers) => execution.respond_whole(head, body, trailers).await,
        Outcome::Complete(trailers) => execution.complete(trailers).await,
        Outcome::Release => execution.release(ReleaseReason::DidNotRun).await,
        Outcome::ReleaseBroken => execution.release_broken().await,
        Outcome::NotSent(why) => execution.not_sent(&why).await,
        Outcome::Lost(reason) => execution.lose(reason).await,
        Outcome::Late(waiting) => {
            let late = execution.lose_for_now(UnknownReason::TimedOut).await?;
            return Ok(Some((late, waiting)));
        }
        Outcome::Fenced => {
            drop(execution);
            Ok(())
        }
    }
    .map(|()| None)
}

/// Takes an answer into the recording; `released` says that it tells that nothing ran. What the first
/// caller gets and no recording holds goes into `original`; `chunk` is told of each piece.
pub async fn take_in<S: Store, A: Source, P: Passage, W>(
    execution: &mut Execution<S>,
    incoming: &mut Incoming<A, P>,
    released: bool,
    original: &Mutex<Option<Original>>,
    chunk: impl Fn(),
) -> Outcome<W> {
    let broken = |reason| match released {
        // The answer has said already that nothing ran.
        true => Outcome::ReleaseBroken,
        false => Outcome::Lost(reason),
    };
    let gathered = incoming.gather();
    let mut broke_off = false;
    let (body, ended) = match gathered {
        Gathered::Part(bytes) => (bytes, None),
        Gathered::Whole(bytes, trailers) => (bytes, Some(trailers)),
        Gathered::Broken(reason) if !released => return Outcome::Lost(reason),
        Gathered::Broken(_) => {
            broke_off = true;
            (Bytes::new(), None)
        }
    };
    if !body.is_empty() {
        chunk();
    }
    let whole = ended.as_ref().is_some_and(HeaderBlock::is_empty);
    let came = incoming.original(whole.then(|| body.clone()));
    *original.lock() = Some(came);
    let head = std::mem::take(&mut incoming.head);
    if let (Some(trailers), false) = (&ended, released) {
        return Outcome::Whole(head, body, trailers.clone());
    }
    let kind = match released {
        true => Kind::Released,
        false => Kind::Executed,
    };
    let pushed = match execution.head(head, kind).await {
        Ok(()) => execution.push(body).await,
        Err(error) => Err(error),
    };
    if let Err(error) = pushed {
        return not_pushed(&error, broken);
    }
    if ended.is_some() {
        return Outcome::Release;
    }
    if broke_off {
        return Outcome::ReleaseBroken;
    }
    loop {
        match incoming.next().await {
            Ok(bytes) => {
                chunk();
                if let Err(error) = execution.push(bytes).await {
                    return not_pushed(&error, broken);
                }
            }
            Err(Ended::Clean(_)) if released => return Outcome::Release,
            Err(Ended::Clean(trailers)) => return Outcome::Complete(trailers),
            Err(Ended::Broken(reason)) => return broken(reason),
        }
    }
}

/// Takes the body of a late answer into the recording; its trailers, where it came whole.
pub async fn take_late<S: Store, A: Source, P: Passage>(
    late: &mut Late<S>,
    incoming: &mut Incoming<A, P>,
    chunk: impl Fn(),
) -> Option<HeaderBlock> {
    loop {
        match incoming.next().await {
            Ok(bytes) => {
                chunk();
                late.push(bytes).await.ok()?;
            }
            Err(Ended::Clean(trailers)) => return Some(trailers),
            Err(Ended::Broken(_)) => return None,
        }
    }
}

/// What `work` comes to; `None` where everybody left before, and the route does not go on then.
pub async fn while_followed<T>(
    left: &mut Option<Left>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let Some(left) = left else {
        return Some(work.await);
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = left.all() => None,
    }
}

fn not_pushed<W>(error: &PushError, broken: impl Fn(UnknownReason) -> Outcome<W>) -> Outcome<W> {
    match error {
        PushError::OverLimit { .. } if planted(Bug::OversizeComplete) => {
            Outcome::Complete(HeaderBlock::default())
        }
        PushError::OverLimit { .. } => broken(UnknownReason::OverLimit),
        PushError::NotRecorded(_) => broken(UnknownReason::NotRecorded),
        PushError::Fenced => Outcome::Fenced,
    }
}
