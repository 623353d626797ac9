//! The bytes of the book files.
//!
//! ```text
//! file      [header 44][block]...
//! header    ["1ONCEBOK"][format u32][file u32][block u64][entry u64][booked u64][crc u32]
//! block     [magic u32][block u64][group u64][entry u64][entries u32][postings u32][booked u64]
//!           [since u64][until u64][flags u8][len u32][body crc u32][head crc u32]     73 bytes
//!           [body]                                                                    len bytes
//! body      [length varint][entry]... [length varint][posting]...     packed, then sealed
//! posting   [at varint][account: 4 texts][sums: count u8, of each [number u8][sum varint]]
//! ```
//!
//! `block` numbers the blocks of all files without a gap, `entry` the entries. `group` is the first of the blocks
//! that one sync made durable together with this one. `booked` is the last batch of the log whose entries are in the books then; `since` and `until` are the first and the last
//! time in a block. What a file holds of the next file's first block, or behind it, does not count: it was
//! written to the next file again, since the write to this one had failed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::Posting;

use super::cells::{put_posting, take_posting};
use super::kept::Kept;
use crate::{
    StoreError,
    codec::{self, put_block, take_block},
    corrupt,
    embedded::layout::{FLAG_PACKED, FLAG_SEALED},
    pack::{pack, unpack},
    seal::Sealer,
};

pub const FILE_HEADER: usize = 44;
pub const BLOCK_HEADER: usize = 73;
const FILE_MAGIC: &[u8; 8] = b"1ONCEBOK";
/// Not in any text.
pub const BLOCK_MAGIC: [u8; 4] = [0xff, 0xb0, 0x0c, 0x01];
/// The format of book files that this program writes.
pub const FORMAT: u32 = 1;
/// The most that a body unpacks to.
const MOST: usize = 64 << 20;

/// What stands at the front of a book file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    pub file: u32,
    /// Its first block.
    pub block: u64,
    /// The first entry in it.
    pub entry: u64,
    /// Up to which batch of the log everything is in the files before it.
    pub booked: u64,
}

/// What the front of a book file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Ours(FileHeader),
    Newer(u32),
    Damaged,
}

impl FileHeader {
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(FILE_HEADER);
        out.put_slice(FILE_MAGIC);
        out.put_u32(FORMAT);
        out.put_u32(self.file);
        out.put_u64(self.block);
        out.put_u64(self.entry);
        out.put_u64(self.booked);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }
}

/// Reads the front of book file `file`.
pub fn read_front(file: u32, bytes: &[u8]) -> Front {
    let Some(header) = bytes.first_chunk::<FILE_HEADER>() else {
        return Front::Damaged;
    };
    let (covered, stated) = header.split_at(FILE_HEADER - 4);
    let Some(mut rest) = covered.strip_prefix(FILE_MAGIC) else {
        return Front::Damaged;
    };
    if crc32fast::hash(covered).to_be_bytes() != stated {
        return Front::Damaged;
    }
    let format = rest.get_u32();
    if format > FORMAT {
        return Front::Newer(format);
    }
    if rest.get_u32() != file {
        return Front::Damaged;
    }
    Front::Ours(FileHeader {
        file,
        block: rest.get_u64(),
        entry: rest.get_u64(),
        booked: rest.get_u64(),
    })
}

/// What stands at the front of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    pub block: u64,
    /// The first block that became durable with it: those before that one were so already.
    pub group: u64,
    /// The number of its first entry.
    pub entry: u64,
    pub entries: u32,
    pub postings: u32,
    pub booked: u64,
    /// The first and the last time in it, in milliseconds; 0 where there is none.
    pub since: u64,
    pub until: u64,
}

/// What is brought into the books together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub entries: Kept,
    pub postings: Vec<Posting>,
}

impl Rows {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.postings.is_empty()
    }

    /// The first and the last time in it.
    pub fn span(&self) -> (u64, u64) {
        let posted = self.postings.iter().map(|posting| (posting.at, posting.at));
        let spans = self.entries.span().into_iter().chain(posted);
        spans
            .map(|(since, until)| (since.as_millis(), until.as_millis()))
            .reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
            .unwrap_or_default()
    }
}

/// Appends a block to `out`, which is to stand in file `file`.
pub fn put(
    out: &mut BytesMut,
    file: u32,
    header: &BlockHeader,
    rows: &Rows,
    sealer: Option<&Sealer>,
) -> Result<(), StoreError> {
    let (flags, body) = close(file, header.block, rows, sealer)?;
    let at = out.len();
    out.put_slice(&BLOCK_MAGIC);
    out.put_u64(header.block);
    out.put_u64(header.group);
    out.put_u64(header.entry);
    out.put_u32(header.entries);
    out.put_u32(header.postings);
    out.put_u64(header.booked);
    out.put_u64(header.since);
    out.put_u64(header.until);
    out.put_u8(flags);
    out.put_u32(body.len() as u32);
    out.put_u32(crc32fast::hash(&body));
    let crc = crc(file, &out[at..]);
    out.put_u32(crc);
    out.put_slice(&body);
    Ok(())
}

/// A block as it was found.
#[derive(Clone, Debug)]
pub struct Block {
    pub file: u32,
    pub header: BlockHeader,
    flags: u8,
    /// The body as it stands there; `None` where its bytes are damaged.
    body: Option<Bytes>,
    /// Where it begins and ends in the bytes in which it was found.
    pub start: usize,
    pub end: usize,
}

impl Block {
    pub fn is_whole(&self) -> bool {
        self.body.is_some()
    }

    /// Its rows: of each the bytes, the entries first.
    fn rows(&self, sealer: Option<&Sealer>) -> Result<(Vec<Bytes>, Vec<Bytes>), StoreError> {
        let body = self.body.clone();
        let body = body.ok_or_else(|| corrupt("a block of the books is damaged"))?;
        let body = match (self.flags & FLAG_SEALED != 0, sealer) {
            (false, _) => body,
            (true, Some(sealer)) => sealer
                .open(&associated(self.file, self.header.block, self.flags), &body)
                .map_err(corrupt)?,
            (true, None) => {
                return Err(corrupt("the books are encrypted and no key is configured"));
            }
        };
        let mut body = match self.flags & FLAG_PACKED != 0 {
            true => unpack(body, MOST).map_err(corrupt)?,
            false => body,
        };
        let mut take = |count: u32| {
            (0..count)
                .map(|_| take_block(&mut body, "row").map_err(corrupt))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok((take(self.header.entries)?, take(self.header.postings)?))
    }

    /// The bytes of its entries, in order; [`codec::decode_entry`] reads them.
    pub fn entries(&self, sealer: Option<&Sealer>) -> Result<Vec<Bytes>, StoreError> {
        Ok(self.rows(sealer)?.0)
    }

    /// What it adds to the sums.
    pub fn postings(&self, sealer: Option<&Sealer>) -> Result<Vec<Posting>, StoreError> {
        let (entries, postings) = self.rows(sealer)?;
        let of_entries = entries.into_iter().map(|entry| {
            let entry = codec::decode_entry(entry).map_err(corrupt)?;
            Ok(entry.posting())
        });
        let posted = postings
            .into_iter()
            .map(|mut posting| take_posting(&mut posting).map_err(corrupt));
        of_entries.chain(posted).collect()
    }
}

/// The first block of file `file` that stands at or behind `at` in `bytes` and ends within them.
pub fn next_block(file: u32, bytes: &Bytes, at: usize) -> Option<Block> {
    let rest = bytes.get(at..)?;
    memchr::memmem::find_iter(rest, &BLOCK_MAGIC)
        .find_map(|further| read_block(file, bytes, at + further))
}

fn read_block(file: u32, bytes: &Bytes, start: usize) -> Option<Block> {
    let header = bytes.get(start..)?.first_chunk::<BLOCK_HEADER>()?;
    let (covered, stated) = header.split_at(BLOCK_HEADER - 4);
    if crc(file, covered).to_be_bytes() != stated {
        return None;
    }
    let mut rest = &covered[BLOCK_MAGIC.len()..];
    let header = BlockHeader {
        block: rest.get_u64(),
        group: rest.get_u64(),
        entry: rest.get_u64(),
        entries: rest.get_u32(),
        postings: rest.get_u32(),
        booked: rest.get_u64(),
        since: rest.get_u64(),
        until: rest.get_u64(),
    };
    let flags = rest.get_u8();
    let len = rest.get_u32() as usize;
    let body_crc = rest.get_u32();
    let end = start + BLOCK_HEADER + len;
    let body = bytes.get(start + BLOCK_HEADER..end)?;
    let is_whole = crc32fast::hash(body) == body_crc;
    Some(Block {
        file,
        header,
        flags,
        body: is_whole.then(|| bytes.slice_ref(body)),
        start,
        end,
    })
}

fn close(
    file: u32,
    block: u64,
    rows: &Rows,
    sealer: Option<&Sealer>,
) -> Result<(u8, BytesMut), StoreError> {
    let mut plain = BytesMut::from(rows.entries.bytes());
    let mut row = BytesMut::with_capacity(256);
    for posting in &rows.postings {
        row.clear();
        put_posting(&mut row, posting);
        put_block(&mut plain, &row);
    }
    let (mut flags, body) = match pack(&plain) {
        Some(packed) => (FLAG_PACKED, packed),
        None => (0, plain),
    };
    let Some(sealer) = sealer else {
        return Ok((flags, body));
    };
    flags |= FLAG_SEALED;
    let sealed = sealer.seal(&associated(file, block, flags), &body);
    let sealed = sealed.map_err(|error| {
        StoreError::Unavailable(format!("the books could not be encrypted: {error}"))
    })?;
    Ok((flags, sealed))
}

fn associated(file: u32, block: u64, flags: u8) -> [u8; 17] {
    let mut out = [0; 17];
    let mut rest = &mut out[..];
    rest.put_slice(&BLOCK_MAGIC);
    rest.put_u8(flags);
    rest.put_u32(file);
    rest.put_u64(block);
    out
}

fn crc(file: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(file);
    hasher.update(bytes);
    hasher.finalize()
}
