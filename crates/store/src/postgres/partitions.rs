//! The partitions: made before they are needed, dropped when nothing in them counts.
//!
//! A period has three tables, one each for records, chunks and attempts. They are made apart and then
//! attached, which keeps nobody from reading and writing. What still counts when a period is over (a
//! record whose window turned out longer, an operation that runs or is unknown to this day) is moved
//! to a younger one first, under the lock of its row, so that nothing that counts is ever dropped
//! (I11): what a partition holds is then of no operation that a row of `operations` leads to.

use std::{collections::HashSet, hash::Hash, time::Duration};

use onlyonce_core::Timestamp;
use parking_lot::RwLock;
use tokio::sync::Mutex;
use tokio_postgres::{error::SqlState, types::Type};

use super::{Core, body::millis, connection::Session, error::Failed, period::Period, values::Id};

/// How long after its end a period is dropped: clocks differ, and writes may be under way.
const GRACE: Duration = Duration::from_secs(600);
/// Rows that are moved in one transaction.
const MOVED_AT_ONCE: i64 = 200;
/// How long a dropped table is waited for, while everybody waits behind us.
pub const LOCK_TIMEOUT: &str = "200ms";

const TABLES: [&str; 3] = ["records", "chunks", "attempts"];

/// What a partition is made for: a period of operations, a day of the books.
pub trait Part: Copy + Eq + Hash + Send + Sync {
    /// What makes its tables where they are not there.
    fn make(self, schema: &str) -> String;
}

impl Part for Period {
    fn make(self, schema: &str) -> String {
        let (number, ends_at) = (self.number(), millis(self.ends_at()));
        let tables: String = TABLES
            .map(|table| make_table(schema, table, number))
            .concat();
        format!(
            "IF NOT EXISTS (SELECT FROM {schema}.periods WHERE period = {number}) THEN
                {tables}
                INSERT INTO {schema}.periods VALUES ({number}, {ends_at});
            END IF;"
        )
    }
}

/// The partitions that are known to be there.
pub struct Partitions<P> {
    known: RwLock<HashSet<P>>,
    making: Mutex<()>,
}

impl<P> Default for Partitions<P> {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            making: Mutex::default(),
        }
    }
}

impl<P: Part> Partitions<P> {
    /// Makes the partitions of `parts` where they are not there.
    pub async fn ensure(&self, core: &Core, parts: &[P]) -> Result<(), Failed> {
        if self.knows_all(parts) {
            return Ok(());
        }
        let _making = self.making.lock().await;
        if self.knows_all(parts) {
            return Ok(());
        }
        self.make(core, parts).await
    }

    /// Makes partitions again that turned out to be missing.
    pub async fn make_again(&self, core: &Core, parts: HashSet<P>) -> Result<(), Failed> {
        let _making = self.making.lock().await;
        let parts: Vec<P> = parts.into_iter().collect();
        self.make(core, &parts).await
    }

    /// A partition is about to be dropped.
    pub fn forget(&self, part: P) {
        self.known.write().remove(&part);
    }

    fn knows_all(&self, parts: &[P]) -> bool {
        let known = self.known.read();
        parts.iter().all(|part| known.contains(part))
    }

    async fn make(&self, core: &Core, parts: &[P]) -> Result<(), Failed> {
        let mut session = core.chores.session(core).await?;
        let made = make(&mut session, core, parts).await;
        session.set_busy(made.is_err());
        made?;
        self.known.write().extend(parts);
        Ok(())
    }
}

async fn make<P: Part>(session: &mut Session, core: &Core, parts: &[P]) -> Result<(), Failed> {
    let schema = &core.target.schema;
    let mut text = format!(
        "BEGIN; SET LOCAL lock_timeout = '2s';
        SELECT pg_advisory_xact_lock(hashtextextended('onlyonce partitions of {schema}', 0));"
    );
    for part in parts {
        text.push_str(&format!("DO $$ BEGIN {} END $$;", part.make(schema)));
    }
    text.push_str("COMMIT");
    session.execute(&text).await
}

/// One table of a partition. What is in it is not much larger than a page, or much larger.
pub fn make_table(schema: &str, table: &str, number: i32) -> String {
    format!(
        "CREATE TABLE {schema}.{table}_{number} (
            LIKE {schema}.{table} INCLUDING DEFAULTS INCLUDING STORAGE
        ) WITH (toast_tuple_target = 8160);
        ALTER TABLE {schema}.{table} ATTACH PARTITION {schema}.{table}_{number}
            FOR VALUES IN ({number});"
    )
}

/// The periods that are over, and have been for a while.
pub async fn over(core: &Core, now: Timestamp) -> Result<Vec<Period>, Failed> {
    let text = format!(
        "SELECT period FROM {}.periods WHERE ends_at <= $1 ORDER BY ends_at LIMIT 4",
        core.target.schema
    );
    let before = now.as_millis().saturating_sub(GRACE.as_millis() as u64);
    let before = millis(Timestamp::from_millis(before));
    let rows = core
        .upkeep
        .ask(core, &text, &[Type::INT8], &[&before])
        .await?;
    let mut periods = Vec::with_capacity(rows.len());
    for row in rows {
        periods.push(Period::from_number(row.try_get(0)?));
    }
    Ok(periods)
}

/// Drops a period that is over, after what counts in it has been moved; gives the bytes that come
/// back, `None` where somebody uses its tables right now.
pub async fn drop_old(
    session: &mut Session,
    core: &Core,
    period: Period,
    now: Timestamp,
) -> Result<Option<u64>, Failed> {
    while move_living(session, core, period, now).await? > 0 {}
    core.partitions.forget(period);
    match drop_period(session, &core.target.schema, period).await {
        Err(Failed::Refused { code, .. }) if code == SqlState::LOCK_NOT_AVAILABLE => {
            session.execute("ROLLBACK").await?;
            Ok(None)
        }
        dropped => dropped.map(Some),
    }
}

/// Moves what counts out of `period`; gives how many rows it moved, 0 when nothing is left.
async fn move_living(
    session: &mut Session,
    core: &Core,
    period: Period,
    now: Timestamp,
) -> Result<usize, Failed> {
    let schema = &core.target.schema;
    // A gateway that is paused in between must not hold the rows for long.
    session
        .execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'")
        .await?;
    let lock = format!(
        "SELECT address, id, until FROM {schema}.operations
        WHERE period = $1 AND (state IN (1, 3) OR until > $2)
        ORDER BY address LIMIT $3 FOR UPDATE"
    );
    let types = [Type::INT4, Type::INT8, Type::INT8];
    let rows = session
        .ask(
            &lock,
            &types,
            &[&period.number(), &millis(now), &MOVED_AT_ONCE],
        )
        .await?;
    let mut addresses = Vec::with_capacity(rows.len());
    let mut ids = Vec::with_capacity(rows.len());
    let mut periods = Vec::with_capacity(rows.len());
    for row in &rows {
        addresses.push(row.try_get::<_, Id>(0)?);
        ids.push(row.try_get::<_, Id>(1)?);
        let until: Option<i64> = row.try_get(2)?;
        let until = until.map_or(now, |until| Timestamp::from_millis(until.max(0) as u64));
        let until = until.max(core.windows.default_from(now));
        periods.push(Period::of(now, until).number());
    }
    if !rows.is_empty() {
        let new: HashSet<Period> = periods.iter().copied().map(Period::from_number).collect();
        let new: Vec<Period> = new.into_iter().collect();
        core.partitions.ensure(core, &new).await?;
        let moved = "SELECT * FROM unnest($2::uuid[], $3::int4[]) AS m (id, period)";
        let types = [Type::INT4, Type::UUID_ARRAY, Type::INT4_ARRAY];
        for (table, columns) in [
            ("records", "body, attempt"),
            ("chunks", "claim, number, bytes"),
            ("attempts", "slot, number, note"),
        ] {
            let copy = format!(
                "INSERT INTO {schema}.{table} (period, id, {columns})
                SELECT m.period, t.id, {columns} FROM {schema}.{table} t JOIN ({moved}) m USING (id)
                WHERE t.period = $1"
            );
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                [&period.number(), &ids, &periods];
            session.ask(&copy, &types, &params).await?;
        }
        let point = format!(
            "UPDATE {schema}.operations o SET period = m.period
            FROM unnest($1::uuid[], $2::int4[]) AS m (address, period) WHERE o.address = m.address"
        );
        let types = [Type::UUID_ARRAY, Type::INT4_ARRAY];
        session.ask(&point, &types, &[&addresses, &periods]).await?;
    }
    session.execute("COMMIT").await?;
    Ok(rows.len())
}

async fn drop_period(session: &mut Session, schema: &str, period: Period) -> Result<u64, Failed> {
    let number = period.number();
    let size = TABLES
        .map(|table| {
            format!("coalesce(pg_total_relation_size(to_regclass('{schema}.{table}_{number}')), 0)")
        })
        .join(" + ");
    let rows = session
        .ask(&format!("SELECT ({size})::int8"), &[], &[])
        .await?;
    let bytes: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    let tables = TABLES
        .map(|table| format!("{schema}.{table}_{number}"))
        .join(", ");
    session
        .execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';
            SELECT pg_advisory_xact_lock(hashtextextended('onlyonce partitions of {schema}', 0));
            DROP TABLE IF EXISTS {tables};
            DELETE FROM {schema}.periods WHERE period = {number};
            COMMIT"
        ))
        .await?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}
