//! The machine that the figures come from, and what else runs on it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::peers::nginx_program;
use crate::command::{said_by, target_dir};

/// How many cores this machine has.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// How long the processors are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Date, machine and versions, for a section of the results; `idle` is the share of the
/// processors' time that was left before and after it was measured.
pub fn describe(idle: f64) -> Result<String> {
    let date = said_by(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernel = said_by(Command::new("uname").arg("-r"))?;
    // What follows the numbers is the name of a build.
    let kernel = kernel.split('-').next().unwrap_or_default();
    Ok(format!(
        "{date}; {}, {} cores, Linux {kernel}, {}; {}, {}. Processors {:.0} % idle before and after.",
        processor(),
        cores(),
        disk(&target_dir())?,
        version(nginx_program(), "-v")?,
        version("wrk", "-v")?,
        idle * 100.0
    ))
}

/// The share of the processors' time in which nothing runs now.
pub fn idle() -> Result<f64> {
    let (idle_before, all_before) = processor_times()?;
    thread::sleep(LOOK);
    let (idle_after, all_after) = processor_times()?;
    let all = all_after.saturating_sub(all_before).max(1);
    Ok(idle_after.saturating_sub(idle_before) as f64 / all as f64)
}

/// Idle time and all time since the machine started, in ticks.
fn processor_times() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq steal; what follows is counted in `user` already.
    let ticks = line.split_whitespace().skip(1).take(8);
    let ticks: Vec<u64> = ticks.filter_map(|tick| tick.parse().ok()).collect();
    let idle = ticks.iter().skip(3).take(2).sum();
    Ok((idle, ticks.iter().sum()))
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.unwrap_or("unknown processor");
    model
        .trim_start_matches([' ', '\t', ':'])
        .trim_end()
        .to_string()
}

/// The file system of a folder and the kind of disk that it lies on.
fn disk(folder: &Path) -> Result<String> {
    let mut df = Command::new("df");
    df.arg("--output=fstype,source").arg(folder);
    let text = said_by(&mut df)?;
    let line = text.lines().nth(1).unwrap_or_default();
    let (file_system, device) = line.split_once(' ').unwrap_or((line, ""));
    let device = device.trim().rsplit('/').next().unwrap_or_default();
    Ok(format!("{file_system} on {}", disk_kind(device)))
}

fn disk_kind(device: &str) -> &'static str {
    if device.starts_with("vd") {
        return "a virtio disk";
    }
    if device.starts_with("nvme") {
        return "NVMe";
    }
    // A partition has no queue of its own; its disk is one folder up.
    let of = |place: &str| fs::read_to_string(format!("/sys/class/block/{device}/{place}"));
    match of("queue/rotational").or_else(|_| of("../queue/rotational")) {
        Ok(flag) if flag.trim() == "0" => "a solid-state disk",
        Ok(_) => "a rotating disk",
        Err(_) => "an unknown disk",
    }
}

/// Name and version of a program, as `nginx 1.22.1`.
fn version(program: &str, option: &str) -> Result<String> {
    // nginx writes it to standard error, and wrk exits as if it had failed.
    let output = Command::new(program).arg(option).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok(name_and_number(&String::from_utf8_lossy(&text)))
}

fn name_and_number(said: &str) -> String {
    let mut words = said.split([' ', ':', '/', '\n']);
    let name = words.next().unwrap_or_default().to_string();
    let is_number = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    let number = words.find(is_number).unwrap_or("of an unknown version");
    let number = number.split('-').next().unwrap_or_default();
    format!("{name} {number}")
}

#[cfg(test)]
mod tests {
    use super::name_and_number;

    #[test]
    fn a_version_is_found_in_what_the_programs_say() {
        let nginx = "nginx version: nginx/1.22.1\n";
        assert_eq!(name_and_number(nginx), "nginx 1.22.1");
        let wrk = "wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer\n";
        assert_eq!(name_and_number(wrk), "wrk 4.1.0");
    }
}
