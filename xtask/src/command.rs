//! Running other programs, with a line of progress while they are silent.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Where cargo puts what it builds for this workspace.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Prints a headline.
pub fn headline(text: &str) {
    println!("== {text}");
}

/// Prints a line with the seconds gone each `every`, until it is dropped.
pub struct Progress {
    stop: Option<Sender<()>>,
    printer: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Starts to print `what`.
    pub fn start(what: impl Into<String>, every: Duration) -> Self {
        let what = what.into();
        let (stop, stopped) = channel::<()>();
        let printer = thread::spawn(move || {
            let start = Instant::now();
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                println!("   {what} ... {} s", start.elapsed().as_secs());
            }
        });
        Self {
            stop: Some(stop),
            printer: Some(printer),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(printer) = self.printer.take() {
            let _ = printer.join();
        }
    }
}

/// Runs a command quietly to its end; its output is shown only when it fails.
pub fn quietly(what: &str, command: &mut Command) -> Result<String> {
    let _progress = Progress::start(what, Duration::from_secs(5));
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{what} failed ({})\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a short command says on its standard output.
pub fn said_by(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Runs a command and hands over every line of its standard output; returns whether it succeeded.
pub fn each_line(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let program = command.get_program().to_os_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let stdout = child
        .stdout
        .take()
        .context("the child has no standard output")?;
    for text in BufReader::new(stdout).split(b'\n') {
        line(&String::from_utf8_lossy(&text?));
    }
    Ok(child.wait()?.success())
}

/// Asks a child to end (signal 15), and waits until it has; one that takes too long is killed, and that is an error.
pub fn terminate(child: &mut Child, limit: Duration) -> Result<()> {
    let kill = format!("kill {}", child.id());
    quietly("kill", Command::new("sh").args(["-c", &kill]))?;
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("process {} did not end", child.id());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether a program can be found on the path.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places
        .map(|place| place.join(program))
        .any(|file| file.is_file())
}

/// Installs Debian packages, each only when its program is missing.
pub fn apt_install(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("   installing {}", missing.join(", "));
    quietly("apt-get update", Command::new("apt-get").arg("update"))?;
    quietly(
        "apt-get install",
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            // The packages' own services must not start: the benches start what they need.
            .env("RUNLEVEL", "1")
            .args(["install", "-y", "--no-install-recommends"])
            .args(&missing),
    )?;
    Ok(())
}
