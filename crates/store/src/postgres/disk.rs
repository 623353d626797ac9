//! A disk that is full on the server.
//!
//! A claim may still find room in a page that is there while the answer that follows it finds none, and
//! then the operation ran and nobody can say so. So once a write has met a full disk, nothing is claimed
//! until there is room for answers again, which is tried out.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::{Core, error::Failed};
use crate::StoreError;

/// How long a trial that failed stands for those that come next.
const PAUSE: Duration = Duration::from_millis(200);

/// What is known of the server's disk.
#[derive(Default)]
pub struct Disk {
    was_full: AtomicBool,
    /// When room was last tried for and not found, and what the server said.
    refused: Mutex<Option<(Instant, String)>>,
}

impl Core {
    /// Notes how a write ended.
    pub fn note_room<T>(&self, written: &Result<T, StoreError>) {
        if let Err(StoreError::Full(_)) = written {
            self.disk.was_full.store(true, Ordering::Release);
        }
    }

    /// Whether a claim may be followed by its answer, as far as can be told.
    pub async fn check_disk(&self) -> Result<(), StoreError> {
        let was_full = || self.disk.was_full.load(Ordering::Acquire);
        if !was_full() {
            return Ok(());
        }
        let mut refused = self.disk.refused.lock().await;
        if !was_full() {
            return Ok(());
        }
        if let Some((at, why)) = &*refused
            && at.elapsed() < PAUSE
        {
            return Err(StoreError::Full(why.clone()));
        }
        match self.try_for_room().await {
            Ok(()) => {
                *refused = None;
                self.disk.was_full.store(false, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                if let StoreError::Full(why) = &error {
                    *refused = Some((Instant::now(), why.clone()));
                }
                Err(error)
            }
        }
    }

    /// Takes some pages of the ledger, and gives them back to it.
    async fn try_for_room(&self) -> Result<(), StoreError> {
        let schema = &self.target.schema;
        // An inner block is undone as a whole when it raises something; pages that it made stay.
        let text = format!(
            "DO $$ BEGIN
                INSERT INTO {schema}.ledger (n, day, id, at, tenant_tag, route_tag, model_tag, entry)
                SELECT 0, d.day, '00000000-0000-0000-0000-000000000000', 0, 0, 0, 0,
                    convert_to(repeat('x', 1900), 'UTF8')
                FROM generate_series(1, 32), (
                    SELECT coalesce(min(day) FILTER (WHERE day >= extract(epoch FROM now()) / 86400 - 1),
                        max(day)) AS day
                    FROM {schema}.ledger_days WHERE end_xid IS NULL
                ) d;
                RAISE EXCEPTION 'undone';
            EXCEPTION WHEN raise_exception THEN NULL; END $$"
        );
        let asked = self.bookkeeping.ask(self, &text, &[], &[]).await;
        asked.map(drop).map_err(Failed::of_a_write)
    }
}
