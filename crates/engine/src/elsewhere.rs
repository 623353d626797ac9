//! Following an operation that another gateway executes, through the store alone.

use std::{sync::Arc, time::Duration};

use onlyonce_core::{Address, Held, OperationId, ReleaseReason, State, UnknownReason, view};
use onlyonce_store::{Store, StoreError, Stored};

use crate::Shared;

/// The store is asked no more often than this at first, and less often later.
const POLL_MIN: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(500);

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
    let mut pause = POLL_MIN;
    loop {
        match shared.store.load(address).await {
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
                    }
                }
            }
            // It ended, was forgotten, and another operation may stand there: nobody can say any more.
            Ok(_) => return Followed::Unknown(UnknownReason::Unreadable),
            Err(StoreError::Corrupt(_)) => return Followed::Unknown(UnknownReason::Unreadable),
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}
