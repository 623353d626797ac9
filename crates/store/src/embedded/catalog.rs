//! The catalog of a sealed segment: what it holds, so that start-up need not read it.
//!
//! ```text
//! [magic 8][format u32][segment u32][last seq u64][latest time u64][items u32] [item]... [crc u32]
//! item: [tag u8][address 16][offset varint][len varint] and by tag:
//!   record      [id 16][epoch][claim][attempts][until][chunks]
//!               [tenant tag u32][key tag u32][state u8]
//!   chunk       [id 16][claim][number]
//!   attempt     [id 16][number]
//!   removal, unreadable, lost: nothing more
//! ```
//!
//! A catalog can always be made again from its segment; a damaged one is.

use std::{fs, io, path::Path};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::{Address, OperationId, StateName};

use super::{
    index::Place,
    segment::{catalog_name, replace},
};
use crate::codec::{put_varint, take_varint};

const MAGIC: &[u8; 8] = b"1ONCEIDX";
pub const FORMAT: u32 = 1;
const HEADER: usize = 36;

/// One entry of a segment, as far as the index needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub address: Address,
    pub place: Place,
    pub what: What,
}

/// What an [`Item`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Record(RecordItem),
    Chunk {
        id: OperationId,
        claim: u32,
        number: u32,
    },
    Attempt {
        id: OperationId,
        number: u32,
    },
    Removal,
    /// A record that cannot be read.
    Unreadable,
    /// Something beside a record that cannot be read.
    Lost,
}

/// What the index keeps of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordItem {
    pub id: OperationId,
    pub epoch: u32,
    pub claim: u32,
    pub attempts: u32,
    pub until: u64,
    /// How many chunks of the recording lie beside the record.
    pub chunks: u32,
    pub tenant_tag: u32,
    pub state: StateName,
}

/// A catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The last batch of the segment.
    pub last_seq: u64,
    /// The latest time that anything in the segment speaks of, in milliseconds.
    pub latest: u64,
    pub items: Vec<Item>,
}

impl Catalog {
    /// Writes the catalog of segment `segment`, durable when it returns. Of several records under
    /// one address only the last is kept.
    pub fn write(&self, dir: &Path, segment: u32) -> io::Result<()> {
        replace(dir, &catalog_name(segment), &self.encode(segment))
    }

    /// Reads the catalog of segment `segment`; `None` where there is none, or a damaged one.
    pub fn read(dir: &Path, segment: u32) -> Option<Self> {
        Self::decode(
            segment,
            fs::read(dir.join(catalog_name(segment))).ok()?.into(),
        )
    }

    pub fn encode(&self, segment: u32) -> BytesMut {
        let last = self
            .items
            .iter()
            .enumerate()
            .filter(|(_, item)| matches!(item.what, What::Record(_)))
            .map(|(at, item)| (item.address, at))
            .collect::<std::collections::HashMap<_, _>>();
        let kept = self.items.iter().enumerate().filter(|(at, item)| {
            !matches!(item.what, What::Record(_)) || last.get(&item.address) == Some(at)
        });

        let mut out = BytesMut::with_capacity(HEADER + self.items.len() * 56);
        out.put_slice(MAGIC);
        out.put_u32(FORMAT);
        out.put_u32(segment);
        out.put_u64(self.last_seq);
        out.put_u64(self.latest);
        let count_at = out.len();
        out.put_u32(0);
        let mut count = 0u32;
        for (_, item) in kept {
            put_item(&mut out, item);
            count += 1;
        }
        out[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    pub fn decode(segment: u32, bytes: Bytes) -> Option<Self> {
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(covered).to_be_bytes() != *crc {
            return None;
        }
        let mut rest = bytes.slice(..bytes.len() - 4);
        if rest.len() < HEADER || &rest.split_to(8)[..] != MAGIC {
            return None;
        }
        if rest.get_u32() != FORMAT || rest.get_u32() != segment {
            return None;
        }
        let (last_seq, latest) = (rest.get_u64(), rest.get_u64());
        let count = rest.get_u32();
        let items = (0..count)
            .map(|_| take_item(segment, &mut rest))
            .collect::<Option<_>>()?;
        rest.is_empty().then_some(Self {
            last_seq,
            latest,
            items,
        })
    }
}

fn put_item(out: &mut BytesMut, item: &Item) {
    out.put_u8(match item.what {
        What::Record(_) => 1,
        What::Chunk { .. } => 2,
        What::Attempt { .. } => 3,
        What::Removal => 4,
        What::Unreadable => 5,
        What::Lost => 6,
    });
    out.put_slice(item.address.as_bytes());
    put_varint(out, item.place.offset.into());
    put_varint(out, item.place.len.into());
    match &item.what {
        What::Record(record) => {
            out.put_slice(record.id.as_bytes());
            put_varint(out, record.epoch.into());
            put_varint(out, record.claim.into());
            put_varint(out, record.attempts.into());
            put_varint(out, record.until);
            put_varint(out, record.chunks.into());
            out.put_u32(record.tenant_tag);
            let state = StateName::ALL.iter().position(|&name| name == record.state);
            out.put_u8(state.unwrap_or(usize::MAX) as u8);
        }
        What::Chunk { id, claim, number } => {
            out.put_slice(id.as_bytes());
            put_varint(out, (*claim).into());
            put_varint(out, (*number).into());
        }
        What::Attempt { id, number } => {
            out.put_slice(id.as_bytes());
            put_varint(out, (*number).into());
        }
        What::Removal | What::Unreadable | What::Lost => {}
    }
}

fn take_item(segment: u32, bytes: &mut Bytes) -> Option<Item> {
    let tag = bytes.try_get_u8().ok()?;
    let address = Address::from_bytes(take_sixteen(bytes)?);
    let offset = take_u32(bytes)?;
    let place = Place {
        segment,
        offset,
        len: take_u32(bytes)?,
    };
    let what = match tag {
        1 => What::Record(RecordItem {
            id: OperationId::from_bytes(take_sixteen(bytes)?),
            epoch: take_u32(bytes)?,
            claim: take_u32(bytes)?,
            attempts: take_u32(bytes)?,
            until: take_varint(bytes, "until").ok()?,
            chunks: take_u32(bytes)?,
            tenant_tag: bytes.try_get_u32().ok()?,
            state: *StateName::ALL.get(usize::from(bytes.try_get_u8().ok()?))?,
        }),
        2 => What::Chunk {
            id: OperationId::from_bytes(take_sixteen(bytes)?),
            claim: take_u32(bytes)?,
            number: take_u32(bytes)?,
        },
        3 => What::Attempt {
            id: OperationId::from_bytes(take_sixteen(bytes)?),
            number: take_u32(bytes)?,
        },
        4 => What::Removal,
        5 => What::Unreadable,
        6 => What::Lost,
        _ => return None,
    };
    Some(Item {
        address,
        place,
        what,
    })
}

fn take_sixteen(bytes: &mut Bytes) -> Option<[u8; 16]> {
    let sixteen = *bytes.first_chunk()?;
    bytes.advance(16);
    Some(sixteen)
}

fn take_u32(bytes: &mut Bytes) -> Option<u32> {
    u32::try_from(take_varint(bytes, "number").ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let id = OperationId::from_bytes([9; 16]);
        let record = |offset, epoch| Item {
            address: Address::from_bytes([1; 16]),
            place: Place {
                segment: 4,
                offset,
                len: 200,
            },
            what: What::Record(RecordItem {
                id,
                epoch,
                claim: 1,
                attempts: 1,
                until: 1_790_000_000_000,
                chunks: 2,
                tenant_tag: 5,
                state: StateName::Completed,
            }),
        };
        let other = |what| Item {
            address: Address::from_bytes([2; 16]),
            place: Place {
                segment: 4,
                offset: 90,
                len: 10,
            },
            what,
        };
        let items = vec![
            record(32, 1),
            other(What::Chunk {
                id,
                claim: 1,
                number: 3,
            }),
            other(What::Attempt { id, number: 7 }),
            other(What::Removal),
            other(What::Unreadable),
            record(500, 2),
        ];
        Catalog {
            last_seq: 77,
            latest: 1_790_000_000_001,
            items,
        }
    }

    #[test]
    fn a_catalog_reads_back_without_superseded_records() {
        let written = catalog();
        let read = Catalog::decode(4, written.encode(4).freeze()).expect("just written");
        assert_eq!(read.items, written.items[1..]);
        assert_eq!((read.last_seq, read.latest), (77, 1_790_000_000_001));
    }

    #[test]
    fn a_damaged_catalog_is_not_taken() {
        let whole = catalog().encode(4);
        assert!(Catalog::decode(5, whole.clone().freeze()).is_none());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(Catalog::decode(4, damaged.freeze()).is_none(), "byte {at}");
            assert!(Catalog::decode(4, whole.clone().freeze().slice(..at)).is_none());
        }
    }
}
