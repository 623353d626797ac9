//! What must hold for any bytes.
//!
//! A [`Target`] is a function that takes bytes and panics where something does not hold: a property, and
//! not only that nothing panics. Two run it. The tests replay what was found before and try a fixed number
//! of changes to the [seeds](Target::seeds), with any toolchain. The campaign (`src/main.rs`, by
//! `cargo xtask campaign fuzz`) has LLVM's fuzzer look for bytes that reach further, for as long as it is
//! let.

mod input;
pub mod mutate;
mod targets;

/// Something that is given any bytes.
pub struct Target {
    /// What the command line and the folders call it.
    pub name: &'static str,
    /// What holds, in one line.
    pub holds: &'static str,
    /// Panics where it does not.
    pub run: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces that mean something there.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    targets::key::TARGET,
    targets::fingerprint::TARGET,
    targets::records::TARGET,
    targets::files::TARGET,
    targets::http1::TARGET,
    targets::headers::TARGET,
    targets::events::TARGET,
    targets::config::TARGET,
];

/// The target called `name`.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
