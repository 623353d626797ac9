//! Packing what repeats: `[length u32][LZ4 block]`.

use bytes::{Bytes, BytesMut};

/// Smaller bodies are not worth packing.
const LEAST_PACKED: usize = 512;

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
    let mut out = BytesMut::zeroed(4 + lz4_flex::block::get_maximum_output_size(plain.len()));
    out[..4].copy_from_slice(&(plain.len() as u32).to_be_bytes());
    let len = lz4_flex::block::compress_into(plain, &mut out[4..]).ok()?;
    out.truncate(4 + len);
    (out.len() < plain.len() - plain.len() / 8).then_some(out)
}

/// Takes back what [`pack`] made, of at most `most` bytes.
pub(crate) fn unpack(packed: &[u8], most: usize) -> Result<Bytes, UnpackError> {
    let (len, block) = packed.split_first_chunk::<4>().ok_or(UnpackError::Short)?;
    let len = u32::from_be_bytes(*len) as usize;
    if len > most {
        return Err(UnpackError::TooLong(len));
    }
    let mut plain = BytesMut::zeroed(len);
    let unpacked =
        lz4_flex::block::decompress_into(block, &mut plain).map_err(|_| UnpackError::Malformed)?;
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
        let mut bomb = vec![0xff; 4];
        bomb.extend_from_slice(&[0; 64]);
        let most = 1 << 20;
        assert_eq!(
            unpack(&bomb, most),
            Err(UnpackError::TooLong(u32::MAX as usize))
        );
        assert!(unpack(&[0, 0, 0, 9, 0], most).is_err());
        let packed = pack(&[7; 2_000]).expect("it repeats");
        assert_eq!(unpack(&packed, 1_999), Err(UnpackError::TooLong(2_000)));
        assert_eq!(unpack(&packed, 2_000).as_deref(), Ok(&[7; 2_000][..]));
    }
}
