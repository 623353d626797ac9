//! A page of operations: of the store's records, or of what the books say of a model.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use onlyonce_core::{Entry, StateName};
use onlyonce_store::books::EntryPage;
use onlyonce_store::{Page, Store, Stored};

use super::answer::Refusal;
use super::desk::Desk;
use super::query::{ListQuery, show_position};

/// Records that are looked up at once.
const LOOKUPS: usize = 16;

/// A page of operations.
#[derive(Default)]
pub(super) struct Listing {
    /// Those first claimed last come first, or with a model those booked last.
    pub(super) rows: Vec<Row>,
    /// Where the next page begins.
    pub(super) next: Option<String>,
}

/// One operation of a page.
pub(super) enum Row {
    /// Its record.
    Kept(Stored),
    /// What the books say of it: its record is gone, or cannot be read.
    Booked(Box<Entry>),
}

impl Listing {
    /// What `desk` may see of what `asked` asks for.
    pub(super) async fn of<S: Store>(desk: &Desk<S>, asked: ListQuery) -> Result<Self, Refusal> {
        let now = desk.now();
        if asked.model.is_none() {
            return Ok(desk.list(asked.for_store(now)?).await?.into());
        }
        let wants_completed = asked.state.is_some();
        let EntryPage { entries, next } = desk.entries(asked.for_books(now)?).await?;
        let rows = stream::iter(entries).map(async |entry| {
            let found = desk.kept(entry.id).await?;
            Ok::<_, Refusal>(found.map_or_else(|| Row::Booked(entry.into()), Row::Kept))
        });
        let mut rows: Vec<Row> = rows.buffered(LOOKUPS).try_collect().await?;
        if wants_completed {
            rows.retain(Row::is_completed);
        }
        Ok(Self {
            rows,
            next: next.map(show_position),
        })
    }
}

impl Row {
    /// One that the books have may have become unknown: its recording cannot be read any more.
    fn is_completed(&self) -> bool {
        match self {
            Self::Kept(stored) => stored.record.state.name() == StateName::Completed,
            Self::Booked(_) => true,
        }
    }
}

impl From<Page> for Listing {
    fn from(page: Page) -> Self {
        Self {
            rows: page.records.into_iter().map(Row::Kept).collect(),
            next: page.next.map(|id| id.to_string()),
        }
    }
}
