//! Faults of the disk and the clock, on request.
//!
//! The binary under test is the one that is shipped: it has no switches for tests. A small
//! library that it preloads (`faults.c`, built on first use by the C compiler that links Rust
//! anyway) makes the calls to the system fail while a file says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use onlyonce_testkit::{Setup, eventually};
use tempfile::TempDir;

/// The faults of one gateway.
pub struct Faults {
    folder: TempDir,
}

impl Faults {
    /// None are on.
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// Makes a gateway feel them.
    pub fn on(&self, setup: Setup) -> Setup {
        let file = self.file();
        setup
            .env("LD_PRELOAD", &library().display().to_string())
            .env("FAULTS", &file.display().to_string())
    }

    /// Turns these on, and others off. The words are in `faults.c`.
    pub fn set(&self, words: &str) {
        // In one step, so that nobody reads half of it.
        let new = self.folder.path().join("new");
        std::fs::write(&new, words).expect("writing the faults");
        std::fs::rename(&new, self.file()).expect("writing the faults");
    }

    /// Turns all off.
    pub fn clear(&self) {
        self.set("");
    }

    /// Waits until one has struck.
    #[track_caller]
    pub fn wait_until_struck(&self) {
        let struck = self.folder.path().join("faults.struck");
        eventually("a fault strikes", || struck.exists());
        std::fs::remove_file(&struck).expect("forgetting the fault");
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("faults")
    }
}

/// The library, built once.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let source = folder.join(format!("faults-{}.c", std::process::id()));
        let built = folder.join(format!("faults-{}.so", std::process::id()));
        std::fs::write(&source, include_str!("faults.c")).expect("writing the source");
        let status = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&built, &source])
            .arg("-ldl")
            .status()
            .expect("a C compiler");
        assert!(status.success(), "building faults.c");
        let library = folder.join("faults.so");
        std::fs::rename(&built, &library).expect("placing the library");
        std::fs::remove_file(&source).expect("removing the source");
        library
    })
}
