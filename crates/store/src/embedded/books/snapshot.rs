//! The snapshot of the sums.
//!
//! ```text
//! [ "1ONCESUM" ][format u32][sealed u8][body][crc u32]
//! body     [settled u64][first file u32][next file u32][next block u64][next entry u64]
//!          [groups varint] of each: [file][offset][len][entry][entries][since][until]      varints
//!          [accounts varint] of each: 4 texts
//!          [periods varint] of each: [grain u8][at varint][sums]
//!                    [accounts varint] of each: [account varint][sums]
//! ```
//!
//! `settled` is the last batch of the log up to which there was nothing left to book. Files before
//! the first one were dropped.

use std::{fs, io, path::Path};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use super::{
    Writer,
    cells::Cells,
    shelf::{Group, Shelf},
};
use crate::{
    codec::{DecodeError, put_varint, take_varint},
    embedded::segment::replace,
    seal::Sealer,
};

const MAGIC: &[u8; 8] = b"1ONCESUM";
/// The format of the snapshot that this program writes.
pub const FORMAT: u32 = 1;
const HEADER: usize = 13;
const LABEL: &[u8] = b"onlyonce sums";
const WHAT: &str = "snapshot";

pub struct Snapshot {
    pub settled: u64,
    pub first_file: u32,
    pub next_file: u32,
    pub next_block: u64,
    pub next_entry: u64,
    pub shelf: Shelf,
    /// Its size.
    pub len: u64,
}

/// What there is of a snapshot.
pub enum Found {
    Whole(Box<Snapshot>),
    /// There is none, or a damaged one.
    None,
    Newer(u32),
}

/// Writes the snapshot, durable when it returns; gives its size.
pub fn write(
    dir: &Path,
    settled: u64,
    next: &Writer,
    shelf: &Mutex<Shelf>,
    sealer: Option<&Sealer>,
) -> io::Result<u64> {
    let body = encode(settled, next, shelf);
    let mut out = BytesMut::with_capacity(body.len() + 64);
    out.put_slice(MAGIC);
    out.put_u32(FORMAT);
    out.put_u8(sealer.is_some().into());
    match sealer {
        Some(sealer) => {
            let sealed = sealer.seal(LABEL, &body).map_err(io::Error::other)?;
            out.put_slice(&sealed);
        }
        None => out.put_slice(&body),
    }
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    replace(dir, "sums", &out)?;
    Ok(out.len() as u64)
}

fn encode(settled: u64, next: &Writer, shelf: &Mutex<Shelf>) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u64(settled);
    {
        let shelf = shelf.lock();
        let first = shelf.groups.front().map(|group| group.file);
        let first = first.or(next.file.as_ref().map(|open| open.number));
        out.put_u32(first.unwrap_or(next.next_file));
        out.put_u32(next.next_file);
        out.put_u64(next.next_block);
        out.put_u64(next.next_entry);
        put_varint(&mut out, shelf.groups.len() as u64);
        for group in &shelf.groups {
            put_varint(&mut out, group.file.into());
            put_varint(&mut out, group.offset);
            put_varint(&mut out, group.len);
            put_varint(&mut out, group.entry);
            put_varint(&mut out, group.entries);
            put_varint(&mut out, group.since);
            put_varint(&mut out, group.until);
        }
        shelf.cells.encode(&mut out);
    }
    out
}

pub fn read(dir: &Path, sealer: Option<&Sealer>) -> io::Result<Found> {
    let bytes = match fs::read(dir.join("sums")) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::None),
        Err(error) => return Err(error),
    };
    let covered = bytes
        .split_last_chunk::<4>()
        .filter(|(covered, crc)| crc32fast::hash(covered).to_be_bytes() == **crc)
        .map(|(covered, _)| covered)
        .filter(|covered| covered.len() >= HEADER && covered.starts_with(MAGIC));
    let Some(mut rest) = covered.map(|covered| bytes.slice_ref(covered)) else {
        return Ok(Found::None);
    };
    rest.advance(MAGIC.len());
    let format = rest.get_u32();
    if format > FORMAT {
        return Ok(Found::Newer(format));
    }
    let body = match (rest.get_u8() == 1, sealer) {
        (false, _) => rest,
        (true, Some(sealer)) => match sealer.open(LABEL, &rest) {
            Ok(body) => body,
            Err(_) => return Ok(Found::None),
        },
        (true, None) => return Ok(Found::None),
    };
    Ok(decode(body, bytes.len() as u64)
        .map_or(Found::None, |snapshot| Found::Whole(Box::new(snapshot))))
}

fn decode(mut bytes: Bytes, len: u64) -> Result<Snapshot, DecodeError> {
    let malformed = |_| DecodeError::Malformed(WHAT);
    let settled = bytes.try_get_u64().map_err(malformed)?;
    let first_file = bytes.try_get_u32().map_err(malformed)?;
    let next_file = bytes.try_get_u32().map_err(malformed)?;
    let next_block = bytes.try_get_u64().map_err(malformed)?;
    let next_entry = bytes.try_get_u64().map_err(malformed)?;
    let mut shelf = Shelf::default();
    for _ in 0..take_varint(&mut bytes, WHAT)? {
        let mut next = || take_varint(&mut bytes, WHAT);
        shelf.groups.push_back(Group {
            file: next()? as u32,
            offset: next()?,
            len: next()?,
            entry: next()?,
            entries: next()?,
            since: next()?,
            until: next()?,
        });
    }
    shelf.cells = Cells::decode(&mut bytes)?;
    if !bytes.is_empty() {
        return Err(DecodeError::Malformed(WHAT));
    }
    Ok(Snapshot {
        settled,
        first_file,
        next_file,
        next_block,
        next_entry,
        shelf,
        len,
    })
}
