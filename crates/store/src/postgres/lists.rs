//! Lists of operations, newest first.
//!
//! Of what is few among the many there is an index: what runs, what is unknown, what was released, and
//! the holders of one key. All of it is found, and the newest are taken. Everything else is met on a walk
//! from the newest on, which a page ends after so many.

use onlyonce_core::{OperationId, StateName, Timestamp};
use tokio_postgres::{Row, types::Type};

use super::{
    Core,
    body::{millis, state_number},
    calls::Param,
    error::Failed,
    sql::COLUMNS,
    store::unreadable,
    values::Id,
};
use crate::{Page, Query, StoreError, Stored, addresses_of_key, books::MOST_LOOKED_AT};

/// Before a look: the plan goes by the indexes, whatever the planner guesses of how many there are. A plain
/// scan of an index also marks what is dead in it, so that the next one passes over that.
const BY_INDEX: &str = "BEGIN READ ONLY; SET LOCAL enable_seqscan = off; \
    SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; SET LOCAL jit = off";

/// What one look found.
struct Look {
    /// What may be wanted, newest first.
    found: Vec<(OperationId, Option<Stored>)>,
    /// The last that was looked at, where that was as many as a page looks at.
    end: Option<OperationId>,
}

impl Core {
    pub async fn list(&self, query: Query) -> Result<Page, StoreError> {
        let mut page = Page::default();
        let mut span = Span::of(&query);
        // A tag may be shared by two names, so a page may take more than one look.
        loop {
            let wanted = query.limit - page.records.len();
            let Look { found, end } = self.look(&query, &span, wanted + 1).await?;
            let is_all = found.len() <= wanted;
            for (id, stored) in found {
                if page.records.len() == query.limit {
                    page.next = page.records.last().map(|last| last.record.id);
                    return Ok(page);
                }
                span.older_than = id.into();
                // What cannot be read is not in a list.
                page.records
                    .extend(stored.filter(|stored| query.wants(&stored.record)));
            }
            if is_all || query.limit == 0 {
                page.next = end;
                return Ok(page);
            }
        }
    }

    /// At most `limit` of what may be wanted.
    async fn look(&self, query: &Query, span: &Span, limit: usize) -> Result<Look, StoreError> {
        let tenant = query.tenant.as_ref().map(|tenant| self.tag(tenant));
        let state = query.state.map(state_number);
        let key = query.key.as_ref();
        let addresses = key.map(|key| addresses_of_key(&self.secret, key));
        let first = addresses.as_ref().map(|range| Id::from(*range.start()));
        let last = addresses.as_ref().map(|range| Id::from(*range.end()));
        let (now, limit) = (millis(self.now()), limit as i64);
        let params: [Param; 9] = [
            &span.since,
            &span.until,
            &span.older_than,
            &now,
            &tenant,
            &state,
            &first,
            &last,
            &limit,
        ];
        let text = look(&self.target.schema, query);
        let rows = self.look_by_index(&text, &params).await;
        let rows = rows.map_err(Failed::of_a_read)?;
        let mut look = Look {
            found: Vec::with_capacity(rows.len()),
            end: None,
        };
        for (row, opened) in rows.iter().zip(self.open_rows(&rows)) {
            let (_, id, stored) = opened?;
            if row.try_get(9).map_err(unreadable)? {
                look.found.push((id, stored.ok()));
            }
            if row.try_get(10).map_err(unreadable)? {
                look.end = Some(id);
            }
        }
        Ok(look)
    }

    async fn look_by_index(&self, text: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failed> {
        let mut session = self.operators.session(self).await?;
        session.execute(BY_INDEX).await?;
        let rows = session.ask(text, &TYPES, params).await?;
        session.execute("COMMIT").await?;
        session.set_busy(false);
        Ok(rows)
    }
}

/// Of [`look`]: ids from `$1` to before `$2` and `$3`; the time; tenant, state and addresses that are
/// wanted; how many.
const TYPES: [Type; 9] = [
    Type::UUID,
    Type::UUID,
    Type::UUID,
    Type::INT8,
    Type::INT4,
    Type::INT2,
    Type::UUID,
    Type::UUID,
    Type::INT8,
];

/// The columns of an operation, whether it is wanted, and whether it is the last that was looked at.
fn look(schema: &str, query: &Query) -> String {
    let span = "o.id >= $1 AND o.id < $2 AND o.id < $3";
    let wanted = "((o.state IN (1, 3) OR o.until > $4)
        AND ($5::int4 IS NULL OR o.tenant_tag = $5) AND ($6::int2 IS NULL OR o.state = $6)
        AND ($7::uuid IS NULL OR o.address >= $7) AND ($8::uuid IS NULL OR o.address <= $8))";
    // Of what is little, all: the offset keeps what else is wanted out of it, or another index may be taken.
    let number = "row_number() OVER (ORDER BY o.id DESC)";
    let walk = format!("{span} ORDER BY o.id DESC LIMIT {MOST_LOOKED_AT}");
    let (number, from) = match (&query.key, query.state) {
        (Some(_), _) => ("0", "o.address BETWEEN $7 AND $8 OFFSET 0"),
        (None, Some(StateName::Completed) | None) => (number, &*walk),
        (None, Some(_)) => ("0", "o.state = $6 OFFSET 0"),
    };
    format!(
        "WITH newest AS MATERIALIZED (
            SELECT o.address, o.id, {wanted} AS is_wanted, o.n = {MOST_LOOKED_AT} AS is_end
            FROM (
                SELECT o.address, o.id, o.state, o.until, o.tenant_tag, {number} AS n
                FROM {schema}.operations o WHERE {from}
            ) o
            WHERE {span} AND ({wanted} OR o.n = {MOST_LOOKED_AT})
            ORDER BY o.id DESC LIMIT $9
        )
        SELECT {COLUMNS}, n.is_wanted, n.is_end
        FROM newest n JOIN {schema}.operations o USING (address)
        LEFT JOIN {schema}.records r ON o.state = 2 AND r.period = o.period AND r.id = o.id
        ORDER BY n.id DESC"
    )
}

/// Which ids a page may have.
struct Span {
    since: Id,
    /// Neither this one nor a later one; and so for `older_than`.
    until: Id,
    older_than: Id,
}

impl Span {
    fn of(query: &Query) -> Self {
        Self {
            since: query.since.map_or(Id([0; 16]), first_id),
            until: query.until.map_or(Id([255; 16]), first_id),
            older_than: query.older_than.map_or(Id([255; 16]), Id::from),
        }
    }
}

/// The least id of what was first claimed at `moment`.
fn first_id(moment: Timestamp) -> Id {
    let mut id = [0; 16];
    id[..6].copy_from_slice(&moment.as_millis().to_be_bytes()[2..]);
    Id(id)
}
