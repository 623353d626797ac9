//! The files of the embedded store: segments, catalogs, the books.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::{BufMut, Bytes, BytesMut};
use onlyonce_core::{Account, Address, Entry, Posting, State, Sums, Timestamp};
use onlyonce_store::embedded::fuzzing::{self, Found, Written};

use super::records;
use crate::Target;
use crate::input::Input;

pub(crate) const TARGET: Target = Target {
    name: "files",
    holds: "a file of the store is read back or known to be damaged: no record in it is taken for absent",
    run,
    seeds,
    words: &["\u{1}", "\0\0\0\u{1}", "1ONCEIDX", "charges"],
};

/// The secret of the folder whose bytes are fed to the decoders as they are.
const SECRET: [u8; 32] = [7; 32];

/// The most that anything unpacks to here.
const MOST: usize = 1 << 16;

fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() % 6 {
        0 => damaged_segment(&mut input, &unknown_secret(bytes)),
        1 => any_segment(&mut input),
        2 => catalog(input.0),
        3 => books(&mut input),
        4 => any_books(input.0),
        _ => packed(input.0),
    }
}

/// A secret that nothing in `bytes` can have been made with, since all of them go into it: who chooses what stands in a
/// folder does not know its secret.
fn unknown_secret(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    secret
}

/// A segment of a few batches, damaged somewhere.
fn damaged_segment(input: &mut Input<'_>, secret: &[u8; 32]) {
    let mut batches = Vec::new();
    for _ in 0..=input.byte() % 4 {
        let entries = 1 + input.byte() % 4;
        let batch: Vec<Written> = (0..entries).map(|_| written(input)).collect();
        batches.push(batch);
    }
    let sound = fuzzing::segment(secret, &batches);
    let all: Vec<Address> = batches.iter().flatten().map(|one| one.address).collect();
    let next = Some(batches.len() as u64 + 1);
    let whole = Found {
        records: all.clone(),
        used: sound.len(),
        is_damaged: false,
        batches: batches.len() as u64,
    };
    let sound = sound.freeze();
    for next in [None, next] {
        let found = fuzzing::read_segment(secret, &sound, next);
        assert_eq!(found.as_ref(), Some(&whole), "what was written");
    }

    let mut bytes = BytesMut::from(&sound[..]);
    let (at, with) = (input.byte(), input.byte() | 1);
    let at = usize::from(at) * bytes.len() / 256;
    match input.byte() % 3 {
        0 => bytes[at] ^= with,
        1 => bytes[at..].iter_mut().for_each(|byte| *byte = 0),
        _ => {
            let len = bytes.len();
            let end = (at + usize::from(with)).min(len);
            bytes[at..end].iter_mut().for_each(|byte| *byte = 0xa5);
        }
    }
    let bytes = bytes.freeze();
    // It is known that all of its batches were there: each of its records is known, or the store does
    // not open (I13).
    if let Some(found) = fuzzing::read_segment(secret, &bytes, next) {
        let known: HashSet<Address> = found.records.iter().copied().collect();
        for address in &all {
            assert!(known.contains(address), "a record is missing: {found:?}");
        }
    }
    // As the last one, it may have lost its end, and nothing else.
    if let Some(found) = fuzzing::read_segment(secret, &bytes, None) {
        assert!(found.used <= bytes.len());
        let kept = batches.iter().take(found.batches as usize).flatten();
        let known: HashSet<Address> = found.records.iter().copied().collect();
        for one in kept {
            assert!(
                known.contains(&one.address),
                "a record of a batch is missing"
            );
        }
    }
}

fn written(input: &mut Input<'_>) -> Written {
    Written {
        address: Address::from_bytes([input.byte(); 16]),
        body: Bytes::copy_from_slice(input.piece()),
    }
}

/// Any bytes behind a header that is in order.
fn any_segment(input: &mut Input<'_>) {
    let header = fuzzing::segment(&SECRET, &[]);
    let next = match input.byte() {
        0 => None,
        next => Some(u64::from(next)),
    };
    let bytes: Bytes = [&header[..], input.0].concat().into();
    if let Some(found) = fuzzing::read_segment(&SECRET, &bytes, next) {
        assert!(found.used <= bytes.len());
    }
    // Without the header that a start would refuse.
    fuzzing::read_segment(&SECRET, &Bytes::copy_from_slice(input.0), next);
}

/// A catalog that is taken is the same when it is written again.
fn catalog(bytes: &[u8]) {
    let Some(again) = fuzzing::catalog_again(bytes) else {
        return;
    };
    let covered = &again[..again.len() - 4];
    let third = fuzzing::catalog_again(covered).expect("what was written is a catalog");
    assert_eq!(third.len(), again.len());
    assert_eq!(third, again, "written twice");
}

/// A block of the books, with anything before and behind it.
fn books(input: &mut Input<'_>) {
    // A block that has begun before would have the next one in it.
    let before = Some(input.piece()).filter(|before| !before.contains(&fuzzing::BLOCK_BEGINS));
    let before = before.unwrap_or_default();
    let mut postings: Vec<Posting> = Vec::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..input.byte() % 4 {
        let name: Box<str> = String::from_utf8_lossy(input.piece()).into();
        let entry = entry(&name, u64::from(input.byte()));
        expected.push(entry.posting());
        entries.push(entry);
    }
    for _ in 0..input.byte() % 4 {
        postings.extend(fuzzing::posting(Bytes::copy_from_slice(input.piece())));
    }
    expected.extend(postings.iter().cloned());
    let block = fuzzing::block(&entries, postings);
    let bytes: Bytes = [before, &block, input.0].concat().into();
    let (start, end) = (before.len(), before.len() + block.len());
    let found = fuzzing::blocks(&bytes);
    assert!(
        found.contains(&(start, end, Some(expected))),
        "the block is found"
    );

    let mut damaged = bytes.to_vec();
    let at = start + usize::from(before.len() as u8) % block.len();
    damaged[at] ^= 0x40;
    for (found, _, postings) in fuzzing::blocks(&damaged.into()) {
        assert!(
            found != start || postings.is_none(),
            "a damaged block gives nothing"
        );
    }
}

fn entry(name: &str, at: u64) -> Entry {
    let state = State::Completed(onlyonce_core::Completed {
        completed_at: Timestamp::from_millis(at),
        expires_at: Timestamp::from_millis(at + 1),
        head: onlyonce_core::Head {
            status: 200,
            headers: onlyonce_core::HeaderBlock::default(),
        },
        trailers: onlyonce_core::HeaderBlock::default(),
        body_len: 0,
        chunks: 0,
    });
    let mut record = records::record(state);
    record.request.route = name.into();
    Entry::of(&record).expect("a completed record has an entry")
}

fn any_books(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut last = 0;
    for (start, end, _) in fuzzing::blocks(&bytes) {
        assert!(last <= start && start < end && end <= bytes.len());
        last = end;
    }
    // Accounts are written in any order, so that the bytes may differ.
    let stay = fuzzing::sums_stay(bytes);
    assert_ne!(stay, Some(false), "sums read, written and read");
}

fn packed(bytes: &[u8]) {
    if let Some(packed) = fuzzing::pack(bytes) {
        assert!(packed.len() < bytes.len());
        let plain = fuzzing::unpack(packed.clone(), bytes.len());
        assert_eq!(plain.as_deref(), Some(bytes));
        assert_eq!(fuzzing::unpack(packed, bytes.len() - 1), None);
    }
    if let Some(plain) = fuzzing::unpack(Bytes::copy_from_slice(bytes), MOST) {
        assert!(plain.len() <= MOST);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let piece = |text: &[u8]| [&[text.len() as u8], text].concat();
    let body = piece(&[3; 60]);
    let batch = [&[1][..], &[7], &body, &[8], &body].concat();
    let damages: [&[u8]; 3] = [&[40, 9, 0], &[120, 9, 1], &[90, 40, 2]];
    let mut seeds: Vec<Vec<u8>> = damages
        .iter()
        .map(|damage| [&[0, 1][..], &batch, &batch, damage].concat())
        .collect();

    let address = Address::from_bytes([1; 16]);
    let body = Bytes::from_static(b"a record");
    let segment = fuzzing::segment(&SECRET, &[vec![Written { address, body }]]);
    let (header, batches) = segment.split_at(fuzzing::segment(&SECRET, &[]).len());
    seeds.push([&[1, 0], batches].concat());
    seeds.push([&[1, 2], header, batches].concat());
    seeds.push([&[2][..], &catalog_bytes()].concat());

    let mut posting = BytesMut::new();
    posting.put_slice(&[5, 4]);
    posting.put_slice(b"acme\x07charges\x06openai\x05gpt-4\x01\x00\x07");
    seeds.push([&[3, 2, 0, 0, 1, 3][..], b"one", &[9, 1], &piece(&posting)].concat());
    let block = fuzzing::block(&[entry("charges", 5)], vec![posting_of("acme")]);
    seeds.push([&[4], &block[..]].concat());
    seeds.push(
        [
            &[5][..],
            &b"{\"id\":\"req_\",\"object\":\"charge\"}".repeat(20),
        ]
        .concat(),
    );
    seeds
}

fn posting_of(tenant: &str) -> Posting {
    Posting {
        at: Timestamp::from_millis(5),
        account: Account {
            tenant: tenant.into(),
            ..Account::default()
        },
        sums: Sums::default(),
    }
}

/// A catalog of a chunk and a removal, without its checksum.
fn catalog_bytes() -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_slice(b"1ONCEIDX");
    out.put_u32(fuzzing::CATALOG_FORMAT);
    out.put_u32(1);
    out.put_u64(7);
    out.put_u64(1_790_000_000_000);
    out.put_u32(2);
    for tag in [2, 4] {
        out.put_u8(tag);
        out.put_slice(&[3; 16]);
        out.put_slice(&[32, 100]);
        if tag == 2 {
            out.put_slice(&[4; 16]);
            out.put_slice(&[1, 0]);
        }
    }
    out.to_vec()
}
