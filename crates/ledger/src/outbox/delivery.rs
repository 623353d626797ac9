//! One parcel, until it is taken or given up.

use std::time::Duration;

use futures_util::future::join_all;
use onlyonce_core::Entry;
use onlyonce_store::{
    Store,
    books::{DeadLetter, Position},
};
use tokio::time::{Instant, sleep, timeout};

use super::{Deliver, Done, Shared, Verdict};

/// Before an entry is tried again, for the first time; doubled each time.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Tells of `entries`, of which the last one is at `to`.
pub(super) async fn deliver<S: Store, D: Deliver>(
    shared: &Shared<S, D>,
    to: Position,
    entries: Vec<Entry>,
) -> Done {
    let give_up = shared.settings.give_up;
    let outcomes = match insist(shared, &entries, give_up).await {
        Outcome::Split { give_up } => {
            let alone = entries.chunks(1).map(|one| insist(shared, one, give_up));
            join_all(alone).await
        }
        outcome => vec![outcome; entries.len()],
    };
    let since = shared.store.now();
    let letter = |(entry, outcome): (&Entry, Outcome)| {
        match outcome {
            Outcome::Taken => None,
            Outcome::Dead { why, tries } => Some((why, tries)),
            // One entry is never split.
            Outcome::Split { .. } => Some(("it was refused".into(), 1)),
        }
        .map(|(why, tries)| DeadLetter {
            entry: entry.clone(),
            since,
            tries,
            why,
        })
    };
    let bury: Vec<DeadLetter> = entries.iter().zip(outcomes).filter_map(letter).collect();
    for letter in &bury {
        let (sink, operation) = (&*shared.settings.name, letter.entry.id);
        tracing::warn!(sink, %operation, why = &*letter.why, "an entry was given up");
    }
    Done {
        to,
        entries: entries.len(),
        bury,
    }
}

#[derive(Clone)]
enum Outcome {
    Taken,
    Dead {
        why: Box<str>,
        tries: u32,
    },
    /// Each entry is to be told alone, and given up after so long.
    Split {
        give_up: Duration,
    },
}

/// Tries until there is an outcome. It never ends where the sink is gone.
async fn insist<S: Store, D: Deliver>(
    shared: &Shared<S, D>,
    entries: &[Entry],
    give_up: Duration,
) -> Outcome {
    let mut pause = PAUSE;
    let mut tries = 0;
    let mut first_failure = None;
    loop {
        tries += 1;
        let verdict = attempt(shared, entries).await;
        let (at_least, why) = match verdict {
            Verdict::Delivered => {
                shared.stats.delivered(entries.len());
                return Outcome::Taken;
            }
            Verdict::Split(_) if entries.len() > 1 => return Outcome::Split { give_up },
            Verdict::Dead(why) | Verdict::Split(why) => {
                let why = why.into();
                return Outcome::Dead { why, tries };
            }
            Verdict::Gone(why) => {
                shared.stats.trouble(&why, shared.store.now());
                shared.gone.notify_one();
                return std::future::pending().await;
            }
            Verdict::Again(at_least, why) => (at_least, why),
        };
        shared.stats.failed(&why, shared.store.now());
        let now = Instant::now();
        let begun = *first_failure.get_or_insert(now);
        let wait = pause
            .mul_f64((shared.settings.jitter)().clamp(0.0, 1.0))
            .max(at_least.unwrap_or_default());
        if now + wait > begun + give_up {
            let why = why.into();
            return match entries.len() {
                1 => Outcome::Dead { why, tries },
                // One of them may be what is never taken: each has one more try.
                _ => Outcome::Split {
                    give_up: Duration::ZERO,
                },
            };
        }
        sleep(wait).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tries once.
pub(super) async fn attempt<S: Store, D: Deliver>(
    shared: &Shared<S, D>,
    entries: &[Entry],
) -> Verdict {
    // It is never closed.
    let _place = shared.places.acquire().await;
    once(
        &*shared.sink,
        &shared.deliver,
        shared.settings.timeout,
        shared.store.now(),
        entries,
    )
    .await
}

/// Sends the request that tells of `entries`.
pub(super) async fn once<D: Deliver>(
    sink: &dyn super::Sink,
    deliver: &D,
    limit: Duration,
    now: onlyonce_core::Timestamp,
    entries: &[Entry],
) -> Verdict {
    let request = match sink.request(entries, now) {
        Ok(Some(request)) => request,
        Ok(None) => return Verdict::Delivered,
        Err(why) if entries.len() > 1 => return Verdict::Split(why),
        Err(why) => return Verdict::Dead(why),
    };
    match timeout(limit, deliver.post(request)).await {
        Ok(Ok(answer)) => sink.read(&answer, entries.len()),
        Ok(Err(why)) => Verdict::Again(None, why),
        Err(_) => Verdict::Again(None, "no answer in time".to_owned()),
    }
}
