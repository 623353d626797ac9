//! The SDKs for Python and TypeScript: their own tests, file by file, against the binary under test.
//!
//! Each language runs its tests by one command without all this; see the README of its package.

use std::collections::BTreeSet;
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

/// A test for each file, and the names of all files.
macro_rules! files {
    ($all:ident, $passes:ident: $($name:ident => $file:literal),* $(,)?) => {
        const $all: &[&str] = &[$($file),*];
        $(
            #[test]
            fn $name() {
                $passes($file);
            }
        )*
    };
}

files!(PYTHON, python_passes:
    python_operations_keep_their_promises => "test_client.py",
    python_functions_run_once => "test_once.py",
    python_tools_of_an_agent_run_once => "test_tools.py",
    python_keys_survive_and_are_those_of_onlyonce_call => "test_keys.py",
    python_official_sdks_send_the_key_of_their_action => "test_sdks.py",
    python_examples_are_killed_and_do_everything_once => "test_examples.py",
    python_types_hold => "test_types.py",
    python_installs_from_the_checkout => "test_install.py",
);

files!(NODE, node_passes:
    node_operations_keep_their_promises => "client.test.js",
    node_functions_run_once => "once.test.js",
    node_tools_of_an_agent_run_once => "tools.test.js",
    node_keys_survive_and_are_those_of_onlyonce_call => "keys.test.js",
    node_official_sdks_send_the_key_of_their_action => "sdks.test.js",
    node_types_hold_and_it_installs_from_the_checkout => "install.test.js",
);

#[test]
fn every_test_file_of_the_sdks_is_run() {
    let found = |folder: &str, is_test: fn(&str) -> bool| -> BTreeSet<String> {
        fs::read_dir(sdk(folder))
            .expect("a folder of tests")
            .map(|entry| entry.expect("an entry").file_name().into_string())
            .filter_map(Result::ok)
            .filter(|name| is_test(name))
            .collect()
    };
    let listed = |files: &[&str]| files.iter().map(|&file| file.to_owned()).collect();
    let python = found("python/tests", |name| name.starts_with("test_"));
    assert_eq!(python, listed(PYTHON));
    let node = found("typescript/test", |name| name.ends_with(".test.js"));
    assert_eq!(node, listed(NODE));
}
