//! Showing recordings that grow to those who follow them on other gateways.
//!
//! Who follows leaves a word for the owner, and listens to the record's channel. The owner listens to a
//! channel of its own; it puts the head and the newest bytes beside the record, and says so on the
//! record's channel. What is shown is sealed like everything else, and gone soon after the end.

use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::{Address, OwnerId, RecordingId};
use redis::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    Inner,
    failure::Failure,
    head,
    names::shard_of,
    scripts,
    servers::Request,
    store::unexpected,
    watch::{LOOK_EVERY, POLL},
};
use crate::{
    Seen, Shown, StoreError,
    parcel::{self, Label},
    shown::joined,
};

/// What is shown is kept for so long after more of it was, while the operation runs.
const KEPT: Duration = Duration::from_secs(3_600);
/// And after its end.
const KEPT_AFTER_END: Duration = Duration::from_secs(60);
/// An owner that does not come for what it is asked in so long is gone.
const ASKED: Duration = Duration::from_secs(60);
/// Addresses that an owner takes at once.
const AT_ONCE: usize = 1_000;

/// What a parcel holds.
const SHOWN_HEAD: u8 = 5;
const SHOWN_BYTES: u8 = 6;

impl Inner {
    pub async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        let deadline = Instant::now() + at_most;
        let (name, shard) = (self.servers.names.record(address), shard_of(address));
        let mut listener = self.listeners.join(&name, shard);
        let mut asked = false;
        let mut heard = false;
        loop {
            let listens = self.listen(&name, shard).await.is_ok();
            listener.heard.mark_unchanged();
            match self.shown(address, recording, seen).await? {
                Some(shown) if shown.is_news(seen) => return Ok(Some(shown)),
                // What was heard is of the record, then.
                _ if heard => return Ok(None),
                Some(_) => {}
                None if asked => {}
                None => {
                    self.ask_owner(address, owner).await?;
                    asked = true;
                }
            }
            let pause = if listens { LOOK_EVERY } else { POLL };
            let until = deadline.min(Instant::now() + pause);
            heard = timeout_at(until, listener.heard.changed()).await.is_ok();
            if !heard && until == deadline {
                return Ok(None);
            }
        }
    }

    pub async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        let (name, shard) = self.servers.names.asked(owner);
        let mut listener = self.listeners.join(&name, shard);
        let mut take = redis::cmd("SPOP");
        take.arg(&name).arg(AT_ONCE);
        let take = Request::plain(shard, take);
        loop {
            let listens = self.listen(&name, shard).await.is_ok();
            listener.heard.mark_unchanged();
            let taken: Vec<Vec<u8>> = self.ask(&take).await?;
            if !taken.is_empty() {
                let addresses = taken.into_iter().filter_map(|one| one.try_into().ok());
                return Ok(addresses.map(Address::from_bytes).collect());
            }
            let pause = if listens { LOOK_EVERY } else { POLL };
            let _ = tokio::time::timeout(pause, listener.heard.changed()).await;
        }
    }

    pub async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        let close = |kind, from, plain: &Bytes| {
            if plain.is_empty() {
                return Ok(Bytes::new());
            }
            let label = label(kind, address, recording, from);
            parcel::close(self.sealer.as_ref(), &label, plain)
        };
        let kept = if shown.ended { KEPT_AFTER_END } else { KEPT };
        let names = &self.servers.names;
        let mut command = scripts::SHOW.call();
        command.arg(3).arg(names.record(address));
        command.arg(names.shown(address)).arg(names.frames(address));
        command.arg(&head::recording(recording));
        command.arg(&*close(SHOWN_HEAD, 0, &shown.head)?);
        command.arg(shown.from);
        command.arg(&*close(SHOWN_BYTES, shown.from, &shown.bytes)?);
        command.arg(shown.in_chunks).arg(u8::from(shown.ended));
        command.arg(kept.as_millis() as u64);
        let request = Request::script(shard_of(address), &scripts::SHOW, command);
        self.call(&request).await.map_err(Failure::of_write)?;
        Ok(())
    }

    /// What is shown of a recording beyond `seen`; `None` where it is not shown.
    async fn shown(
        &self,
        address: Address,
        recording: RecordingId,
        seen: Seen,
    ) -> Result<Option<Shown>, StoreError> {
        let names = &self.servers.names;
        let mut command = scripts::SHOWN.call();
        command
            .arg(2)
            .arg(names.shown(address))
            .arg(names.frames(address));
        command.arg(&head::recording(recording)).arg(seen.bytes);
        let request = Request::script(shard_of(address), &scripts::SHOWN, command);
        let Value::Array(told) = self.call(&request).await.map_err(Failure::of_read)? else {
            return Err(unexpected());
        };
        let mut told = told.into_iter();
        let (Some(head), Some(in_chunks), Some(ended)) = (told.next(), told.next(), told.next())
        else {
            return Ok(None);
        };
        let open = |kind, from, parcel: Vec<u8>| {
            let label = label(kind, address, recording, from);
            parcel::open(self.sealer.as_ref(), &label, &parcel)
        };
        let head = match bytes(head)? {
            head if head.is_empty() => Bytes::new(),
            head => open(SHOWN_HEAD, 0, head)?,
        };
        let in_chunks = int(in_chunks)?;
        let from = seen.bytes.max(in_chunks);
        let mut frames = Vec::new();
        while let (Some(start), Some(frame)) = (told.next(), told.next()) {
            frames.push((int(start)?, bytes(frame)?));
        }
        let tail = joined(from, frames, |start, frame| open(SHOWN_BYTES, start, frame))?;
        Ok(Some(Shown {
            head,
            from,
            bytes: tail,
            in_chunks,
            ended: !bytes(ended)?.is_empty(),
        }))
    }

    async fn ask_owner(&self, address: Address, owner: OwnerId) -> Result<(), StoreError> {
        let (name, shard) = self.servers.names.asked(owner);
        let mut command = scripts::ASK.call();
        command.arg(1).arg(name).arg(address.as_bytes());
        command.arg(ASKED.as_millis() as u64);
        let request = Request::script(shard, &scripts::ASK, command);
        self.call(&request).await.map_err(Failure::of_write)?;
        Ok(())
    }
}

/// The label of a head that is shown, or of bytes that begin at `from`.
fn label(kind: u8, address: Address, recording: RecordingId, from: u64) -> Label {
    // The low half, as ever: the server compares the whole name.
    let claim = recording.claim.number() as u32;
    Label::new(
        kind,
        &[
            address.as_bytes(),
            recording.operation.as_bytes(),
            &claim.to_be_bytes(),
            &from.to_be_bytes(),
        ],
    )
}

fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        _ => Err(unexpected()),
    }
}

fn int(value: Value) -> Result<u64, StoreError> {
    match value {
        Value::Int(int) => u64::try_from(int).map_err(|_| unexpected()),
        _ => Err(unexpected()),
    }
}
