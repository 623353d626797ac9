//! The books of a store: what was spent, what was not, and what is to be told to others of it.
//!
//! A write that completes a record carries its [`Entry`] ([`Entry::of`]): a store keeps it in the same
//! commit. [`Books::book`] then brings what was kept since into the books, each entry exactly once,
//! whatever crashes and whoever calls. The books outlive the records: they have a retention of their
//! own.
//!
//! Entries stand in the order in which they were booked. That order never changes, and nothing comes
//! before what was seen already, so a [`Position`] is all that somebody has to remember who reads on.

use std::{future::Future, time::Duration};

use onlyonce_core::{Account, Entry, OperationId, OwnerId, Posting, Sums, Timestamp};

use crate::{StoreError, Swept};

mod sinks;

pub(crate) use sinks::{Sink, Sinks};

/// What a store keeps of what was spent. Part of every [`Store`](crate::Store).
pub trait Books: Send + Sync + 'static {
    /// Brings entries into the books that were kept and are not booked yet, at most a few thousand of
    /// them. Any number of gateways may call it at once. Called every second. A store may leave what was
    /// kept a moment ago to a later call.
    fn book(&self) -> impl Future<Output = Result<Booked, StoreError>> + Send;

    /// Adds to the sums. A crash may lose what was posted in the last moments; nothing is added twice.
    ///
    /// [`StoreError::InDoubt`] where it may have been added: it is not to be posted again.
    fn post(&self, postings: Vec<Posting>) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The entries booked after `after`, in order, at most `limit`; from the oldest one that is kept
    /// where `after` is `None`.
    fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(Position, Entry)>, StoreError>> + Send;

    /// A page of entries, the last booked first.
    fn entries(
        &self,
        query: EntryQuery,
    ) -> impl Future<Output = Result<EntryPage, StoreError>> + Send;

    /// Sums by period, ordered by period and account. What is not booked yet is not in them.
    fn sums(&self, query: SumsQuery) -> impl Future<Output = Result<Vec<Cell>, StoreError>> + Send;

    /// Takes the right to deliver to `hold.sink` for a while, or takes it for longer. `None` while
    /// another owner has it.
    fn hold(&self, hold: Hold) -> impl Future<Output = Result<Option<Held>, StoreError>> + Send;

    /// Notes how far a sink was delivered to, and what was given up on the way, all or nothing.
    /// `false`, and nothing is noted, unless `step.owner` holds the sink and `step.from` is how far it
    /// is. A crash may take it back as a whole: then a sink is delivered to again.
    fn advance(&self, step: Advance) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// What was given up of `sink`, by operation, after `after`, at most `limit`.
    fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, StoreError>> + Send;

    /// Forgets dead letters, as they were delivered after all; says how many there were.
    fn forget_dead(
        &self,
        sink: &str,
        ids: &[OperationId],
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Drops booked entries and sums of before `before`, as far as that costs little: whole days may
    /// stay until their last moment is before it. What is not booked yet, and dead letters, stay.
    fn trim(&self, before: Timestamp) -> impl Future<Output = Result<Swept, StoreError>> + Send;
}

/// A place in the order of the entries, of one store's own. Later entries have higher ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u128);

/// What [`Books::book`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Booked {
    /// Entries that came into the books.
    pub entries: u64,
    /// Whether there is more to book right now.
    pub more: bool,
    /// When the oldest of those entries was completed; where there are none, the oldest one that waits
    /// and could not be booked yet.
    pub oldest: Option<Timestamp>,
}

/// Which entries a page is to hold.
#[derive(Clone, Debug, Default)]
pub struct EntryQuery {
    /// Only this tenant.
    pub tenant: Option<Box<str>>,
    /// Only this route.
    pub route: Option<Box<str>>,
    /// Only this model, as it stands in the entry's [`Account`].
    pub model: Option<Box<str>>,
    /// Only what was completed at or after this moment.
    pub since: Option<Timestamp>,
    /// Only what was completed before this moment.
    pub until: Option<Timestamp>,
    /// Only what was booked before this one: the cursor of the page before.
    pub older_than: Option<Position>,
    /// At most so many.
    pub limit: usize,
}

impl EntryQuery {
    /// Whether it wants `entry`; the cursor and the limit are not looked at.
    pub fn wants(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<Box<str>>, is: &str| wanted.as_deref().is_none_or(|it| it == is);
        is(&self.tenant, &entry.scope.tenant)
            && is(&self.route, &entry.route)
            && is(&self.model, entry.metered.paid_model())
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}

/// A page of entries, the last booked first.
#[derive(Clone, Debug, Default)]
pub struct EntryPage {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The cursor of the next page, where there may be one. A page may be short, or empty, and have
    /// one: a store looks at no more than [`MOST_LOOKED_AT`] entries for a page.
    pub next: Option<Position>,
}

/// How many entries, or operations, a store looks at for one page.
pub const MOST_LOOKED_AT: usize = 20_000;

/// How long the periods are that are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grain {
    /// An hour.
    Hour,
    /// A day, in UTC.
    Day,
}

impl Grain {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hour, Self::Day];

    /// How long one is.
    pub const fn span(self) -> Duration {
        match self {
            Self::Hour => Duration::from_secs(3_600),
            Self::Day => Duration::from_secs(86_400),
        }
    }

    /// The beginning of the period that `at` is in.
    pub fn period(self, at: Timestamp) -> Timestamp {
        let span = self.span().as_millis() as u64;
        Timestamp::from_millis(at.as_millis() / span * span)
    }
}

/// Which sums to tell.
#[derive(Clone, Debug)]
pub struct SumsQuery {
    /// Of periods this long.
    pub grain: Grain,
    /// That begin at or after this moment.
    pub since: Timestamp,
    /// That begin before this moment.
    pub until: Timestamp,
    /// Of what.
    pub of: Of,
}

/// Of what sums are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// Of everything together: one cell a period, under an empty account.
    All,
    /// Of each account.
    Accounts,
    /// Of each account of one tenant.
    Tenant(Box<str>),
}

impl Of {
    /// Whether the sums of `account` are told; `None` stands for everything together.
    pub(crate) fn wants(&self, account: Option<&Account>) -> bool {
        match self {
            Self::All => account.is_none(),
            Self::Accounts => account.is_some(),
            Self::Tenant(tenant) => account.is_some_and(|account| account.tenant == *tenant),
        }
    }
}

/// Sums of one account in one period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// When the period begins.
    pub period: Timestamp,
    /// Whose sums; empty in all its parts for [`Of::All`].
    pub account: Account,
    /// The sums.
    pub sums: Sums,
}

/// The cells that a posting is added to: of each grain, its account's and that of everything. The
/// account is `None` for the latter.
pub fn cells_of(
    posting: &Posting,
) -> impl Iterator<Item = (Grain, Timestamp, Option<&Account>)> + '_ {
    Grain::ALL.into_iter().flat_map(|grain| {
        let period = grain.period(posting.at);
        [
            (grain, period, Some(&posting.account)),
            (grain, period, None),
        ]
    })
}

/// Asks for the right to deliver to a sink.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The sink's name.
    pub sink: Box<str>,
    /// Who asks.
    pub owner: OwnerId,
    /// For how long.
    pub lease: Duration,
    /// Where a sink begins that was never held before.
    pub begin: Begin,
}

/// Where a new sink begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest entry that is kept.
    Start,
    /// With what is booked from now on.
    Now,
}

/// A sink that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The last entry that it got; `None` where it is to get all.
    pub position: Option<Position>,
}

/// A step of a sink.
#[derive(Clone, Debug)]
pub struct Advance {
    /// The sink's name.
    pub sink: Box<str>,
    /// Who holds it.
    pub owner: OwnerId,
    /// The last entry that it had.
    pub from: Option<Position>,
    /// The last one that it has now.
    pub to: Position,
    /// What of the entries in between was given up.
    pub bury: Vec<DeadLetter>,
}

/// An entry that a sink did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The entry.
    pub entry: Entry,
    /// When it was given up, on the store's clock.
    pub since: Timestamp,
    /// How often it was tried.
    pub tries: u32,
    /// What the sink said last.
    pub why: Box<str>,
}
