//! What the store is marked as, and the places at which it holds something.

use onlyonce_core::{Address, OperationId};
use tokio_postgres::types::Type;

use super::{Core, error::Failed, store::unreadable, values::Id};
use crate::{Mark, StoreError, Walked};

impl Core {
    pub async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        let text = format!("SELECT mark FROM {}.store", self.target.schema);
        let rows = self.operators.ask(self, &text, &[], &[]).await;
        let rows = rows.map_err(Failed::of_a_read)?;
        let mark = rows.first().map(|row| row.try_get::<_, Option<&str>>(0));
        let mark = mark.transpose().map_err(unreadable)?.flatten();
        Mark::decode(mark.unwrap_or_default())
    }

    /// Marks the store, then switches the triggers that refuse claims. In this order, whoever reads the
    /// mark is early rather than late.
    pub async fn set_mark(
        &self,
        expected: Option<&Mark>,
        to: Option<&Mark>,
    ) -> Result<bool, StoreError> {
        let schema = &self.target.schema;
        let text = format!(
            "UPDATE {schema}.store SET mark = $1 WHERE mark IS NOT DISTINCT FROM $2 RETURNING true"
        );
        let (expected, new) = (expected.map(Mark::encode), to.map(Mark::encode));
        let types = [Type::TEXT, Type::TEXT];
        let asked = self
            .operators
            .ask(self, &text, &types, &[&new, &expected])
            .await;
        if asked.map_err(Failed::of_a_write)?.is_empty() {
            return Ok(false);
        }
        let switch = match to.and_then(Mark::refusal) {
            Some(_) => "ENABLE",
            None => "DISABLE",
        };
        let text = format!(
            "ALTER TABLE {schema}.operations {switch} TRIGGER refuse_first_claim,
                {switch} TRIGGER refuse_later_claim"
        );
        let switched = self.operators.ask(self, &text, &[], &[]).await;
        switched.map_err(Failed::of_a_write)?;
        Ok(true)
    }

    /// Why a claim that was lawful was left out.
    pub async fn refusal(&self) -> Result<(), StoreError> {
        let mark = self.mark().await?;
        mark.as_ref().and_then(Mark::refusal).map_or(Ok(()), Err)
    }

    pub async fn walk(
        &self,
        after: Option<Walked>,
        limit: usize,
    ) -> Result<Vec<Walked>, StoreError> {
        let text = format!(
            "SELECT address, id FROM {}.operations WHERE $1::uuid IS NULL OR address > $1
            ORDER BY address LIMIT $2",
            self.target.schema
        );
        let after = after.map(|after| Id(*after.address.as_bytes()));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let types = [Type::UUID, Type::INT8];
        let asked = self
            .operators
            .ask(self, &text, &types, &[&after, &limit])
            .await;
        let rows = asked.map_err(Failed::of_a_read)?;
        let walked = rows.iter().map(|row| {
            let (address, id): (Id, Id) = (row.try_get(0)?, row.try_get(1)?);
            Ok(Walked {
                address: Address::from_bytes(address.0),
                id: OperationId::from_bytes(id.0),
            })
        });
        walked.collect::<Result<_, _>>().map_err(unreadable)
    }
}
