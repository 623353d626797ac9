//! The books.
//!
//! The statement that completes an operation also writes its entry, in the place where it stays
//! (`ledger`), so that it is there if and only if the record is. Its place is the number of the
//! transaction, and one within that. Transactions do not commit in the order of their numbers, so nobody
//! looks beyond the horizon, below which all of them have ended: then nothing appears before what was
//! seen. A transaction that writes for long, anywhere in the cluster, holds the horizon back, and the
//! books with it.
//! Days that are over are closed once all in them is booked, so that what is new is looked for in a few
//! partitions, not in those of all the years.
//!
//! To book is to read what stands between the mark and the horizon, to sum it here, and to add the sums
//! and move the mark in one statement, from where the mark was: of two gateways that do it at once, one
//! writes and the other writes nothing. Who reads sees what stands up to the mark.

mod days;
mod entry;
mod place;
mod shift;
mod sinks;
mod sums;

use onlyonce_core::{Entry, OperationId, Posting, Timestamp};
use tokio_postgres::types::Type;

pub use self::{days::Day, entry::Entered, shift::follow as follow_shift};
use self::{
    place::Place,
    sums::{Cells, Postings},
};
use super::{
    Core, PostgresStore, body::millis, calls::Param, chores::Chores, error::Failed, sql::LAZY,
    store::unreadable,
};
use crate::{
    Books, StoreError, Swept,
    books::{
        Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, MOST_LOOKED_AT,
        Position, SumsQuery,
    },
    corrupt,
};

/// Entries that are booked at once.
const MOST_BOOKED: usize = 5_000;
/// Entries that are summed at once, before others have their turn.
const MOST_AT_A_TIME: usize = 250;

impl Books for PostgresStore {
    async fn book(&self) -> Result<Booked, StoreError> {
        self.core.check_open()?;
        self.core.book().await
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        self.core.check_open()?;
        if postings.is_empty() {
            return Ok(());
        }
        self.core.post(postings).await
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        self.core.feed(after, limit).await
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        self.core.entries(&query).await
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        self.core.sums(&query).await
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        self.core.check_open()?;
        self.core.hold(&hold).await
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        self.core.check_open()?;
        self.core.advance(&step).await
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.core.dead(sink, after, limit).await
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        self.core.check_open()?;
        self.core.forget_dead(sink, ids).await
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        self.core.check_open()?;
        let swept = self.core.trim_ledger(before).await;
        let swept = swept.map_err(Failed::of_a_read)?;
        self.core
            .trim_sums(before)
            .await
            .map_err(Failed::of_a_read)?;
        Ok(swept)
    }
}

/// How far the books are.
struct Standing {
    /// What is added to the numbers of transactions.
    shift: i64,
    /// The first day in which something may stand that is not booked.
    from_day: i32,
    mark: Place,
}

/// What stands after the mark, as far as it is settled.
struct Unbooked {
    last: Place,
    postings: Postings,
    booked: Booked,
}

impl Core {
    async fn book(&self) -> Result<Booked, StoreError> {
        let standing = self.standing(&self.bookkeeping).await?;
        let unbooked = self.unbooked(&standing).await?;
        let (mark, last) = (standing.mark, unbooked.last);
        if last == mark {
            return Ok(unbooked.booked);
        }
        // A crash may take back that it was booked; it is then booked again, in the same places.
        let text = format!(
            "WITH setting AS MATERIALIZED (SELECT {LAZY}),
            moved AS (
                UPDATE {schema}.books b SET mark_xid = $3, mark_n = $4 FROM setting
                WHERE (b.mark_xid, b.mark_n) = ($1, $2)
                RETURNING true
            ),
            posted AS ({posted})
            SELECT true FROM moved",
            schema = self.target.schema,
            posted = Cells::statement(&self.target.schema, "moved", 5),
        );
        let cells = unbooked.postings.cells();
        let columns = cells.columns();
        let mut params: Vec<Param> = vec![&mark.xid, &mark.n, &last.xid, &last.n];
        params.extend(columns.iter().map(|column| &**column as Param));
        let types = [&place::TYPES[..], &place::TYPES, &sums::types()].concat();
        let asked = self.bookkeeping.ask(self, &text, &types, &params).await;
        let moved = asked.map_err(Failed::of_a_write)?;
        Ok(match moved.is_empty() {
            false => unbooked.booked,
            // Another gateway has done it.
            true => Booked::default(),
        })
    }

    async fn standing(&self, chores: &Chores) -> Result<Standing, StoreError> {
        let text = format!(
            "SELECT b.shift, s.from_day, b.mark_xid, b.mark_n
            FROM {schema}.books b, {schema}.store s",
            schema = self.target.schema
        );
        let rows = chores.ask(self, &text, &[], &[]).await;
        let rows = rows.map_err(Failed::of_a_read)?;
        let row = rows
            .first()
            .ok_or_else(|| corrupt("the books have no row"))?;
        let standing = || -> Result<Standing, tokio_postgres::Error> {
            Ok(Standing {
                shift: row.try_get(0)?,
                from_day: row.try_get(1)?,
                mark: Place::take(row, 2)?,
            })
        };
        standing().map_err(unreadable)
    }

    async fn unbooked(&self, standing: &Standing) -> Result<Unbooked, StoreError> {
        // Days that were closed since hold nothing that is not booked.
        let text = format!(
            "SELECT l.xid, l.n, l.at, l.id, l.entry,
                l.xid < pg_snapshot_xmin(pg_current_snapshot())::text::int8 + $1
            FROM {}.ledger l
            WHERE l.day >= $2 AND (l.xid, l.n) > ($3, $4)
            ORDER BY l.xid, l.n LIMIT $5",
            self.target.schema
        );
        let Standing {
            shift,
            from_day,
            mark,
        } = standing;
        let types = [&[Type::INT8, Type::INT4], &place::TYPES[..], &[Type::INT8]].concat();
        let limit = MOST_BOOKED as i64;
        let params: [Param; 5] = [shift, from_day, &mark.xid, &mark.n, &limit];
        let asked = self.bookkeeping.ask(self, &text, &types, &params).await;
        let rows = asked.map_err(Failed::of_a_read)?;
        let mut unbooked = Unbooked {
            last: *mark,
            postings: Postings::default(),
            booked: Booked::default(),
        };
        let mut oldest: Option<i64> = None;
        for (count, row) in rows.iter().enumerate() {
            let at: i64 = row.try_get(2).map_err(unreadable)?;
            oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
            if !row.try_get::<_, bool>(5).map_err(unreadable)? {
                break;
            }
            if count % MOST_AT_A_TIME == MOST_AT_A_TIME - 1 {
                tokio::task::yield_now().await;
            }
            if let Some(entry) = entry::take(self.sealer.as_ref(), row, 3)? {
                unbooked.postings.add(entry.posting());
            }
            unbooked.last = Place::take(row, 0).map_err(unreadable)?;
            unbooked.booked.entries += 1;
        }
        unbooked.booked.more = unbooked.booked.entries == MOST_BOOKED as u64;
        let moment = |at| Timestamp::from_millis(u64::try_from(at).unwrap_or(0));
        unbooked.booked.oldest = oldest.map(moment);
        Ok(unbooked)
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        let schema = &self.target.schema;
        let mut after = after.map_or(Place::START, Place::from);
        let text = format!(
            "SELECT b.mark_xid, b.mark_n, coalesce((
                SELECT min(d.day) FROM {schema}.ledger_days d
                WHERE d.end_xid IS NULL OR (d.end_xid, d.end_n) > ($1, $2)
            ), 0) FROM {schema}.books b"
        );
        let params: [Param; 2] = [&after.xid, &after.n];
        let asked = self
            .bookkeeping
            .ask(self, &text, &place::TYPES, &params)
            .await;
        let rows = asked.map_err(Failed::of_a_read)?;
        let row = rows
            .first()
            .ok_or_else(|| corrupt("the books have no row"))?;
        let mark = Place::take(row, 0).map_err(unreadable)?;
        let from_day: i32 = row.try_get(2).map_err(unreadable)?;

        let text = format!(
            "SELECT l.xid, l.n, l.id, l.entry FROM {schema}.ledger l
            WHERE l.day >= $1 AND (l.xid, l.n) > ($2, $3) AND (l.xid, l.n) <= ($4, $5)
            ORDER BY l.xid, l.n LIMIT $6"
        );
        let types = [
            &[Type::INT4],
            &place::TYPES[..],
            &place::TYPES,
            &[Type::INT8],
        ]
        .concat();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        loop {
            let params: [Param; 6] = [&from_day, &after.xid, &after.n, &mark.xid, &mark.n, &limit];
            let asked = self.bookkeeping.ask(self, &text, &types, &params).await;
            let rows = asked.map_err(Failed::of_a_read)?;
            let mut entries = Vec::with_capacity(rows.len());
            for row in &rows {
                after = Place::take(row, 0).map_err(unreadable)?;
                let entry = entry::take(self.sealer.as_ref(), row, 2)?;
                entries.extend(entry.map(|entry| (Position::from(after), entry)));
            }
            // Where all of a page is damaged, the next one is read.
            if !entries.is_empty() || rows.is_empty() {
                return Ok(entries);
            }
        }
    }

    async fn entries(&self, query: &EntryQuery) -> Result<EntryPage, StoreError> {
        let mut page = EntryPage::default();
        let mark = self.standing(&self.operators).await?.mark;
        let end = Position(Position::from(mark).0 + 1);
        let before = query.older_than.map_or(end, |before| before.min(end));
        let schema = &self.target.schema;
        // A day closes soon after its end, and what comes later than that is in one of the next.
        let looked_at = format!(
            "SELECT * FROM {schema}.ledger l
            WHERE (l.xid, l.n) < ($1, $2) AND l.day BETWEEN $3 AND $4
            ORDER BY l.xid DESC, l.n DESC"
        );
        let text = format!(
            "SELECT l.xid, l.n, l.id, l.entry FROM ({looked_at} LIMIT $5) l
            WHERE ($6::int4 IS NULL OR l.tenant_tag = $6) AND ($7::int4 IS NULL OR l.route_tag = $7)
                AND ($8::int4 IS NULL OR l.model_tag = $8) AND l.at >= $9 AND l.at < $10
            ORDER BY l.xid DESC, l.n DESC LIMIT $11"
        );
        let before = Place::from(before);
        let tag = |name: &Option<Box<str>>| name.as_ref().map(|name| self.tag(name));
        let (since, until) = (query.since, query.until);
        let wanted = query.limit.saturating_add(1).min(MOST_LOOKED_AT) as i64;
        let types = [
            &place::TYPES[..],
            &[Type::INT4, Type::INT4, Type::INT8],
            &[Type::INT4, Type::INT4, Type::INT4],
            &[Type::INT8, Type::INT8, Type::INT8],
        ]
        .concat();
        let params: [Param; 11] = [
            &before.xid,
            &before.n,
            &since.map_or(i32::MIN, |since| Day::of(since).number()),
            &until.map_or(i32::MAX, |until| Day::of(until).next().number()),
            &(MOST_LOOKED_AT as i64),
            &tag(&query.tenant),
            &tag(&query.route),
            &tag(&query.model),
            &since.map_or(i64::MIN, millis),
            &until.map_or(i64::MAX, millis),
            &wanted,
        ];
        let asked = self.operators.ask(self, &text, &types, &params).await;
        let rows = asked.map_err(Failed::of_a_read)?;
        for row in rows.iter().take(query.limit) {
            // A tag may be shared by two names.
            let entry = entry::take(self.sealer.as_ref(), row, 2)?;
            page.entries
                .extend(entry.filter(|entry| query.wants(entry)));
        }
        let last = if rows.len() > query.limit {
            let last = query.limit.checked_sub(1).and_then(|last| rows.get(last));
            let last = last.map(|row| Place::take(row, 0)).transpose();
            Some(last.map_err(unreadable)?.unwrap_or(before))
        } else {
            // Whether there was more to look at.
            let text = format!("SELECT l.xid, l.n FROM ({looked_at} OFFSET $5 - 1 LIMIT 1) l");
            let asked = self
                .operators
                .ask(self, &text, &types[..5], &params[..5])
                .await;
            let rows = asked.map_err(Failed::of_a_read)?;
            let last = rows.first().map(|row| Place::take(row, 0));
            last.transpose().map_err(unreadable)?
        };
        page.next = last.map(Position::from);
        Ok(page)
    }
}
