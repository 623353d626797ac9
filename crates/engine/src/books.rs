//! What the engine adds to the books: what joins and replays were spared.
//!
//! The entries of what was executed are the store's business: they come with the records. What was not
//! spent is summed here and posted every second, so that a replay costs no write. A crash loses the
//! sums of the last second; nothing is counted that was not spared.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use onlyonce_core::{Account, Got, Metered, Posting, Record, StateName, Sums, Timestamp};
use onlyonce_store::{Store, StoreError, Swept, books::Grain};
use parking_lot::Mutex;

use crate::{
    AskedModel, Shared,
    live::{End, Live, LiveState, Phase},
};

/// Accounts whose sums wait to be posted. Beyond that, savings are lost and counted as such.
const MOST_WAITING: usize = 20_000;

/// In bytes. What calls itself a model and is longer than this is kept in no claim (I15).
const LONGEST_MODEL: usize = 256;

/// Sums that wait to be posted, of whole hours.
#[derive(Default)]
pub(crate) struct Savings {
    waiting: Mutex<HashMap<(Timestamp, Account), Sums>>,
    lost: AtomicU64,
    /// How old the oldest entry was that was booked last, in milliseconds.
    lag: AtomicU64,
}

impl Savings {
    fn add(&self, posting: Posting) {
        let mut waiting = self.waiting.lock();
        let period = Grain::Hour.period(posting.at);
        let place = (period, posting.account);
        if waiting.len() >= MOST_WAITING && !waiting.contains_key(&place) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.entry(place).or_default().merge(&posting.sums);
    }

    fn take(&self) -> Vec<Posting> {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting
            .into_iter()
            .map(|((at, account), sums)| Posting { at, account, sums })
            .collect()
    }
}

impl<S: Store> Shared<S> {
    /// An attempt got the recording of the completed `record`.
    pub(crate) fn spare_replay(&self, record: &Record) {
        self.spare(record, record.metered.as_deref(), Got::Replayed, 1);
    }

    /// One more attempt joins `live`, whose claim is `record`. It is spared something if that completes,
    /// and is told of with the others then, unless that moment has passed.
    pub(crate) fn join(&self, live: &Live, record: &Record) {
        let mut state = live.state.lock();
        match state.phase {
            Phase::Ended(End::Completed { .. }) => {
                self.spare(record, state.metered.as_deref(), Got::Joined, 1);
            }
            Phase::Ended(_) => {}
            Phase::Claiming | Phase::Running => state.joined += 1,
        }
    }

    /// The execution of `live` was completed, as its readers know by now: what those were spared who
    /// have joined so far, and share its outcome (I18).
    pub(crate) fn spare_joins(&self, live: &LiveState) {
        if let Some(record) = &live.record {
            self.spare(record, live.metered.as_deref(), Got::Joined, live.joined);
        }
    }

    fn spare(&self, record: &Record, metered: Option<&Metered>, got: Got, attempts: u32) {
        self.tell_spared(record, metered, got, attempts);
        if self.settings.books.is_none() || attempts == 0 {
            return;
        }
        let now = self.store.now();
        let not_metered = Metered::default();
        let metered = metered.unwrap_or(&not_metered);
        self.savings
            .add(Posting::spared(record, metered, now, got, attempts));
    }

    /// The record as it goes into the books: a completed one always says something of its use, so that
    /// it has an entry, and where no books are kept none does. A step is part of an operation that has
    /// an entry: it has one of its own only where it was metered.
    pub(crate) fn for_the_books(
        &self,
        mut record: Record,
        metered: Option<Box<Metered>>,
    ) -> Record {
        if metered.is_some() {
            record.metered = metered;
        }
        let has_entry = record.state.name() == StateName::Completed && !record.scope.has_steps();
        match self.settings.books {
            None => record.metered = None,
            Some(_) if has_entry && record.metered.is_none() => {
                record.metered = Some(Box::default());
            }
            Some(_) => {}
        }
        record
    }

    /// The claim `record` with the model that it asks for, which people see until an answer tells more, or
    /// nobody ever does. What is known of an execution before it stands.
    pub(crate) fn asking(&self, mut record: Record, asked_model: &AskedModel) -> Record {
        if self.settings.books.is_none() || record.metered.is_some() {
            return record;
        }
        let model = asked_model.get();
        if let Some(model) = model.filter(|model| model.len() <= LONGEST_MODEL) {
            record.metered = Some(Box::new(Metered {
                request_model: model.into(),
                ..Metered::default()
            }));
        }
        record
    }

    /// Posts what was spared, and books what was completed.
    pub(crate) async fn keep_books(&self) -> u64 {
        if self.settings.books.is_none() {
            return 0;
        }
        self.post_savings().await;
        let mut entries = 0;
        loop {
            let booked = match self.store.book().await {
                Ok(booked) => booked,
                Err(error) => {
                    self.left_undone("the books could not be kept", &error);
                    return entries;
                }
            };
            let now = self.store.now();
            let lag = booked
                .oldest
                .map_or(Duration::ZERO, |oldest| now.since(oldest));
            let lag = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
            self.savings.lag.store(lag, Ordering::Relaxed);
            entries += booked.entries;
            if !booked.more {
                return entries;
            }
        }
    }

    async fn post_savings(&self) {
        let postings = self.savings.take();
        if postings.is_empty() {
            return;
        }
        match self.store.post(postings.clone()).await {
            Ok(()) => {}
            // It may be there already, and savings are never counted twice.
            Err(StoreError::InDoubt(why)) => {
                let lost = postings.len() as u64;
                self.savings.lost.fetch_add(lost, Ordering::Relaxed);
                tracing::warn!(why, lost, "sums of what was not spent may be lost");
            }
            Err(error) => {
                postings
                    .into_iter()
                    .for_each(|posting| self.savings.add(posting));
                self.left_undone("sums of what was not spent could not be posted", &error);
            }
        }
    }

    /// Drops what the books have kept for long enough.
    pub(crate) async fn trim_books(&self) -> Swept {
        let retention = match self.settings.books {
            Some(retention) if !retention.is_zero() => retention,
            _ => return Swept::default(),
        };
        let millis = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        let now = self.store.now().as_millis();
        let before = Timestamp::from_millis(now.saturating_sub(millis));
        match self.store.trim(before).await {
            Ok(trimmed) => trimmed,
            Err(error) => {
                self.left_undone("the books could not be trimmed", &error);
                Swept::default()
            }
        }
    }

    /// How old the oldest entry was that was booked last.
    pub(crate) fn books_lag(&self) -> Duration {
        Duration::from_millis(self.savings.lag.load(Ordering::Relaxed))
    }

    /// How many sums of savings were lost.
    pub(crate) fn savings_lost(&self) -> u64 {
        self.savings.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_core::Count;

    use super::*;

    fn replayed_by(tenant: usize) -> Posting {
        let account = Account {
            tenant: tenant.to_string().into(),
            ..Account::default()
        };
        let mut sums = Sums::default();
        sums.add(Count::Replayed, 1);
        let at = Timestamp::from_millis(0);
        Posting { at, account, sums }
    }

    #[test]
    fn i15_only_so_many_sums_wait_and_the_rest_are_counted_as_lost() {
        let savings = Savings::default();
        for tenant in 0..MOST_WAITING {
            savings.add(replayed_by(tenant));
        }
        savings.add(replayed_by(7));
        assert_eq!(savings.lost.load(Ordering::Relaxed), 0);
        savings.add(replayed_by(MOST_WAITING));
        assert_eq!(savings.lost.load(Ordering::Relaxed), 1);

        let posted = savings.take();
        assert_eq!(posted.len(), MOST_WAITING);
        let all: i64 = posted.iter().map(|one| one.sums.get(Count::Replayed)).sum();
        assert_eq!(all, MOST_WAITING as i64 + 1);
        assert!(savings.take().is_empty());
    }
}
