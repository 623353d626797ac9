//! What the Dockerfile and the systemd unit start, started here with other addresses and folders.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use onlyonce_testkit::{Staying, run_to_exit};

const BIN: &str = env!("CARGO_BIN_EXE_onlyonce");
const DOCKERFILE: &str = include_str!("../../../Dockerfile");
const UNIT: &str = include_str!("../../../packaging/onlyonce.service");

/// What stands behind `name` at the start of a line; the line must be there once.
#[track_caller]
fn line<'a>(of: &'a str, name: &str) -> &'a str {
    let mut found = of.lines().filter_map(|line| line.strip_prefix(name));
    let one = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(found.next(), None, "two lines of {name}");
    one.trim()
}

/// These words, where the configuration file, the data folder and the listener are the test's own.
fn here(words: &[String], folder: &Path) -> Vec<String> {
    let config = folder.join("onlyonce.toml");
    let text = "[server]\nlisten = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n\
                [[upstream]]\nname = \"up\"\nurl = \"http://127.0.0.1:9\"\n";
    std::fs::write(&config, text).unwrap();
    words
        .iter()
        .map(|word| match word.as_str() {
            "/etc/onlyonce/onlyonce.toml" => config.display().to_string(),
            "0.0.0.0:8787" => "0.0.0.0:0".to_owned(),
            word => word.to_owned(),
        })
        .collect()
}

/// It says where it listens, has its data in the folder that it is started in, and ends in order when it is asked
/// to.
#[track_caller]
fn serves(words: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let serving = Staying::start_in(folder.path(), BIN, &here(words, folder.path()), 2);
    assert_eq!(serving.addresses().len(), 2, "{words:?}");
    assert!(
        folder.path().join("onlyonce-data/meta").exists(),
        "{words:?}"
    );
    assert_eq!(serving.stop(), Some(0), "{words:?}");
}

fn words_of(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn the_image_holds_the_binary_that_it_builds_and_starts_it() {
    let built = "cargo build --release --locked --package onlyonce-gateway";
    assert!(DOCKERFILE.contains(built));
    assert!(DOCKERFILE.contains("install -D target/release/onlyonce /out/onlyonce"));
    assert!(env!("CARGO_PKG_NAME") == "onlyonce-gateway" && BIN.ends_with("/onlyonce"));
    assert_eq!(
        line(DOCKERFILE, "COPY --from=build "),
        "/out/onlyonce /usr/local/bin/onlyonce"
    );
    assert_eq!(line(DOCKERFILE, "ENTRYPOINT "), "[\"onlyonce\"]");
    assert_eq!(line(DOCKERFILE, "STOPSIGNAL "), "SIGTERM");
    let words: Vec<String> = serde_json::from_str(line(DOCKERFILE, "CMD ")).unwrap();
    // The first one is where it is built.
    let folder = DOCKERFILE
        .lines()
        .rfind(|line| line.starts_with("WORKDIR "));
    let volume = line(DOCKERFILE, "VOLUME ");
    assert_eq!(folder, Some(&*format!("WORKDIR {volume}")));
    let port = line(DOCKERFILE, "EXPOSE ");
    assert!(words.iter().any(|word| word.ends_with(&format!(":{port}"))));
    serves(&words);
}

#[test]
fn the_unit_checks_the_configuration_and_starts_the_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let program = "/usr/bin/onlyonce ";
    let check = line(UNIT, "ExecStartPre=").strip_prefix(program).unwrap();
    let check = here(&words_of(check), folder.path());
    let check: Vec<_> = check.iter().map(String::as_str).collect();
    let run = run_to_exit(BIN, &check, &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let serve = line(UNIT, "ExecStart=").strip_prefix(program).unwrap();
    serves(&words_of(serve));
    // It is started in its state folder.
    let state = line(UNIT, "StateDirectory=");
    assert_eq!(line(UNIT, "WorkingDirectory="), format!("/var/lib/{state}"));
    // A mistake in the configuration ends with the code that is not tried again.
    assert_eq!(line(UNIT, "RestartPreventExitStatus="), "2");
    let run = run_to_exit(BIN, &["check", "/no/such/file"], &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
}

#[test]
fn systemd_takes_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onlyonce.service");
    // It looks for the program, which is not installed here.
    std::fs::write(&file, UNIT.replace("/usr/bin/onlyonce", BIN)).unwrap();
    let verify = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&file)
        .output();
    let Ok(verify) = verify else {
        println!("skipped: there is no systemd-analyze here");
        return;
    };
    let said = String::from_utf8_lossy(&verify.stderr);
    assert!(verify.status.success() && said.is_empty(), "{said}");
}
