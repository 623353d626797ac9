//! What the books hold: one entry for each operation that completed, and sums of what was spent and
//! what was not.
//!
//! An entry is part of its record: it follows from the record that completes an operation, so it is
//! there in the same commit, and only once (I8). Everything else here is sums.

use std::fmt;

use crate::{
    Got, Metered, OperationId, Record, Scope, Source, State, Timestamp, TraceId, Unit, Usd,
    numbered::numbered,
};

/// What the books say of one completed operation. Never changed, and kept longer than the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The operation. Whoever gets an entry twice knows it by this.
    pub id: OperationId,
    /// When it was completed.
    pub at: Timestamp,
    /// When the execution that completed it was claimed.
    pub claimed_at: Timestamp,
    /// Whose it is.
    pub scope: Scope,
    /// The name of the route that served it.
    pub route: Box<str>,
    /// The status of its answer.
    pub status: u16,
    /// The trace that it came in, where there was one.
    pub trace: Option<TraceId>,
    /// What it used and cost.
    pub metered: Metered,
}

impl Entry {
    /// The entry that comes with `record`. `None` unless it is completed, for the first time, where
    /// the books are kept.
    pub fn of(record: &Record) -> Option<Self> {
        let (State::Completed(completed), Some(metered), false) =
            (&record.state, &record.metered, record.entered)
        else {
            return None;
        };
        Some(Self {
            id: record.id,
            at: completed.completed_at,
            claimed_at: record.claimed_at,
            scope: record.scope.clone(),
            route: record.request.route.clone(),
            status: completed.head.status,
            trace: record.request.trace,
            metered: (**metered).clone(),
        })
    }

    /// What it adds to the sums.
    pub fn posting(&self) -> Posting {
        let mut sums = Sums::default();
        let metered = &self.metered;
        sums.add(Count::Operations, 1);
        match metered.cost {
            Some(_) => {}
            None if metered.source == Source::NotMetered => {}
            None => sums.add(Count::Unpriced, 1),
        }
        if metered.source == Source::Unknown {
            sums.add(Count::Unmetered, 1);
        }
        sums.add(Count::Cost, cost_of(metered).nanos());
        for (count, unit) in [
            (Count::Input, Unit::Input),
            (Count::Output, Unit::Output),
            (Count::CacheRead, Unit::CacheRead),
            (Count::CacheWrite, Unit::CacheWrite),
            (Count::Reasoning, Unit::Reasoning),
        ] {
            sums.add(count, tokens(metered, unit));
        }
        Posting {
            at: self.at,
            account: Account::of(&self.scope.tenant, &self.route, metered),
            sums,
        }
    }
}

/// To what sums belong.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// The tenant.
    pub tenant: Box<str>,
    /// The route's name.
    pub route: Box<str>,
    /// Who was paid; empty where nobody said.
    pub provider: Box<str>,
    /// The model that answered, or that was asked for where the answer names none; empty where nobody
    /// said.
    pub model: Box<str>,
}

impl Account {
    fn of(tenant: &str, route: &str, metered: &Metered) -> Self {
        Self {
            tenant: tenant.into(),
            route: route.into(),
            provider: metered.provider.clone(),
            model: metered.paid_model().into(),
        }
    }
}

numbered! {
    /// What is summed.
    Count {
        /// Operations that completed.
        Operations = 1, "operations";
        /// Of those, whose answer told nothing that could be read.
        Unmetered = 2, "unmetered";
        /// Of those, for which there is no price.
        Unpriced = 3, "unpriced";
        /// What they cost, in thousand-millionths of a US dollar.
        Cost = 4, "cost";
        /// Input tokens.
        Input = 5, "input";
        /// Output tokens.
        Output = 6, "output";
        /// Input tokens read from a cache.
        CacheRead = 7, "cache_read";
        /// Input tokens written to a cache.
        CacheWrite = 8, "cache_write";
        /// Output tokens spent on reasoning.
        Reasoning = 9, "reasoning";
        /// Attempts that joined an execution.
        Joined = 10, "joined";
        /// Attempts that were answered from a recording.
        Replayed = 11, "replayed";
        /// What those would have cost, in thousand-millionths of a US dollar.
        Saved = 12, "saved";
        /// Their input tokens.
        SavedInput = 13, "saved_input";
        /// Their output tokens.
        SavedOutput = 14, "saved_output";
    }
}

impl Count {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    const fn index(self) -> usize {
        self.number() as usize - 1
    }
}

/// Sums, one for each [`Count`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums([i64; Count::COUNT]);

impl Sums {
    /// The sum of `count`.
    pub fn get(&self, count: Count) -> i64 {
        self.0[count.index()]
    }

    /// Adds to the sum of `count`; it stops at what fits.
    pub fn add(&mut self, count: Count, more: i64) {
        let sum = &mut self.0[count.index()];
        *sum = sum.saturating_add(more);
    }

    /// Adds all of `more`.
    pub fn merge(&mut self, more: &Self) {
        for (count, sum) in more.iter() {
            self.add(count, sum);
        }
    }

    /// All sums, by the number of the count.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Count, i64)> {
        Count::ALL.iter().copied().zip(self.0)
    }

    /// What was spent.
    pub fn cost(&self) -> Usd {
        Usd::from_nanos(self.get(Count::Cost))
    }

    /// What was not spent a second time.
    pub fn saved(&self) -> Usd {
        Usd::from_nanos(self.get(Count::Saved))
    }
}

impl FromIterator<(Count, i64)> for Sums {
    fn from_iter<I: IntoIterator<Item = (Count, i64)>>(counts: I) -> Self {
        let mut sums = Self::default();
        for (count, sum) in counts {
            sums.add(count, sum);
        }
        sums
    }
}

/// Something to be added to the sums of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// When it came about.
    pub at: Timestamp,
    /// To whom it goes.
    pub account: Account,
    /// How much.
    pub sums: Sums,
}

impl Posting {
    /// What `attempts` attempts were spared that joined the operation of `record`, or got its recording,
    /// at the moment `at`: each of them would have used and cost what was `metered`.
    pub fn spared(
        record: &Record,
        metered: &Metered,
        at: Timestamp,
        got: Got,
        attempts: u32,
    ) -> Self {
        let times = i64::from(attempts);
        let of_each = |count: i64| count.saturating_mul(times);
        let count = match got {
            Got::Joined => Count::Joined,
            _ => Count::Replayed,
        };
        let sums = [
            (count, times),
            (Count::Saved, of_each(cost_of(metered).nanos())),
            (Count::SavedInput, of_each(tokens(metered, Unit::Input))),
            (Count::SavedOutput, of_each(tokens(metered, Unit::Output))),
        ];
        Self {
            at,
            account: Account::of(&record.scope.tenant, &record.request.route, metered),
            sums: sums.into_iter().collect(),
        }
    }
}

fn cost_of(metered: &Metered) -> Usd {
    metered.cost.as_ref().map_or(Usd::ZERO, |cost| cost.amount)
}

fn tokens(metered: &Metered, unit: Unit) -> i64 {
    i64::try_from(metered.usage.get(unit).unwrap_or(0)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Basis, Cost, Usage};

    fn metered() -> Metered {
        Metered {
            provider: "openai".into(),
            request_model: "gpt-5".into(),
            usage: [(Unit::Input, 12), (Unit::Output, 345), (Unit::Reasoning, 5)]
                .into_iter()
                .collect::<Usage>(),
            source: Source::Provider,
            cost: Some(Cost {
                amount: Usd::from_nanos(3_465_000),
                basis: Basis::Table,
                version: "prices 1".into(),
            }),
            ..Metered::default()
        }
    }

    fn entry(metered: Metered) -> Entry {
        Entry {
            id: OperationId::from_bytes([1; 16]),
            at: Timestamp::from_millis(5),
            claimed_at: Timestamp::from_millis(4),
            scope: Scope {
                tenant: "acme".into(),
                namespace: "openai".into(),
            },
            route: "chat".into(),
            status: 200,
            trace: None,
            metered,
        }
    }

    #[test]
    fn an_entry_goes_to_the_account_of_its_model() {
        let posting = entry(metered()).posting();
        let account = Account {
            tenant: "acme".into(),
            route: "chat".into(),
            provider: "openai".into(),
            model: "gpt-5".into(),
        };
        assert_eq!(posting.account, account);
        let sums: Vec<_> = posting
            .sums
            .iter()
            .filter(|(_, sum)| *sum != 0)
            .map(|(count, sum)| (count.as_str(), sum))
            .collect();
        assert_eq!(
            sums,
            [
                ("operations", 1),
                ("cost", 3_465_000),
                ("input", 12),
                ("output", 345),
                ("reasoning", 5)
            ]
        );
    }

    #[test]
    fn what_has_no_price_and_what_tells_nothing_is_counted_as_such() {
        let without_price = Metered {
            cost: None,
            ..metered()
        };
        let sums = entry(without_price).posting().sums;
        assert_eq!(sums.get(Count::Unpriced), 1);
        assert_eq!(sums.get(Count::Unmetered), 0);
        let silent = Metered {
            source: Source::Unknown,
            ..Metered::default()
        };
        let sums = entry(silent).posting().sums;
        assert_eq!(sums.get(Count::Unmetered), 1);
        let not_metered = entry(Metered::default()).posting().sums;
        assert_eq!(not_metered.get(Count::Unpriced), 0);
        assert_eq!(not_metered.get(Count::Unmetered), 0);
    }

    #[test]
    fn sums_stop_at_what_fits() {
        let mut sums: Sums = [(Count::Cost, i64::MAX)].into_iter().collect();
        sums.merge(&sums.clone());
        assert_eq!(sums.cost(), Usd::from_nanos(i64::MAX));
        assert_eq!(sums.saved(), Usd::ZERO);
    }
}
