//! Who follows an execution, for routes that cancel one that nobody follows any more.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use onlyonce_core::OperationId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::watch::Watch;

/// The audiences of the executions of this process that are cancelled without one.
#[derive(Clone, Default)]
pub(super) struct Audiences(Arc<Mutex<HashMap<OperationId, Weak<Audience>>>>);

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

impl Audiences {
    /// The first of an audience, and what tells that all have left.
    pub(super) fn open(
        &self,
        id: OperationId,
        watch: &Arc<Watch>,
    ) -> (Follower, oneshot::Receiver<()>) {
        let (stay, left) = oneshot::channel();
        let audience = Arc::new(Audience {
            id,
            all: self.clone(),
            _stay: stay,
        });
        self.0.lock().insert(id, Arc::downgrade(&audience));
        (Follower::new(audience, watch), left)
    }

    /// One more, where there is an audience.
    pub(super) fn join(&self, id: OperationId, watch: &Arc<Watch>) -> Option<Follower> {
        let audience = self.0.lock().get(&id)?.upgrade()?;
        Some(Follower::new(audience, watch))
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

impl Drop for Audience {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        // A resend may have opened another audience for the operation since.
        if all
            .get(&self.id)
            .is_some_and(|held| held.strong_count() == 0)
        {
            all.remove(&self.id);
        }
    }
}
