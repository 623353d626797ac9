//! The example shows what it says.

use onlyonce_testkit::example;

#[test]
fn a_caller_that_went_away_gets_the_answer_to_its_one_charge() {
    let run = example("both_ends").output().unwrap();
    let shown = String::from_utf8(run.stdout).unwrap();
    assert!(
        run.status.success(),
        "{shown}{:?}",
        String::from_utf8(run.stderr)
    );
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "first:   went away while it ran");
    assert!(
        lines[1].starts_with("second:  \"charge 1, made by op_"),
        "{shown}"
    );
    assert!(lines[1].contains("with kept key"), "{shown}");
    assert_eq!(lines[2], "charges: 1");
}
