//! Stores, and operations to put into them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onlyonce_core::{
    Address, Count, Fingerprint, Got, Head, HeaderBlock, Key, Metered, OperationId, OwnerId,
    Record, RequestLine, Scope, Source, Timestamp, UnknownReason,
    transition::{self, Claim, Response},
};
use onlyonce_store::{
    AttemptNote, Books, PostgresStore, Store, StoreError, Swap, Write, address,
    books::{Grain, Of, SumsQuery},
    postgres::{Options, migrate},
};
use onlyonce_testkit::Postgres;

pub const LEASE: Duration = Duration::from_secs(30);
/// Who claims what is claimed here; the upper half of the numbers is none that the server has.
pub const OWNER: OwnerId = OwnerId::new(u64::MAX - 1);
pub const WINDOW: Duration = Duration::from_secs(24 * 3600);

/// The URL of a schema that nothing else uses, on a server that others use too.
pub fn fresh_url() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{}?schema=fresh_{number}", Postgres::shared().url())
}

/// The schema in `url`.
pub fn schema_of(url: &str) -> &str {
    url.split_once("schema=").expect("a schema").1
}

/// The store at `url`, made where it is not there.
pub async fn open(url: &str, options: Options) -> Arc<PostgresStore> {
    migrate(url, &options).await.expect("tables");
    let store = PostgresStore::connect(url, options).await;
    Arc::new(store.expect("it connects"))
}

/// A store of a test's own on the shared server.
pub async fn open_fresh() -> Arc<PostgresStore> {
    open(&fresh_url(), Options::default()).await
}

pub fn scope() -> Scope {
    Scope {
        tenant: "acme".into(),
        namespace: "openai".into(),
    }
}

pub fn at(store: &PostgresStore, key: &str) -> Address {
    address(store.secret(), &scope(), &Key::new(key).expect("a key"))
}

/// The record of a first claim of `key`, not written.
pub fn first_claim(store: &PostgresStore, key: &str) -> Record {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut random = [0; 10];
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    random[2..6].copy_from_slice(&number.to_be_bytes());
    let claim = Claim {
        id: OperationId::new(store.now().as_millis(), &random),
        scope: scope(),
        key: Key::new(key).expect("a key"),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        request: RequestLine::default(),
        owner: OWNER,
        raise: std::num::NonZero::<u32>::MIN,
    };
    transition::claim(None, claim, store.now(), LEASE).expect("absent")
}

pub fn note() -> AttemptNote {
    AttemptNote {
        peer: "192.0.2.7:4711".into(),
        sdk_retry_count: None,
        trace: None,
        got: Got::Executed,
        at: None,
    }
}

/// Writes `record` over what has `expected`.
pub async fn swap(
    store: &PostgresStore,
    key: &str,
    expected: Option<&Record>,
    record: &Record,
    last_chunk: Option<Bytes>,
) -> Result<Swap, StoreError> {
    let write = Write {
        record: record.clone(),
        last_chunk,
        attempt: expected.is_none().then(note),
    };
    let expected = expected.map(Record::fence);
    store.compare_and_set(at(store, key), expected, write).await
}

pub async fn try_claim(store: &PostgresStore, key: &str) -> Result<Record, StoreError> {
    let record = first_claim(store, key);
    match swap(store, key, None, &record, None).await? {
        Swap::Done { .. } => Ok(record),
        Swap::Lost => panic!("{key} is taken"),
    }
}

pub async fn claim(store: &PostgresStore, key: &str) -> Record {
    try_claim(store, key).await.expect("a store that answers")
}

/// The record that completes `record` with a body of `chunks`, the last of which is `last`.
pub fn completed(store: &PostgresStore, record: &Record, chunks: u32, last: &Bytes) -> Record {
    let response = Response {
        head: Head {
            status: 200,
            headers: HeaderBlock::default(),
        },
        trailers: HeaderBlock::default(),
        body_len: last.len() as u64,
        chunks,
    };
    let fence = record.fence();
    transition::complete(Some(record), fence, response, store.now(), WINDOW).expect("in flight")
}

/// The completed `record`, as it is where the books are kept.
pub fn metered(record: Record) -> Record {
    let metered = Metered {
        provider: "openai".into(),
        model: "gpt-5".into(),
        response_id: "PLAIN-response".into(),
        source: Source::Provider,
        ..Metered::default()
    };
    Record {
        metered: Some(Box::new(metered)),
        ..record
    }
}

/// Completes a new operation under `key`, with an entry.
pub async fn enter(store: &PostgresStore, key: &str) -> Record {
    let record = claim(store, key).await;
    let body = Bytes::from_static(b"hello");
    let next = metered(completed(store, &record, 1, &body));
    let swapped = swap(store, key, Some(&record), &next, Some(body)).await;
    assert!(matches!(swapped, Ok(Swap::Done { .. })), "{swapped:?}");
    next
}

/// Books all that is kept; gives how many entries that was.
pub async fn book(store: &PostgresStore) -> u64 {
    let mut entries = 0;
    loop {
        let booked = store.book().await.expect("booked");
        entries += booked.entries;
        if !booked.more {
            return entries;
        }
    }
}

/// The operations in the books, in order.
pub async fn booked(store: &PostgresStore) -> Vec<OperationId> {
    let feed = store.feed(None, 1_000_000).await.expect("a feed");
    assert!(feed.is_sorted_by(|(one, _), (next, _)| one < next));
    feed.into_iter().map(|(_, entry)| entry.id).collect()
}

/// How many operations the sums have, of all days.
pub async fn summed(store: &PostgresStore) -> i64 {
    let query = SumsQuery {
        grain: Grain::Day,
        since: Timestamp::from_millis(0),
        until: Timestamp::from_millis(u64::MAX),
        of: Of::All,
    };
    let cells = store.sums(query).await.expect("sums");
    cells
        .iter()
        .map(|cell| cell.sums.get(Count::Operations))
        .sum()
}

pub async fn complete(store: &PostgresStore, key: &str, record: &Record, body: &Bytes) -> Record {
    let next = completed(store, record, 1, body);
    let swapped = swap(store, key, Some(record), &next, Some(body.clone())).await;
    assert!(matches!(swapped, Ok(Swap::Done { .. })), "{swapped:?}");
    next
}

pub async fn finish(store: &PostgresStore, key: &str) -> Record {
    let record = claim(store, key).await;
    complete(store, key, &record, &"hello".into()).await
}

pub async fn lose(store: &PostgresStore, key: &str, record: &Record) -> Record {
    let (fence, now) = (record.fence(), store.now());
    let next = transition::lose(Some(record), fence, UnknownReason::Broke, now).expect("running");
    let swapped = swap(store, key, Some(record), &next, None).await;
    assert!(matches!(swapped, Ok(Swap::Done { .. })), "{swapped:?}");
    next
}

/// Checks that the store holds `record` under `key`.
pub async fn assert_holds(store: &PostgresStore, key: &str, record: &Record) {
    let stored = store.load(at(store, key)).await.expect("a readable record");
    assert_eq!(*stored.expect("a record").record, *record);
}
