//! Who follows an execution, for routes that cancel one that nobody follows any more.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use onlyonce_core::OperationId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::watch::Watch;

/// The audiences of the executions of this process that are cancelled without one.
#[derive(Clone, Default)]
pub(super) struct Audiences(Arc<Mutex<HashMap<OperationId, Place>>>);

/// Where the audience of one execution is, from the first who follows until the outcome is
/// written: in between, who comes can tell that it comes too late.
struct Place {
    audience: Weak<Audience>,
    /// For the execution, where somebody was here before it.
    left: Option<oneshot::Receiver<()>>,
}

/// Everybody who follows one execution. When the last one has left, the execution is told.
struct Audience {
    id: OperationId,
    all: Audiences,
    _stay: oneshot::Sender<()>,
}

/// One who follows.
pub(super) struct Follower {
    audience: Option<Arc<Audience>>,
    watch: Arc<Watch>,
}

/// Tells an execution that its whole audience has left. The execution keeps it until its outcome
/// is written.
pub(super) struct Left {
    left: oneshot::Receiver<()>,
    audience: Weak<Audience>,
    id: OperationId,
    all: Audiences,
}

impl Audiences {
    /// The first caller's seat, and what tells its execution that all have left.
    pub(super) fn open(&self, id: OperationId, watch: &Arc<Watch>) -> (Follower, Left) {
        let mut places = self.0.lock();
        let early = places.get_mut(&id).and_then(|place| {
            let left = place.left.take()?;
            Some((place.audience.upgrade()?, left))
        });
        let (audience, left) = early.unwrap_or_else(|| {
            let (audience, left) = self.audience(id);
            places.insert(id, Place::of(&audience, None));
            (audience, left)
        });
        let left = Left {
            left,
            audience: Arc::downgrade(&audience),
            id,
            all: self.clone(),
        };
        (Follower::new(audience, watch), left)
    }

    /// A seat for one more; `None` where all have left, so that the execution ends, or has ended.
    ///
    /// Whoever waited for the claim may be here before the execution is.
    pub(super) fn join(&self, id: OperationId, watch: &Arc<Watch>) -> Option<Follower> {
        let mut places = self.0.lock();
        let audience = match places.get(&id) {
            Some(place) => place.audience.upgrade()?,
            None => {
                let (audience, left) = self.audience(id);
                places.insert(id, Place::of(&audience, Some(left)));
                audience
            }
        };
        Some(Follower::new(audience, watch))
    }

    fn audience(&self, id: OperationId) -> (Arc<Audience>, oneshot::Receiver<()>) {
        let (stay, left) = oneshot::channel();
        let audience = Audience {
            id,
            all: self.clone(),
            _stay: stay,
        };
        (Arc::new(audience), left)
    }

    /// Takes the place away where it is still that of `audience`: a resend may have opened another
    /// one since.
    fn close(&self, id: OperationId, of: impl Fn(&Place) -> bool) {
        let mut places = self.0.lock();
        if places.get(&id).is_some_and(of) {
            places.remove(&id);
        }
    }
}

impl Place {
    fn of(audience: &Arc<Audience>, left: Option<oneshot::Receiver<()>>) -> Self {
        Self {
            audience: Arc::downgrade(audience),
            left,
        }
    }
}

impl Follower {
    fn new(audience: Arc<Audience>, watch: &Arc<Watch>) -> Self {
        Self {
            audience: Some(audience),
            watch: Arc::clone(watch),
        }
    }

    /// Leaves where the caller will send no more: it has left, as far as can be seen.
    pub(super) fn look(&mut self) {
        if self.watch.is_half_closed() {
            self.audience = None;
        }
    }
}

impl Left {
    /// Waits until all have left.
    pub(super) async fn all(&mut self) {
        // Nothing is ever sent: it ends when the audience does.
        let _ = (&mut self.left).await;
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.all
            .close(self.id, |place| place.audience.ptr_eq(&self.audience));
    }
}

impl Drop for Audience {
    fn drop(&mut self) {
        // What no execution has taken over, none takes away.
        self.all.close(self.id, |place| {
            place.left.is_some() && place.audience.strong_count() == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (Audiences, OperationId, Arc<Watch>) {
        let id = OperationId::from_bytes([7; 16]);
        (Audiences::default(), id, Arc::new(Watch::new()))
    }

    fn all_have_left(left: &mut Left) -> bool {
        left.left.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn an_execution_is_told_when_the_last_one_has_left() {
        let (all, id, watch) = fixture();
        let (first, mut left) = all.open(id, &watch);
        let second = all.join(id, &watch).unwrap();
        drop(first);
        assert!(!all_have_left(&mut left));
        drop(second);
        assert!(all_have_left(&mut left));
    }

    #[test]
    fn who_is_there_before_the_execution_is_of_its_audience() {
        let (all, id, watch) = fixture();
        let early = all.join(id, &watch).unwrap();
        let (first, mut left) = all.open(id, &watch);
        drop(first);
        assert!(!all_have_left(&mut left));
        drop(early);
        assert!(all_have_left(&mut left));
    }

    #[test]
    fn who_comes_after_all_have_left_comes_too_late_until_the_outcome_is_written() {
        let (all, id, watch) = fixture();
        let (first, left) = all.open(id, &watch);
        drop(first);
        assert!(all.join(id, &watch).is_none());
        drop(left);
        assert!(all.join(id, &watch).is_some());
    }

    #[test]
    fn an_execution_that_ends_leaves_the_audience_of_a_resend_alone() {
        let (all, id, watch) = fixture();
        let (first, left) = all.open(id, &watch);
        drop(first);
        let (_first, mut again) = all.open(id, &watch);
        drop(left);
        let joined = all.join(id, &watch).unwrap();
        drop(_first);
        assert!(!all_have_left(&mut again));
        drop(joined);
        assert!(all_have_left(&mut again));
    }

    #[test]
    fn nothing_is_kept_of_what_has_ended() {
        let (all, id, watch) = fixture();
        let (first, left) = all.open(id, &watch);
        drop(left);
        drop(first);
        drop(all.join(id, &watch));
        assert!(all.0.lock().is_empty());
    }
}
