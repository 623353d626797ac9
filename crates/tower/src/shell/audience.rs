//! Who follows an execution, for routes that cancel one that nobody follows any more.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use onlyonce_core::OperationId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What can be seen of a caller while it is being answered.
pub trait Presence: Send + Sync + 'static {
    /// Whether it has left, as far as that shows before its answer is dropped.
    fn has_left(&self) -> bool;
}

/// The audiences of the executions of this process that are cancelled without one.
#[derive(Clone, Default)]
pub struct Audiences(Arc<Mutex<HashMap<OperationId, Place>>>);

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
pub struct Follower {
    audience: Option<Arc<Audience>>,
    /// `None` where only the end of its answer tells that it has left.
    presence: Option<Arc<dyn Presence>>,
}

/// Tells an execution that its whole audience has left. The execution keeps it until its outcome
/// is written.
pub struct Left {
    left: oneshot::Receiver<()>,
    audience: Weak<Audience>,
    id: OperationId,
    all: Audiences,
}

impl Audiences {
    /// The first caller's seat, and what tells its execution that all have left.
    pub fn open(&self, id: OperationId, presence: Option<Arc<dyn Presence>>) -> (Follower, Left) {
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
        (Follower::new(audience, presence), left)
    }

    /// A seat for one more; `None` where all have left, so that the execution ends, or has ended.
    ///
    /// Whoever waited for the claim may be here before the execution is.
    pub fn join(&self, id: OperationId, presence: Option<Arc<dyn Presence>>) -> Option<Follower> {
        let mut places = self.0.lock();
        let audience = match places.get(&id) {
            Some(place) => place.audience.upgrade()?,
            None => {
                let (audience, left) = self.audience(id);
                places.insert(id, Place::of(&audience, Some(left)));
                audience
            }
        };
        Some(Follower::new(audience, presence))
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
    fn new(audience: Arc<Audience>, presence: Option<Arc<dyn Presence>>) -> Self {
        Self {
            audience: Some(audience),
            presence,
        }
    }

    /// Leaves where the caller has left.
    pub fn look(&mut self) {
        let presence = self.presence.as_ref();
        if presence.is_some_and(|presence| presence.has_left()) {
            self.audience = None;
        }
    }
}

impl Left {
    /// Waits until all have left.
    pub async fn all(&mut self) {
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

    fn fixture() -> (Audiences, OperationId) {
        let id = OperationId::from_bytes([7; 16]);
        (Audiences::default(), id)
    }

    fn all_have_left(left: &mut Left) -> bool {
        left.left.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn an_execution_is_told_when_the_last_one_has_left() {
        let (all, id) = fixture();
        let (first, mut left) = all.open(id, None);
        let second = all.join(id, None).unwrap();
        drop(first);
        assert!(!all_have_left(&mut left));
        drop(second);
        assert!(all_have_left(&mut left));
    }

    #[test]
    fn who_is_there_before_the_execution_is_of_its_audience() {
        let (all, id) = fixture();
        let early = all.join(id, None).unwrap();
        let (first, mut left) = all.open(id, None);
        drop(first);
        assert!(!all_have_left(&mut left));
        drop(early);
        assert!(all_have_left(&mut left));
    }

    #[test]
    fn who_comes_after_all_have_left_comes_too_late_until_the_outcome_is_written() {
        let (all, id) = fixture();
        let (first, left) = all.open(id, None);
        drop(first);
        assert!(all.join(id, None).is_none());
        drop(left);
        assert!(all.join(id, None).is_some());
    }

    #[test]
    fn an_execution_that_ends_leaves_the_audience_of_a_resend_alone() {
        let (all, id) = fixture();
        let (first, left) = all.open(id, None);
        drop(first);
        let (_first, mut again) = all.open(id, None);
        drop(left);
        let joined = all.join(id, None).unwrap();
        drop(_first);
        assert!(!all_have_left(&mut again));
        drop(joined);
        assert!(all_have_left(&mut again));
    }

    #[test]
    fn nothing_is_kept_of_what_has_ended() {
        let (all, id) = fixture();
        let (first, left) = all.open(id, None);
        drop(left);
        drop(first);
        drop(all.join(id, None));
        assert!(all.0.lock().is_empty());
    }
}
