//! The example configuration is valid, and says every setting with its default.

use onlyonce_testkit::run_to_exit;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config.example.toml");
const SECRETS: [(&str, &str); 4] = [
    (
        "ONLYONCE_CONTROL_TOKEN",
        "an-example-token-of-at-least-32-characters",
    ),
    ("ACME_KEY", "sk-acme"),
    ("ACME_KEY_NEXT", "sk-acme-next"),
    (
        "ONLYONCE_KEY_1",
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    ),
];

fn check(file: &str) -> onlyonce_testkit::Run {
    run_to_exit(env!("CARGO_BIN_EXE_onlyonce"), &["check", file], &SECRETS)
}

#[test]
fn the_example_is_valid() {
    let run = check(EXAMPLE);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stdout.contains("is valid: 3 upstreams, 3 routes"),
        "{run:?}"
    );
}

/// What stands in it behind `# ` as a setting is valid too: it is the default of that setting.
#[test]
fn what_is_commented_out_in_the_example_is_valid() {
    let text = std::fs::read_to_string(EXAMPLE).unwrap();
    let all: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // A setting is a name and `=`; a sentence has more words before one.
            Some(setting)
                if setting
                    .split_once(" = ")
                    .is_some_and(|(name, _)| !name.contains(' ')) =>
            {
                format!("{setting}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(all, text, "nothing was commented out");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.toml");
    std::fs::write(&file, all).unwrap();
    let run = check(&file.display().to_string());
    assert_eq!(run.code, Some(0), "{run:?}");
}
