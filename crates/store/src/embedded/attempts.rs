//! Attempts: notes beside a record, kept at best effort.

use onlyonce_core::{Address, Attempt, OperationId};

use super::{
    Inner,
    body::{self, RecordBody},
    catalog::What,
    layout::Kind,
    log::{Need, NewEntry},
    shard::Shard,
};
use crate::{AttemptNote, StoreError, corrupt};

impl Inner {
    pub fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        let mut shard = self.index.shard(address);
        let Some(slot) = shard.slot_mut(address).filter(|slot| slot.id == id) else {
            return Err(corrupt(format!("{id} is not there any more")));
        };
        slot.attempts += 1;
        let attempt = note.numbered(slot.attempts, self.clock.now());
        let number = attempt.number;
        self.put_attempt(&mut shard, address, id, &attempt);
        Ok(number)
    }

    /// Puts an attempt into the log, at best effort: its number counts in any case.
    pub fn put_attempt(
        &self,
        shard: &mut Shard,
        address: Address,
        id: OperationId,
        attempt: &Attempt,
    ) {
        let plain = body::encode_attempt(id, attempt);
        let Ok((head, body)) = body::close(self.sealer.as_ref(), Kind::Attempt, address, plain)
        else {
            return;
        };
        let taken = self.log.put(NewEntry {
            head: &head,
            body: &body,
            what: What::Attempt {
                id,
                number: attempt.number,
            },
            urgent: false,
            time: attempt.at.as_millis(),
            entry: None,
            need: Need::More,
        });
        if let (Ok(place), Some(slot)) = (taken, shard.slot_mut(address))
            && let Some(forgotten) = slot.beside_mut().add_attempt(place)
        {
            self.release(forgotten);
        }
    }

    pub async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        let found = self
            .index
            .shard(address)
            .slot(address)
            .filter(|slot| slot.id == id)
            .map(|slot| {
                let beside = slot.beside.as_deref();
                let places = beside.map_or_else(Vec::new, |beside| beside.attempts.clone());
                (
                    slot.place,
                    places,
                    beside.and_then(|beside| beside.executing.clone()),
                )
            });
        let Some((place, places, executing)) = found else {
            return Ok(Vec::new());
        };
        let executing = match executing {
            Some(attempt) => Some(attempt),
            None => RecordBody::decode(self.entry(address, place, Kind::Record).await?)?.executing,
        };
        let mut attempts: Vec<_> = executing.into_iter().collect();
        for place in places {
            match self.entry(address, place, Kind::Attempt).await {
                Ok(body) => attempts.push(body::decode_attempt(body)?.1),
                // Damaged, or moved at the same moment: attempts are kept at best effort.
                Err(StoreError::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        attempts.sort_by_key(|attempt| attempt.number);
        Ok(attempts)
    }
}
