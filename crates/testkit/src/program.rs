//! Programs that a test makes up.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Makes `path` a program that `/bin/sh` runs `script` for.
///
/// Another process writes it: what a test beside this one starts would hold it open for writing otherwise, and it could not
/// be run ("text file busy").
pub fn make_program(path: &Path, script: &str) {
    let text = path.with_extension("sh");
    fs::write(&text, format!("#!/bin/sh\n{script}")).expect("a folder to write to");
    let mut install = Command::new("install");
    let status = install.args(["-m", "755"]).args([&text, path]).status();
    assert!(status.expect("coreutils").success());
}
