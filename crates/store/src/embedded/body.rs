//! What stands inside an entry.
//!
//! ```text
//! record    [attempts varint][1 + attempt | 0][record length varint][record][last chunk]
//! chunk     [id 16][claim varint][number varint][bytes]
//! attempt   [id 16][attempt]
//! removal   [id 16]
//! ```

use std::borrow::Borrow;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::{
    Address, Attempt, Entry, Epoch, OperationId, Record, RecordingId, State, Timestamp,
};

use super::{
    catalog::{RecordItem, What},
    layout::{EntryHead, FLAG_MOVED, FLAG_PACKED, FLAG_SEALED, Kind},
    log::MOST_ENTRY,
};
use crate::{
    StoreError,
    codec::{self, put_block, put_varint, take_attempt, take_block, take_varint},
    corrupt,
    pack::{pack, unpack},
    seal::Sealer,
    tag,
};

/// The body of a record's entry.
#[derive(Clone, Debug)]
pub struct RecordBody<R = Record> {
    /// Attempts so far.
    pub attempts: u32,
    /// The attempt that executes, or executed.
    pub executing: Option<Attempt>,
    pub record: R,
    /// The last chunk of the recording; empty for none.
    pub last_chunk: Bytes,
}

impl<R: Borrow<Record>> RecordBody<R> {
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(512 + self.last_chunk.len());
        put_varint(&mut out, self.attempts.into());
        match &self.executing {
            Some(attempt) => {
                out.put_u8(1);
                codec::encode_attempt(attempt, &mut out);
            }
            None => out.put_u8(0),
        }
        let mut record = BytesMut::with_capacity(512);
        codec::encode(self.record.borrow(), &mut record);
        put_block(&mut out, &record);
        out.put_slice(&self.last_chunk);
        out
    }

    /// What the index keeps of it.
    pub fn item(&self, secret: &[u8; 32]) -> RecordItem {
        let record = self.record.borrow();
        let chunks = match &record.state {
            // The last one lies with the record.
            State::Completed(completed) => completed.chunks.saturating_sub(1),
            _ => 0,
        };
        RecordItem {
            id: record.id,
            epoch: record.epoch.number() as u32,
            claim: record.claim.number() as u32,
            attempts: self.attempts,
            until: record.until().map_or(0, Timestamp::as_millis),
            chunks,
            tenant_tag: tag(secret, &record.scope.tenant),
            state: record.state.name(),
        }
    }
}

impl RecordBody {
    pub fn decode(mut body: Bytes) -> Result<Self, StoreError> {
        let attempts = take_varint(&mut body, "attempts").map_err(corrupt)? as u32;
        let executing = match body.try_get_u8() {
            Ok(0) => None,
            Ok(1) => Some(take_attempt(&mut body).map_err(corrupt)?),
            _ => return Err(corrupt("the record's head does not decode")),
        };
        let record = take_block(&mut body, "length").map_err(corrupt)?;
        let record = codec::decode(record).map_err(corrupt)?;
        Ok(Self {
            attempts,
            executing,
            record,
            last_chunk: body,
        })
    }
}

pub fn encode_chunk(recording: RecordingId, number: u32, bytes: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(32 + bytes.len());
    out.put_slice(recording.operation.as_bytes());
    put_varint(&mut out, recording.claim.number());
    put_varint(&mut out, number.into());
    out.put_slice(bytes);
    out
}

pub fn encode_attempt(id: OperationId, attempt: &Attempt) -> BytesMut {
    let mut out = BytesMut::with_capacity(96);
    out.put_slice(id.as_bytes());
    codec::encode_attempt(attempt, &mut out);
    out
}

/// Takes a chunk's body apart: whose it is, its number, its bytes.
pub fn decode_chunk(mut body: Bytes) -> Result<(RecordingId, u32, Bytes), StoreError> {
    let recording = RecordingId {
        operation: take_id(&mut body)?,
        claim: Epoch::new(take_varint(&mut body, "claim").map_err(corrupt)?),
    };
    let number = take_varint(&mut body, "chunk").map_err(corrupt)? as u32;
    Ok((recording, number, body))
}

/// Takes an attempt's body apart.
pub fn decode_attempt(mut body: Bytes) -> Result<(OperationId, Attempt), StoreError> {
    let id = take_id(&mut body)?;
    Ok((id, take_attempt(&mut body).map_err(corrupt)?))
}

fn take_id(body: &mut Bytes) -> Result<OperationId, StoreError> {
    let id = *body
        .first_chunk()
        .ok_or_else(|| corrupt("the entry has no id"))?;
    body.advance(16);
    Ok(OperationId::from_bytes(id))
}

/// What is read of an entry of the log.
pub struct Described {
    /// What the index keeps of it.
    pub what: What,
    /// The latest time that it speaks of.
    pub latest: u64,
    /// What comes into the books with it.
    pub entry: Option<Entry>,
}

/// Reads an entry whose opened body is `body`.
pub fn describe(head: &EntryHead, body: Bytes, secret: &[u8; 32]) -> Result<Described, StoreError> {
    let mut entry = None;
    let (what, latest) = match head.kind {
        Kind::Record => {
            let body = RecordBody::decode(body)?;
            let latest = match &body.record.state {
                State::Completed(completed) => completed.completed_at,
                State::Unknown { since, .. } | State::Released { since, .. } => *since,
                State::InFlight { .. } => body.record.claimed_at,
            };
            if head.flags & FLAG_MOVED == 0 {
                entry = Entry::of(&body.record);
            }
            (What::Record(body.item(secret)), latest.as_millis())
        }
        Kind::Chunk => {
            let (recording, number, _) = decode_chunk(body)?;
            let what = What::Chunk {
                id: recording.operation,
                claim: recording.claim.number() as u32,
                number,
            };
            (what, 0)
        }
        Kind::Attempt => {
            let (id, attempt) = decode_attempt(body)?;
            (
                What::Attempt {
                    id,
                    number: attempt.number,
                },
                attempt.at.as_millis(),
            )
        }
        Kind::Removal => (What::Removal, 0),
    };
    Ok(Described {
        what,
        latest,
        entry,
    })
}

/// Makes a plain body what stands in its entry: packed where that saves something, sealed where
/// there is a sealer. Gives the head of the entry with it.
pub fn close(
    sealer: Option<&Sealer>,
    kind: Kind,
    address: Address,
    plain: BytesMut,
) -> Result<(EntryHead, BytesMut), StoreError> {
    let mut head = EntryHead {
        kind,
        flags: 0,
        address,
    };
    let body = match pack(&plain) {
        Some(packed) => {
            head.flags |= FLAG_PACKED;
            packed
        }
        None => plain,
    };
    let Some(sealer) = sealer else {
        return Ok((head, body));
    };
    head.flags |= FLAG_SEALED;
    let sealed = sealer.seal(&associated(&head), &body).map_err(|error| {
        StoreError::Unavailable(format!("a record could not be encrypted: {error}"))
    })?;
    Ok((head, sealed))
}

/// Opens the body of an entry.
pub fn open(sealer: Option<&Sealer>, head: &EntryHead, body: Bytes) -> Result<Bytes, StoreError> {
    let body = match (head.flags & FLAG_SEALED != 0, sealer) {
        (false, _) => body,
        (true, Some(sealer)) => sealer.open(&associated(head), &body).map_err(corrupt)?,
        (true, None) => return Err(corrupt("it is encrypted and no key is configured")),
    };
    if head.flags & FLAG_PACKED != 0 {
        unpack(body, 2 * MOST_ENTRY).map_err(corrupt)
    } else {
        Ok(body)
    }
}

fn associated(head: &EntryHead) -> [u8; 18] {
    let mut out = [0; 18];
    out[0] = head.kind.number();
    out[1] = head.flags & !FLAG_MOVED;
    out[2..].copy_from_slice(head.address.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{Completed, Fingerprint, Head, HeaderBlock, Key, RequestLine, Scope};

    use super::*;

    fn round_trip(plain: &[u8]) -> (u8, usize) {
        let address = Address::from_bytes([1; 16]);
        let (head, body) = close(None, Kind::Chunk, address, plain.into()).expect("closed");
        let len = body.len();
        assert_eq!(
            open(None, &head, body.freeze()).as_deref().ok(),
            Some(plain)
        );
        (head.flags, len)
    }

    #[test]
    fn what_repeats_is_packed_and_what_does_not_is_left() {
        let (flags, len) = round_trip("{\"answer\": \"yes\"}".repeat(100).as_bytes());
        assert!(flags == FLAG_PACKED && len < 200, "{len}");
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(2_000)
        .collect();
        assert_eq!(round_trip(&noise), (0, 2_000));
        assert_eq!(round_trip(b"short"), (0, 5));
    }

    /// What a record takes beside an answer that does not pack.
    #[test]
    fn a_record_takes_little_beside_its_answer() {
        let fields = [
            ("server", "nginx/1.22.1"),
            ("date", "Thu, 26 Nov 2026 18:29:31 GMT"),
            ("content-type", "application/json"),
            ("content-length", "1024"),
        ];
        let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let record = Record {
            id: OperationId::new(1_795_717_771_000, &[7; 10]),
            scope: Scope {
                tenant: "anonymous".into(),
                namespace: "127.0.0.1:45678".into(),
            },
            key: Key::new("million-1-123456").expect("a key"),
            fingerprint: Fingerprint::from_bytes(*blake3::hash(b"a request").as_bytes()),
            epoch: Epoch::new(2),
            claim: Epoch::new(1),
            claimed_at: Timestamp::from_millis(1_795_717_771_000),
            request: RequestLine {
                route: "default".into(),
                method: "POST".into(),
                path: "/v1".into(),
                trace: None,
            },
            state: State::Completed(Completed {
                completed_at: Timestamp::from_millis(1_795_717_771_003),
                expires_at: Timestamp::from_millis(1_795_804_171_003),
                head: Head {
                    status: 200,
                    headers: HeaderBlock::pack(fields).expect("short fields"),
                },
                trailers: HeaderBlock::default(),
                body_len: 1024,
                chunks: 1,
            }),
            metered: None,
            entered: false,
            ruling: None,
        };
        let mut answer = vec![0; 1024];
        blake3::Hasher::new().finalize_xof().fill(&mut answer);
        let body = RecordBody {
            attempts: 1,
            executing: None,
            record,
            last_chunk: answer.into(),
        };
        let (flags, len) = round_trip(&body.encode());
        assert!(flags == FLAG_PACKED && len < 1024 + 180, "{len}");
    }
}
