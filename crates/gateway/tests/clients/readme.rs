//! The starts in the README, run as they are printed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::kit::{Provider, base, gateway, node_modules, python};

/// Where the README's gateway listens.
const PRINTED: &str = "http://127.0.0.1:8787";

/// The first block of code under a heading of the README.
fn printed(heading: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = fs::read_to_string(file).expect("the README");
    let (_, section) = readme
        .split_once(&format!("\n### {heading}\n"))
        .unwrap_or_else(|| panic!("the README has no heading {heading}"));
    let block = section.split("```").nth(1).expect("a block of code");
    let (_, code) = block.split_once('\n').expect("its language, then code");
    assert!(code.contains(PRINTED), "it asks somebody else: {code}");
    code.to_owned()
}

/// Runs it with `command`, which gets it in a file of this name, and gives what it printed. The
/// gateway is on another port than the README's, and that is all that is changed.
fn ran_once(heading: &str, file: &str, command: impl FnOnce(&Path) -> Command) -> String {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "generic");
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join(file);
    let code = printed(heading).replace(PRINTED, &base(&gateway));
    fs::write(&script, code).expect("the script");
    let mut command = command(&script);
    // A proxy of the machine is for the outer world, not for the gateway.
    let run = command
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .expect("a run");
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}\n{complaint}");
    assert_eq!(sandbox.executions(), 1, "{said}\n{complaint}");
    said
}

/// Both attempts print the same id.
fn prints_one_id_twice(said: &str) {
    let lines: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let [("first", first), ("second", second)] = lines[..] else {
        panic!("it printed {said:?}");
    };
    assert!(first == second && first.len() > 5, "{said}");
}

fn in_python(heading: &str) {
    let said = ran_once(heading, "start.py", |script| {
        let mut command = Command::new(python());
        command.arg(script);
        command
    });
    prints_one_id_twice(&said);
}

#[test]
fn the_start_with_curl_runs_once() {
    let said = ran_once("curl", "start.sh", |script| {
        let mut command = Command::new("sh");
        command.arg(script);
        command
    });
    assert!(said.contains("onlyonce-status: executed"), "{said}");
    assert!(said.contains("onlyonce-status: replayed"), "{said}");
    let bodies: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_once('{'))
        .collect();
    assert_eq!(bodies.len(), 2, "{said}");
}

#[test]
fn the_start_with_openai_for_python_runs_once() {
    in_python("OpenAI, Python");
}

#[test]
fn the_start_with_openai_for_node_runs_once() {
    let said = ran_once("OpenAI, Node", "start.mjs", |script| {
        let place = script.with_file_name("node_modules");
        std::os::unix::fs::symlink(node_modules(), place).expect("a link to the packages");
        let mut command = Command::new("node");
        command.arg(script);
        command
    });
    prints_one_id_twice(&said);
}

#[test]
fn the_start_with_anthropic_for_python_runs_once() {
    in_python("Anthropic, Python");
}

#[test]
fn the_start_with_gemini_for_python_runs_once() {
    in_python("Gemini, Python");
}

#[test]
fn the_start_with_stripe_for_python_runs_once() {
    in_python("Stripe, Python");
}
