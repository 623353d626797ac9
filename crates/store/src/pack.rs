//! Packing what repeats: `[length varint][LZ4 block]`, over a dictionary.

use bytes::{Bytes, BytesMut};

use crate::codec::{put_varint, take_varint};

/// Smaller bodies are not worth packing.
const LEAST_PACKED: usize = 64;
/// What packed bodies may refer to without holding it: what most records have in common, the most
/// frequent last, where references are shortest. Fixed for the formats that use it.
const COMMON: &[u8] = b"\
    \x07default\x04POST\x14/v1/chat/completions\x0d/v1/responses\x0c/v1/messages\x0b/v1/charges\
    \x09anonymous\x0a127.0.0.1:\x0eapi.openai.com\x11api.anthropic.com\x0eapi.stripe.com\
    \x00\x06server\x00\x0acloudflare\x00\x0cnginx/1.\x00\x0dcache-control\x00\x08no-cache, no-store\
    \x00\x11transfer-encoding\x00\x07chunked\x00\x10content-encoding\x00\x04gzip\x00\x04vary\
    \x00\x0cx-request-id\x00\x24req_\x00\x0arequest-id\x00\x15x-ratelimit-remaining-\
    \x00\x19strict-transport-security\x00\x23max-age=31536000; includeSubDomains\
    \x00\x0ccontent-type\x00\x11text/event-stream; charset=utf-8\
    \x00\x04date\x00\x1dMon, Tue, Wed, Thu, Fri, Sat, Sun, 0 Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec 2026 00:00:00 GMT\
    \x00\x0econtent-length\x00\x04\x00\x0ccontent-type\x00\x10application/json\
    {\"id\":\"\",\"object\":\"";

/// Bytes that [`pack`] did not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("it is too short")]
    Short,
    #[error("it unpacks to {0} bytes")]
    TooLong(usize),
    #[error("it unpacks to less")]
    Less,
    #[error("it does not unpack")]
    Malformed,
}

/// `plain` packed, where that saves something.
pub(crate) fn pack(plain: &[u8]) -> Option<BytesMut> {
    if plain.len() < LEAST_PACKED {
        return None;
    }
    let mut out =
        BytesMut::with_capacity(10 + lz4_flex::block::get_maximum_output_size(plain.len()));
    put_varint(&mut out, plain.len() as u64);
    let start = out.len();
    out.resize(out.capacity(), 0);
    let len = lz4_flex::block::compress_into_with_dict(plain, &mut out[start..], COMMON).ok()?;
    out.truncate(start + len);
    // To unpack costs little, but not nothing.
    (out.len() < plain.len() - plain.len() / 32).then_some(out)
}

/// Takes back what [`pack`] made, of at most `most` bytes.
pub(crate) fn unpack(mut packed: Bytes, most: usize) -> Result<Bytes, UnpackError> {
    let len = take_varint(&mut packed, "length").map_err(|_| UnpackError::Short)?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > most {
        return Err(UnpackError::TooLong(len));
    }
    let mut plain = BytesMut::zeroed(len);
    let unpacked = lz4_flex::block::decompress_into_with_dict(&packed, &mut plain, COMMON)
        .map_err(|_| UnpackError::Malformed)?;
    if unpacked == len {
        Ok(plain.freeze())
    } else {
        Err(UnpackError::Less)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_060_a_packed_body_never_unpacks_without_a_bound() {
        let mut bomb = BytesMut::new();
        put_varint(&mut bomb, u64::MAX);
        bomb.extend_from_slice(&[0; 64]);
        let most = 1 << 20;
        assert_eq!(
            unpack(bomb.freeze(), most),
            Err(UnpackError::TooLong(usize::MAX))
        );
        assert!(unpack(Bytes::from_static(&[9, 0]), most).is_err());
        assert_eq!(unpack(Bytes::new(), most), Err(UnpackError::Short));
        let packed = pack(&[7; 2_000]).expect("it repeats").freeze();
        let too_long = Err(UnpackError::TooLong(2_000));
        assert_eq!(unpack(packed.clone(), 1_999), too_long);
        assert_eq!(unpack(packed, 2_000).as_deref(), Ok(&[7; 2_000][..]));
    }
}
