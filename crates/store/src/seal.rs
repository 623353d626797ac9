//! Encryption at rest: AES-256-GCM-SIV (RFC 8452), with numbered keys for rotation.
//!
//! A sealed body is `[key id u32][nonce 12][ciphertext][tag 16]`. What it belongs to (the kind and
//! the address of its entry) is authenticated with it, so that a body moved under another address
//! does not open.

use std::collections::BTreeMap;

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use bytes::{BufMut, Bytes, BytesMut};

/// The keys that data is sealed with.
#[derive(Clone)]
pub struct EncryptionKeys {
    /// The id of the key that new data is sealed with.
    pub active: u32,
    /// All keys that data may be sealed with, by id.
    pub keys: BTreeMap<u32, [u8; 32]>,
}

impl std::fmt::Debug for EncryptionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncryptionKeys")
            .field("active", &self.active)
            .field("ids", &self.keys.keys())
            .finish_non_exhaustive()
    }
}

/// Why a body does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Sealed with a key that is not configured.
    #[error("it is sealed with encryption key {0}, which is not configured")]
    NoSuchKey(u32),
    /// Not what the key sealed, or not for this address.
    #[error("it does not open with encryption key {0}")]
    Wrong(u32),
    /// No key is configured at all.
    #[error("no encryption key is configured")]
    NoKey,
    /// Too short to be sealed.
    #[error("it is too short to be sealed")]
    Short,
    /// The cipher refused; never seen with keys of the right length.
    #[error("the cipher failed")]
    Cipher,
}

/// Seals and opens.
pub struct Sealer {
    active: u32,
    keys: BTreeMap<u32, LessSafeKey>,
}

impl Sealer {
    pub fn new(keys: &EncryptionKeys) -> Result<Self, SealError> {
        let mut sealer = Self {
            active: keys.active,
            keys: BTreeMap::new(),
        };
        for (&id, key) in &keys.keys {
            let key = UnboundKey::new(&AES_256_GCM_SIV, key).map_err(|_| SealError::Cipher)?;
            sealer.keys.insert(id, LessSafeKey::new(key));
        }
        if sealer.keys.contains_key(&keys.active) {
            Ok(sealer)
        } else {
            Err(SealError::NoSuchKey(keys.active))
        }
    }

    /// Seals `body` for what `aad` names.
    pub fn seal(&self, aad: &[u8], body: &[u8]) -> Result<BytesMut, SealError> {
        let key = self
            .keys
            .get(&self.active)
            .ok_or(SealError::NoSuchKey(self.active))?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError::Cipher)?;
        let mut text = body.to_vec();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut text,
        )
        .map_err(|_| SealError::Cipher)?;
        let mut out = BytesMut::with_capacity(4 + NONCE_LEN + text.len());
        out.put_u32(self.active);
        out.put_slice(&nonce);
        out.put_slice(&text);
        Ok(out)
    }

    /// Opens what [`Sealer::seal`] made for the same `aad`.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Bytes, SealError> {
        let (id, rest) = sealed.split_first_chunk::<4>().ok_or(SealError::Short)?;
        let id = u32::from_be_bytes(*id);
        let (nonce, text) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SealError::Short)?;
        let key = self.keys.get(&id).ok_or(SealError::NoSuchKey(id))?;
        let mut text = text.to_vec();
        let len = key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(aad),
                &mut text,
            )
            .map_err(|_| SealError::Wrong(id))?
            .len();
        text.truncate(len);
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(active: u32, ids: &[u32]) -> Sealer {
        let keys = ids.iter().map(|&id| (id, [id as u8; 32])).collect();
        Sealer::new(&EncryptionKeys { active, keys }).expect("good keys")
    }

    #[test]
    fn what_was_sealed_opens_for_the_same_address_alone() {
        let sealer = sealer(1, &[1]);
        let sealed = sealer.seal(b"here", b"text").expect("sealed");
        assert!(!sealed.windows(4).any(|window| window == b"text"));
        assert_eq!(sealer.open(b"here", &sealed).as_deref(), Ok(&b"text"[..]));
        assert_eq!(sealer.open(b"there", &sealed), Err(SealError::Wrong(1)));
    }

    #[test]
    fn a_rotated_key_still_opens_what_it_sealed() {
        let sealed = sealer(1, &[1]).seal(b"", b"text").expect("sealed");
        assert!(sealer(2, &[1, 2]).open(b"", &sealed).is_ok());
        assert_eq!(
            sealer(2, &[2]).open(b"", &sealed),
            Err(SealError::NoSuchKey(1))
        );
    }
}
