//! The SDKs for Python and TypeScript: their own tests, file by file, against the binary under test.
//!
//! Each language runs its tests by one command without all this; see the README of its package.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::kit::{BIN, node_modules, python};

/// The folder `name` of the SDKs.
fn sdk(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../sdk")
        .join(name)
}

/// Runs tests to their end; what they said is printed where they fail.
#[track_caller]
fn passes(command: &mut Command) {
    let said = command
        .env("ONLYONCE_BINARY", BIN)
        .env("ONLYONCE_NODE_MODULES", node_modules())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        said.status.success(),
        "{command:?}: {}\n{}\n{}",
        said.status,
        text(&said.stdout),
        text(&said.stderr)
    );
}

#[track_caller]
fn python_passes(file: &str) {
    let mut command = Command::new(python());
    command
        .args(["-m", "unittest", "discover", "-s", "tests", "-p", file])
        .current_dir(sdk("python"));
    passes(&mut command);
}

#[track_caller]
fn node_passes(file: &str) {
    let mut command = Command::new("node");
    command
        .args(["--test", "--test-timeout", "300000"])
        .arg(PathBuf::from("test").join(file))
        .current_dir(sdk("typescript"));
    passes(&mut command);
}

#[test]
fn python_operations_keep_their_promises() {
    python_passes("test_client.py");
}

#[test]
fn python_functions_run_once() {
    python_passes("test_once.py");
}

#[test]
fn python_tools_of_an_agent_run_once() {
    python_passes("test_tools.py");
}

#[test]
fn python_keys_survive_and_are_those_of_onlyonce_call() {
    python_passes("test_keys.py");
}

#[test]
fn python_official_sdks_send_the_key_of_their_action() {
    python_passes("test_sdks.py");
}

#[test]
fn python_examples_are_killed_and_do_everything_once() {
    python_passes("test_examples.py");
}

#[test]
fn python_types_hold() {
    python_passes("test_types.py");
}

#[test]
fn python_installs_from_the_checkout() {
    python_passes("test_install.py");
}

#[test]
fn node_operations_keep_their_promises() {
    node_passes("client.test.js");
}

#[test]
fn node_functions_run_once() {
    node_passes("once.test.js");
}

#[test]
fn node_tools_of_an_agent_run_once() {
    node_passes("tools.test.js");
}

#[test]
fn node_keys_survive_and_are_those_of_onlyonce_call() {
    node_passes("keys.test.js");
}

#[test]
fn node_official_sdks_send_the_key_of_their_action() {
    node_passes("sdks.test.js");
}

#[test]
fn node_types_hold_and_it_installs_from_the_checkout() {
    node_passes("install.test.js");
}

#[test]
fn every_test_file_of_the_sdks_is_run() {
    let found = |folder: &str, is_test: fn(&str) -> bool| -> Vec<String> {
        fs::read_dir(sdk(folder))
            .expect("a folder of tests")
            .map(|entry| entry.expect("an entry").file_name().into_string())
            .filter_map(Result::ok)
            .filter(|name| is_test(name))
            .collect()
    };
    let mut files = found("python/tests", |name| name.starts_with("test_"));
    files.extend(found("typescript/test", |name| name.ends_with(".test.js")));
    assert!(files.len() > 10, "only {files:?}");
    for file in files {
        let run = format!("passes(\"{file}\")");
        assert!(include_str!("sdk.rs").contains(&run), "{file} is not run");
    }
}
