//! Who delivers to which sink, how far, and what was given up.

use onlyonce_core::OperationId;
use tokio_postgres::types::Type;

use super::{
    entry::{close_letter, open_letter},
    place::Place,
};
use crate::{
    StoreError,
    books::{Advance, Begin, DeadLetter, Held, Hold, Position},
    postgres::{
        Core,
        calls::{Param, column},
        error::Failed,
        sql::{DURABLE, clock},
        store::unreadable,
        values::Id,
    },
};

impl Core {
    pub async fn hold(&self, hold: &Hold) -> Result<Option<Held>, StoreError> {
        let (schema, now) = (&self.target.schema, clock(5));
        // What is booked by now, where it begins with what comes later.
        let text = format!(
            "WITH setting AS MATERIALIZED (SELECT {now} AS now)
            INSERT INTO {schema}.sinks AS s (sink, owner, held_until, xid, n)
            SELECT $1, $2, now + $3, b.mark_xid, b.mark_n
            FROM setting LEFT JOIN {schema}.books b ON $4
            ON CONFLICT (sink) DO UPDATE SET owner = excluded.owner, held_until = excluded.held_until
            WHERE s.owner = excluded.owner OR s.held_until <= (SELECT now FROM setting)
            RETURNING xid, n"
        );
        let lease = i64::try_from(hold.lease.as_millis()).unwrap_or(i64::MAX);
        let types = [Type::TEXT, Type::INT8, Type::INT8, Type::BOOL, Type::INT8];
        let params: [Param; 5] = [
            &&*hold.sink,
            &(hold.owner.number() as i64),
            &lease,
            &(hold.begin == Begin::Now),
            &self.given_now(),
        ];
        let asked = self.bookkeeping.ask(self, &text, &types, &params).await;
        let rows = asked.map_err(Failed::of_a_write)?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let place = Place::take_some(row, 0).map_err(unreadable)?;
        Ok(Some(Held {
            position: place.map(Position::from),
        }))
    }

    pub async fn advance(&self, step: &Advance) -> Result<bool, StoreError> {
        let (schema, now) = (&self.target.schema, clock(9));
        let text = format!(
            "WITH setting AS MATERIALIZED (SELECT {now} AS now, {DURABLE}),
            moved AS (
                UPDATE {schema}.sinks s SET xid = $5, n = $6 FROM setting
                WHERE s.sink = $1 AND s.owner = $2 AND s.held_until > setting.now
                    AND ROW(s.xid, s.n) IS NOT DISTINCT FROM ROW($3, $4)
                RETURNING s.sink
            ),
            buried AS (
                INSERT INTO {schema}.dead (sink, id, letter)
                SELECT sink, id, letter FROM moved,
                    unnest($7::uuid[], $8::bytea[]) AS w (id, letter)
                ON CONFLICT (sink, id) DO UPDATE SET letter = excluded.letter
            )
            SELECT true FROM moved"
        );
        let types = [
            Type::TEXT,
            Type::INT8,
            Type::INT8,
            Type::INT4,
            Type::INT8,
            Type::INT4,
            Type::UUID_ARRAY,
            Type::BYTEA_ARRAY,
            Type::INT8,
        ];
        let bury = &step.bury;
        let mut letters = Vec::with_capacity(bury.len());
        for letter in bury {
            letters.push(close_letter(self.sealer.as_ref(), letter)?);
        }
        let from = step.from.map(Place::from);
        let to = Place::from(step.to);
        let params: [Param; 9] = [
            &&*step.sink,
            &(step.owner.number() as i64),
            &from.map(|from| from.xid),
            &from.map(|from| from.n),
            &to.xid,
            &to.n,
            &column(bury, |letter| Id::from(letter.entry.id)),
            &column(&letters, |letter| &letter[..]),
            &self.given_now(),
        ];
        let asked = self.bookkeeping.ask(self, &text, &types, &params).await;
        Ok(!asked.map_err(Failed::of_a_write)?.is_empty())
    }

    pub async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let text = format!(
            "SELECT id, letter FROM {}.dead
            WHERE sink = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3",
            self.target.schema
        );
        let types = [Type::TEXT, Type::UUID, Type::INT8];
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let params: [Param; 3] = [&sink, &after.map(Id::from), &limit];
        let asked = self.operators.ask(self, &text, &types, &params).await;
        let mut letters = Vec::new();
        for row in asked.map_err(Failed::of_a_read)? {
            let id: Id = row.try_get(0).map_err(unreadable)?;
            let bytes: &[u8] = row.try_get(1).map_err(unreadable)?;
            letters.push(open_letter(self.sealer.as_ref(), id.into(), bytes)?);
        }
        Ok(letters)
    }

    pub async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        let text = format!(
            "WITH setting AS MATERIALIZED (SELECT {DURABLE}),
            gone AS (
                DELETE FROM {}.dead d USING setting WHERE d.sink = $1 AND d.id = ANY ($2)
                RETURNING d.id
            )
            SELECT count(*) FROM gone",
            self.target.schema
        );
        let types = [Type::TEXT, Type::UUID_ARRAY];
        let ids = column(ids, |id| Id::from(*id));
        let asked = self
            .operators
            .ask(self, &text, &types, &[&sink, &ids])
            .await;
        let rows = asked.map_err(Failed::of_a_write)?;
        let count: i64 = rows
            .first()
            .map_or(Ok(0), |row| row.try_get(0))
            .map_err(unreadable)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
