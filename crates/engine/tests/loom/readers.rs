//! A writer and its readers (I3, I5).

use std::sync::Arc;

use bytes::Bytes;
use loom::{
    future::block_on,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};
use onlyonce_core::{
    Address, Epoch, Fingerprint, Head, HeaderBlock, Key, OperationId, OwnerId, Record, RequestLine,
    Scope, State, Timestamp, UnknownReason,
};
use onlyonce_store::MemoryStore;

use crate::{
    Broken, Kind, Settings, Shared, Ticket, in_every_order,
    live::{End, Live},
    reader::{Frame, Reader, Start},
    recording::Recording,
};

const ADDRESS: Address = Address::from_bytes([1; 16]);
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([2; 32]);

pub(crate) fn record() -> Arc<Record> {
    Arc::new(Record {
        id: OperationId::from_bytes([3; 16]),
        scope: Scope {
            tenant: "t".into(),
            namespace: "n".into(),
        },
        key: Key::new("k").expect("a key"),
        fingerprint: FINGERPRINT,
        epoch: Epoch::new(1),
        claim: Epoch::new(1),
        claimed_at: Timestamp::from_millis(0),
        request: RequestLine::default(),
        state: State::InFlight {
            owner: OwnerId::new(1),
            lease_until: Timestamp::from_millis(1),
            resend_of: None,
        },
        metered: None,
        entered: false,
        ruling: None,
    })
}

/// One execution, and whether its record is durable.
struct Execution {
    live: Arc<Live>,
    is_durable: Arc<AtomicBool>,
    shared: Arc<Shared<MemoryStore>>,
}

impl Execution {
    fn new() -> Self {
        let recording = Recording::default();
        Self {
            live: Arc::new(Live::continued(ADDRESS, FINGERPRINT, record(), recording)),
            is_durable: Arc::new(AtomicBool::new(false)),
            shared: Arc::new(Shared {
                store: Arc::new(MemoryStore::new()),
                settings: Settings::default(),
            }),
        }
    }

    fn reader(&self) -> Watched {
        let record = record();
        let ticket = Ticket {
            id: record.id,
            attempt: 1,
            claim: record.claim,
            expires_at: None,
            span: record.span(),
        };
        let (shared, live) = (self.shared.clone(), self.live.clone());
        Watched {
            reader: Reader::live(shared, live, ticket, None),
            is_durable: self.is_durable.clone(),
        }
    }

    fn head(&self, fields: &[(&[u8], &[u8])]) {
        let headers = HeaderBlock::pack(fields.iter().copied()).expect("short fields");
        let head = Head {
            status: 200,
            headers,
        };
        self.live
            .publish(|state| state.recording.set_head(head, Kind::Executed));
    }

    fn push(&self, bytes: &'static [u8]) {
        self.live
            .publish(|state| state.recording.push(Bytes::from_static(bytes)));
    }

    fn complete(&self) {
        self.is_durable.store(true, Relaxed);
        self.live.end(End::Completed { expires_at: None });
    }

    /// What a handle that is dropped does.
    fn lose(&self) {
        self.live.state.lock().doomed = true;
        self.live.end(End::Unknown(UnknownReason::Broke));
    }
}

/// A reader that may see what it sees.
struct Watched {
    reader: Reader<MemoryStore>,
    is_durable: Arc<AtomicBool>,
}

impl Watched {
    /// Reads to the end, or to where it breaks.
    fn read(mut self) -> (Vec<u8>, Result<(), Broken>) {
        block_on(async {
            let start = self.reader.start().await;
            if let Start::Unknown(reason) = start {
                return (Vec::new(), Err(Broken(reason)));
            }
            let mut body = Vec::new();
            loop {
                match self.reader.next().await {
                    Some(Ok(Frame::Data(bytes))) => {
                        body.extend_from_slice(&bytes);
                        // Who was told the length takes the last byte for the end.
                        if self.reader.remaining() == Some(0) {
                            assert!(self.is_durable.load(Relaxed), "the last byte");
                        }
                    }
                    Some(Ok(Frame::Trailers(_))) => panic!("there are no trailers"),
                    Some(Err(broken)) => {
                        assert_eq!(self.reader.next().await, Some(Err(broken)));
                        return (body, Err(broken));
                    }
                    None => {
                        assert!(self.is_durable.load(Relaxed), "an end before the record");
                        assert!(self.reader.is_end());
                        return (body, Ok(()));
                    }
                }
            }
        })
    }
}

#[test]
fn i03_two_readers_see_all_bytes_and_the_end_after_the_record() {
    in_every_order(Some(3), || {
        let execution = Execution::new();
        let readers = [(); 2].map(|()| {
            let reader = execution.reader();
            thread::spawn(move || assert_eq!(reader.read(), (b"abcd".to_vec(), Ok(()))))
        });
        execution.head(&[]);
        execution.push(b"ab");
        execution.push(b"cd");
        execution.complete();
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn i03_the_last_byte_of_a_declared_length_comes_after_the_record() {
    in_every_order(None, || {
        let execution = Execution::new();
        let reader = execution.reader();
        let reading = thread::spawn(move || assert_eq!(reader.read(), (b"abcd".to_vec(), Ok(()))));
        execution.head(&[(b"content-length", b"4")]);
        execution.push(b"ab");
        execution.push(b"cd");
        execution.complete();
        reading.join().unwrap();
    });
}

#[test]
fn i05_a_writer_that_is_dropped_is_never_a_clean_end() {
    in_every_order(Some(3), || {
        let execution = Execution::new();
        let readers = [(); 2].map(|()| {
            let reader = execution.reader();
            thread::spawn(move || {
                let (body, end) = reader.read();
                assert!(b"ab".starts_with(&body[..]));
                assert_eq!(end, Err(Broken(UnknownReason::Broke)));
            })
        });
        execution.head(&[]);
        execution.push(b"ab");
        execution.lose();
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn a_reader_that_comes_late_and_one_that_leaves_keep_nobody_from_the_end() {
    in_every_order(Some(3), || {
        let execution = Execution::new();
        let stays = execution.reader();
        let mut leaves = execution.reader();
        let staying = thread::spawn(move || assert_eq!(stays.read(), (b"ab".to_vec(), Ok(()))));
        let leaving = thread::spawn(move || {
            block_on(async {
                let once = std::future::poll_fn(|cx| {
                    let _ = leaves.reader.poll_start(cx);
                    std::task::Poll::Ready(())
                });
                once.await;
            });
            drop(leaves);
        });
        execution.head(&[]);
        execution.push(b"ab");
        let late = execution.reader();
        execution.complete();
        assert_eq!(late.read(), (b"ab".to_vec(), Ok(())));
        staying.join().unwrap();
        leaving.join().unwrap();
    });
}
