//! The embedded store does what a store must do: in the clear, encrypted, and in small segments.

use std::{fs, path::Path, sync::Arc, time::Duration};

use onlyonce_core::Address;
use onlyonce_store::{
    EmbeddedStore, Store,
    clock::ManualClock,
    conformance::{Fault, Faulty, Subject, cannot_on_a_disk},
    embedded::{EncryptionKeys, Options},
};
use tempfile::TempDir;

/// Folders are kept until the subject is dropped.
struct Embedded {
    options: Options,
    folders: Vec<(Arc<EmbeddedStore>, TempDir)>,
}

impl Embedded {
    fn with(options: Options) -> Self {
        Self {
            options,
            folders: Vec::new(),
        }
    }

    fn options(&self, clock: ManualClock) -> Options {
        Options {
            clock: Some(Arc::new(clock)),
            ..self.options.clone()
        }
    }

    fn folder_of(&mut self, store: Arc<EmbeddedStore>) -> TempDir {
        let at = self
            .folders
            .iter()
            .position(|(held, _)| Arc::ptr_eq(held, &store));
        self.folders.remove(at.expect("a store of this subject")).1
    }

    fn open(&mut self, folder: TempDir, clock: ManualClock) -> Arc<EmbeddedStore> {
        let store = EmbeddedStore::open(folder.path(), self.options(clock)).expect("it opens");
        let store = Arc::new(store);
        self.folders.push((store.clone(), folder));
        store
    }
}

impl Subject for Embedded {
    type Store = EmbeddedStore;

    fn is_shared(&self) -> bool {
        false
    }

    async fn make(&mut self, clock: ManualClock) -> Arc<EmbeddedStore> {
        self.open(tempfile::tempdir().expect("a folder"), clock)
    }

    async fn reopen(
        &mut self,
        store: Arc<EmbeddedStore>,
        clock: ManualClock,
    ) -> Option<Arc<EmbeddedStore>> {
        store.close().await.expect("it closes");
        let folder = self.folder_of(store);
        Some(self.open(folder, clock))
    }

    async fn damage(
        &mut self,
        store: Arc<EmbeddedStore>,
        clock: ManualClock,
        address: Address,
    ) -> Option<Arc<EmbeddedStore>> {
        store.close().await.expect("it closes");
        let folder = self.folder_of(store);
        damage(folder.path(), address, |_| true);
        Some(self.open(folder, clock))
    }

    async fn damage_chunk(
        &mut self,
        store: Arc<EmbeddedStore>,
        clock: ManualClock,
        address: Address,
    ) -> Option<Arc<EmbeddedStore>> {
        store.close().await.expect("it closes");
        let folder = self.folder_of(store);
        let mut chunks = 0;
        damage(folder.path(), address, |kind| {
            chunks += u32::from(kind == CHUNK);
            kind == CHUNK && chunks == 1
        });
        Some(self.open(folder, clock))
    }
}

impl Faulty for Embedded {
    fn time_out(&self) -> Duration {
        Duration::MAX
    }

    fn cannot(&self, fault: Fault) -> Option<&'static str> {
        cannot_on_a_disk(fault)
    }

    fn disturb(&self, fault: Fault) {
        unreachable!("{fault:?} cannot happen");
    }

    fn heal(&self) {}
}

const CHUNK: u8 = 2;

/// Flips a byte in the body of each entry of `address` whose kind is wanted.
fn damage(folder: &Path, address: Address, mut wanted: impl FnMut(u8) -> bool) {
    const KIND_BEFORE_ADDRESS: usize = 2;
    const LENGTH_BEFORE_ADDRESS: usize = 6;
    const BODY_AFTER_ADDRESS: usize = 16 + 8;
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let mut bytes = fs::read(&path).expect("a segment");
        let found: Vec<usize> = bytes
            .windows(16)
            .enumerate()
            .filter(|(_, window)| window == address.as_bytes())
            .filter(|&(at, _)| {
                // The trailer of a batch has addresses too, behind bytes of any kind.
                let field = |at: usize| {
                    let field = bytes.get(at..at + 4)?.try_into().ok()?;
                    Some(u32::from_be_bytes(field))
                };
                let entry = || {
                    let start = at.checked_sub(LENGTH_BEFORE_ADDRESS)?;
                    let end = start + field(start)? as usize;
                    let body = bytes.get(at + BODY_AFTER_ADDRESS..end)?;
                    Some(field(at + 16)? == crc32fast::hash(body))
                };
                entry() == Some(true)
            })
            .filter(|&(at, _)| wanted(bytes[at - KIND_BEFORE_ADDRESS]))
            .map(|(at, _)| at + BODY_AFTER_ADDRESS + 8)
            .filter(|&at| at < bytes.len())
            .collect();
        for at in found {
            bytes[at] ^= 0x40;
        }
        fs::write(&path, bytes).expect("the segment is written");
    }
}

mod in_the_clear {
    use super::*;

    onlyonce_store::conformance_tests!(Embedded::with(Options::default()));
    onlyonce_store::fault_tests!(Embedded::with(Options::default()));
}

mod encrypted {
    use super::*;

    onlyonce_store::conformance_tests!(Embedded::with(Options {
        encryption: Some(EncryptionKeys {
            active: 1,
            keys: [(1, [7; 32])].into()
        }),
        ..Options::default()
    }));
}

mod in_small_segments {
    use super::*;

    onlyonce_store::conformance_tests!(Embedded::with(Options {
        segment_bytes: 1 << 20,
        cache_bytes: 0,
        ..Options::default()
    }));
}
