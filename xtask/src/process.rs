//! What a process holds, and may hold.

use std::fs;
use std::process::Command;

/// Resident memory of a process, in bytes.
pub fn resident(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// How many descriptors a process has open.
pub fn descriptors(id: u32) -> u64 {
    fs::read_dir(format!("/proc/{id}/fd")).map_or(0, |entries| entries.count() as u64)
}

/// Lets this process and its children open as many files as the system allows at all: 500 streams
/// are 1,000 sockets, and some systems start with less. Says how many those are.
pub fn raise_open_files() -> u64 {
    if let Some(most) = open_files_limit(1) {
        // Where that is not possible, the part that needs it says what failed.
        let _ = Command::new("prlimit")
            .arg(format!("--pid={}", std::process::id()))
            .arg(format!("--nofile={most}:{most}"))
            .status();
    }
    open_files_limit(0).unwrap_or(0)
}

/// The limit of open files in force (0), or the most that it may be raised to (1).
fn open_files_limit(column: usize) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(column)?.parse().ok()
}
