//! A page of operations: of the store's records, or of what the books say of a model.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use onlyonce_core::{Entry, StateName};
use onlyonce_store::books::EntryPage;
use onlyonce_store::{Page, Query, Store, Stored};

use super::answer::Refusal;
use super::desk::Desk;
use super::query::{ListQuery, show_position};

/// Records that are looked up at once.
const LOOKUPS: usize = 16;

/// Records that are loaded at once in search of a model, and how often at most for one page.
const STEP: usize = 500;
const MOST_STEPS: usize = 4;

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
        if asked.model.is_none() || asked.is_of_unsettled() {
            let model = asked.model.clone();
            let query = asked.for_store(now)?;
            return Ok(records(desk, query, model.as_deref()).await?.into());
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

/// One page of records that `query` wants, of `model` where there is one: the model that answered, or that
/// is asked for while no answer has named one. A page may be short, or empty, and have a next one.
pub(super) async fn records<S: Store>(
    desk: &Desk<S>,
    mut query: Query,
    model: Option<&str>,
) -> Result<Page, Refusal> {
    let Some(model) = model else {
        return desk.list(query).await;
    };
    let wanted = std::mem::replace(&mut query.limit, STEP);
    let is_of_it = |stored: &Stored| {
        let metered = stored.record.metered.as_deref();
        metered.is_some_and(|metered| metered.paid_model() == model)
    };
    let mut found = Page::default();
    for _ in 0..MOST_STEPS {
        let page = desk.list(query.clone()).await?;
        // A store that gives less than it is asked for has looked at all that it may for a page.
        let is_short = page.records.len() < STEP;
        found.next = page.next;
        for stored in page.records.into_iter().filter(is_of_it) {
            if found.records.len() == wanted {
                found.next = found.records.last().map(|last| last.record.id);
                return Ok(found);
            }
            found.records.push(stored);
        }
        if found.next.is_none() || is_short {
            break;
        }
        query.older_than = found.next;
    }
    Ok(found)
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
