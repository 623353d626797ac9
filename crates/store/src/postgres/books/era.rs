//! Eras: what holds the order of the entries together when the numbers of transactions begin anew.
//!
//! A dump that is restored to another cluster, or what is replicated to one, holds numbers that the
//! transactions there have not reached. What is written there would stand before what was seen, so a new
//! era begins with the first connection, before anything is written through it. Within one cluster no row
//! that can be seen has a number that is not given out yet, so there it never happens.

use crate::postgres::{
    connection::Session,
    error::{ConnectError, Failed},
    target::Target,
};

/// Whether numbers of this era are known that this cluster has not given out. What stands in the days that
/// are closed is not above the mark.
fn is_over(schema: &str, from_day: i32) -> String {
    let next = "pg_snapshot_xmax(pg_current_snapshot())";
    format!(
        "SELECT b.mark_era = b.era AND b.mark_xid >= {next} OR EXISTS (
            SELECT FROM {schema}.ledger l
            WHERE l.day >= {from_day} AND l.era = b.era AND l.xid >= {next}
        ) FROM {schema}.books b"
    )
}

/// Begins a new era if it takes one.
pub async fn follow(session: &Session, target: &Target) -> Result<(), ConnectError> {
    let refuse = |failed: Failed| target.server_error(failed);
    let schema = &target.schema;
    let from_day = format!("SELECT from_day FROM {schema}.store");
    let rows = session.ask(&from_day, &[], &[]).await.map_err(refuse)?;
    let from_day = rows.first().map_or(0, |row| row.get(0));
    let is_over = is_over(schema, from_day);
    let rows = session.ask(&is_over, &[], &[]).await.map_err(refuse)?;
    if !rows.first().is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    tracing::info!(
        "the server {} counts its transactions anew, as after a restore: entries of the books go on \
         in a new era",
        target.place
    );
    let begin = format!(
        "BEGIN; SET LOCAL lock_timeout = '2s';
        SELECT pg_advisory_xact_lock(hashtextextended('onlyonce partitions of {schema}', 0));
        DO $$ DECLARE new int4; BEGIN
            IF ({is_over}) THEN
                UPDATE {schema}.books SET era = era + 1 RETURNING era INTO new;
                EXECUTE format('ALTER TABLE {schema}.ledger ALTER era SET DEFAULT %s', new);
            END IF;
        END $$;
        COMMIT"
    );
    session.execute(&begin).await.map_err(refuse)
}
