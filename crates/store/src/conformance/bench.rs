//! The bench on which a rule puts a store: makes records by the protocol and writes them.

use std::{
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use onlyonce_core::{
    Address, Basis, Cost, Fence, Fingerprint, Got, Head, HeaderBlock, Key, Metered, OperationId,
    OwnerId, Record, RecordingId, ReleaseReason, RequestLine, Scope, Source, Timestamp, TraceId,
    Unit, UnknownReason, Usd,
    transition::{self, Claim, Response},
};

use super::Subject;
use crate::{
    AttemptNote, Store, StoreError, Stored, Swap, Write,
    clock::{Clock, ManualClock},
};

pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const WINDOW: Duration = Duration::from_secs(24 * 3600);
pub(super) const RETENTION: Duration = Duration::from_secs(3600);
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
/// By how much a write raises the epoch that knows of all before it.
pub(super) const BY_ONE: NonZero<u32> = NonZero::<u32>::MIN;
pub(super) const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) struct Bench<S: Subject> {
    pub subject: S,
    pub clock: ManualClock,
    pub store: Arc<S::Store>,
    ids: AtomicU64,
}

/// A record that the store holds, and where.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub address: Address,
    pub record: Record,
}

impl Kept {
    pub fn id(&self) -> OperationId {
        self.record.id
    }

    pub fn fence(&self) -> Fence {
        self.record.fence()
    }

    pub fn recording(&self) -> RecordingId {
        self.record.recording()
    }
}

impl<S: Subject> Bench<S> {
    pub async fn new(mut subject: S) -> Self {
        let clock = ManualClock::default();
        let store = subject.make(clock.clone()).await;
        Self {
            subject,
            clock,
            store,
            ids: AtomicU64::new(0),
        }
    }

    /// Reopens the store; `None` where the backend keeps nothing.
    pub async fn reopened(self) -> Option<Self> {
        let Self {
            mut subject,
            clock,
            store,
            ids,
        } = self;
        let store = subject.reopen(store, clock.clone()).await?;
        Some(Self {
            subject,
            clock,
            store,
            ids,
        })
    }

    /// Damages what is kept at `address`; `None` where a test cannot.
    pub async fn damaged(self, address: Address) -> Option<Self> {
        let Self {
            mut subject,
            clock,
            store,
            ids,
        } = self;
        let store = subject.damage(store, clock.clone(), address).await?;
        Some(Self {
            subject,
            clock,
            store,
            ids,
        })
    }

    /// Damages the first chunk at `address`; `None` where a test cannot.
    pub async fn chunk_damaged(self, address: Address) -> Option<Self> {
        let Self {
            mut subject,
            clock,
            store,
            ids,
        } = self;
        let store = subject.damage_chunk(store, clock.clone(), address).await?;
        Some(Self {
            subject,
            clock,
            store,
            ids,
        })
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn address(&self, key: &str) -> Address {
        crate::address(self.store.secret(), &scope("acme"), &make_key(key))
    }

    /// What a claim of `key` is made of; each call gives a new id.
    pub fn claim_of(&self, key: &str) -> Claim {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        // Later ids sort after earlier ones within a millisecond too.
        let mut random = [0; 10];
        random[2..].copy_from_slice(&number.to_be_bytes());
        Claim {
            id: OperationId::new(self.now().as_millis(), &random),
            scope: scope("acme"),
            key: make_key(key),
            fingerprint: Fingerprint::from_bytes([7; 32]),
            request: RequestLine {
                route: "openai".into(),
                method: "POST".into(),
                path: "/v1/chat/completions".into(),
                trace: None,
            },
            owner: OwnerId::new(number),
            raise: self.raise(),
        }
    }

    /// As far as it may go.
    fn raise(&self) -> NonZero<u32> {
        match self.store.may_forget() {
            true => NonZero::<u32>::MAX,
            false => NonZero::<u32>::MIN,
        }
    }

    /// The record of a first claim of `key`, not written.
    pub fn first_claim(&self, key: &str) -> Record {
        self.claim_again(key, None)
    }

    /// The record of a claim of `key` over `held`, not written.
    pub fn claim_again(&self, key: &str, held: Option<&Record>) -> Record {
        transition::claim(held, self.claim_of(key), self.now(), LEASE).expect("a key to claim")
    }

    pub async fn swap(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        self.store.compare_and_set(address, expected, write).await
    }

    /// Writes `record` in the place of `expected` and expects to win; gives the attempts so far.
    pub async fn put(&self, address: Address, expected: Option<Fence>, write: Write) -> u32 {
        let text = format!("{:?} over {expected:?}", write.record.fence());
        match self.swap(address, expected, write).await {
            Ok(Swap::Done { attempts }) => attempts,
            other => panic!("{text} should have been written, and was {other:?}"),
        }
    }

    /// Writes `next` in the place of `kept`.
    pub async fn follow(&self, kept: &Kept, next: Record, last_chunk: Option<Bytes>) -> Kept {
        let write = Write {
            record: next.clone(),
            last_chunk,
            attempt: None,
        };
        self.put(kept.address, Some(kept.fence()), write).await;
        Kept {
            address: kept.address,
            record: next,
        }
    }

    pub async fn claimed(&self, key: &str) -> Kept {
        let record = self.first_claim(key);
        let address = self.address(key);
        self.put(address, None, claim_write(&record)).await;
        Kept { address, record }
    }

    pub async fn renewed(&self, kept: &Kept) -> Kept {
        let next = transition::renew(Some(&kept.record), kept.fence(), self.now(), LEASE, BY_ONE);
        self.follow(kept, next.expect("running"), None).await
    }

    /// Appends all chunks but the last, and completes with that.
    pub async fn completed(&self, kept: &Kept, chunks: &[Bytes]) -> Kept {
        let last = chunks.len().saturating_sub(1);
        for (number, chunk) in chunks[..last].iter().enumerate() {
            self.append(kept, number as u32, chunk.clone()).await;
        }
        let next = complete_record(&kept.record, chunks, self.now());
        self.follow(kept, next, chunks.last().cloned()).await
    }

    /// A completed operation with the body `hello`.
    pub async fn finished(&self, key: &str) -> Kept {
        let kept = self.claimed(key).await;
        self.completed(&kept, &[Bytes::from_static(b"hello")]).await
    }

    pub async fn lost(&self, kept: &Kept, reason: UnknownReason) -> Kept {
        let next = transition::lose(Some(&kept.record), kept.fence(), reason, self.now());
        self.follow(kept, next.expect("running"), None).await
    }

    pub async fn released(&self, kept: &Kept, reason: ReleaseReason) -> Kept {
        let (fence, now) = (kept.fence(), self.now());
        let next = transition::release(Some(&kept.record), fence, reason, now, RETENTION);
        self.follow(kept, next.expect("running"), None).await
    }

    pub async fn append(&self, kept: &Kept, chunk: u32, bytes: Bytes) {
        self.store
            .append(kept.address, kept.recording(), chunk, bytes)
            .await
            .expect("a running operation takes chunks");
    }

    pub async fn read(&self, kept: &Kept, chunk: u32) -> Result<Bytes, StoreError> {
        self.store.read(kept.address, kept.recording(), chunk).await
    }

    pub async fn note(&self, kept: &Kept, got: Got) -> u32 {
        self.store
            .note_attempt(kept.address, kept.id(), note(got))
            .await
            .expect("an operation takes attempts")
    }

    pub async fn load(&self, address: Address) -> Option<Stored> {
        self.store.load(address).await.expect("a readable record")
    }

    /// Checks that the store holds `kept` as it stands.
    pub async fn assert_holds(&self, kept: &Kept) {
        let stored = self.load(kept.address).await.expect("a record is held");
        assert_eq!(*stored.record, kept.record);
    }

    /// Checks that nothing counts at `address`, by claiming `key` there.
    pub async fn assert_free(&self, key: &str) -> Kept {
        self.claimed(key).await
    }

    /// Checks that a first claim of `key` loses.
    pub async fn assert_taken(&self, key: &str) {
        let write = claim_write(&self.first_claim(key));
        let swap = self.swap(self.address(key), None, write).await;
        assert_eq!(swap.expect("a store that answers"), Swap::Lost);
    }
}

pub(super) fn scope(tenant: &str) -> Scope {
    Scope {
        tenant: tenant.into(),
        namespace: "openai".into(),
    }
}

pub(super) fn make_key(key: &str) -> Key {
    Key::new(key).expect("a key")
}

pub(super) fn note(got: Got) -> AttemptNote {
    AttemptNote {
        peer: "192.0.2.7:4711".into(),
        sdk_retry_count: Some(2),
        trace: TraceId::from_bytes([7; 16]),
        got,
        at: None,
    }
}

pub(super) fn claim_write(record: &Record) -> Write {
    Write {
        record: record.clone(),
        last_chunk: None,
        attempt: Some(note(Got::Executed)),
    }
}

/// The record that completes `record` with a body of `chunks`.
pub(super) fn complete_record(record: &Record, chunks: &[Bytes], now: Timestamp) -> Record {
    let response = response_of(chunks);
    let completed = transition::complete(Some(record), record.fence(), response, now, WINDOW);
    Record {
        metered: Some(Box::new(metered())),
        ..completed.expect("an operation to complete")
    }
}

/// What an answer has told of its use.
fn metered() -> Metered {
    Metered {
        provider: "openai".into(),
        model: "gpt-5".into(),
        response_id: "chatcmpl-1".into(),
        usage: [(Unit::Input, 12), (Unit::Output, 345)]
            .into_iter()
            .collect(),
        source: Source::Provider,
        cost: Some(Cost {
            amount: Usd::from_nanos(3_465_000),
            basis: Basis::Table,
            version: "prices 1".into(),
        }),
        ..Metered::default()
    }
}

pub(super) fn response_of(chunks: &[Bytes]) -> Response {
    Response {
        head: Head {
            status: 200,
            headers: header_block(&[("content-type", "text/plain"), ("x", "1"), ("x", "2")]),
        },
        trailers: header_block(&[("grpc-status", "0")]),
        body_len: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        chunks: chunks.len() as u32,
    }
}

fn header_block(fields: &[(&str, &str)]) -> HeaderBlock {
    let fields = fields.iter();
    HeaderBlock::pack(fields.map(|(name, value)| (name.as_bytes(), value.as_bytes())))
        .expect("short fields")
}

/// `len` bytes that differ from those of another `seed`, and do not repeat soon.
pub(super) fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
