//! Folders that refuse writes, for one process alone.

use std::path::Path;
use std::process::Command;

use crate::places;

/// A command that runs another one where `folder` is on a read-only file system, for that process
/// alone. `None`, with the reason printed, where the system does not let us mount, unless
/// `ONLYONCE_NAMESPACES=required`.
pub fn read_only(folder: &Path) -> Option<Vec<String>> {
    mounted(
        folder,
        "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && shift && exec \"$@\"",
    )
}

/// As [`read_only`], where `folder` is an empty disk of `kib` KiB.
pub fn small_disk(folder: &Path, kib: u32) -> Option<Vec<String>> {
    let mount =
        format!("mount -t tmpfs -o size={kib}k,mode=700 none \"$1\" && shift && exec \"$@\"");
    mounted(folder, &mount)
}

fn mounted(folder: &Path, script: &str) -> Option<Vec<String>> {
    let folder = folder.display().to_string();
    let words = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        script,
        "sh",
        &folder,
    ];
    let tried = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .output();
    let why = match tried {
        Ok(output) if output.status.success() => return Some(words.map(str::to_owned).to_vec()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    let why = format!("no file system can be mounted here: {}", why.trim());
    assert!(!places::are_required(), "{why}");
    println!("skipped: {why}");
    None
}
