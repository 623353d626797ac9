//! The numbers of attempts at warm records, and the notes of them on their way to the store.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use onlyonce_core::{Address, OperationId};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet};

use crate::{AttemptNote, MAX_ATTEMPTS_KEPT, Store};

/// The most notes that wait, of all operations together.
const MOST_NOTES: usize = 4096;
/// How many operations are noted at once, and how long the store is left alone then: notes are for
/// people, and are not to take the store from those who wait for it.
const BATCH: usize = 128;
const PAUSE: Duration = Duration::from_millis(20);

/// The notes that the store does not have yet.
#[derive(Default)]
pub struct Notes {
    tallies: Arc<Tallies>,
    /// The operations of which there are notes.
    waiting: Mutex<VecDeque<Arc<Tally>>>,
    arrived: Notify,
    /// Who passes notes on.
    passing_on: tokio::sync::Mutex<()>,
    /// How many notes wait.
    count: AtomicUsize,
    /// How many were dropped and not told of yet.
    lost: AtomicU64,
}

/// What is counted, for as long as somebody holds it: the cache, or a note on its way. So no number
/// is given twice.
type Tallies = Mutex<HashMap<OperationId, Weak<Tally>>>;

/// The attempts of one operation, as far as this process knows.
pub struct Tally {
    address: Address,
    id: OperationId,
    attempts: Mutex<Attempts>,
    /// Notes reach the store in the order of their numbers.
    noting: tokio::sync::Mutex<()>,
    tallies: Arc<Tallies>,
}

#[derive(Default)]
struct Attempts {
    /// The largest number known.
    last: u32,
    notes: VecDeque<AttemptNote>,
    /// Whether it is in the queue.
    waits: bool,
}

impl Notes {
    /// The one tally of the operation `id`.
    pub fn tally(&self, address: Address, id: OperationId) -> Arc<Tally> {
        let mut tallies = self.tallies.lock();
        if let Some(tally) = tallies.get(&id).and_then(Weak::upgrade) {
            return tally;
        }
        let tally = Arc::new(Tally {
            address,
            id,
            attempts: Mutex::default(),
            noting: tokio::sync::Mutex::default(),
            tallies: self.tallies.clone(),
        });
        tallies.insert(id, Arc::downgrade(&tally));
        tally
    }

    /// Takes a note, and gives its number.
    pub fn take(&self, tally: &Arc<Tally>, note: AttemptNote) -> u32 {
        let mut attempts = tally.attempts.lock();
        attempts.last = attempts.last.saturating_add(1);
        let number = attempts.last;
        if attempts.notes.len() >= MAX_ATTEMPTS_KEPT {
            // The store would not keep it for long either.
            attempts.notes.pop_front();
            self.lost.fetch_add(1, Relaxed);
        } else if self.count.fetch_add(1, Relaxed) >= MOST_NOTES {
            self.count.fetch_sub(1, Relaxed);
            self.lost.fetch_add(1, Relaxed);
            return number;
        }
        attempts.notes.push_back(note);
        if !std::mem::replace(&mut attempts.waits, true) {
            self.waiting.lock().push_back(tally.clone());
            self.arrived.notify_one();
        }
        number
    }

    /// Passes notes on to `store` for ever.
    pub async fn pass_on<S: Store>(self: Arc<Self>, store: Arc<S>) {
        loop {
            self.arrived.notified().await;
            while self.settle_some(&store).await {
                let lost = self.lost.swap(0, Relaxed);
                if lost > 0 {
                    tracing::debug!(lost, "attempts at warm records were not noted");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Passes on all that wait, those of a batch that is under way included.
    pub async fn settle_all<S: Store>(self: &Arc<Self>, store: &Arc<S>) {
        while self.settle_some(store).await {}
    }

    /// Passes on what waits of the operation `id`.
    pub async fn settle(&self, id: OperationId, store: &impl Store) {
        let tally = self.tallies.lock().get(&id).and_then(Weak::upgrade);
        if let Some(tally) = tally {
            tally.settle(self, store).await;
        }
    }

    /// Passes on one batch; false where nothing waits.
    async fn settle_some<S: Store>(self: &Arc<Self>, store: &Arc<S>) -> bool {
        let _alone = self.passing_on.lock().await;
        let batch: Vec<_> = {
            let mut waiting = self.waiting.lock();
            let len = waiting.len().min(BATCH);
            waiting.drain(..len).collect()
        };
        let some = !batch.is_empty();
        let mut tasks = JoinSet::new();
        for tally in batch {
            tally.attempts.lock().waits = false;
            let (notes, store) = (self.clone(), store.clone());
            tasks.spawn(async move { tally.settle(&notes, &*store).await });
        }
        while tasks.join_next().await.is_some() {}
        some
    }
}

impl Tally {
    /// The largest number known.
    pub fn last(&self) -> u32 {
        self.attempts.lock().last
    }

    /// The store knows of `number` attempts; how many there are then.
    pub fn raise(&self, number: u32) -> u32 {
        let mut attempts = self.attempts.lock();
        attempts.last = attempts.last.max(number);
        attempts.last
    }

    /// Passes on what waits by now. Notes that come meanwhile put it into the queue again.
    async fn settle(&self, notes: &Notes, store: &impl Store) {
        let _in_order = self.noting.lock().await;
        for _ in 0..MAX_ATTEMPTS_KEPT {
            let Some(note) = self.attempts.lock().notes.pop_front() else {
                return;
            };
            notes.count.fetch_sub(1, Relaxed);
            match store.note_attempt(self.address, self.id, note).await {
                Ok(number) => drop(self.raise(number)),
                Err(_) => return self.give_up(notes),
            }
        }
    }

    /// The store took a note not, so it is not asked again for each of the others.
    fn give_up(&self, notes: &Notes) {
        let rest = std::mem::take(&mut self.attempts.lock().notes).len();
        notes.count.fetch_sub(rest, Relaxed);
        notes.lost.fetch_add(rest as u64 + 1, Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let mut tallies = self.tallies.lock();
        // Another one may have been started by now.
        if tallies
            .get(&self.id)
            .is_some_and(|tally| tally.strong_count() == 0)
        {
            tallies.remove(&self.id);
        }
    }
}
