//! How far the sinks are, and what was given up.
//!
//! ```text
//! [ "1ONCESNK" ][format u32][sealed u8][body][crc u32]
//! body     [sinks varint] of each: [name][0 | 1 + last entry u128][letters varint] of each:
//!          [entry][since varint][tries varint][why]
//! ```
//!
//! The file is written beside its name, synced and renamed whenever something in it changes. Who holds a
//! sink is not in it: that is this process, or nobody.

use std::{collections::BTreeMap, fs, io, path::Path};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::{OperationId, OwnerId, Timestamp};

use super::{Ledger, unavailable};
use crate::{
    StoreError,
    books::{Advance, Begin, DeadLetter, Held, Hold, Position},
    codec::{
        DecodeError, decode_entry, encode_entry, put_block, put_varint, take_block, take_text,
        take_varint,
    },
    embedded::{OpenError, segment::replace},
    seal::{SealError, Sealer},
};

const MAGIC: &[u8; 8] = b"1ONCESNK";
const FORMAT: u32 = 1;
const LABEL: &[u8] = b"onlyonce sinks";
const NAME: &str = "sinks";

/// All sinks by name.
#[derive(Clone, Default)]
pub struct Sinks(BTreeMap<Box<str>, Sink>);

#[derive(Clone, Default)]
struct Sink {
    owner: Option<(OwnerId, Timestamp)>,
    position: Option<Position>,
    dead: BTreeMap<OperationId, DeadLetter>,
}

impl Ledger {
    pub fn hold(
        &self,
        hold: Hold,
        now: Timestamp,
        sealer: Option<&Sealer>,
    ) -> Result<Option<Held>, StoreError> {
        // The order of the locks: a block that is written now is before or behind.
        let next_entry = self.writer.lock().next_entry;
        let mut sinks = self.sinks.lock();
        if !sinks.0.contains_key(&hold.sink) {
            let sink = Sink {
                position: match hold.begin {
                    Begin::Start => None,
                    Begin::Now => next_entry.checked_sub(1).map(|last| Position(last.into())),
                },
                ..Sink::default()
            };
            self.change(&mut sinks, sealer, |sinks| {
                sinks.0.insert(hold.sink.clone(), sink);
            })?;
        }
        let Some(sink) = sinks.0.get_mut(&hold.sink) else {
            return Ok(None);
        };
        let is_free = sink
            .owner
            .is_none_or(|(owner, until)| owner == hold.owner || now >= until);
        Ok(is_free.then(|| {
            sink.owner = Some((hold.owner, now.after(hold.lease)));
            Held {
                position: sink.position,
            }
        }))
    }

    pub fn advance(
        &self,
        step: Advance,
        now: Timestamp,
        sealer: Option<&Sealer>,
    ) -> Result<bool, StoreError> {
        let mut sinks = self.sinks.lock();
        let is_held = sinks.0.get(&step.sink).is_some_and(|sink| {
            let holds = |(owner, until)| owner == step.owner && now < until;
            sink.owner.is_some_and(holds) && sink.position == step.from
        });
        if !is_held {
            return Ok(false);
        }
        self.change(&mut sinks, sealer, |sinks| {
            let sink = sinks.0.entry(step.sink).or_default();
            sink.position = Some(step.to);
            let letters = step.bury.into_iter();
            sink.dead
                .extend(letters.map(|letter| (letter.entry.id, letter)));
        })?;
        Ok(true)
    }

    pub fn dead(&self, sink: &str, after: Option<OperationId>, limit: usize) -> Vec<DeadLetter> {
        let sinks = self.sinks.lock();
        let dead = sinks.0.get(sink).into_iter().flat_map(|sink| &sink.dead);
        dead.filter(|(id, _)| after.is_none_or(|after| **id > after))
            .take(limit)
            .map(|(_, letter)| letter.clone())
            .collect()
    }

    pub fn forget_dead(
        &self,
        sink: &str,
        ids: &[OperationId],
        sealer: Option<&Sealer>,
    ) -> Result<u64, StoreError> {
        let mut sinks = self.sinks.lock();
        let held = sinks.0.get(sink);
        let forgotten = ids
            .iter()
            .filter(|id| held.is_some_and(|held| held.dead.contains_key(id)))
            .count() as u64;
        if forgotten > 0 {
            self.change(&mut sinks, sealer, |sinks| {
                if let Some(sink) = sinks.0.get_mut(sink) {
                    sink.dead.retain(|id, _| !ids.contains(id));
                }
            })?;
        }
        Ok(forgotten)
    }

    /// Changes the sinks once that is durable, or not at all.
    fn change(
        &self,
        sinks: &mut Sinks,
        sealer: Option<&Sealer>,
        change: impl FnOnce(&mut Sinks),
    ) -> Result<(), StoreError> {
        let mut changed = sinks.clone();
        change(&mut changed);
        let bytes = changed.encode(sealer).map_err(unavailable)?;
        replace(&self.dir, NAME, &bytes).map_err(unavailable)?;
        *sinks = changed;
        Ok(())
    }
}

impl Sinks {
    /// Reads the sinks in `dir`. What is damaged is given up: its sinks begin anew.
    pub fn open(dir: &Path, sealer: Option<&Sealer>) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(OpenError::Io { path, error }),
        };
        let covered = bytes
            .split_last_chunk::<4>()
            .filter(|(covered, crc)| crc32fast::hash(covered).to_be_bytes() == **crc)
            .and_then(|(covered, _)| covered.strip_prefix(MAGIC))
            .filter(|rest| rest.len() > 5);
        let read = covered.map(|rest| {
            let mut rest = bytes.slice_ref(rest);
            let format = rest.get_u32();
            if format > FORMAT {
                return Err(OpenError::Newer {
                    what: "the file of the sinks",
                    format,
                    known: FORMAT,
                });
            }
            let body = match (rest.get_u8() == 1, sealer) {
                (false, _) => rest,
                (true, Some(sealer)) => sealer.open(LABEL, &rest)?,
                (true, None) => return Err(OpenError::Key(SealError::NoKey)),
            };
            Ok(Self::decode(body).ok())
        });
        let sinks = read.transpose()?.flatten();
        if sinks.is_none() {
            tracing::error!(
                file = NAME,
                "how far the sinks are cannot be read: they begin anew, and what was given up is lost"
            );
        }
        Ok(sinks.unwrap_or_default())
    }

    fn encode(&self, sealer: Option<&Sealer>) -> Result<BytesMut, SealError> {
        let mut body = BytesMut::new();
        put_varint(&mut body, self.0.len() as u64);
        for (name, sink) in &self.0 {
            put_block(&mut body, name.as_bytes());
            match sink.position {
                Some(Position(last)) => {
                    body.put_u8(1);
                    body.put_u128(last);
                }
                None => body.put_u8(0),
            }
            put_varint(&mut body, sink.dead.len() as u64);
            for letter in sink.dead.values() {
                let mut entry = BytesMut::with_capacity(256);
                encode_entry(&letter.entry, &mut entry);
                put_block(&mut body, &entry);
                put_varint(&mut body, letter.since.as_millis());
                put_varint(&mut body, letter.tries.into());
                put_block(&mut body, letter.why.as_bytes());
            }
        }
        let mut out = BytesMut::new();
        out.put_slice(MAGIC);
        out.put_u32(FORMAT);
        out.put_u8(sealer.is_some().into());
        match sealer {
            Some(sealer) => out.put_slice(&sealer.seal(LABEL, &body)?),
            None => out.put_slice(&body),
        }
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        Ok(out)
    }

    fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let malformed = DecodeError::Malformed(NAME);
        let mut sinks = Self::default();
        for _ in 0..take_varint(&mut body, NAME)? {
            let name = take_text(&mut body, NAME)?;
            let mut sink = Sink {
                position: match body.try_get_u8().map_err(|_| malformed)? {
                    0 => None,
                    _ => Some(Position(body.try_get_u128().map_err(|_| malformed)?)),
                },
                ..Sink::default()
            };
            for _ in 0..take_varint(&mut body, NAME)? {
                let letter = DeadLetter {
                    entry: decode_entry(take_block(&mut body, NAME)?)?,
                    since: Timestamp::from_millis(take_varint(&mut body, NAME)?),
                    tries: u32::try_from(take_varint(&mut body, NAME)?).map_err(|_| malformed)?,
                    why: take_text(&mut body, NAME)?,
                };
                sink.dead.insert(letter.entry.id, letter);
            }
            sinks.0.insert(name, sink);
        }
        Ok(sinks)
    }
}
