//! Recordings: chunks in, chunks out, and what becomes of one that cannot be read.

use bytes::Bytes;
use onlyonce_core::{Address, RecordingId, State, StateName};

use super::{
    EmbeddedStore, Inner,
    body::{self, RecordBody},
    catalog::What,
    index::{Place, Slot, SlotState},
    layout::{self, Kind},
    log::{Need, NewEntry, NotTaken},
    shard::Shard,
    store::{refused, unavailable},
};
use crate::{StoreError, corrupt};

impl EmbeddedStore {
    pub(super) async fn append_chunk(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        if let Some(position) = inner.log.backpressure() {
            inner.log.nudge();
            inner.log.gate.wait(position).await.map_err(unavailable)?;
        }
        let plain = body::encode_chunk(recording, chunk, &bytes);
        let (head, body) = body::close(inner.sealer.as_ref(), Kind::Chunk, address, plain)?;
        loop {
            match inner.put_chunk(address, recording, chunk, &head, &body)? {
                Ok(()) => return Ok(()),
                Err(NotTaken::Wait) => inner.log.room().await,
                Err(other) => return Err(refused(other)),
            }
        }
    }

    pub(super) async fn read_chunk(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        let inner = &self.inner;
        loop {
            let found = inner
                .index
                .shard(address)
                .slot(address)
                .filter(|slot| slot.recording() == recording)
                .map(|slot| (slot.chunk(chunk), chunk < slot.chunks()));
            let Some((place, should_be_there)) = found else {
                return Err(corrupt(format!("{recording} is not there any more")));
            };
            let read = match place {
                Some(place) => inner.chunk_at(address, place, recording, chunk).await,
                None if should_be_there => Err(missing(recording, chunk)),
                None => return inner.last_chunk(address, recording, chunk).await,
            };
            let Err(StoreError::Corrupt(_)) = read else {
                return read;
            };
            let is_there_still = move |inner: &Inner| {
                let shard = inner.index.shard(address);
                shard
                    .slot(address)
                    .is_some_and(|slot| slot.recording() == recording && slot.chunk(chunk) == place)
            };
            if !is_there_still(inner) {
                // The sweep moved it at the same moment.
                continue;
            }
            if should_be_there {
                self.blocking(move |inner| {
                    // Where the log does not take it now, the next reader tries again.
                    drop(inner.lose_recording(&mut inner.index.shard(address), address));
                    Ok(())
                })
                .await?;
            }
            return read;
        }
    }
}

impl Inner {
    async fn chunk_at(
        &self,
        address: Address,
        place: Place,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        let body = self.entry(address, place, Kind::Chunk).await?;
        let (held, number, bytes) = body::decode_chunk(body)?;
        if (held, number) == (recording, chunk) {
            Ok(bytes)
        } else {
            Err(corrupt(format!(
                "chunk {chunk} of {recording} is another one"
            )))
        }
    }

    /// The last chunk, which lies with the record, if it is number `chunk`.
    async fn last_chunk(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        let stored = self.load(address).await?;
        stored
            .filter(|stored| stored.record.recording() == recording)
            .filter(|stored| match &stored.record.state {
                State::Completed(completed) => completed.chunks == chunk + 1,
                _ => false,
            })
            .and_then(|stored| stored.last_chunk)
            .ok_or_else(|| missing(recording, chunk))
    }

    fn put_chunk(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        head: &layout::EntryHead,
        body: &[u8],
    ) -> Result<Result<(), NotTaken>, StoreError> {
        let mut shard = self.index.shard(address);
        let running = [StateName::InFlight, StateName::Unknown].map(SlotState::Readable);
        let Some(slot) = shard
            .slot_mut(address)
            .filter(|slot| slot.recording() == recording && running.contains(&slot.state()))
        else {
            return Err(StoreError::Fenced);
        };
        let taken = self.log.put(NewEntry {
            head,
            body,
            what: What::Chunk {
                id: slot.id,
                claim: slot.claim,
                number: chunk,
            },
            urgent: false,
            time: 0,
            entry: None,
            need: Need::Ends,
        });
        let place = match taken {
            Ok(place) => place,
            Err(not_taken) => return Ok(Err(not_taken)),
        };
        let claim = slot.claim;
        let beside = slot.beside_mut();
        beside.claim = claim;
        if let Some(before) = beside.set_chunk(chunk, place) {
            self.release(before);
        }
        Ok(Ok(()))
    }

    /// Writes again a completed record whose recording cannot be read, as the unknown one that it
    /// counts as (I13); where it lies then. Blocks.
    pub fn lose_recording(
        &self,
        shard: &mut Shard,
        address: Address,
    ) -> Result<Option<Place>, NotTaken> {
        let completed = SlotState::Readable(StateName::Completed);
        let Some(slot) = shard
            .slot_mut(address)
            .filter(|slot| slot.state() == completed)
        else {
            return Ok(None);
        };
        self.hot.remove(&address);
        let held = self.read_record(address, slot.place);
        let Ok(held) = held else {
            shard.spoil(address);
            return Ok(None);
        };
        let body = RecordBody {
            attempts: slot.attempts,
            executing: held.executing,
            record: held.record.without_recording(),
            last_chunk: Bytes::new(),
        };
        let item = body.item(&self.secret);
        let (head, sealed) =
            body::close(self.sealer.as_ref(), Kind::Record, address, body.encode())
                .map_err(|error| NotTaken::Closed(error.to_string()))?;
        let place = self.log.put(NewEntry {
            head: &head,
            body: &sealed,
            what: What::Record(item),
            urgent: true,
            time: 0,
            entry: None,
            need: Need::Ends,
        })?;
        tracing::error!(
            operation = %slot.id,
            "a recording cannot be read: the outcome of its operation counts as unknown"
        );
        self.release(slot.place);
        let mut lost = Slot::of(&item, place);
        lost.beside = slot.beside.take();
        if let Some(beside) = &mut lost.beside {
            let chunks = beside.start_recording(lost.claim);
            chunks.into_iter().for_each(|place| self.release(place));
        }
        shard.insert(address, lost, item.tenant_tag);
        Ok(Some(place))
    }
}

fn missing(recording: RecordingId, chunk: u32) -> StoreError {
    corrupt(format!("chunk {chunk} of {recording} is missing"))
}
