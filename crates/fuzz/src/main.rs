//! The targets under LLVM's fuzzer, for `cargo xtask campaign fuzz`.
//!
//! One program for all of them, so that it is built once. `ONLYONCE_FUZZ_TARGET` names the target. Into
//! the folder `ONLYONCE_FUZZ_SEEDS` the target's seeds are written before the fuzzer reads it, and into the
//! file `ONLYONCE_FUZZ_WORDS` its words, as a dictionary.
#![no_main]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::{fs, io};

use libfuzzer_sys::fuzz_target;
use onlyonce_fuzz::{Target, target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fuzz_target!(
    init: write_files().expect("the folder of the seeds and the file of the words can be written"),
    |bytes: &[u8]| (CHOSEN.get_or_init(chosen).run)(bytes)
);

fn chosen() -> &'static Target {
    let name = std::env::var("ONLYONCE_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("ONLYONCE_FUZZ_TARGET names no target: {name:?}"))
}

fn write_files() -> io::Result<()> {
    let target = CHOSEN.get_or_init(chosen);
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    if let Some(folder) = path("ONLYONCE_FUZZ_SEEDS") {
        fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    if let Some(file) = path("ONLYONCE_FUZZ_WORDS") {
        let mut words = String::new();
        for word in target.words {
            let escaped = word.bytes().fold(String::new(), |mut escaped, byte| {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\x{byte:02x}");
                escaped
            });
            words += &format!("\"{escaped}\"\n");
        }
        fs::write(file, words)?;
    }
    Ok(())
}
