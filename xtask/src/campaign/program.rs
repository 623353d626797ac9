//! A campaign whose work is a program of its own, as a test binary.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Done;
use super::figures::Figures;
use crate::command::{cargo, each_line, quietly};

/// A program of tests, as cargo has built it.
pub struct Tests {
    /// Its name among the tests of its package; of unit tests, the name of the library.
    pub name: String,
    /// The program.
    pub executable: PathBuf,
    /// The folder of its package, in which it is to be run.
    pub folder: PathBuf,
}

impl Tests {
    /// The program, in its folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.folder);
        command
    }
}

/// Builds the tests that `wanted` names, as arguments of `cargo test`.
pub fn build_tests(wanted: &[String]) -> Result<Vec<Tests>> {
    let mut build = cargo();
    build
        .args(["test", "--locked", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(wanted);
    let said = quietly("cargo test --no-run", &mut build)?;
    let messages = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok(messages.filter_map(|message| built(&message)).collect())
}

fn built(message: &Value) -> Option<Tests> {
    let is_test = message["profile"]["test"].as_bool()?;
    let executable = message["executable"].as_str().filter(|_| is_test)?;
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    Some(Tests {
        name: message["target"]["name"].as_str()?.to_owned(),
        executable: executable.into(),
        folder: manifest.parent()?.to_owned(),
    })
}

/// Runs a program to its end and shows what it prints. The last line that begins with `{` says what it did:
/// `{"to":101,"counts":{"seeds":100},"violations":["seed 7: I1"]}`.
pub fn batch(command: &mut Command) -> Result<Done> {
    let mut last = None;
    let succeeded = each_line(command, |line| {
        if line.starts_with('{') {
            last = Some(line.to_owned());
        } else {
            println!("   {line}");
        }
    })?;
    let done = read(&last.context("it did not say what it did")?)?;
    if !succeeded && done.violations.is_empty() {
        bail!("it failed, and named no violation");
    }
    Ok(done)
}

/// What the last such line of `output` says.
pub fn told(output: &str) -> Result<Done> {
    let last = output.lines().rfind(|line| line.starts_with('{'));
    read(last.context("it did not say what it did")?)
}

fn read(line: &str) -> Result<Done> {
    let json: Value = serde_json::from_str(line)?;
    let violations = json["violations"].as_array().context("no violations")?;
    let text = |violation: &Value| {
        let text = violation.as_str();
        text.map_or_else(|| violation.to_string(), str::to_owned)
    };
    Ok(Done {
        to: json["to"]
            .as_u64()
            .context("it did not say how far it came")?,
        figures: Figures::from_json(json["counts"].as_object().context("no counts")?),
        violations: violations.iter().map(text).collect(),
        ..Done::default()
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::batch;

    fn says(text: &str, status: u8) -> anyhow::Result<super::Done> {
        let script = format!("printf '%s\\n' '{text}'; exit {status}");
        batch(Command::new("sh").args(["-c", &script]))
    }

    #[test]
    fn the_last_line_says_what_was_done() {
        let line = r#"{"to":101,"counts":{"seeds":100},"violations":["seed 7: I1"]}"#;
        let done = says(&format!("running\n{line}\n\ntest result: FAILED"), 1).unwrap();
        assert_eq!((done.to, done.figures.of("seeds")), (101, 100));
        assert_eq!(done.violations, ["seed 7: I1"]);
    }

    #[test]
    fn a_program_that_failed_or_said_nothing_did_not_hold() {
        assert!(says("running", 0).is_err());
        assert!(says(r#"{"to":2,"counts":{},"violations":[]}"#, 101).is_err());
    }
}
