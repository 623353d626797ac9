//! How far the sinks are, and what was given up.
//!
//! ```text
//! [ "1ONCESNK" ][format u32][sealed u8][body][crc u32]
//! body     [sinks varint] of each: [name][0 | 1 + last entry u128][letters varint][letter]...
//! ```
//!
//! The file is written beside its name, synced and renamed whenever something in it changes. Who holds a
//! sink is not in it: that is this process, or nobody.

use std::{fs, io, path::Path};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::{OperationId, Timestamp};

use super::{Ledger, unavailable};
use crate::{
    StoreError,
    books::{Advance, DeadLetter, Held, Hold, Position, Sink, Sinks},
    codec::{
        DecodeError, decode_letter, encode_letter, put_block, put_varint, take_block, take_text,
        take_varint,
    },
    embedded::{OpenError, segment::replace},
    seal::{SealError, Sealer},
};

const MAGIC: &[u8; 8] = b"1ONCESNK";
const FORMAT: u32 = 1;
const LABEL: &[u8] = b"onlyonce sinks";
const NAME: &str = "sinks";

impl Ledger {
    pub fn hold(
        &self,
        hold: &Hold,
        now: Timestamp,
        sealer: Option<&Sealer>,
    ) -> Result<Option<Held>, StoreError> {
        // The order of the locks: a block that is written now is before or behind.
        let next_entry = self.writer.lock().next_entry;
        let mut sinks = self.sinks.lock();
        if !sinks.has(&hold.sink) {
            let last = next_entry.checked_sub(1);
            let last = last.map(|last| Position(last.into()));
            self.change(&mut sinks, sealer, |sinks| sinks.begin(hold, last))?;
        }
        Ok(sinks.hold(hold, now))
    }

    pub fn advance(
        &self,
        step: Advance,
        now: Timestamp,
        sealer: Option<&Sealer>,
    ) -> Result<bool, StoreError> {
        let mut sinks = self.sinks.lock();
        self.change(&mut sinks, sealer, |sinks| sinks.advance(step, now))
    }

    pub fn dead(&self, sink: &str, after: Option<OperationId>, limit: usize) -> Vec<DeadLetter> {
        self.sinks.lock().dead(sink, after, limit)
    }

    pub fn forget_dead(
        &self,
        sink: &str,
        ids: &[OperationId],
        sealer: Option<&Sealer>,
    ) -> Result<u64, StoreError> {
        let mut sinks = self.sinks.lock();
        self.change(&mut sinks, sealer, |sinks| sinks.forget_dead(sink, ids))
    }

    /// Changes the sinks once that is durable, or not at all. Nothing is written where `change` says, by
    /// `false` or 0, that it changed nothing.
    fn change<T: Default + PartialEq>(
        &self,
        sinks: &mut Sinks,
        sealer: Option<&Sealer>,
        change: impl FnOnce(&mut Sinks) -> T,
    ) -> Result<T, StoreError> {
        let mut changed = sinks.clone();
        let said = change(&mut changed);
        if said != T::default() {
            let bytes = encode(&changed, sealer).map_err(unavailable)?;
            replace(&self.dir, NAME, &bytes).map_err(unavailable)?;
            *sinks = changed;
        }
        Ok(said)
    }
}

/// Reads the sinks in `dir`. What is damaged is given up: its sinks begin anew.
pub fn open(dir: &Path, sealer: Option<&Sealer>) -> Result<Sinks, OpenError> {
    let path = dir.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Sinks::default()),
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
        Ok(decode(body).ok())
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

fn encode(sinks: &Sinks, sealer: Option<&Sealer>) -> Result<BytesMut, SealError> {
    let mut body = BytesMut::new();
    put_varint(&mut body, sinks.0.len() as u64);
    for (name, sink) in &sinks.0 {
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
            let mut encoded = BytesMut::with_capacity(256);
            encode_letter(letter, &mut encoded);
            put_block(&mut body, &encoded);
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

fn decode(mut body: Bytes) -> Result<Sinks, DecodeError> {
    let malformed = DecodeError::Malformed(NAME);
    let mut sinks = Sinks::default();
    for _ in 0..take_varint(&mut body, NAME)? {
        let name = take_text(&mut body, NAME)?;
        let mut sink = Sink::at(match body.try_get_u8().map_err(|_| malformed)? {
            0 => None,
            _ => Some(Position(body.try_get_u128().map_err(|_| malformed)?)),
        });
        for _ in 0..take_varint(&mut body, NAME)? {
            let letter = decode_letter(take_block(&mut body, NAME)?)?;
            sink.dead.insert(letter.entry.id, letter);
        }
        sinks.0.insert(name, sink);
    }
    Ok(sinks)
}
