//! The bytes of the log.
//!
//! ```text
//! segment   [header 32][batch]...                                zeros to the end of the file
//! batch     [magic u32][seq u64][entries_len u32][records u32][crc u32]    header, 24 bytes
//!           [entry]...                                                     entries_len bytes
//!           [address 16]... [records u32][seq u64][crc u32]                trailer
//! entry     [len u32][kind u8][flags u8][address 16][body crc u32][head crc u32]   30 bytes
//!           [body]                                                         len - 30 bytes
//! ```
//!
//! All integers are big endian; `crc` is CRC-32 (IEEE) over what stands before it in its header or
//! trailer, begun with the segment's number and, but for the segment's own header, with what only the
//! folder's secret tells ([`Seed`]). The trailer repeats the address of every record in
//! the batch: where one byte of a batch is damaged, either the entries or the trailer still say
//! whose record it was, so that its key counts as unknown, and neither as absent nor as what it was
//! before (I13).
//!
//! One batch is one commit: written, synced, and only then followed by the next. So at most the
//! last batch of the log can be torn by a power cut, and nobody was told of what it holds.

use bytes::{Buf, BufMut, BytesMut};
use onlyonce_core::{
    Address,
    planted::{Bug, planted},
};

pub const SEGMENT_HEADER: usize = 32;
pub const BATCH_HEADER: usize = 24;
pub const ENTRY_HEADER: usize = 30;
const BATCH_TRAILER: usize = 16;

const SEGMENT_MAGIC: &[u8; 8] = b"1ONCELOG";
const BATCH_MAGIC: u32 = 0x0B47_C401;

/// The format of segments and entries that this program writes, and the only one that it reads: those before were never
/// released, and their checksums began with the segment's number alone.
pub const FORMAT: u32 = 3;

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A record, with the last chunk of its recording where it is completed.
    Record,
    /// A chunk of a recording.
    Chunk,
    /// An attempt.
    Attempt,
    /// The removal of a record.
    Removal,
}

impl Kind {
    pub const fn number(self) -> u8 {
        match self {
            Self::Record => 1,
            Self::Chunk => 2,
            Self::Attempt => 3,
            Self::Removal => 4,
        }
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Record),
            2 => Some(Self::Chunk),
            3 => Some(Self::Attempt),
            4 => Some(Self::Removal),
            _ => None,
        }
    }
}

/// Set on entries whose body is sealed with an encryption key.
pub const FLAG_SEALED: u8 = 1;
/// Set on records that could not be read when they were to be moved: all that is left of them is
/// that they were there.
pub const FLAG_UNREADABLE: u8 = 2;
/// Set on entries whose body is packed (before it is sealed): `[length varint][LZ4 block]`.
pub const FLAG_PACKED: u8 = 4;

/// Set on records that were written again to give space back: what completed with them is in the books
/// already. Not authenticated, since it is added to what was sealed before.
pub const FLAG_MOVED: u8 = 8;

fn crc(initial: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(initial);
    hasher.update(bytes);
    hasher.finalize()
}

/// What the checksums of a folder's log begin with.
///
/// Anybody may choose what stands in a body, and where the log is damaged, bodies are searched for what follows. Without
/// the folder's secret nobody can write what counts there.
#[derive(Clone, Copy, Debug)]
pub struct Seeds(u32);

impl Seeds {
    /// Those of the folder with this secret.
    pub fn of(secret: &[u8; 32]) -> Self {
        let [a, b, c, d, ..] = blake3::derive_key("onlyonce checksums of the log", secret);
        Self(u32::from_be_bytes([a, b, c, d]))
    }

    /// The one of a segment: what is of one segment is nothing in another.
    pub const fn of_segment(self, number: u32) -> Seed {
        Seed(self.0 ^ number)
    }
}

/// What the checksums within one segment begin with; see [`Seeds`].
#[derive(Clone, Copy, Debug)]
pub struct Seed(u32);

impl Seed {
    fn crc(self, bytes: &[u8]) -> u32 {
        crc(self.0, bytes)
    }
}

/// The header of segment `segment`, whose first batch is `first_seq`.
pub fn segment_header(segment: u32, first_seq: u64) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    let mut rest = &mut out[..];
    rest.put_slice(SEGMENT_MAGIC);
    rest.put_u32(FORMAT);
    rest.put_u32(segment);
    rest.put_u64(first_seq);
    let crc = crc(segment, &out[..24]);
    out[24..28].copy_from_slice(&crc.to_be_bytes());
    out
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentHeader {
    /// A segment that this program reads; its first batch.
    Ours { first_seq: u64 },
    /// Prepared and never used: zeros.
    Blank,
    /// Written by a newer program, in this format.
    Newer(u32),
    /// Written by a program of before the first release, in this format.
    Older(u32),
    /// Damaged.
    Damaged,
}

/// Reads the header of segment `segment`.
pub fn read_segment_header(segment: u32, mut bytes: &[u8]) -> SegmentHeader {
    let Some(header) = bytes.first_chunk::<SEGMENT_HEADER>() else {
        return if bytes.iter().all(|&byte| byte == 0) {
            SegmentHeader::Blank
        } else {
            SegmentHeader::Damaged
        };
    };
    if header.iter().all(|&byte| byte == 0) {
        return SegmentHeader::Blank;
    }
    let stated = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
    if &header[..8] != SEGMENT_MAGIC || crc(segment, &header[..24]) != stated {
        return SegmentHeader::Damaged;
    }
    bytes.advance(8);
    let format = bytes.get_u32();
    if format > FORMAT {
        return SegmentHeader::Newer(format);
    }
    if format < FORMAT {
        return SegmentHeader::Older(format);
    }
    if bytes.get_u32() != segment {
        return SegmentHeader::Damaged;
    }
    SegmentHeader::Ours {
        first_seq: bytes.get_u64(),
    }
}

/// Starts a batch: leaves room for its header, which [`finish_batch`] fills in.
pub fn start_batch(out: &mut BytesMut) {
    out.put_bytes(0, BATCH_HEADER);
}

/// Ends the batch that fills `out`: trailer and header.
pub fn finish_batch(out: &mut BytesMut, seed: Seed, seq: u64, records: &[Address]) {
    let entries_len = out.len() - BATCH_HEADER;
    let trailer_at = out.len();
    for address in records {
        out.put_slice(address.as_bytes());
    }
    out.put_u32(records.len() as u32);
    out.put_u64(seq);
    let trailer_crc = seed.crc(&out[trailer_at..]);
    out.put_u32(trailer_crc);

    let mut header = &mut out[..BATCH_HEADER];
    header.put_u32(BATCH_MAGIC);
    header.put_u64(seq);
    header.put_u32(entries_len as u32);
    header.put_u32(records.len() as u32);
    let header_crc = seed.crc(&out[..BATCH_HEADER - 4]);
    out[BATCH_HEADER - 4..BATCH_HEADER].copy_from_slice(&header_crc.to_be_bytes());
}

/// How many bytes a batch takes that holds `entries_len` bytes of entries and `records` of them
/// records.
pub const fn batch_len(entries_len: usize, records: usize) -> usize {
    BATCH_HEADER + entries_len + records * 16 + BATCH_TRAILER
}

/// What a batch's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub seq: u64,
    pub entries_len: usize,
    pub records: usize,
}

impl BatchHeader {
    /// Bytes of the whole batch.
    pub const fn len(&self) -> usize {
        batch_len(self.entries_len, self.records)
    }
}

/// The batch header at the front of `bytes`, if one stands there.
pub fn read_batch_header(seed: Seed, bytes: &[u8]) -> Option<BatchHeader> {
    let (header, _) = bytes.split_first_chunk::<BATCH_HEADER>()?;
    let (stated, covered) = (&header[BATCH_HEADER - 4..], &header[..BATCH_HEADER - 4]);
    let mut rest = covered;
    if rest.get_u32() != BATCH_MAGIC || seed.crc(covered).to_be_bytes() != stated {
        return None;
    }
    Some(BatchHeader {
        seq: rest.get_u64(),
        entries_len: rest.get_u32() as usize,
        records: rest.get_u32() as usize,
    })
}

/// The offsets in `bytes` at which a batch header stands, in order. It looks no further than it is asked:
/// a segment of many small batches is asked for the next one at each.
pub fn find_batch_headers(seed: Seed, bytes: &[u8]) -> impl Iterator<Item = (usize, BatchHeader)> {
    const MAGIC: [u8; 4] = BATCH_MAGIC.to_be_bytes();
    memchr::memmem::find_iter(bytes, &MAGIC)
        .filter_map(move |at| read_batch_header(seed, &bytes[at..]).map(|header| (at, header)))
}

/// The addresses of the records in batch `seq` by its trailer, which ends where `bytes` end.
pub fn read_trailer(seed: Seed, seq: u64, bytes: &[u8]) -> Option<Vec<Address>> {
    let (rest, tail) = bytes.split_last_chunk::<BATCH_TRAILER>()?;
    let mut fields = &tail[..];
    let records = fields.get_u32() as usize;
    let stated_seq = fields.get_u64();
    let stated_crc = fields.get_u32();
    let start = rest.len().checked_sub(records.checked_mul(16)?)?;
    let covered = &bytes[start..bytes.len() - 4];
    if stated_seq != seq || seed.crc(covered) != stated_crc {
        return None;
    }
    let (addresses, _) = rest[start..].as_chunks::<16>();
    Some(addresses.iter().copied().map(Address::from_bytes).collect())
}

/// The last trailer of batch `seq` within `bytes`: the addresses in it, where it starts and ends. What comes before it
/// and looks like one is in the body of an entry, which anybody may have made.
pub fn find_trailer(seed: Seed, seq: u64, bytes: &[u8]) -> Option<(Vec<Address>, usize, usize)> {
    let wanted = seq.to_be_bytes();
    memchr::memmem::rfind_iter(bytes, &wanted).find_map(|at| {
        let end = at + 12;
        let records = read_trailer(seed, seq, bytes.get(..end)?)?;
        let start = end - BATCH_TRAILER - records.len() * 16;
        Some((records, start, end))
    })
}

/// Appends an entry.
pub fn put_entry(out: &mut BytesMut, seed: Seed, entry: &EntryHead, body: &[u8]) {
    let at = out.len();
    out.put_u32((ENTRY_HEADER + body.len()) as u32);
    out.put_u8(entry.kind.number());
    out.put_u8(entry.flags);
    out.put_slice(entry.address.as_bytes());
    out.put_u32(crc32fast::hash(body));
    let head_crc = seed.crc(&out[at..]);
    out.put_u32(head_crc);
    out.put_slice(body);
}

/// What stands at the front of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    pub kind: Kind,
    pub flags: u8,
    pub address: Address,
}

/// An entry as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub head: EntryHead,
    /// The body; `None` where its bytes are damaged.
    pub body: Option<&'a [u8]>,
    /// Bytes of the whole entry.
    pub len: usize,
}

/// The entry at the front of `bytes`, if its head is whole and the entry ends within `bytes`.
pub fn read_entry(seed: Seed, bytes: &[u8]) -> Option<Entry<'_>> {
    let (header, _) = bytes.split_first_chunk::<ENTRY_HEADER>()?;
    let (covered, stated) = (&header[..ENTRY_HEADER - 4], &header[ENTRY_HEADER - 4..]);
    if seed.crc(covered).to_be_bytes() != stated {
        return None;
    }
    let mut rest = covered;
    let len = rest.get_u32() as usize;
    let kind = Kind::from_number(rest.get_u8())?;
    let flags = rest.get_u8();
    let mut address = [0; 16];
    rest.copy_to_slice(&mut address);
    let body_crc = rest.get_u32();
    let body = bytes.get(ENTRY_HEADER..len)?;
    Some(Entry {
        head: EntryHead {
            kind,
            flags,
            address: Address::from_bytes(address),
        },
        body: (crc32fast::hash(body) == body_crc || planted(Bug::ChecksumIgnored)).then_some(body),
        len,
    })
}

/// How far behind the front of `bytes` the next entry stands whose head is whole.
pub fn find_entry(seed: Seed, bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find(|&at| read_entry(seed, &bytes[at..]).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(segment: u32) -> Seed {
        Seeds::of(&[7; 32]).of_segment(segment)
    }

    fn address(byte: u8) -> Address {
        Address::from_bytes([byte; 16])
    }

    fn batch() -> BytesMut {
        let mut out = BytesMut::new();
        start_batch(&mut out);
        for byte in [1, 2] {
            let head = EntryHead {
                kind: Kind::Record,
                flags: 0,
                address: address(byte),
            };
            put_entry(&mut out, seed(3), &head, &[byte; 40]);
        }
        finish_batch(&mut out, seed(3), 9, &[address(1), address(2)]);
        out
    }

    #[test]
    fn a_batch_reads_back() {
        let bytes = batch();
        let header = read_batch_header(seed(3), &bytes).expect("a header");
        assert_eq!(
            (header.seq, header.records, header.len()),
            (9, 2, bytes.len())
        );
        let first = read_entry(seed(3), &bytes[BATCH_HEADER..]).expect("an entry");
        assert_eq!(first.body, Some(&[1; 40][..]));
        assert_eq!(
            read_trailer(seed(3), 9, &bytes),
            Some(vec![address(1), address(2)])
        );
    }

    #[test]
    fn bytes_of_another_segment_are_not_taken() {
        let bytes = batch();
        assert_eq!(read_batch_header(seed(4), &bytes), None);
        assert!(read_entry(seed(4), &bytes[BATCH_HEADER..]).is_none());
        assert_eq!(read_trailer(seed(4), 9, &bytes), None);
    }

    #[test]
    fn i13_whatever_byte_is_damaged_every_record_is_still_known() {
        let whole = batch();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let mut known = read_trailer(seed(3), 9, &bytes).unwrap_or_default();
            let mut rest = &bytes[BATCH_HEADER..];
            while let Some(entry) = read_entry(seed(3), rest) {
                known.push(entry.head.address);
                rest = &rest[entry.len..];
            }
            assert!(
                known.contains(&address(1)) && known.contains(&address(2)),
                "byte {at}"
            );
        }
    }

    #[test]
    fn i13_a_body_that_holds_a_trailer_of_its_own_batch_hides_no_record() {
        let mut forged = BytesMut::new();
        start_batch(&mut forged);
        finish_batch(&mut forged, seed(3), 9, &[address(7)]);
        let mut bytes = BytesMut::new();
        start_batch(&mut bytes);
        let head = EntryHead {
            kind: Kind::Record,
            flags: 0,
            address: address(1),
        };
        put_entry(&mut bytes, seed(3), &head, &forged);
        let trailer_at = bytes.len();
        finish_batch(&mut bytes, seed(3), 9, &[address(1)]);
        let end = bytes.len();
        // What a file has room for is zeros.
        bytes.put_bytes(0, 100);
        assert_eq!(
            find_trailer(seed(3), 9, &bytes),
            Some((vec![address(1)], trailer_at, end))
        );
    }

    #[test]
    fn i13_what_was_written_without_the_secret_counts_nowhere() {
        let bytes = batch();
        for other in [Seed(0), Seed(3), Seeds::of(&[8; 32]).of_segment(3)] {
            assert_eq!(find_batch_headers(other, &bytes).next(), None);
            assert_eq!(find_entry(other, &bytes), None);
            assert_eq!(find_trailer(other, 9, &bytes), None);
        }
        assert_eq!(find_entry(seed(3), &bytes), Some(BATCH_HEADER));
    }

    #[test]
    fn hostile_086_a_newer_segment_says_so() {
        let mut header = segment_header(5, 1);
        assert_eq!(
            read_segment_header(5, &header),
            SegmentHeader::Ours { first_seq: 1 }
        );
        header[11] = FORMAT as u8 + 1;
        let crc = super::crc(5, &header[..24]).to_be_bytes();
        header[24..28].copy_from_slice(&crc);
        assert_eq!(
            read_segment_header(5, &header),
            SegmentHeader::Newer(FORMAT + 1)
        );
        header[11] = FORMAT as u8 - 1;
        let crc = super::crc(5, &header[..24]).to_be_bytes();
        header[24..28].copy_from_slice(&crc);
        assert_eq!(
            read_segment_header(5, &header),
            SegmentHeader::Older(FORMAT - 1)
        );
    }

    #[test]
    fn l04_the_next_of_many_batches_is_found_without_reading_all_of_them() {
        let one = batch();
        let many = one.repeat(100_000);
        let start = std::time::Instant::now();
        for at in (0..many.len()).step_by(one.len()) {
            let next = find_batch_headers(seed(3), &many[at..]).next();
            assert_eq!(next.map(|(further, _)| further), Some(0));
        }
        // To read all that follow each of them takes minutes.
        assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }
}
