//! Dead letters, and how they are sent again by hand.

use std::time::Duration;

use onlyonce_core::OperationId;
use onlyonce_store::{Store, StoreError, books::DeadLetter};

use super::{Deliver, Ids, Sink, Verdict, delivery::once};

/// Dead letters that are read at once.
const PAGE: usize = 1_000;
/// Dead letters that are counted, and sent again, at most.
const MOST: u64 = 10_000;

/// Which dead letters to send again.
#[derive(Clone, Debug)]
pub enum Which {
    /// All of them.
    All,
    /// Those of these operations.
    These(Ids),
}

/// What became of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resent {
    /// Those that were taken, and are dead no more.
    pub delivered: Vec<OperationId>,
    /// Those that were not, and why.
    pub failed: Vec<(OperationId, String)>,
}

/// How many dead letters there are; 10,000 where there are more.
pub async fn count_dead<S: Store>(store: &S, name: &str) -> Result<u64, StoreError> {
    let (mut count, mut after) = (0, None);
    while count < MOST {
        let page = store.dead(name, after, PAGE).await?;
        count += page.len() as u64;
        after = page.last().map(|letter| letter.entry.id);
        if page.len() < PAGE {
            break;
        }
    }
    Ok(count)
}

/// Sends dead letters of the sink `name` once more, each once and alone, and forgets those that are
/// taken. A crash in between leaves one dead that was taken: it may be sent once more.
pub async fn resend<S: Store, D: Deliver>(
    store: &S,
    name: &str,
    sink: &dyn Sink,
    deliver: &D,
    timeout: Duration,
    which: &Which,
) -> Result<Resent, StoreError> {
    let mut resent = Resent::default();
    let mut after = None;
    loop {
        let page = store.dead(name, after, PAGE).await?;
        let is_last = page.len() < PAGE;
        after = page.last().map(|letter| letter.entry.id);
        for letter in page.iter().filter(|letter| which.has(letter)) {
            let entries = std::slice::from_ref(&letter.entry);
            match once(sink, deliver, timeout, store.now(), entries).await {
                Verdict::Delivered => {
                    store.forget_dead(name, &[letter.entry.id]).await?;
                    resent.delivered.push(letter.entry.id);
                }
                Verdict::Again(_, why)
                | Verdict::Dead(why)
                | Verdict::Split(why)
                | Verdict::Gone(why) => resent.failed.push((letter.entry.id, why)),
            }
        }
        let tried = resent.delivered.len() + resent.failed.len();
        if is_last || tried as u64 >= MOST {
            return Ok(resent);
        }
    }
}

impl Which {
    fn has(&self, letter: &DeadLetter) -> bool {
        match self {
            Self::All => true,
            Self::These(ids) => ids.contains(&letter.entry.id),
        }
    }
}
