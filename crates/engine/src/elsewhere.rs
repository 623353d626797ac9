//! Following an operation that another gateway executes, through the store alone.

use std::{sync::Arc, time::Duration};

use onlyonce_core::{Address, Held, OperationId, ReleaseReason, State, UnknownReason, view};
use onlyonce_store::{Seen, Store, StoreError, Stored};

use crate::Shared;

/// The longest that a notice of a change is waited for: a lease may pass meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long to wait before a store is asked again that did not answer.
const PAUSE: Duration = Duration::from_millis(50);

/// How an operation that was followed ended.
pub(crate) enum Followed {
    Completed(Stored),
    Released(ReleaseReason),
    Unknown(UnknownReason),
}

/// Waits for the outcome of `id`. While the store is unavailable it waits too: whoever follows has
/// a deadline.
pub(crate) async fn follow<S: Store>(
    shared: Arc<Shared<S>>,
    address: Address,
    id: OperationId,
) -> Followed {
    loop {
        let held = match shared.store.load(address).await {
            Ok(Some(stored)) if stored.record.id == id => {
                let now = shared.store.now();
                match &stored.record.state {
                    State::Completed(_) => return Followed::Completed(stored),
                    State::Released { reason, .. } => return Followed::Released(*reason),
                    State::Unknown { reason, .. } => return Followed::Unknown(*reason),
                    State::InFlight { .. } => {
                        let lease_passed = matches!(
                            view(Some(&stored.record), now),
                            Held::Record {
                                lease_passed: true,
                                ..
                            }
                        );
                        if lease_passed
                            && let Ok(true) = shared.expire(address, &stored.record, now).await
                        {
                            return Followed::Unknown(UnknownReason::LeasePassed);
                        }
                        stored.record.fence()
                    }
                }
            }
            // It ended, was forgotten, and another operation may stand there: nobody can say any more.
            Ok(_) => return Followed::Unknown(UnknownReason::Unreadable),
            Err(StoreError::Corrupt(_)) => return Followed::Unknown(UnknownReason::Unreadable),
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let seen = Seen {
            fence: Some(held),
            chunks: u32::MAX,
        };
        shared.store.changed(address, seen, LOOK_EVERY).await;
    }
}
