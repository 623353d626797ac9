//! A command of the binary that stays, started by its words alone.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::gateway::listening;
use crate::signal::eventually;

/// A running `serve` or `sandbox`. It is killed when dropped.
pub struct Staying {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl Staying {
    /// Starts the binary with these words, and waits until it says where so many listeners are, or
    /// ends.
    pub fn start(binary: &str, words: &[impl AsRef<str>], listeners: usize) -> Self {
        Self::start_in(Path::new("."), binary, words, listeners)
    }

    /// As [`Staying::start`], in this folder.
    pub fn start_in(
        folder: &Path,
        binary: &str,
        words: &[impl AsRef<str>],
        listeners: usize,
    ) -> Self {
        let mut child = Command::new(binary)
            .current_dir(folder)
            .args(words.iter().map(AsRef::as_ref))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary");
        let stdout = child.stdout.take().expect("a pipe");
        let addresses = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| listening(&line))
            .take(listeners)
            .collect();
        Self { child, addresses }
    }

    /// Where it listens, in the order in which it said so.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Asks it to end (`SIGTERM`), waits, and gives its exit code.
    #[track_caller]
    pub fn stop(mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        // It may have ended by itself, which its exit code tells.
        let _ = kill_process(pid, Signal::TERM);
        let mut ended = None;
        eventually("it ends", || {
            ended = self.child.try_wait().expect("waiting for the binary");
            ended.is_some()
        });
        ended.and_then(|status| status.code())
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
