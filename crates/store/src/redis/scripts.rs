//! The scripts: one for each thing that must happen at once.
//!
//! Each names the keys that it touches, all of one slot. It is called by the hash of its text, and
//! its text goes over the wire only to a server that does not know it yet.

use std::sync::LazyLock;

use aws_lc_rs::digest;
use redis::Cmd;

const HEAD: &str = include_str!("scripts/head.lua");

/// A script, ready to be called.
pub struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(flags: &str, body: &str) -> Self {
        let text = HEAD.replacen(" FLAGS", flags, 1) + body;
        let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let hash = sha1
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self { text, hash }
    }

    /// The start of a call: to be followed by the number of keys, the keys and the arguments.
    pub fn call(&self) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash);
        command
    }

    /// Teaches the script to a server.
    pub fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(&self.text);
        command
    }
}

/// Refused where the server is out of memory.
const STRICT: &str = "";
/// Also where the server is out of memory: it gives space back, or takes next to none.
const FREEING: &str = " flags=allow-oom";

/// Writes nothing.
const READING: &str = " flags=no-writes";

const WRITE_TEXT: &str = include_str!("scripts/write.lua");

/// Writes a record that takes space: a claim, or a completion.
pub static WRITE: LazyLock<Script> = LazyLock::new(|| Script::new(STRICT, WRITE_TEXT));
/// Writes a record in the place of one of its size: a renewal, a release, a loss.
pub static WRITE_FREEING: LazyLock<Script> = LazyLock::new(|| Script::new(FREEING, WRITE_TEXT));
pub static APPEND: LazyLock<Script> =
    LazyLock::new(|| Script::new(STRICT, include_str!("scripts/append.lua")));
pub static NOTE: LazyLock<Script> =
    LazyLock::new(|| Script::new(STRICT, include_str!("scripts/note.lua")));
pub static REMOVE: LazyLock<Script> =
    LazyLock::new(|| Script::new(FREEING, include_str!("scripts/remove.lua")));
pub static SPOIL: LazyLock<Script> =
    LazyLock::new(|| Script::new(FREEING, include_str!("scripts/spoil.lua")));
pub static MARK: LazyLock<Script> =
    LazyLock::new(|| Script::new(FREEING, include_str!("scripts/mark.lua")));
pub static SHOW: LazyLock<Script> =
    LazyLock::new(|| Script::new(STRICT, include_str!("scripts/show.lua")));
pub static SHOWN: LazyLock<Script> =
    LazyLock::new(|| Script::new(READING, include_str!("scripts/shown.lua")));
pub static ASK: LazyLock<Script> =
    LazyLock::new(|| Script::new(STRICT, include_str!("scripts/ask.lua")));
pub static SWEEP: LazyLock<Script> =
    LazyLock::new(|| Script::new(FREEING, include_str!("scripts/sweep.lua")));
pub static BOOK: LazyLock<Script> =
    LazyLock::new(|| Script::new(STRICT, include_str!("scripts/book.lua")));
pub static HOLD: LazyLock<Script> =
    LazyLock::new(|| Script::new(STRICT, include_str!("scripts/hold.lua")));
pub static ADVANCE: LazyLock<Script> =
    LazyLock::new(|| Script::new(STRICT, include_str!("scripts/advance.lua")));
pub static FORGET: LazyLock<Script> =
    LazyLock::new(|| Script::new(FREEING, include_str!("scripts/forget.lua")));
