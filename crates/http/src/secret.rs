//! The keys of our hashes, all drawn from the one secret of a data folder.

use std::fmt;

use onlyonce_core::planted::{Bug, planted};

/// The keys that tenants, fingerprints and derived keys are hashed under.
///
/// They are derived from the secret that the store made when its data folder was new. Without it,
/// nobody who reads the store can try credentials or bodies against what is stored (I16).
#[derive(Clone)]
pub struct HashKeys {
    pub(crate) tenant: [u8; 32],
    pub(crate) fingerprint: [u8; 32],
    pub(crate) derived_key: [u8; 32],
    pub(crate) step: [u8; 32],
    pub(crate) call: [u8; 32],
    pub(crate) part: [u8; 32],
}

impl HashKeys {
    /// The keys that belong to `secret`. The same secret always gives the same keys.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self {
            tenant: blake3::derive_key("onlyonce 2026-11 tenant of a credential", secret),
            fingerprint: blake3::derive_key("onlyonce 2026-11 fingerprint of a request", secret),
            derived_key: blake3::derive_key("onlyonce 2026-11 key derived from a request", secret),
            step: blake3::derive_key("onlyonce 2026-11 key of a part of an operation", secret),
            call: blake3::derive_key("onlyonce 2026-11 key of a call in a session", secret),
            part: blake3::derive_key("onlyonce 2026-11 fingerprint of what is no request", secret),
        }
    }
}

impl fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKeys(..)")
    }
}

/// Feeds `part` with its length before it, so that no two lists of parts feed the same bytes.
pub(crate) fn update_prefixed(hasher: &mut blake3::Hasher, part: &[u8]) {
    if !planted(Bug::FingerprintWithoutLengths) {
        hasher.update(&(part.len() as u64).to_le_bytes());
    }
    hasher.update(part);
}

/// The first 16 bytes of a hash as 32 hex digits.
pub(crate) fn hex_128(hash: &blake3::Hash) -> String {
    hash.to_hex()[..32].to_owned()
}
