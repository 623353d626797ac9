//! What the embedded store makes of the folder that a crash, a power cut or bit rot leaves.

use std::{collections::BTreeSet, fs, ops::Range, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Count, Fingerprint, Got, Head, HeaderBlock, Key, Metered, OperationId, OwnerId,
    Posting, Record, ReleaseReason, RequestLine, Resolution, Scope, Source, State, StateName, Sums,
    Timestamp, UnknownReason,
    transition::{self, Claim, Response},
};
use onlyonce_store::{
    AttemptNote, Books, EmbeddedStore, Store, StoreError, Swap, Write, address,
    books::{Begin, Grain, Hold, Of, SumsQuery},
    clock::ManualClock,
    embedded::{EncryptionKeys, OpenError, Options},
};
use tempfile::TempDir;

const LEASE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(3600);

fn open(folder: &Path) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(folder, Options::default())
}

fn scope() -> Scope {
    Scope {
        tenant: "acme".into(),
        namespace: "openai".into(),
    }
}

fn key(number: u32) -> Key {
    Key::new(&format!("key-{number}")).expect("a key")
}

fn at(store: &EmbeddedStore, number: u32) -> Address {
    address(store.secret(), &scope(), &key(number))
}

fn note() -> AttemptNote {
    AttemptNote {
        peer: "".into(),
        sdk_retry_count: None,
        trace: None,
        got: Got::Refused,
        at: None,
    }
}

async fn claim(store: &EmbeddedStore, number: u32) -> Record {
    try_claim(store, number).await.expect("a store")
}

async fn try_claim(store: &EmbeddedStore, number: u32) -> Result<Record, StoreError> {
    claim_over(store, number, None).await
}

async fn claim_over(
    store: &EmbeddedStore,
    number: u32,
    held: Option<&Record>,
) -> Result<Record, StoreError> {
    let mut random = [0; 10];
    random[..4].copy_from_slice(&number.to_be_bytes());
    let claim = Claim {
        id: OperationId::new(store.now().as_millis(), &random),
        scope: scope(),
        key: key(number),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        request: RequestLine::default(),
        owner: OwnerId::new(1),
        raise: std::num::NonZero::<u32>::MIN,
    };
    let record = transition::claim(held, claim, store.now(), LEASE).expect("a free key");
    let attempt = AttemptNote {
        got: Got::Executed,
        ..note()
    };
    let write = Write {
        record: record.clone(),
        last_chunk: None,
        attempt: Some(attempt),
    };
    let swap = store
        .compare_and_set(at(store, number), held.map(Record::fence), write)
        .await?;
    assert!(matches!(swap, Swap::Done { .. }), "{swap:?}");
    Ok(record)
}

async fn complete(store: &EmbeddedStore, record: &Record, number: u32, body: &[u8]) {
    complete_in_chunks(store, record, number, &[body]).await;
}

/// Completes with a recording of these chunks.
async fn complete_in_chunks(store: &EmbeddedStore, record: &Record, number: u32, chunks: &[&[u8]]) {
    let response = Response {
        head: Head {
            status: 200,
            headers: HeaderBlock::default(),
        },
        trailers: HeaderBlock::default(),
        body_len: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        chunks: chunks.len() as u32,
    };
    complete_with(store, record, number, response, chunks).await;
}

/// Completes with this answer, whose body is in these chunks.
async fn complete_with(
    store: &EmbeddedStore,
    record: &Record,
    number: u32,
    response: Response,
    chunks: &[&[u8]],
) {
    let (last, others) = chunks.split_last().expect("a body");
    for (chunk, bytes) in (0..).zip(others) {
        let bytes = Bytes::copy_from_slice(bytes);
        let append = store.append(at(store, number), record.recording(), chunk, bytes);
        append.await.expect("in flight");
    }
    let now = store.now();
    let next = transition::complete(Some(record), record.fence(), response, now, WINDOW);
    let last_chunk = Some(Bytes::copy_from_slice(last));
    let next = metered(next.expect("in flight"));
    put(store, number, record, next, last_chunk).await;
}

fn metered(record: Record) -> Record {
    let metered = Metered {
        source: Source::Provider,
        provider: "openai".into(),
        model: "gpt-5".into(),
        ..Metered::default()
    };
    Record {
        metered: Some(Box::new(metered)),
        ..record
    }
}

/// Writes `next` in the place of `held`.
async fn put(
    store: &EmbeddedStore,
    number: u32,
    held: &Record,
    next: Record,
    last_chunk: Option<Bytes>,
) {
    let write = Write {
        record: next,
        last_chunk,
        attempt: None,
    };
    let swap = store
        .compare_and_set(at(store, number), Some(held.fence()), write)
        .await;
    assert_eq!(swap.expect("a store"), Swap::Done { attempts: 1 });
}

/// Bytes that cannot be packed.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// The folder as a kill at this moment would leave it.
fn killed_copy(folder: &Path) -> TempDir {
    // In memory where there is such a place: thousands of copies are made, and what is tested here
    // is what stands in them, not that it reaches a disk.
    let memory = Path::new("/dev/shm");
    let copy = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let copy = copy.expect("a folder");
    for entry in fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let name = path.file_name().expect("a name");
            fs::copy(&path, copy.path().join(name)).expect("a copy");
        }
    }
    copy
}

async fn state(store: &EmbeddedStore, number: u32) -> Option<StateName> {
    match store.load(at(store, number)).await {
        Ok(stored) => stored.map(|stored| stored.record.state.name()),
        Err(StoreError::Corrupt(_)) => Some(StateName::Unknown),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn l3_a_kill_leaves_completed_records_completed_and_open_claims_unknown() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    let first = claim(&store, 1).await;
    complete(&store, &first, 1, b"hello").await;
    claim(&store, 2).await;

    let copy = killed_copy(folder.path());
    let again = open(copy.path()).expect("it opens");
    let stored = again
        .load(at(&again, 1))
        .await
        .expect("readable")
        .expect("held");
    assert_eq!(stored.record.state.name(), StateName::Completed);
    assert_eq!(stored.last_chunk.as_deref(), Some(&b"hello"[..]));
    assert_eq!(state(&again, 2).await, Some(StateName::Unknown));

    // The new state is durable, too: another kill changes nothing.
    let third = open(killed_copy(copy.path()).path()).expect("it opens");
    assert_eq!(state(&third, 2).await, Some(StateName::Unknown));
}

#[tokio::test]
async fn i08_a_kill_in_the_middle_of_recovery_is_recovered_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    for number in 0..20 {
        claim(&store, number).await;
    }
    let mut copy = killed_copy(folder.path());
    // What recovery leaves on the way: half of its files.
    for round in 0..5 {
        drop(open(copy.path()).expect("it opens"));
        let files: Vec<_> = fs::read_dir(copy.path())
            .expect("the folder")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "idx"))
            .collect();
        for path in files.iter().skip(round % 2) {
            fs::remove_file(path).expect("removed");
        }
        copy = killed_copy(copy.path());
    }
    let store = open(copy.path()).expect("it opens");
    for number in 0..20 {
        assert_eq!(state(&store, number).await, Some(StateName::Unknown));
    }
}

#[tokio::test]
async fn i03_a_torn_last_commit_costs_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    for number in 0..8 {
        let record = claim(&store, number).await;
        complete(&store, &record, number, &[number as u8; 300]).await;
    }
    let before = killed_copy(folder.path());
    claim(&store, 100).await;
    let after = killed_copy(folder.path());

    let log = "seg-00000001.log";
    let old = fs::read(before.path().join(log)).expect("the log");
    let new = fs::read(after.path().join(log)).expect("the log");
    let changed: Vec<usize> = (0..new.len()).filter(|&at| new[at] != old[at]).collect();
    let (start, end) = (changed[0], changed[changed.len() - 1] + 1);
    for torn_at in (start..end).step_by(7) {
        // Its front reached the disk, or only its back did.
        for front in [true, false] {
            let mut bytes = old.clone();
            let kept = if front { start..torn_at } else { torn_at..end };
            bytes[kept.clone()].copy_from_slice(&new[kept]);
            let torn = killed_copy(before.path());
            fs::write(torn.path().join(log), bytes).expect("written");
            let store = open(torn.path()).expect("a torn end is no damage");
            for number in 0..8 {
                assert_eq!(state(&store, number).await, Some(StateName::Completed));
            }
            let unacknowledged = state(&store, 100).await;
            assert!(matches!(unacknowledged, None | Some(StateName::Unknown)));
        }
    }
}

#[tokio::test]
async fn i13_a_torn_commit_leaves_no_completed_record_without_its_recording() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    let record = claim(&store, 1).await;
    let before = killed_copy(folder.path());
    let noise = noise(9_000);
    let chunks: Vec<&[u8]> = noise.chunks(3_000).collect();
    complete_in_chunks(&store, &record, 1, &chunks).await;
    let after = killed_copy(folder.path());

    let log = "seg-00000001.log";
    let old = fs::read(before.path().join(log)).expect("the log");
    let new = fs::read(after.path().join(log)).expect("the log");
    let sectors: Vec<usize> = (0..new.len())
        .step_by(512)
        .filter(|&at| new[at..][..512] != old[at..][..512])
        .collect();
    let (mut completed, mut unknown) = (0, 0);
    let end = new.len();
    for from in sectors.into_iter().chain([end]) {
        // Everything reached the disk but this sector, or nothing from it on did.
        for lost in [from..end.min(from + 512), from..end] {
            let mut bytes = new.clone();
            bytes[lost.clone()].copy_from_slice(&old[lost.clone()]);
            let torn = killed_copy(before.path());
            fs::write(torn.path().join(log), bytes).expect("written");
            for _restart in 0..2 {
                let store = open(torn.path()).expect("a torn end is no damage");
                let held = store.load(at(&store, 1)).await;
                let held = held.expect("readable").expect("it was claimed");
                assert_eq!(held.record.id, record.id);
                match &held.record.state {
                    State::Completed(_) => {
                        for (number, chunk) in (0..).zip(&chunks) {
                            let read = store.read(at(&store, 1), record.recording(), number);
                            assert_eq!(read.await.expect("it is whole"), *chunk);
                        }
                        completed += 1;
                    }
                    State::Unknown { .. } => {
                        unknown += 1;
                    }
                    other => panic!("{other:?} without {lost:?}"),
                }
            }
            // Unknown is not the end: somebody may find out.
            let store = open(torn.path()).expect("it opens");
            let held = store.load(at(&store, 1)).await;
            let held = held.expect("readable").expect("held").record;
            if matches!(held.state, State::Unknown { .. }) {
                let now = store.now();
                let next = transition::resolve(
                    Some(&held),
                    held.fence(),
                    Resolution::DidNotRun,
                    now,
                    WINDOW,
                );
                put(&store, 1, &held, next.expect("unknown"), None).await;
                assert_eq!(state(&store, 1).await, Some(StateName::Released));
            }
        }
    }
    assert!(completed > 0 && unknown > 10, "{completed}, {unknown}");
}

/// The body of each answer of [`in_use`], in chunks.
const ANSWER: [&[u8]; 2] = [b"the first half, ", b"and the second"];

/// What operation `number` of [`in_use`] was answered.
fn answered(number: u32) -> Response {
    let number = number.to_string();
    let block = |fields: [(&str, &str); 3]| {
        let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        HeaderBlock::pack(fields).expect("short fields")
    };
    Response {
        head: Head {
            status: 201,
            headers: block([("x-number", &number), ("x-twice", "b"), ("x-twice", "a")]),
        },
        trailers: block([("x-sum", &number), ("x-end", "1"), ("x-end", "0")]),
        body_len: ANSWER.iter().map(|chunk| chunk.len() as u64).sum(),
        chunks: ANSWER.len() as u32,
    }
}

/// What is given as completed under `number` of [`in_use`] is what was completed. Says whether all of it can be
/// read.
async fn is_the_answer(store: &EmbeddedStore, number: u32, case: &str) -> bool {
    let stored = match store.load(at(store, number)).await {
        Ok(stored) => stored.unwrap_or_else(|| panic!("{number} is new after {case}")),
        Err(StoreError::Corrupt(_)) => return false,
        Err(error) => panic!("{error}"),
    };
    let record = stored.record;
    let State::Completed(completed) = &record.state else {
        assert_eq!(record.state.name(), StateName::Unknown, "{case}");
        return false;
    };
    let expected = answered(number);
    assert_eq!(completed.head, expected.head, "{case}");
    assert_eq!(completed.trailers, expected.trailers, "{case}");
    assert_eq!(completed.body_len, expected.body_len, "{case}");
    assert_eq!(completed.chunks, expected.chunks, "{case}");
    let last = stored.last_chunk.as_deref();
    assert!(last.is_none() || last == ANSWER.last().copied(), "{case}");
    let mut whole = true;
    for (chunk, expected) in (0..).zip(ANSWER) {
        match store
            .read(at(store, number), record.recording(), chunk)
            .await
        {
            Ok(bytes) => assert_eq!(bytes, expected, "chunk {chunk} after {case}"),
            Err(StoreError::Corrupt(_)) => whole = false,
            Err(error) => panic!("{error}: chunk {chunk} after {case}"),
        }
    }
    whole
}

/// A folder in use, with a running operation, two completed ones, and one that was released and runs
/// again.
async fn in_use() -> (TempDir, EmbeddedStore) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    for number in 0..3 {
        let record = claim(&store, number).await;
        if number > 0 {
            complete_with(&store, &record, number, answered(number), &ANSWER).await;
        }
    }
    let record = claim(&store, 3).await;
    book(&store).await;
    let (reason, now) = (ReleaseReason::DidNotRun, store.now());
    let released =
        transition::release(Some(&record), record.fence(), reason, now, WINDOW).expect("in flight");
    put(&store, 3, &record, released.clone(), None).await;
    claim_over(&store, 3, Some(&released)).await.expect("free");
    (folder, store)
}

#[tokio::test]
async fn i13_no_flipped_byte_makes_a_used_key_look_new_after_a_kill() {
    let (folder, _store) = in_use().await;
    flip_every_byte(&killed_copy(folder.path())).await;
}

#[tokio::test]
async fn i13_no_flipped_byte_makes_a_used_key_look_new_after_a_clean_stop() {
    let (folder, store) = in_use().await;
    store.close().await.expect("it closes");
    flip_every_byte(&killed_copy(folder.path())).await;
}

/// As before, once more started and stopped: a segment that is full, with its catalog, and a sink's place.
#[tokio::test]
async fn i13_no_flipped_byte_makes_a_used_key_look_new_with_a_catalog_and_a_sink() {
    let (folder, store) = in_use().await;
    let hold = Hold {
        sink: "billing".into(),
        owner: OwnerId::new(1),
        lease: LEASE,
        begin: Begin::Start,
    };
    store.hold(hold).await.expect("a store");
    store.close().await.expect("it closes");
    drop(store);
    drop(open(folder.path()).expect("it opens"));
    let image = killed_copy(folder.path());
    for name in ["seg-00000001.idx", "sinks", "sums", "book-00000001.dat"] {
        assert!(!file(&image, name).is_empty(), "there is no {name}");
    }
    flip_every_byte(&image).await;
}

async fn flip_every_byte(folder: &TempDir) {
    let (mut opened, mut refused, mut damaged) = (0, 0, 0);
    for entry in fs::read_dir(folder.path()).expect("the folder") {
        let path = entry.expect("an entry").path();
        let mut bytes = fs::read(&path).expect("a file");
        let used = bytes
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 64);
        // A segment is a MiB of zeros, and a page of them is as good: it is opened for each byte.
        bytes.truncate(used + 4096);
        fs::write(&path, &bytes).expect("written");
        for at in 0..used.min(bytes.len()) {
            let rotten = killed_copy(folder.path());
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x04;
            let name = path.file_name().expect("a name");
            fs::write(rotten.path().join(name), bytes).expect("written");
            let Ok(store) = open(rotten.path()) else {
                refused += 1;
                continue;
            };
            opened += 1;
            let case = format!("byte {at} of {name:?}");
            for number in 0..4 {
                let held = state(&store, number).await;
                assert!(held.is_some(), "key {number} is new after {case}");
                assert_ne!(held, Some(StateName::Released), "{case}");
            }
            for number in 1..3 {
                damaged += u32::from(!is_the_answer(&store, number, &case).await);
            }
        }
    }
    // Most of it must be survived, or the test would only show refusals.
    assert!(opened > 4 * refused, "{opened} opened, {refused} refused");
    assert!(damaged > 100, "{damaged} answers were damaged");
}

/// The key is known from the trailer of its batch alone where the head of its entry is damaged. Its segment was dropped all
/// the same, since nothing lived in it, and the next start knew nothing of the key.
#[tokio::test]
async fn i13_a_damaged_key_outlives_the_segment_that_it_was_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    claim(&store, 1).await;
    let image = killed_copy(folder.path());
    let log = "seg-00000001.log";
    let bytes = file(&image, log);
    let used = bytes.iter().rposition(|&byte| byte != 0).expect("a claim") + 1;
    let mut dropped = 0;
    for at in 0..used {
        let rotten = killed_copy(image.path());
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x04;
        fs::write(rotten.path().join(log), bytes).expect("written");
        let Ok(store) = open(rotten.path()) else {
            continue;
        };
        let before = state(&store, 1).await;
        assert!(before.is_some(), "the key is new after byte {at}");
        store.sweep().await.expect("a sweep");
        dropped += u32::from(!rotten.path().join(log).exists());
        store.close().await.expect("it closes");
        drop(store);
        let store = open(rotten.path()).expect("it opens again");
        let after = state(&store, 1).await;
        assert_eq!(after, before, "byte {at}, a sweep and a restart later");
    }
    // Where the claim can be read, it is written again as unknown, and its segment goes.
    assert!(dropped > 0);
}

#[tokio::test]
async fn hostile_087_a_second_process_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    assert!(matches!(open(folder.path()), Err(OpenError::Locked(_))));
    drop(store);
    assert!(open(folder.path()).is_ok());
}

#[tokio::test]
async fn hostile_091_a_missing_or_wrong_encryption_key_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let with = |id: u32, byte: u8| Options {
        encryption: Some(EncryptionKeys {
            active: id,
            keys: [(id, [byte; 32])].into(),
        }),
        ..Options::default()
    };
    let store = EmbeddedStore::open(folder.path(), with(1, 1)).expect("new");
    let record = claim(&store, 1).await;
    complete(&store, &record, 1, b"a secret answer").await;
    store.close().await.expect("it closes");
    drop(store);
    for entry in fs::read_dir(folder.path()).expect("the folder") {
        let bytes = fs::read(entry.expect("an entry").path()).expect("a file");
        for secret in [&b"a secret answer"[..], b"key-1", b"acme"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    assert!(matches!(open(folder.path()), Err(OpenError::Key(_))));
    for wrong in [with(1, 2), with(2, 1)] {
        assert!(matches!(
            EmbeddedStore::open(folder.path(), wrong),
            Err(OpenError::Key(_))
        ));
    }
    let rotated = Options {
        encryption: Some(EncryptionKeys {
            active: 2,
            keys: [(1, [1; 32]), (2, [2; 32])].into(),
        }),
        ..Options::default()
    };
    let store = EmbeddedStore::open(folder.path(), rotated).expect("both keys");
    assert_eq!(state(&store, 1).await, Some(StateName::Completed));
}

fn small_segments(clock: &ManualClock) -> Options {
    Options {
        segment_bytes: 1 << 20,
        clock: Some(Arc::new(clock.clone())),
        ..Options::default()
    }
}

#[tokio::test]
async fn l7_expired_space_comes_back_though_an_old_operation_lives_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let options = || small_segments(&clock);
    let store = EmbeddedStore::open(folder.path(), options()).expect("new");
    let old = claim(&store, 0).await;
    for number in 1..300 {
        finish(&store, number, &noise(60_000)).await;
    }
    let held = store.status().bytes;
    assert!(held > 16 << 20, "{held}");
    clock.advance(WINDOW);
    assert_eq!(store.sweep().await.expect("a sweep").records, 299);
    for _ in 0..20 {
        store.sweep().await.expect("a sweep");
    }
    let left = store.status().bytes;
    assert!(left < 6 << 20, "{left} of {held} are left");
    assert_eq!(state(&store, 0).await, Some(StateName::InFlight));
    complete(&store, &old, 0, b"late").await;
    store.close().await.expect("it closes");
    drop(store);

    let store = EmbeddedStore::open(folder.path(), options()).expect("it opens");
    assert_eq!(state(&store, 0).await, Some(StateName::Completed));
    let left = store.sweep().await.expect("a sweep");
    assert!(
        left.records < 100,
        "the expired records are in the log still: {left:?}"
    );
    for number in 1..300 {
        assert_eq!(state(&store, number).await, None);
    }
}

#[tokio::test]
async fn l7_expired_space_comes_back_though_a_catalog_could_not_be_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let options = small_segments(&clock);
    let store = EmbeddedStore::open(folder.path(), options).expect("new");
    // What stands where the catalogs of the first segments are to be made.
    let in_the_way: Vec<_> = (1..4)
        .map(|number| folder.path().join(format!("seg-{number:08}.idx.new")))
        .collect();
    for path in &in_the_way {
        fs::create_dir(path).expect("a folder");
    }
    for number in 0..300 {
        finish(&store, number, &noise(60_000)).await;
    }
    for path in &in_the_way {
        fs::remove_dir(path).expect("it is there");
    }
    let held = store.status().bytes;
    clock.advance(WINDOW);
    store.sweep().await.expect("a sweep");
    let left = store.status().bytes;
    assert!(left < 6 << 20, "{left} of {held} are left");
}

/// A soak had found it: a sweep that moves a few segments, however small they are, falls behind a load that
/// leaves something in each of them that lives on.
#[tokio::test]
async fn l7_one_sweep_frees_every_small_segment_in_which_little_lives_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let options = small_segments(&clock);
    let store = EmbeddedStore::open(folder.path(), options).expect("new");
    for number in 0..300 {
        let record = claim(&store, number).await;
        if number % 10 > 0 {
            complete(&store, &record, number, &noise(60_000)).await;
        }
    }
    clock.advance(WINDOW);
    let held = store.status().bytes;
    store.sweep().await.expect("a sweep");
    let left = store.status().bytes;
    assert!(left < 5 << 20, "{left} of {held} are left");
    for number in (0..300).step_by(10) {
        assert_eq!(state(&store, number).await, Some(StateName::InFlight));
    }
}

#[tokio::test]
async fn l7_expired_space_comes_back_though_an_old_record_is_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let options = small_segments(&clock);
    let store = EmbeddedStore::open(folder.path(), options).expect("new");
    claim(&store, 0).await;
    for number in 1..300 {
        finish(&store, number, &noise(60_000)).await;
    }
    let old = at(&store, 0);
    let path = folder.path().join("seg-00000001.log");
    let mut segment = fs::read(&path).expect("the first segment");
    let head = segment
        .windows(16)
        .position(|found| found == old.as_bytes());
    segment[head.expect("its entry") + 32] ^= 0x40;
    fs::write(&path, segment).expect("written");

    let held = store.status().bytes;
    clock.advance(WINDOW);
    for _ in 0..20 {
        store.sweep().await.expect("a sweep");
    }
    let left = store.status().bytes;
    assert!(left < 6 << 20, "{left} of {held} are left");
    let held = store.load(old).await;
    assert!(matches!(held, Err(StoreError::Corrupt(_))), "{held:?}");
}

/// Fills a store until it takes no claim; how many it took. Whatever is claimed can be completed.
async fn fill(store: &EmbeddedStore) -> u32 {
    for number in 0..100 {
        match try_claim(store, number).await {
            Ok(record) => complete(store, &record, number, &noise(100_000)).await,
            Err(full) => {
                assert!(matches!(full, StoreError::Full(_)), "{full:?}");
                return number;
            }
        }
    }
    panic!("the limit does not hold");
}

/// Claims once that is possible again: the next segment is made in the background.
async fn claim_once_there_is_space(store: &EmbeddedStore, number: u32) -> Record {
    for _ in 0..1_000_000 {
        match try_claim(store, number).await {
            Ok(record) => return record,
            Err(StoreError::Full(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the store stays full");
}

fn full_at_4_mib(clock: &ManualClock) -> Options {
    Options {
        max_bytes: 4 << 20,
        ..small_segments(clock)
    }
}

#[tokio::test]
async fn i15_a_full_store_takes_no_claim_and_works_again_when_there_is_space() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let store = EmbeddedStore::open(folder.path(), full_at_4_mib(&clock)).expect("new");
    let open = claim(&store, 500).await;
    let number = fill(&store).await;
    assert!(number > 10, "it took {number}");
    assert!(store.status().poisoned.is_none());
    // What runs already has its outcome told all the same.
    complete(&store, &open, 500, &noise(100_000)).await;
    assert_eq!(state(&store, 500).await, Some(StateName::Completed));
    assert!(matches!(
        try_claim(&store, 1_001).await,
        Err(StoreError::Full(_))
    ));

    clock.advance(WINDOW);
    store.sweep().await.expect("a sweep");
    let record = claim_once_there_is_space(&store, 1_001).await;
    complete(&store, &record, 1_001, b"there is space").await;
}

#[tokio::test]
async fn l6_a_store_that_is_full_to_the_last_byte_comes_back_though_something_old_lives_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let store = EmbeddedStore::open(folder.path(), full_at_4_mib(&clock)).expect("new");
    let old = claim(&store, 2_000).await;
    let open = claim(&store, 500).await;
    fill(&store).await;
    // Notes of attempts take what is left.
    for _ in 0..20_000 {
        let noted = store.note_attempt(at(&store, 2_000), old.id, note());
        noted.await.expect("it counts");
    }
    assert!(matches!(
        try_claim(&store, 1_001).await,
        Err(StoreError::Full(_))
    ));
    // An operator can settle what is open.
    let next = transition::expire(
        Some(&open),
        open.fence(),
        UnknownReason::LeasePassed,
        {
            clock.advance(LEASE);
            store.now()
        },
        std::num::NonZero::<u32>::MIN,
    );
    let write = Write {
        record: next.expect("its lease has passed"),
        last_chunk: None,
        attempt: None,
    };
    let swap = store.compare_and_set(at(&store, 500), Some(open.fence()), write);
    assert!(matches!(swap.await, Ok(Swap::Done { .. })));

    clock.advance(WINDOW);
    for _ in 0..3 {
        store.sweep().await.expect("a sweep");
    }
    assert_eq!(state(&store, 2_000).await, Some(StateName::InFlight));
    claim_once_there_is_space(&store, 1_001).await;
    let held = store.status().bytes;
    assert!(held <= 4 << 20, "{held} are held");
}

#[tokio::test]
async fn i16_nobody_but_the_owner_reads_the_folder() {
    use std::os::unix::fs::PermissionsExt;

    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("data");
    let store = open(&folder).expect("new");
    claim(&store, 1).await;
    store.close().await.expect("it closes");
    let mode = |path: &Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(&folder), 0o700);
    for entry in fs::read_dir(&folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

/// Books until nothing is left to book.
async fn book(store: &EmbeddedStore) {
    while store.book().await.expect("booked").more {}
}

/// Completes operation `number`.
async fn finish(store: &EmbeddedStore, number: u32, body: &[u8]) -> OperationId {
    let record = claim(store, number).await;
    complete(store, &record, number, body).await;
    record.id
}

/// The operations that have an entry, each once, as the sums say too.
async fn entered(store: &EmbeddedStore) -> BTreeSet<OperationId> {
    let feed = store.feed(None, usize::MAX).await.expect("a feed");
    assert!(
        feed.is_sorted_by(|(one, _), (next, _)| one < next),
        "positions rise"
    );
    let ids: BTreeSet<_> = feed.iter().map(|(_, entry)| entry.id).collect();
    assert_eq!(ids.len(), feed.len(), "an operation has two entries");
    assert_eq!(total(store).await.get(Count::Operations), ids.len() as i64);
    ids
}

async fn total(store: &EmbeddedStore) -> Sums {
    let query = SumsQuery {
        grain: Grain::Hour,
        since: Timestamp::default(),
        until: Timestamp::from_millis(u64::MAX),
        of: Of::All,
    };
    let mut total = Sums::default();
    for cell in store.sums(query).await.expect("sums") {
        total.merge(&cell.sums);
    }
    total
}

/// Opens `image` again and again: each operation of keys 0 to `keys` that is completed has one entry, and
/// no other has one. Gives how many there are.
async fn assert_booked_once(image: &TempDir, keys: u32) -> usize {
    // Killed before it books, and after it did.
    drop(open(image.path()).expect("a crash is no damage"));
    let mut expected = None;
    for _restart in 0..2 {
        let store = open(image.path()).expect("a crash is no damage");
        book(&store).await;
        let mut completed = BTreeSet::new();
        for number in 0..keys {
            let held = store.load(at(&store, number)).await.expect("readable");
            let record = held.map(|held| held.record);
            let record = record.filter(|record| record.state.name() == StateName::Completed);
            completed.extend(record.map(|record| record.id));
        }
        assert_eq!(entered(&store).await, completed);
        assert_eq!(*expected.get_or_insert(completed.len()), completed.len());
    }
    // More comes behind it, and does not meet what was torn.
    let store = open(image.path()).expect("it opens");
    finish(&store, keys, b"later").await;
    book(&store).await;
    let store = {
        drop(store);
        open(image.path()).expect("it opens")
    };
    let count = expected.unwrap_or_default();
    assert_eq!(entered(&store).await.len(), count + 1);
    remove(&store, keys).await;
    count
}

async fn remove(store: &EmbeddedStore, number: u32) {
    let held = store.load(at(store, number)).await;
    let fence = held.expect("readable").expect("held").record.fence();
    assert!(
        store
            .remove(at(store, number), fence)
            .await
            .expect("removed")
    );
}

/// The images between `old` and `new` that a power cut can leave of the file `name`: a prefix of what was
/// written, or all but the front, or all but a sector. The file may be new, or longer than before.
fn torn(old: &[u8], new: &[u8], step: usize) -> Vec<Vec<u8>> {
    let before = |at: usize| old.get(at).copied().unwrap_or(0);
    let changed: Vec<usize> = (0..new.len())
        .filter(|&at| at >= old.len() || new[at] != old[at])
        .collect();
    let (Some(&start), Some(&last)) = (changed.first(), changed.last()) else {
        return vec![new.to_vec()];
    };
    let with = |kept: &dyn Fn(usize) -> bool, len: usize| -> Vec<u8> {
        (0..len)
            .map(|at| if kept(at) { new[at] } else { before(at) })
            .collect()
    };
    let mut images = vec![old.to_vec(), new.to_vec()];
    for at in (start..=last).step_by(step) {
        images.push(with(&|byte| byte < at, new.len()));
        images.push(with(&|byte| byte >= at, new.len()));
        images.push(with(&|_| true, at.max(old.len())));
    }
    let sector = |at: usize| -> Range<usize> { at / 512 * 512..at / 512 * 512 + 512 };
    for at in (start..=last).step_by(512) {
        images.push(with(&|byte| !sector(at).contains(&byte), new.len()));
    }
    images
}

fn file(folder: &TempDir, name: &str) -> Vec<u8> {
    fs::read(folder.path().join(name)).unwrap_or_default()
}

/// The head of a batch far ahead in segment `segment`, as somebody writes it who knows all but the folder's secret.
fn forged_head(segment: u32) -> Vec<u8> {
    let mut head = vec![0x0b, 0x47, 0xc4, 0x01];
    head.extend(1_000_000_u64.to_be_bytes());
    head.extend([0; 8]);
    head.extend(crc_from(segment, &head));
    head
}

fn crc_from(initial: u32, bytes: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new_with_initial(initial);
    hasher.update(bytes);
    hasher.finalize().to_be_bytes()
}

#[tokio::test]
async fn i13_what_an_answer_says_does_not_make_damage_of_a_torn_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    finish(&store, 0, b"hello").await;
    let record = claim(&store, 1).await;
    let before = killed_copy(folder.path());
    let forged = forged_head(1);
    // So that it is stored as it is: packing it saves too little.
    let noise = noise(1_200);
    let body = [&noise[..600], &forged, &noise[600..]].concat();
    complete(&store, &record, 1, &body).await;
    let log = "seg-00000001.log";
    let (old, new) = (file(&before, log), file(&killed_copy(folder.path()), log));
    let mut changed = (0..new.len()).filter(|&at| new[at] != old[at]);
    let start = changed.next().expect("a commit");
    let end = changed.next_back().expect("more than a byte") + 1;
    // All of it reached the disk but its head and its trailer.
    let mut bytes = new.clone();
    for lost in [start..start + 24, end - 32..end] {
        bytes[lost.clone()].copy_from_slice(&old[lost]);
    }
    assert!(
        bytes.windows(24).any(|window| window == forged),
        "it stands there as it came"
    );
    let image = killed_copy(before.path());
    fs::write(image.path().join(log), bytes).expect("written");
    let store = open(image.path()).expect("a torn end is no damage");
    let held = store.load(at(&store, 1)).await.expect("readable");
    assert!(held.is_some(), "it was claimed");
}

#[tokio::test]
async fn a_log_of_before_the_first_release_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    finish(&store, 0, b"hello").await;
    let old = killed_copy(folder.path());
    let path = old.path().join("seg-00000001.log");
    let mut bytes = fs::read(&path).expect("the log");
    bytes[8..12].copy_from_slice(&2_u32.to_be_bytes());
    let crc = crc_from(1, &bytes[..24]);
    bytes[24..28].copy_from_slice(&crc);
    fs::write(&path, &bytes).expect("written");
    let refused = open(old.path()).expect_err("it opens");
    assert!(
        matches!(refused, OpenError::Older { format: 2 }),
        "{refused}"
    );
    assert_eq!(fs::read(&path).expect("the log"), bytes, "it was touched");
}

#[tokio::test]
async fn i08_a_kill_between_any_two_steps_books_each_operation_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    let mut images = Vec::new();
    for number in 0..12 {
        let record = claim(&store, number).await;
        images.push((killed_copy(folder.path()), number));
        complete(&store, &record, number, b"hello").await;
        images.push((killed_copy(folder.path()), number + 1));
        if number % 3 == 2 {
            book(&store).await;
            images.push((killed_copy(folder.path()), number + 1));
        }
        if number % 5 == 4 {
            store.sweep().await.expect("swept");
            images.push((killed_copy(folder.path()), number + 1));
        }
    }
    claim(&store, 12).await;
    store.close().await.expect("it closes");
    images.push((killed_copy(folder.path()), 12));
    for (image, completed) in images {
        assert_eq!(assert_booked_once(&image, 13).await, completed as usize);
    }
}

#[tokio::test]
async fn i08_a_torn_commit_completes_with_its_entry_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    for number in 0..3 {
        finish(&store, number, b"hello").await;
    }
    book(&store).await;
    let record = claim(&store, 3).await;
    let before = killed_copy(folder.path());
    complete(&store, &record, 3, &noise(700)).await;
    let log = "seg-00000001.log";
    let (old, new) = (file(&before, log), file(&killed_copy(folder.path()), log));
    let mut counts = BTreeSet::new();
    for bytes in torn(&old, &new, 61) {
        let image = killed_copy(before.path());
        fs::write(image.path().join(log), bytes).expect("written");
        counts.insert(assert_booked_once(&image, 4).await);
    }
    assert_eq!(counts, [3, 4].into());
}

/// Batches of an empty log had the numbers again of those that the books knew, and were taken for booked.
#[tokio::test]
async fn i08_what_follows_an_empty_log_comes_into_the_books() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let options = || Options {
        clock: Some(Arc::new(clock.clone())),
        ..Options::default()
    };
    let store = EmbeddedStore::open(folder.path(), options()).expect("new");
    finish(&store, 0, b"hello").await;
    book(&store).await;
    store.close().await.expect("it closes");
    drop(store);
    clock.advance(WINDOW);
    let store = EmbeddedStore::open(folder.path(), options()).expect("it opens");
    store.sweep().await.expect("a sweep");
    store.close().await.expect("it closes");
    drop(store);
    let log_is_empty = |folder: &Path| {
        let names = fs::read_dir(folder).expect("the folder");
        let mut names = names.map(|entry| entry.expect("an entry").file_name());
        names.all(|name| !name.to_string_lossy().ends_with(".log"))
    };
    assert!(log_is_empty(folder.path()), "a segment is left");

    let store = EmbeddedStore::open(folder.path(), options()).expect("it opens");
    let id = finish(&store, 1, b"hello").await;
    let image = killed_copy(folder.path());
    let store = EmbeddedStore::open(image.path(), options()).expect("it opens after the kill");
    book(&store).await;
    assert!(entered(&store).await.contains(&id), "it has no entry");
}

#[tokio::test]
async fn i08_a_torn_block_of_the_books_is_booked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    // The first block, with its file, and one behind it.
    for round in 0..2 {
        for number in round * 20..round * 20 + 20 {
            finish(&store, number, b"hello").await;
        }
        let before = killed_copy(folder.path());
        book(&store).await;
        let name = "book-00000001.dat";
        let (old, new) = (file(&before, name), file(&killed_copy(folder.path()), name));
        assert!(new.len() > old.len());
        for bytes in torn(&old, &new, 97) {
            let image = killed_copy(before.path());
            fs::write(image.path().join(name), bytes).expect("written");
            let count = assert_booked_once(&image, 40).await;
            assert_eq!(count, round as usize * 20 + 20);
        }
    }
}

#[tokio::test]
async fn i08_a_torn_or_old_snapshot_changes_no_sum() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).expect("new");
    let mut snapshots = vec![Vec::new()];
    let mut store = Some(store);
    for round in 0..3 {
        let open_now = match store.take() {
            Some(store) => store,
            None => open(folder.path()).expect("it opens"),
        };
        for number in round * 10..round * 10 + 10 {
            finish(&open_now, number, b"hello").await;
        }
        let posting = Posting {
            at: open_now.now(),
            account: Default::default(),
            sums: [(Count::Replayed, 1)].into_iter().collect(),
        };
        open_now.post(vec![posting]).await.expect("posted");
        open_now.close().await.expect("it closes");
        snapshots.push(file(&folder, "sums"));
    }
    for (at, whole) in snapshots.iter().enumerate() {
        for new in torn(&[], whole, 23) {
            let image = killed_copy(folder.path());
            let name = image.path().join("sums");
            // Beside its name it may be torn; under its name it is whole, or an older one.
            fs::write(image.path().join("sums.new"), &new).expect("written");
            match at {
                0 => fs::remove_file(name).expect("there is one"),
                _ => fs::write(name, whole).expect("written"),
            }
            assert_eq!(assert_booked_once(&image, 30).await, 30);
            let store = open(image.path()).expect("it opens");
            assert_eq!(total(&store).await.get(Count::Replayed), 3);
        }
    }
}

#[tokio::test]
async fn i08_what_is_moved_to_give_space_back_is_not_booked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let options = || small_segments(&clock);
    let store = EmbeddedStore::open(folder.path(), options()).expect("new");
    let mut ids = BTreeSet::new();
    for number in 0..60 {
        ids.insert(finish(&store, number, &noise(60_000)).await);
    }
    clock.advance(WINDOW / 2);
    for number in 60..300 {
        ids.insert(finish(&store, number, &noise(60_000)).await);
        if number % 8 != 0 {
            remove(&store, number).await;
        }
    }
    clock.advance(WINDOW / 2);
    let before = log_bytes(&folder);
    for _ in 0..20 {
        store.sweep().await.expect("swept");
    }
    assert!(log_bytes(&folder) < before / 2, "nothing was moved");
    let image = killed_copy(folder.path());
    let store = EmbeddedStore::open(image.path(), options()).expect("it opens");
    book(&store).await;
    assert_eq!(entered(&store).await, ids);
}

fn log_bytes(folder: &TempDir) -> u64 {
    let segments = fs::read_dir(folder.path()).expect("the folder");
    segments
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".log"))
        .map(|entry| entry.metadata().expect("a file").len())
        .sum()
}

#[tokio::test]
async fn i12_while_the_books_cannot_be_written_the_log_keeps_what_is_to_be_booked() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::default();
    let options = || small_segments(&clock);
    let store = EmbeddedStore::open(folder.path(), options()).expect("new");
    let in_the_way = folder.path().join("book-00000001.dat");
    fs::create_dir(&in_the_way).expect("a folder");
    let mut ids = BTreeSet::new();
    for number in 0..100 {
        ids.insert(finish(&store, number, &noise(60_000)).await);
    }
    assert!(matches!(
        store.book().await,
        Err(StoreError::Unavailable(_))
    ));
    clock.advance(WINDOW);
    assert_eq!(store.sweep().await.expect("swept").records, 100);
    assert!(store.status().poisoned.is_none());
    // A kill now, and the books can be written again.
    let image = killed_copy(folder.path());
    let again = EmbeddedStore::open(image.path(), options()).expect("it opens");
    book(&again).await;
    assert_eq!(entered(&again).await, ids);

    fs::remove_dir(&in_the_way).expect("removed");
    let before = log_bytes(&folder);
    store.sweep().await.expect("swept");
    assert_eq!(entered(&store).await, ids);
    assert!(log_bytes(&folder) < before / 2, "what is booked is dropped");
}

#[tokio::test]
async fn i13_rot_in_the_books_makes_no_key_unreadable() {
    let (folder, store) = in_use().await;
    store.close().await.expect("it closes");
    for name in ["book-00000001.dat", "sums"] {
        let whole = file(&folder, name);
        for at in 0..whole.len() {
            let image = killed_copy(folder.path());
            let mut bytes = whole.clone();
            bytes[at] ^= 0x04;
            fs::write(image.path().join(name), bytes).expect("written");
            let Ok(store) = open(image.path()) else {
                panic!("it does not open after byte {at} of {name}");
            };
            for number in 1..3 {
                assert_eq!(state(&store, number).await, Some(StateName::Completed));
            }
            book(&store).await;
            assert_eq!(total(&store).await.get(Count::Operations), 2);
            let feed = store.feed(None, usize::MAX).await.expect("a feed");
            let is_whole = feed.len() == 2 || name != "sums";
            assert!(is_whole && feed.len() <= 2, "byte {at} of {name}");
        }
    }
}
