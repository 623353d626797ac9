//! Examples, run as a reader of theirs runs them.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

/// The command of the example `name` of the package whose test this is.
///
/// `cargo test` builds a package's examples with its tests; a test that is built alone (`--test NAME`) runs the
/// example that was built last.
pub fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("a test is a program");
    // In a folder beside that of the tests.
    let folder = test.parent().expect("a folder").with_file_name("examples");
    let file = folder.join(name);
    assert!(
        file.exists(),
        "there is no {}: build the example first",
        file.display()
    );
    let mut command = Command::new(file);
    command.stdin(Stdio::null());
    command
}

/// An example that serves, until it is dropped.
pub struct ServingExample {
    process: Child,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl ServingExample {
    /// Starts it, and waits until it has said `example listening on http://ADDRESS`.
    pub fn start(command: &mut Command) -> Self {
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the example");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let addr = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let addr = line.strip_prefix("example listening on http://")?;
            Some(addr.parse().expect("an address"))
        });
        // What else it says must not make it wait.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self {
            process,
            addr: addr.expect("the example ended before it listened"),
        }
    }

    /// Waits until it has died by itself.
    pub fn died(mut self) -> ExitStatus {
        self.process.wait().expect("a child of ours")
    }
}

impl Drop for ServingExample {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
