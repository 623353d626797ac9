//! What holds the order of the entries together when the numbers of transactions begin anew.
//!
//! A dump that is restored to another cluster, or what is replicated to one, holds numbers that the
//! transactions there have not reached. What is written there would stand before what was seen, so with the
//! first connection, before anything is written through it, something is added to all numbers from then on.
//! Within one cluster no row that can be seen has a number that is not given out yet, so there it never
//! happens.

use crate::postgres::{
    connection::Session,
    error::{ConnectError, Failed},
    target::Target,
};

/// The highest number that is known, where this cluster has not given it out. What stands in the days that are
/// closed is not above the mark.
fn last_of_another(schema: &str, from_day: i32) -> String {
    format!(
        "SELECT last FROM (
            SELECT b.shift, greatest(b.mark_xid, (
                SELECT max(l.xid) FROM {schema}.ledger l WHERE l.day >= {from_day}
            )) AS last FROM {schema}.books b
        ) b WHERE last >= pg_snapshot_xmax(pg_current_snapshot())::text::int8 + b.shift"
    )
}

/// Shifts the numbers if it takes that.
pub async fn follow(session: &Session, target: &Target) -> Result<(), ConnectError> {
    let refuse = |failed: Failed| target.server_error(failed);
    let schema = &target.schema;
    let from_day = format!("SELECT from_day FROM {schema}.store");
    let rows = session.ask(&from_day, &[], &[]).await.map_err(refuse)?;
    let from_day = rows.first().map_or(0, |row| row.get(0));
    let last = last_of_another(schema, from_day);
    let rows = session.ask(&last, &[], &[]).await.map_err(refuse)?;
    if rows.is_empty() {
        return Ok(());
    }
    tracing::info!(
        "the server {} counts its transactions anew, as after a restore: entries of the books go on \
         behind those that are there",
        target.place
    );
    let shift = format!(
        "BEGIN; SET LOCAL lock_timeout = '2s';
        SELECT pg_advisory_xact_lock(hashtextextended('onlyonce partitions of {schema}', 0));
        DO $$ DECLARE new int8; BEGIN
            UPDATE {schema}.books SET shift = last.last FROM ({last}) last RETURNING shift INTO new;
            IF FOUND THEN
                EXECUTE format('ALTER TABLE {schema}.ledger ALTER xid
                    SET DEFAULT pg_current_xact_id()::text::int8 + %s', new);
            END IF;
        END $$;
        COMMIT"
    );
    session.execute(&shift).await.map_err(refuse)
}
