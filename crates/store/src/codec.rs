//! Records as bytes.
//!
//! A compact, versioned encoding that every backend shares: integers are LEB128 varints, texts and
//! blocks are length-prefixed, times are milliseconds. [`decode`] refuses bytes that [`encode`] did
//! not make, trailing ones included, so that damage that a checksum missed is damage still (I13).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::{
    Attempt, Basis, Completed, Cost, Entry, Epoch, Fingerprint, Got, Head, HeaderBlock, Key,
    Metered, OperationId, OwnerId, Record, ReleaseReason, RequestLine, Ruling, Scope, Source,
    State, StateName, Timestamp, TraceId, Unit, UnknownReason, Usage, Usd,
};

use crate::books::DeadLetter;

/// The version that [`encode`] writes. [`decode`] refuses a newer one.
pub const VERSION: u8 = 1;

/// Bytes that are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer Onlyonce.
    #[error("the record has format {0}, and this program reads up to {max}", max = VERSION)]
    Newer(u8),
    /// Damaged.
    #[error("the record's {0} does not decode")]
    Malformed(&'static str),
}

/// Appends the encoding of `record` to `out`.
pub fn encode(record: &Record, out: &mut BytesMut) {
    out.put_u8(VERSION);
    out.put_slice(record.id.as_bytes());
    out.put_slice(record.fingerprint.as_bytes());
    put_varint(out, record.epoch.number());
    put_varint(out, record.claim.number());
    put_varint(out, record.claimed_at.as_millis());
    for text in [&record.scope.tenant, &record.scope.namespace] {
        put_block(out, text.as_bytes());
    }
    put_block(out, record.key.as_str().as_bytes());
    for text in [
        &record.request.route,
        &record.request.method,
        &record.request.path,
    ] {
        put_block(out, text.as_bytes());
    }
    put_trace(out, record.request.trace.as_ref());
    out.put_u8(record.state.name().number());
    match &record.state {
        State::InFlight {
            owner,
            lease_until,
            resend_of,
        } => {
            out.put_u64(owner.number());
            put_varint(out, lease_until.as_millis());
            // No reason has the number 0.
            out.put_u8(resend_of.map_or(0, UnknownReason::number));
        }
        State::Completed(completed) => {
            put_varint(out, completed.completed_at.as_millis());
            put_varint(out, completed.expires_at.as_millis());
            out.put_u16(completed.head.status);
            put_block(out, completed.head.headers.as_bytes());
            put_block(out, completed.trailers.as_bytes());
            put_varint(out, completed.body_len);
            put_varint(out, completed.chunks.into());
        }
        State::Unknown { since, reason } => {
            put_varint(out, since.as_millis());
            out.put_u8(reason.number());
        }
        State::Released {
            since,
            reason,
            forget_at,
        } => {
            put_varint(out, since.as_millis());
            out.put_u8(reason.number());
            put_varint(out, forget_at.as_millis());
        }
    }
    // Who is not metered has no source, and no source has the number 0.
    match &record.metered {
        Some(metered) => encode_metered(metered, out),
        None => out.put_u8(0),
    }
    out.put_u8(record.entered.into());
    match &record.ruling {
        Some(ruling) => {
            out.put_u8(1);
            put_varint(out, ruling.at.as_millis());
            put_block(out, ruling.who.as_bytes());
            put_block(out, ruling.reason.as_bytes());
        }
        None => out.put_u8(0),
    }
}

/// Appends the encoding of `entry` to `out`.
pub fn encode_entry(entry: &Entry, out: &mut BytesMut) {
    out.put_u8(VERSION);
    out.put_slice(entry.id.as_bytes());
    put_varint(out, entry.at.as_millis());
    put_varint(out, entry.claimed_at.as_millis());
    for text in [&entry.scope.tenant, &entry.scope.namespace, &entry.route] {
        put_block(out, text.as_bytes());
    }
    out.put_u16(entry.status);
    put_trace(out, entry.trace.as_ref());
    encode_metered(&entry.metered, out);
}

/// Takes an entry back.
pub fn decode_entry(mut bytes: Bytes) -> Result<Entry, DecodeError> {
    const WHAT: &str = "entry";
    check_version(&mut bytes)?;
    let entry = Entry {
        id: OperationId::from_bytes(take_array(&mut bytes, WHAT)?),
        at: take_time(&mut bytes, WHAT)?,
        claimed_at: take_time(&mut bytes, WHAT)?,
        scope: Scope {
            tenant: take_text(&mut bytes, WHAT)?,
            namespace: take_text(&mut bytes, WHAT)?,
        },
        route: take_text(&mut bytes, WHAT)?,
        status: u16::from_be_bytes(take_array(&mut bytes, WHAT)?),
        trace: take_trace(&mut bytes)?,
        metered: *decode_metered(&mut bytes)?.ok_or(DecodeError::Malformed(WHAT))?,
    };
    match bytes.has_remaining() {
        true => Err(DecodeError::Malformed("end")),
        false => Ok(entry),
    }
}

/// Appends the encoding of `letter` to `out`.
pub fn encode_letter(letter: &DeadLetter, out: &mut BytesMut) {
    put_varint(out, letter.since.as_millis());
    put_varint(out, letter.tries.into());
    put_block(out, letter.why.as_bytes());
    encode_entry(&letter.entry, out);
}

/// Takes a dead letter back.
pub fn decode_letter(mut bytes: Bytes) -> Result<DeadLetter, DecodeError> {
    const WHAT: &str = "dead letter";
    Ok(DeadLetter {
        since: take_time(&mut bytes, WHAT)?,
        tries: u32::try_from(take_varint(&mut bytes, WHAT)?)
            .map_err(|_| DecodeError::Malformed(WHAT))?,
        why: take_text(&mut bytes, WHAT)?,
        entry: decode_entry(bytes)?,
    })
}

fn encode_metered(metered: &Metered, out: &mut BytesMut) {
    out.put_u8(metered.source.number());
    for text in [
        &metered.provider,
        &metered.model,
        &metered.request_model,
        &metered.response_id,
        &metered.operation,
        &metered.tier,
    ] {
        put_block(out, text.as_bytes());
    }
    put_varint(out, metered.usage.iter().len() as u64);
    for (unit, count) in metered.usage.iter() {
        out.put_u8(unit.number());
        put_varint(out, count);
    }
    // As with the source: 0 is nobody's basis.
    let Some(cost) = &metered.cost else {
        out.put_u8(0);
        return;
    };
    out.put_u8(cost.basis.number());
    out.put_i64(cost.amount.nanos());
    put_block(out, cost.version.as_bytes());
}

fn decode_metered(bytes: &mut Bytes) -> Result<Option<Box<Metered>>, DecodeError> {
    const WHAT: &str = "usage";
    let malformed = DecodeError::Malformed(WHAT);
    let source = match take_u8(bytes, WHAT)? {
        0 => return Ok(None),
        number => Source::from_number(number).ok_or(malformed)?,
    };
    let mut metered = Metered {
        source,
        provider: take_text(bytes, WHAT)?,
        model: take_text(bytes, WHAT)?,
        request_model: take_text(bytes, WHAT)?,
        response_id: take_text(bytes, WHAT)?,
        operation: take_text(bytes, WHAT)?,
        tier: take_text(bytes, WHAT)?,
        usage: Usage::default(),
        cost: None,
    };
    let mut before = 0;
    for _ in 0..take_varint(bytes, WHAT)? {
        let number = take_u8(bytes, WHAT)?;
        if number <= before {
            return Err(malformed);
        }
        before = number;
        let unit = Unit::from_number(number).ok_or(malformed)?;
        metered.usage.set(unit, take_varint(bytes, WHAT)?);
    }
    metered.cost = match take_u8(bytes, WHAT)? {
        0 => None,
        number => Some(Cost {
            basis: Basis::from_number(number).ok_or(malformed)?,
            amount: Usd::from_nanos(i64::from_be_bytes(take_array(bytes, WHAT)?)),
            version: take_text(bytes, WHAT)?,
        }),
    };
    Ok(Some(Box::new(metered)))
}

/// Takes a record back. Blocks of headers share the memory of `bytes`.
pub fn decode(mut bytes: Bytes) -> Result<Record, DecodeError> {
    check_version(&mut bytes)?;
    let id = OperationId::from_bytes(take_array(&mut bytes, "id")?);
    let fingerprint = Fingerprint::from_bytes(take_array(&mut bytes, "fingerprint")?);
    let epoch = Epoch::new(take_varint(&mut bytes, "epoch")?);
    let claim = Epoch::new(take_varint(&mut bytes, "claim")?);
    let claimed_at = take_time(&mut bytes, "claim time")?;
    let scope = Scope {
        tenant: take_text(&mut bytes, "tenant")?,
        namespace: take_text(&mut bytes, "namespace")?,
    };
    let key =
        Key::new(&take_text(&mut bytes, "key")?).map_err(|_| DecodeError::Malformed("key"))?;
    let request = RequestLine {
        route: take_text(&mut bytes, "route")?,
        method: take_text(&mut bytes, "method")?,
        path: take_text(&mut bytes, "path")?,
        trace: take_trace(&mut bytes)?,
    };
    let state = decode_state(&mut bytes)?;
    let metered = decode_metered(&mut bytes)?;
    let entered = take_flag(&mut bytes, "books")?;
    let ruling = take_ruling(&mut bytes)?;
    if bytes.has_remaining() {
        return Err(DecodeError::Malformed("end"));
    }
    Ok(Record {
        id,
        scope,
        key,
        fingerprint,
        epoch,
        claim,
        claimed_at,
        request,
        state,
        metered,
        entered,
        ruling,
    })
}

fn check_version(bytes: &mut Bytes) -> Result<(), DecodeError> {
    match take_u8(bytes, "version")? {
        VERSION => Ok(()),
        newer if newer > VERSION => Err(DecodeError::Newer(newer)),
        _ => Err(DecodeError::Malformed("version")),
    }
}

fn take_flag(bytes: &mut Bytes, what: &'static str) -> Result<bool, DecodeError> {
    match take_u8(bytes, what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Malformed(what)),
    }
}

fn take_ruling(bytes: &mut Bytes) -> Result<Option<Box<Ruling>>, DecodeError> {
    const WHAT: &str = "ruling";
    if !take_flag(bytes, WHAT)? {
        return Ok(None);
    }
    Ok(Some(Box::new(Ruling {
        at: take_time(bytes, WHAT)?,
        who: take_text(bytes, WHAT)?,
        reason: take_text(bytes, WHAT)?,
    })))
}

fn decode_state(bytes: &mut Bytes) -> Result<State, DecodeError> {
    let number = take_u8(bytes, "state")?;
    let name = StateName::from_number(number).ok_or(DecodeError::Malformed("state"))?;
    Ok(match name {
        StateName::InFlight => State::InFlight {
            owner: OwnerId::new(u64::from_be_bytes(take_array(bytes, "owner")?)),
            lease_until: take_time(bytes, "lease")?,
            resend_of: match take_u8(bytes, "reason")? {
                0 => None,
                number => Some(
                    UnknownReason::from_number(number).ok_or(DecodeError::Malformed("reason"))?,
                ),
            },
        },
        StateName::Completed => State::Completed(Completed {
            completed_at: take_time(bytes, "completion time")?,
            expires_at: take_time(bytes, "window")?,
            head: Head {
                status: u16::from_be_bytes(take_array(bytes, "status")?),
                headers: take_headers(bytes, "headers")?,
            },
            trailers: take_headers(bytes, "trailers")?,
            body_len: take_varint(bytes, "body length")?,
            chunks: u32::try_from(take_varint(bytes, "chunks")?)
                .map_err(|_| DecodeError::Malformed("chunks"))?,
        }),
        StateName::Unknown => State::Unknown {
            since: take_time(bytes, "time")?,
            reason: UnknownReason::from_number(take_u8(bytes, "reason")?)
                .ok_or(DecodeError::Malformed("reason"))?,
        },
        StateName::Released => State::Released {
            since: take_time(bytes, "time")?,
            reason: ReleaseReason::from_number(take_u8(bytes, "reason")?)
                .ok_or(DecodeError::Malformed("reason"))?,
            forget_at: take_time(bytes, "end")?,
        },
    })
}

/// Appends the encoding of `attempt` to `out`.
pub fn encode_attempt(attempt: &Attempt, out: &mut BytesMut) {
    put_varint(out, attempt.number.into());
    put_varint(out, attempt.at.as_millis());
    put_block(out, attempt.peer.as_bytes());
    // 0 says that nothing was said; a count is kept one higher.
    put_varint(
        out,
        attempt
            .sdk_retry_count
            .map_or(0, |count| u64::from(count) + 1),
    );
    out.put_u8(attempt.got.number());
    put_trace(out, attempt.trace.as_ref());
}

/// Takes an attempt off the front of `bytes`.
pub fn take_attempt(bytes: &mut Bytes) -> Result<Attempt, DecodeError> {
    let malformed = DecodeError::Malformed("attempt");
    Ok(Attempt {
        number: u32::try_from(take_varint(bytes, "attempt")?).map_err(|_| malformed)?,
        at: take_time(bytes, "attempt")?,
        peer: take_text(bytes, "attempt")?,
        sdk_retry_count: match take_varint(bytes, "attempt")? {
            0 => None,
            count => Some(u32::try_from(count - 1).map_err(|_| malformed)?),
        },
        got: Got::from_number(take_u8(bytes, "attempt")?).ok_or(malformed)?,
        trace: take_trace(bytes)?,
    })
}

/// Appends a varint: seven bits a byte, lowest first.
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

pub(crate) fn put_block(out: &mut BytesMut, block: &[u8]) {
    put_varint(out, block.len() as u64);
    out.put_slice(block);
}

fn take_u8(bytes: &mut Bytes, what: &'static str) -> Result<u8, DecodeError> {
    Ok(take_array::<1>(bytes, what)?[0])
}

fn take_array<const N: usize>(
    bytes: &mut Bytes,
    what: &'static str,
) -> Result<[u8; N], DecodeError> {
    let array = *bytes
        .first_chunk::<N>()
        .ok_or(DecodeError::Malformed(what))?;
    bytes.advance(N);
    Ok(array)
}

pub(crate) fn take_varint(bytes: &mut Bytes, what: &'static str) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_u8(bytes, what)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte == 0 && shift > 0 {
            // The encoder would have ended one byte earlier.
            break;
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Malformed(what))
}

fn take_time(bytes: &mut Bytes, what: &'static str) -> Result<Timestamp, DecodeError> {
    take_varint(bytes, what).map(Timestamp::from_millis)
}

pub(crate) fn take_block(bytes: &mut Bytes, what: &'static str) -> Result<Bytes, DecodeError> {
    let len = usize::try_from(take_varint(bytes, what)?).unwrap_or(usize::MAX);
    if len > bytes.len() {
        return Err(DecodeError::Malformed(what));
    }
    Ok(bytes.split_to(len))
}

pub(crate) fn take_text(bytes: &mut Bytes, what: &'static str) -> Result<Box<str>, DecodeError> {
    let block = take_block(bytes, what)?;
    std::str::from_utf8(&block)
        .map(Into::into)
        .map_err(|_| DecodeError::Malformed(what))
}

/// An empty block where there is none.
fn put_trace(out: &mut BytesMut, trace: Option<&TraceId>) {
    put_block(out, trace.map_or(&[], |trace| trace.as_bytes()));
}

fn take_trace(bytes: &mut Bytes) -> Result<Option<TraceId>, DecodeError> {
    let malformed = DecodeError::Malformed("trace");
    let block = take_block(bytes, "trace")?;
    if block.is_empty() {
        return Ok(None);
    }
    let id = <[u8; 16]>::try_from(&*block).map_err(|_| malformed)?;
    TraceId::from_bytes(id).map(Some).ok_or(malformed)
}

fn take_headers(bytes: &mut Bytes, what: &'static str) -> Result<HeaderBlock, DecodeError> {
    HeaderBlock::from_bytes(take_block(bytes, what)?).map_err(|_| DecodeError::Malformed(what))
}
