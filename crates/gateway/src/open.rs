//! Opening the store that the configuration names.

use std::path::Path;

use onlyonce_store::embedded::{EncryptionKeys, Options};
use onlyonce_store::memory::Limits;
use onlyonce_store::{EmbeddedStore, MemoryStore};

use crate::config::{Encryption, Store};
use crate::failure::Failure;

/// A store that is gone with the process.
pub(crate) fn memory(store: &Store, limits: &crate::config::Limits) -> MemoryStore {
    MemoryStore::new().with_limits(Limits {
        records: usize::try_from(store.max_records).unwrap_or(usize::MAX),
        tenant_records: usize::try_from(limits.tenant_records).unwrap_or(usize::MAX),
        bytes: match store.max_bytes {
            0 => u64::MAX,
            bytes => bytes,
        },
    })
}

/// The store in `folder`, which is made where it is not there.
pub(crate) fn embedded(
    folder: &Path,
    store: &Store,
    limits: &crate::config::Limits,
) -> Result<EmbeddedStore, Failure> {
    let options = Options {
        segment_bytes: u32::try_from(store.segment_bytes).unwrap_or(u32::MAX),
        cache_bytes: store.cache_bytes,
        max_bytes: store.max_bytes,
        max_records: store.max_records,
        max_tenant_records: limits.tenant_records,
        encryption: store.encryption.as_ref().map(keys),
        ..Options::default()
    };
    EmbeddedStore::open(folder, options).map_err(|error| {
        // What the store says has what to do in it, after a semicolon.
        let text = error.to_string();
        let (what, next) = text.split_once("; ").unwrap_or((
            &text,
            "look at the folder, its rights and the space left there",
        ));
        let place = folder.display().to_string();
        let what = if what.contains(&place) {
            what.to_owned()
        } else {
            format!("the store in {place} does not open: {what}")
        };
        Failure::other(what, next)
    })
}

fn keys(encryption: &Encryption) -> EncryptionKeys {
    EncryptionKeys {
        active: encryption.active,
        keys: encryption.keys.iter().copied().collect(),
    }
}
