//! What stands in the columns of bytes, and what a row must look like.
//!
//! ```text
//! operations.record   the record, while it is not completed
//! records.body        [record length varint][record][last chunk]
//! chunks.bytes        a chunk
//! *.attempt, .note    an attempt, whose number stands in a column of its own
//! tails.head          a head, as it is shown
//! frames.bytes        bytes of a body, as they are shown
//! ```
//!
//! Each is a [`parcel`](crate::parcel), and its label says what it belongs to.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use onlyonce_core::{
    Address, Attempt, OperationId, Record, RecordingId, State, StateName, Timestamp,
};

use crate::{
    AttemptNote, StoreError, Stored,
    codec::{self, put_block, take_attempt, take_block},
    corrupt,
    parcel::{self, Label},
    seal::Sealer,
};

const RECORD: u8 = 1;
const BODY: u8 = 2;
const CHUNK: u8 = 3;
const ATTEMPT: u8 = 4;
const HEAD: u8 = 5;
const FRAME: u8 = 6;
/// Of the books.
pub const ENTRY: u8 = 7;
pub const LETTER: u8 = 8;

/// A row of `operations`, with what lies beside it of its record.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: OperationId,
    pub epoch: u64,
    pub claim: u64,
    pub state: i16,
    pub until: Option<i64>,
    pub attempts: i32,
    pub record: Option<Bytes>,
    pub body: Option<Bytes>,
}

/// The number of a state in its column.
pub fn state_number(state: StateName) -> i16 {
    state.number().into()
}

/// The state whose number stands in a column.
pub fn state_name(number: i16) -> Option<StateName> {
    StateName::from_number(u8::try_from(number).ok()?)
}

/// A moment as the server keeps it. Its end of time is ours.
pub fn millis(moment: Timestamp) -> i64 {
    i64::try_from(moment.as_millis()).unwrap_or(i64::MAX)
}

/// The record that is not completed.
pub fn close_record(
    sealer: Option<&Sealer>,
    address: Address,
    record: &Record,
) -> Result<Bytes, StoreError> {
    let mut plain = BytesMut::with_capacity(512);
    codec::encode(record, &mut plain);
    parcel::close(sealer, &label(RECORD, address, record.id), &plain)
}

/// The completed record and its last chunk.
pub fn close_body(
    sealer: Option<&Sealer>,
    address: Address,
    record: &Record,
    last_chunk: &[u8],
) -> Result<Bytes, StoreError> {
    let mut encoded = BytesMut::with_capacity(1024);
    codec::encode(record, &mut encoded);
    let mut plain = BytesMut::with_capacity(encoded.len() + 4 + last_chunk.len());
    put_block(&mut plain, &encoded);
    plain.put_slice(last_chunk);
    parcel::close(sealer, &label(BODY, address, record.id), &plain)
}

/// Takes a row apart, and verifies that it is one and the same record in all its columns.
pub fn open_row(sealer: Option<&Sealer>, address: Address, row: Row) -> Result<Stored, StoreError> {
    let (record, last_chunk) = match (row.record, row.body) {
        (Some(record), None) => {
            let record = parcel::open(sealer, &label(RECORD, address, row.id), &record)?;
            (record, Bytes::new())
        }
        (None, Some(body)) => {
            let mut body = parcel::open(sealer, &label(BODY, address, row.id), &body)?;
            let record = take_block(&mut body, "length").map_err(corrupt)?;
            (record, body)
        }
        _ => return Err(corrupt("the record is not there")),
    };
    let record = codec::decode(record).map_err(corrupt)?;
    let is_whole = record.id == row.id
        && record.epoch.number() == row.epoch
        && record.claim.number() == row.claim
        && state_number(record.state.name()) == row.state
        && record.until().map(millis) == row.until;
    if !is_whole {
        return Err(corrupt(
            "the columns of its row are not those of the record",
        ));
    }
    let wants_chunk = matches!(&record.state, State::Completed(completed) if completed.chunks > 0);
    Ok(Stored {
        record: Arc::new(record),
        attempts: u32::try_from(row.attempts).map_err(corrupt)?,
        last_chunk: wants_chunk.then_some(last_chunk),
    })
}

/// An attempt, whose number the server will give it.
pub fn close_attempt(
    sealer: Option<&Sealer>,
    id: OperationId,
    note: AttemptNote,
    now: Timestamp,
) -> Result<Bytes, StoreError> {
    let mut plain = BytesMut::with_capacity(64);
    codec::encode_attempt(&note.numbered(0, now), &mut plain);
    parcel::close(sealer, &attempt_label(id), &plain)
}

/// Takes an attempt back, and gives it its number.
pub fn open_attempt(
    sealer: Option<&Sealer>,
    id: OperationId,
    number: i32,
    note: &[u8],
) -> Result<Attempt, StoreError> {
    let mut plain = parcel::open(sealer, &attempt_label(id), note)?;
    let attempt = take_attempt(&mut plain).map_err(corrupt)?;
    Ok(Attempt {
        number: u32::try_from(number).map_err(corrupt)?,
        ..attempt
    })
}

fn attempt_label(id: OperationId) -> Label {
    Label::new(ATTEMPT, &[id.as_bytes()])
}

fn label(kind: u8, address: Address, id: OperationId) -> Label {
    Label::new(kind, &[address.as_bytes(), id.as_bytes()])
}

/// The label of a chunk of a recording.
pub fn chunk_label(address: Address, recording: RecordingId, number: u32) -> Label {
    Label::new(
        CHUNK,
        &[
            address.as_bytes(),
            recording.operation.as_bytes(),
            &recording.claim.number().to_be_bytes(),
            &number.to_be_bytes(),
        ],
    )
}

/// The label of a head that is shown.
pub fn head_label(recording: RecordingId) -> Label {
    shown_label(HEAD, recording, 0)
}

/// The label of bytes of a body that are shown, and begin at `from`.
pub fn frame_label(recording: RecordingId, from: u64) -> Label {
    shown_label(FRAME, recording, from)
}

fn shown_label(kind: u8, recording: RecordingId, from: u64) -> Label {
    Label::new(
        kind,
        &[
            recording.operation.as_bytes(),
            &recording.claim.number().to_be_bytes(),
            &from.to_be_bytes(),
        ],
    )
}
