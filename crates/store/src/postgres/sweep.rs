//! Sweeps: thin rows that have expired are deleted, partitions are made ahead and dropped.
//!
//! Every gateway calls for a sweep every few seconds; one of them does it, the others find the lock
//! taken.

use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use super::{Core, books::Day, error::Failed, partitions, sql};
use crate::{StoreError, Swept};

/// Rows of one state that are deleted in one transaction.
const DELETED_AT_ONCE: i64 = 5_000;
/// How long one sweep goes on deleting.
const LONGEST: Duration = Duration::from_secs(2);
/// Milliseconds for which the end of a recording is shown to those who follow it.
const SHOWN_FOR: i64 = 10_000;
/// Milliseconds after which whoever still follows has asked again.
const FOLLOWED_FOR: i64 = 60_000;

impl Core {
    /// One sweep.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        self.make_ahead().await.map_err(Failed::of_a_read)?;
        self.forget_shown().await.map_err(Failed::of_a_read)?;
        let swept = self.delete_expired().await.map_err(Failed::of_a_read)?;
        let bytes = self.drop_partitions().await.map_err(Failed::of_a_read)?;
        self.figures.grew(-i64::try_from(bytes).unwrap_or(0));
        self.close_days().await.map_err(Failed::of_a_read)?;
        self.count_now_and_then().await.map_err(Failed::of_a_read)?;
        Ok(Swept {
            records: swept,
            bytes,
        })
    }

    /// Makes the partitions that will be needed next.
    pub async fn make_ahead(&self) -> Result<(), Failed> {
        let now = self.now();
        let today = Day::of(now);
        self.days.ensure(self, &[today, today.next()]).await?;
        self.partitions.ensure(self, &self.windows.ahead(now)).await
    }

    async fn delete_expired(&self) -> Result<u64, Failed> {
        let schema = &self.target.schema;
        let now = sql::clock(1);
        let text = format!(
            "DELETE FROM {schema}.operations o
            USING (VALUES (2::int2), (4::int2)) AS over (state), LATERAL (
                SELECT address FROM {schema}.operations
                WHERE state = over.state AND until <= {now}
                    AND pg_try_advisory_xact_lock(hashtextextended('onlyonce sweep of {schema}', 0))
                ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED
            ) expired WHERE o.address = expired.address
            RETURNING o.tenant_tag"
        );
        let started = Instant::now();
        let mut deleted = 0;
        loop {
            let types = [Type::INT8, Type::INT8];
            let rows = self
                .upkeep
                .ask(self, &text, &types, &[&self.given_now(), &DELETED_AT_ONCE])
                .await?;
            for row in &rows {
                self.figures.dropped(row.try_get(0)?);
            }
            deleted += rows.len() as u64;
            if (rows.len() as i64) < DELETED_AT_ONCE || started.elapsed() > LONGEST {
                return Ok(deleted);
            }
        }
    }

    /// Forgets what is shown of operations that do not run any more, and who followed what a while ago.
    async fn forget_shown(&self) -> Result<(), Failed> {
        let schema = &self.target.schema;
        let now = sql::clock(1);
        let tails = format!(
            "DELETE FROM {schema}.tails t USING (
                SELECT t.address FROM {schema}.tails t
                WHERE t.shown_at < {now} - $2 AND NOT EXISTS (
                    SELECT FROM {schema}.operations o WHERE o.address = t.address
                        AND o.id = t.id AND o.claim = t.claim AND o.state = 1)
                ORDER BY t.address LIMIT $3 FOR UPDATE OF t SKIP LOCKED
            ) over WHERE t.address = over.address"
        );
        let follows = format!(
            "DELETE FROM {schema}.follows f USING (
                SELECT owner, address FROM {schema}.follows WHERE asked_at < {now} - $2
                LIMIT $3 FOR UPDATE SKIP LOCKED
            ) over WHERE f.owner = over.owner AND f.address = over.address"
        );
        let types = [Type::INT8, Type::INT8, Type::INT8];
        for (text, age) in [(tails, SHOWN_FOR), (follows, FOLLOWED_FOR)] {
            self.upkeep
                .ask(
                    self,
                    &text,
                    &types,
                    &[&self.given_now(), &age, &DELETED_AT_ONCE],
                )
                .await?;
        }
        Ok(())
    }

    /// Drops the partitions that are over. One that is in use is dropped by a later sweep.
    async fn drop_partitions(&self) -> Result<u64, Failed> {
        let now = self.now();
        let mut bytes = 0;
        for period in partitions::over(self, now).await? {
            let mut session = self.upkeep.session(self).await?;
            let dropped = partitions::drop_old(&mut session, self, period, now).await;
            session.set_busy(dropped.is_err());
            match dropped? {
                Some(freed) => bytes += freed,
                None => break,
            }
        }
        Ok(bytes)
    }
}
