use std::{fs, path::Path};

use bytes::{Bytes, BytesMut};
use onlyonce_core::{
    Account, Count, Entry, Metered, OperationId, Posting, Scope, Source, Sums, Timestamp, Unit,
};
use tempfile::TempDir;

use super::{
    Kept, Ledger,
    block::{self, BlockHeader, FileHeader, Front, Rows},
    file_path,
};
use crate::{
    books::{Cell, EntryQuery, Grain, Of, Position, SumsQuery},
    embedded::{EncryptionKeys, OpenError},
    seal::Sealer,
};

const DAY: u64 = 86_400_000;

fn entry(number: u64, at: u64) -> Entry {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    Entry {
        id: OperationId::from_bytes(id),
        at: Timestamp::from_millis(at),
        claimed_at: Timestamp::from_millis(at),
        scope: Scope {
            tenant: ["acme", "globex"][number as usize % 2].into(),
            namespace: "openai".into(),
        },
        route: "chat".into(),
        status: 200,
        trace: None,
        metered: Metered {
            source: Source::Provider,
            usage: [(Unit::Input, number)].into_iter().collect(),
            ..Metered::default()
        },
    }
}

fn posting(at: u64) -> Posting {
    Posting {
        at: Timestamp::from_millis(at),
        account: Account {
            tenant: "acme".into(),
            ..Account::default()
        },
        sums: [(Count::Replayed, 1)].into_iter().collect(),
    }
}

fn open(folder: &Path, last_seq: u64) -> Ledger {
    let ledger = Ledger::open(folder, None).expect("it opens");
    ledger.begin(last_seq);
    ledger
}

/// Books `count` entries of the moment `at`, each in a batch of its own, as one block.
fn book(ledger: &Ledger, first: u64, count: u64, at: u64) {
    for number in first..first + count {
        ledger.keep(number + 1, [entry(number, at)].iter().collect());
    }
    assert_eq!(ledger.book(None, 0).expect("booked").entries, count);
}

fn numbers(ledger: &Ledger) -> Vec<u64> {
    let fed = ledger.feed(None, usize::MAX, None).expect("a feed");
    assert!(fed.is_sorted_by_key(|(position, _)| *position));
    fed.into_iter()
        .map(|(_, entry)| entry.metered.usage.get(Unit::Input).unwrap_or(0))
        .collect()
}

fn all(ledger: &Ledger) -> Vec<Cell> {
    ledger.sums(&SumsQuery {
        grain: Grain::Day,
        since: Timestamp::default(),
        until: Timestamp::from_millis(u64::MAX),
        of: Of::All,
    })
}

fn total(ledger: &Ledger) -> Sums {
    let mut total = Sums::default();
    for cell in all(ledger) {
        total.merge(&cell.sums);
    }
    total
}

fn operations(ledger: &Ledger) -> i64 {
    total(ledger).get(Count::Operations)
}

fn files(folder: &TempDir) -> Vec<u32> {
    super::numbers(folder.path()).expect("a folder")
}

#[test]
fn what_is_read_back_is_what_was_booked_with_and_without_the_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = open(folder.path(), 0);
    for round in 0..20 {
        book(&ledger, round * 50, 50, round * DAY / 4);
        ledger.post(vec![posting(round * DAY / 4)]);
    }
    ledger.close(None).expect("closed");
    let (before, page) = (
        numbers(&ledger),
        EntryQuery {
            limit: 7,
            ..EntryQuery::default()
        },
    );
    assert_eq!(before, (0..1000).collect::<Vec<_>>());
    assert_eq!(total(&ledger).get(Count::Replayed), 20);
    for keep_snapshot in [true, false] {
        if !keep_snapshot {
            fs::remove_file(folder.path().join("sums")).expect("there is one");
        }
        let again = open(folder.path(), 1000);
        assert_eq!(again.settled(), 1000);
        assert_eq!(numbers(&again), before);
        assert_eq!(all(&again), all(&ledger));
        let read = |ledger: &Ledger| ledger.entries(&page, None).expect("a page");
        assert_eq!(read(&again).entries, read(&ledger).entries);
        assert_eq!(read(&again).next, Some(Position(993)));
    }
}

/// The write failed, and yet it reached the disk: the block stands in the new file too, or does not yet.
#[test]
fn i12_a_block_of_a_failed_write_counts_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = open(folder.path(), 0);
    book(&ledger, 0, 10, 1);
    book(&ledger, 10, 10, 1);
    let whole = fs::read(file_path(folder.path(), 1)).expect("a file");
    drop(ledger);
    // As it was before the second block, and then as if that had failed.
    let first = Bytes::from(whole.clone());
    let first = block::next_block(1, &first, 0).expect("a block").end;
    fs::write(file_path(folder.path(), 1), &whole[..first]).expect("written");
    let ledger = open(folder.path(), 20);
    assert_eq!(ledger.settled(), 10);
    ledger.writer.lock().file = None;
    fs::write(file_path(folder.path(), 1), &whole).expect("written");
    let begun = ledger.begin_file(&mut ledger.writer.lock()).expect("begun");
    let only_begun = open(folder.path(), 20);
    assert_eq!((only_begun.settled(), operations(&only_begun)), (10, 10));
    drop(only_begun);

    ledger.writer.lock().file = Some(begun);
    book(&ledger, 10, 10, 1);
    assert_eq!(files(&folder), [1, 2]);
    for ledger in [&open(folder.path(), 20), &ledger] {
        assert_eq!(numbers(ledger), (0..20).collect::<Vec<_>>());
        assert_eq!((ledger.settled(), operations(ledger)), (20, 20));
    }
}

/// Nothing is lost, and the log is not asked to forget anything.
#[test]
fn i12_what_cannot_be_written_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = open(folder.path(), 0);
    let in_the_way = file_path(folder.path(), 1);
    fs::create_dir(&in_the_way).expect("a folder");
    for number in 0..3 {
        ledger.keep(number + 1, [entry(number, 1)].iter().collect());
        assert!(ledger.book(None, 0).is_err());
        assert_eq!(ledger.settled(), 0);
    }
    fs::remove_dir(&in_the_way).expect("removed");
    let mut booked = 0;
    loop {
        let now = ledger.book(None, 0).expect("booked");
        booked += now.entries;
        if now.entries == 0 {
            break;
        }
    }
    assert_eq!((booked, ledger.settled()), (3, 3));
    assert_eq!(numbers(&ledger), [0, 1, 2]);
}

#[test]
fn a_damaged_block_in_the_middle_costs_its_own_entries_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = open(folder.path(), 0);
    for round in 0..3 {
        book(&ledger, round * 10, 10, 1);
    }
    let path = file_path(folder.path(), 1);
    let bytes = Bytes::from(fs::read(&path).expect("a file"));
    let first = block::next_block(1, &bytes, 0).expect("a block");
    let second = block::next_block(1, &bytes, first.end).expect("a block");
    for at in second.start..second.end {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 0x20;
        fs::write(&path, damaged).expect("written");
        let again = open(folder.path(), 30);
        let left = (0..10).chain(20..30).collect::<Vec<_>>();
        assert_eq!(numbers(&again), left, "byte {at}");
        assert_eq!((again.settled(), operations(&again)), (30, 20));
        // Who stands on the entry before, or on a lost one, goes on behind them.
        for after in [9, 15] {
            let fed = again.feed(Some(Position(after)), 1, None).expect("a feed");
            assert_eq!(fed[0].0, Position(20));
        }
    }
}

/// Three blocks were to become durable together, and the power went: any of them may be missing, and
/// nobody was told of any. Then those behind it do not count, and all is booked once from the log.
#[test]
fn what_was_torn_and_what_stands_behind_it_is_booked_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = open(folder.path(), 0);
    book(&ledger, 0, 10, 1);
    let many = (3 * super::BLOCK) as u64;
    let keep = |ledger: &Ledger| {
        for number in ledger.settled()..10 + many {
            ledger.keep(number + 1, [entry(number, 1)].iter().collect());
        }
    };
    keep(&ledger);
    assert_eq!(ledger.book(None, 0).expect("booked").entries, many);
    let path = file_path(folder.path(), 1);
    let bytes = Bytes::from(fs::read(&path).expect("a file"));
    let mut blocks = Vec::new();
    while let Some(found) = block::next_block(1, &bytes, blocks.last().map_or(0, |&(_, end)| end)) {
        blocks.push((found.start, found.end));
    }
    assert_eq!(blocks.len(), 4);
    for (torn, &(start, end)) in blocks.iter().enumerate().skip(1) {
        for lost in [start..end, start..start + 1, end - 1..end] {
            let mut left = bytes.to_vec();
            left[lost].iter_mut().for_each(|byte| *byte = !*byte);
            fs::write(&path, left).expect("written");
            let again = open(folder.path(), 10 + many);
            let settled = 10 + (torn as u64 - 1) * super::BLOCK as u64;
            assert_eq!(again.settled(), settled, "block {torn}");
            keep(&again);
            again.book(None, 0).expect("booked");
            for ledger in [&again, &open(folder.path(), 10 + many)] {
                assert_eq!(numbers(ledger), (0..10 + many).collect::<Vec<_>>());
                assert_eq!(operations(ledger), 10 + many as i64);
            }
        }
    }
}

#[test]
fn what_was_trimmed_does_not_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = open(folder.path(), 0);
    book(&ledger, 0, 10, DAY);
    ledger.post(vec![posting(DAY)]);
    book(&ledger, 10, 10, 2 * DAY);
    let old = fs::read(file_path(folder.path(), 1)).expect("a file");
    let trim = |days: u64| {
        ledger
            .trim(Timestamp::from_millis(days * DAY), None)
            .expect("trimmed")
    };
    assert_eq!(trim(1).records, 0);
    let swept = trim(2);
    assert!(swept.records == 10 && swept.bytes > 0, "{swept:?}");
    // A crash before it was removed.
    fs::write(file_path(folder.path(), 1), old).expect("written");
    let again = open(folder.path(), 20);
    assert_eq!(numbers(&again), (10..20).collect::<Vec<_>>());
    assert_eq!((operations(&again), files(&folder)), (10, vec![2]));
    drop(again);

    // All of it: the numbers go on.
    assert_eq!(trim(9).records, 10);
    assert_eq!((operations(&ledger), numbers(&ledger)), (0, vec![]));
    for snapshot in [true, false] {
        if !snapshot {
            fs::remove_file(folder.path().join("sums")).expect("there is one");
        }
        let again = open(folder.path(), 20);
        assert_eq!(again.settled(), 20);
        again.keep(21, [entry(20, 9 * DAY)].iter().collect());
        again.book(None, 0).expect("booked");
        let fed = again.feed(None, 9, None).expect("a feed");
        assert_eq!(
            fed.last().expect("an entry").0,
            Position(if snapshot { 20 } else { 21 })
        );
    }
}

#[test]
fn an_empty_block_says_that_nothing_is_left_where_a_start_would_look() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = open(folder.path(), 0);
    for seq in 1..=50 {
        ledger.keep(seq, Kept::default());
    }
    ledger.book(None, 0).expect("booked");
    assert_eq!((ledger.settled(), files(&folder)), (50, vec![]));
    ledger.book(None, 40).expect("booked");
    ledger.book(None, 40).expect("booked");
    assert_eq!(open(folder.path(), 50).settled(), 50);
    let path = file_path(folder.path(), 1);
    let len = fs::metadata(path).expect("a file").len();
    assert_eq!(len, (block::FILE_HEADER + block::BLOCK_HEADER) as u64);
}

#[test]
fn hostile_086_newer_books_say_so() {
    let header = FileHeader {
        file: 1,
        block: 0,
        entry: 0,
        booked: 0,
    };
    for name in ["book-00000001.dat", "sums", "sinks"] {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = open(folder.path(), 0);
        book(&ledger, 0, 1, 1);
        ledger.close(None).expect("closed");
        let mut bytes = match name {
            "book-00000001.dat" => header.encode().to_vec(),
            "sums" => fs::read(folder.path().join(name)).expect("a file"),
            _ => [&b"1ONCESNK\0\0\0\x01\0\0\0\0\0\0"[..]].concat(),
        };
        bytes[11] += 1;
        let covered = bytes.len() - 4;
        let crc = crc32fast::hash(&bytes[..covered]).to_be_bytes();
        bytes[covered..].copy_from_slice(&crc);
        fs::write(folder.path().join(name), bytes).expect("written");
        let opened = Ledger::open(folder.path(), None);
        assert!(
            matches!(opened.err(), Some(OpenError::Newer { format: 2, .. })),
            "{name}"
        );
    }
}

#[test]
fn i16_sealed_blocks_show_nothing_and_open_with_their_key_alone() {
    let keys = EncryptionKeys {
        active: 1,
        keys: [(1, [7; 32])].into(),
    };
    let sealer = Sealer::new(&keys).expect("a key");
    let rows = Rows {
        entries: [entry(1, 1), entry(2, 1)].iter().collect(),
        postings: vec![posting(1)],
    };
    let (since, until) = rows.span();
    let header = BlockHeader {
        block: 5,
        group: 4,
        entry: 1,
        entries: 2,
        postings: 1,
        booked: 9,
        since,
        until,
    };
    let mut bytes = BytesMut::new();
    block::put(&mut bytes, 3, &header, &rows, Some(&sealer)).expect("sealed");
    assert!(!bytes.windows(4).any(|window| window == b"acme"));
    let bytes = bytes.freeze();
    let found = block::next_block(3, &bytes, 0).expect("a block");
    assert_eq!(found.header, header);
    assert_eq!(found.postings(Some(&sealer)).expect("opened").len(), 3);
    assert!(found.entries(None).is_err());
    assert!(block::next_block(4, &bytes, 0).is_none());
    assert_eq!(block::read_front(1, b"short"), Front::Damaged);
}
