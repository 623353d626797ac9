//! The partitions of the ledger: one for each day on which operations were completed.

use onlyonce_core::Timestamp;
use tokio_postgres::{error::SqlState, types::Type};

use crate::{
    Swept,
    books::Grain,
    postgres::{
        Core,
        body::millis,
        error::Failed,
        partitions::{LOCK_TIMEOUT, Part, make_table},
    },
};

/// A day in UTC, by its number since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(i32);

impl Day {
    /// The day that `at` is in.
    pub fn of(at: Timestamp) -> Self {
        Self(i32::try_from(at.as_millis() / length()).unwrap_or(i32::MAX))
    }

    /// The day after this one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number under which the server knows it.
    pub const fn number(self) -> i32 {
        self.0
    }
}

const fn length() -> u64 {
    Grain::Day.span().as_millis() as u64
}

impl Part for Day {
    fn make(self, schema: &str) -> String {
        let day = self.0;
        let made = make_table(schema, "ledger", day);
        format!(
            "IF {day} >= (SELECT from_day FROM {schema}.store)
                AND NOT EXISTS (SELECT FROM {schema}.ledger_days WHERE day = {day})
            THEN
                {made}
                INSERT INTO {schema}.ledger_days VALUES ({day});
            END IF;"
        )
    }
}

impl Core {
    /// Closes the days before today, as soon as all in them is booked. What comes late goes to a day that is
    /// open: its statement sees that they are closed, or runs into the constraint and is tried again.
    pub async fn close_days(&self) -> Result<(), Failed> {
        let schema = &self.target.schema;
        let today = Day::of(self.now()).number();
        let looked = format!("SELECT from_day FROM {schema}.store WHERE from_day < {today}");
        let rows = self.upkeep.ask(self, &looked, &[], &[]).await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let from_day: i32 = row.try_get(0)?;
        let past = format!("d.day >= {from_day} AND d.day < {today}");
        let is_ripe = format!(
            "SELECT FROM {schema}.store s WHERE s.from_day = {from_day} AND NOT EXISTS (
                SELECT FROM {schema}.books b, {schema}.ledger d
                WHERE {past} AND (d.xid, d.n) > (b.mark_xid, b.mark_n))"
        );
        if self.upkeep.ask(self, &is_ripe, &[], &[]).await?.is_empty() {
            return Ok(());
        }
        // Whoever holds the ledger's lock knows that nobody is about to add to it.
        let text = format!(
            "LOCK TABLE ONLY {schema}.ledger IN ACCESS EXCLUSIVE MODE;
            DO $$ DECLARE closing int4; BEGIN
                IF EXISTS ({is_ripe}) THEN
                    FOR closing IN SELECT d.day FROM {schema}.ledger_days d WHERE {past} LOOP
                        EXECUTE format('ALTER TABLE {schema}.%I ADD CONSTRAINT closed
                            CHECK (false) NOT VALID', 'ledger_' || closing);
                    END LOOP;
                    UPDATE {schema}.ledger_days d
                    SET end_xid = b.mark_xid, end_n = b.mark_n
                    FROM {schema}.books b WHERE {past};
                    UPDATE {schema}.store SET from_day = {today};
                END IF;
            END $$;"
        );
        self.with_partitions_locked(&text).await.map(drop)
    }

    /// Does something to the partitions that is not waited for long; says whether it was done, and not
    /// left because somebody uses them.
    async fn with_partitions_locked(&self, text: &str) -> Result<bool, Failed> {
        let schema = &self.target.schema;
        let text = format!(
            "BEGIN; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';
            SELECT pg_advisory_xact_lock(hashtextextended('onlyonce partitions of {schema}', 0));
            {text}
            COMMIT"
        );
        let mut session = self.upkeep.session(self).await?;
        let is_done = match session.execute(&text).await {
            Err(Failed::Refused { code, .. }) if code == SqlState::LOCK_NOT_AVAILABLE => {
                session.execute("ROLLBACK").await?;
                false
            }
            done => done.map(|()| true)?,
        };
        session.set_busy(false);
        Ok(is_done)
    }

    /// Drops the days that ended before `before`, as far as they are closed and nobody reads them.
    pub async fn trim_ledger(&self, before: Timestamp) -> Result<Swept, Failed> {
        self.close_days().await?;
        let mut swept = Swept::default();
        let schema = &self.target.schema;
        let text = format!(
            "SELECT d.day, greatest(c.reltuples, 0)::int8, pg_total_relation_size(c.oid)::int8
            FROM {schema}.ledger_days d
            JOIN pg_class c ON c.oid = to_regclass('{schema}.ledger_' || d.day)
            WHERE d.day < $1 AND d.day < (SELECT from_day FROM {schema}.store) ORDER BY d.day"
        );
        let end = Day::of(before).number();
        let rows = self.upkeep.ask(self, &text, &[Type::INT4], &[&end]).await?;
        for row in rows {
            let (day, entries, bytes): (i32, i64, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let text = format!(
                "DROP TABLE IF EXISTS {schema}.ledger_{day};
                DELETE FROM {schema}.ledger_days WHERE day = {day};"
            );
            if self.with_partitions_locked(&text).await? {
                swept.records += u64::try_from(entries).unwrap_or(0);
                swept.bytes += u64::try_from(bytes).unwrap_or(0);
                self.figures.grew(-bytes);
            }
        }
        Ok(swept)
    }

    /// Deletes the sums of periods that ended before `before`.
    pub async fn trim_sums(&self, before: Timestamp) -> Result<(), Failed> {
        const DELETED_AT_ONCE: i64 = 5_000;
        let schema = &self.target.schema;
        // A list of places is what a delete can be limited to.
        let text = format!(
            "DELETE FROM {schema}.sums WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM {schema}.sums
                WHERE grain = $1 AND together = $2 AND period <= $3 LIMIT $4 FOR UPDATE SKIP LOCKED
            )) RETURNING true"
        );
        let types = [Type::INT2, Type::BOOL, Type::INT8, Type::INT8];
        for grain in Grain::ALL {
            let last = before
                .as_millis()
                .checked_sub(grain.span().as_millis() as u64);
            let Some(last) = last.map(Timestamp::from_millis).map(millis) else {
                continue;
            };
            for together in [false, true] {
                let number = super::sums::grain_number(grain);
                loop {
                    let deleted = self
                        .upkeep
                        .ask(
                            self,
                            &text,
                            &types,
                            &[&number, &together, &last, &DELETED_AT_ONCE],
                        )
                        .await?;
                    if (deleted.len() as i64) < DELETED_AT_ONCE {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}
