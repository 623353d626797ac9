//! Bytes on their way to a server: packed, sealed, and checked when they come back.
//!
//! ```text
//! [format u8][flags u8][checksum u32][packed and sealed bytes]
//! ```
//!
//! The checksum, and the seal where there is one, cover a label that says what the bytes belong to, so
//! that bytes which were moved to another row are found out (I7, I13).

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    StoreError, corrupt,
    pack::{pack, unpack},
    seal::Sealer,
};

const FORMAT: u8 = 1;
const FLAG_SEALED: u8 = 1;
const FLAG_PACKED: u8 = 2;
const HEAD: usize = 6;

/// The most that anything unpacks to: a chunk with the record before it.
const MOST: usize = 2 << 20;

/// What a parcel belongs to: its kind, and the bytes that name it.
pub(crate) struct Label {
    bytes: [u8; 48],
    len: usize,
}

impl Label {
    pub fn new(kind: u8, parts: &[&[u8]]) -> Self {
        let mut label = Self {
            bytes: [0; 48],
            len: 2,
        };
        label.bytes[0] = kind;
        for part in parts {
            label.bytes[label.len..][..part.len()].copy_from_slice(part);
            label.len += part.len();
        }
        label
    }

    /// The second byte is for the flags.
    fn with(&self, flags: u8) -> ([u8; 48], usize) {
        let mut bytes = self.bytes;
        bytes[1] = flags;
        (bytes, self.len)
    }
}

/// Makes a parcel of `plain`.
pub(crate) fn close(
    sealer: Option<&Sealer>,
    label: &Label,
    plain: &[u8],
) -> Result<Bytes, StoreError> {
    let packed = pack(plain);
    let mut flags = if packed.is_some() { FLAG_PACKED } else { 0 };
    let body = packed.as_deref().unwrap_or(plain);
    let sealed;
    let body = match sealer {
        None => body,
        Some(sealer) => {
            flags |= FLAG_SEALED;
            let (label, len) = label.with(flags);
            sealed = sealer.seal(&label[..len], body).map_err(|error| {
                StoreError::Unavailable(format!("a record could not be encrypted: {error}"))
            })?;
            &sealed
        }
    };
    let mut out = BytesMut::with_capacity(HEAD + body.len());
    out.put_u8(FORMAT);
    out.put_u8(flags);
    out.put_u32(checksum(label, flags, body));
    out.put_slice(body);
    Ok(out.freeze())
}

/// Opens a parcel, and gives the bytes it was made of.
pub(crate) fn open(
    sealer: Option<&Sealer>,
    label: &Label,
    parcel: &[u8],
) -> Result<Bytes, StoreError> {
    let (head, body) = parcel
        .split_first_chunk::<HEAD>()
        .ok_or_else(|| corrupt("it is too short"))?;
    let [format, flags, sum @ ..] = *head;
    if format > FORMAT {
        return Err(corrupt(format!(
            "it has format {format}, and this program reads up to {FORMAT}"
        )));
    }
    if format != FORMAT || u32::from_be_bytes(sum) != checksum(label, flags, body) {
        return Err(corrupt("its checksum is wrong"));
    }
    let opened = match (flags & FLAG_SEALED != 0, sealer) {
        (false, _) => Bytes::copy_from_slice(body),
        (true, Some(sealer)) => {
            let (label, len) = label.with(flags);
            sealer.open(&label[..len], body).map_err(corrupt)?
        }
        (true, None) => return Err(corrupt("it is encrypted and no key is configured")),
    };
    if flags & FLAG_PACKED != 0 {
        unpack(opened, MOST).map_err(corrupt)
    } else {
        Ok(opened)
    }
}

/// Whether these are not the bytes that a program wrote which this one knows.
pub(crate) fn is_damaged(label: &Label, parcel: &[u8]) -> bool {
    match parcel.split_first_chunk::<HEAD>() {
        None => true,
        Some(([format, flags, sum @ ..], body)) => {
            *format <= FORMAT
                && (*format != FORMAT || u32::from_be_bytes(*sum) != checksum(label, *flags, body))
        }
    }
}

fn checksum(label: &Label, flags: u8, body: &[u8]) -> u32 {
    let (label, len) = label.with(flags);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&label[..len]);
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::EncryptionKeys;

    fn sealers() -> [Option<Sealer>; 2] {
        let keys = EncryptionKeys {
            active: 1,
            keys: [(1, [7; 32])].into(),
        };
        [None, Some(Sealer::new(&keys).expect("good keys"))]
    }

    #[test]
    fn what_was_closed_opens_under_its_label_alone() {
        for sealer in sealers() {
            for plain in [&b""[..], b"short", &[7; 3_000]] {
                let here = Label::new(1, &[b"here"]);
                let parcel = close(sealer.as_ref(), &here, plain).expect("closed");
                let opened = open(sealer.as_ref(), &here, &parcel).expect("opened");
                assert_eq!(opened, plain);
                for other in [Label::new(1, &[b"there"]), Label::new(2, &[b"here"])] {
                    assert!(open(sealer.as_ref(), &other, &parcel).is_err());
                }
            }
        }
    }

    #[test]
    fn i13_no_damaged_byte_is_read() {
        for sealer in sealers() {
            let label = Label::new(1, &[b"here"]);
            let parcel = close(sealer.as_ref(), &label, &[7; 700]).expect("closed");
            for at in 0..parcel.len() {
                let mut damaged = parcel.to_vec();
                damaged[at] ^= 0x10;
                assert!(open(sealer.as_ref(), &label, &damaged).is_err(), "{at}");
            }
            assert!(open(sealer.as_ref(), &label, &parcel[..5]).is_err());
        }
    }

    #[test]
    fn what_is_sealed_does_not_open_without_its_key() {
        let [none, some] = sealers();
        let label = Label::new(1, &[b"here"]);
        let parcel = close(some.as_ref(), &label, b"text").expect("closed");
        assert!(!parcel.windows(4).any(|window| window == b"text"));
        assert!(open(none.as_ref(), &label, &parcel).is_err());
    }
}
