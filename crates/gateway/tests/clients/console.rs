//! The console in Chromium.

use serde_json::json;

use crate::kit::{Provider, base, run, setup};

const TOKEN: &str = "a-token-of-more-than-thirty-two-characters";
const VIEWER: &str = "a-viewers-token-of-more-than-thirty-two-characters";

fn start(sandbox: &Provider) -> onlyonce_testkit::Gateway {
    setup(sandbox, "openai")
        .server(&format!(
            "control_token = \"{TOKEN}\"\n[[server.token]]\nname = \"acme-view\"\ntoken = \
             \"{VIEWER}\"\ntenant = \"acme\"\nrights = [\"read\"]"
        ))
        .extra(
            "[[tenant]]\nname = \"acme\"\ncredentials = [\"sk-acme\"]\n[[tenant]]\nname = \
             \"globex\"\ncredentials = [\"sk-globex\"]",
        )
        .start()
}

/// From an empty store to a settled unknown, as somebody sees it. Pictures go to the folder that
/// `ONLYONCE_PICTURES` names; those in docs/images are of such a run.
#[test]
fn a_person_sees_what_ran_and_settles_what_is_unknown() {
    let sandbox = Provider::sandbox();
    let gateway = start(&sandbox);
    let said = run(
        "console.cjs",
        &json!({
            "base": base(&gateway),
            "control": format!("http://{}", gateway.control_addr()),
            "token": TOKEN,
            "viewer": VIEWER,
            "pictures": std::env::var("ONLYONCE_PICTURES").ok(),
        }),
    );
    assert_eq!(said.len(), 10, "{said:?}");
    // Who settled it stands in the log, and why.
    let log = gateway.stderr();
    assert!(log.contains("their list has no trace of it"), "{log}");
    assert!(log.contains("control_token"), "{log}");
    assert!(
        !log.contains(TOKEN) && !log.contains("not-a-token-of-this-gateway"),
        "{log}"
    );
}

/// What runs, as somebody sees it who looks on.
#[test]
fn a_person_follows_a_recording_while_it_grows() {
    let sandbox = Provider::sandbox();
    let gateway = start(&sandbox);
    let said = run(
        "console_live.cjs",
        &json!({
            "base": base(&gateway),
            "control": format!("http://{}", gateway.control_addr()),
            "token": TOKEN,
            "pictures": std::env::var("ONLYONCE_PICTURES").ok(),
        }),
    );
    assert_eq!(said.len(), 4, "{said:?}");
}

/// The first one, without a mouse.
#[test]
fn a_person_settles_what_is_unknown_with_the_keyboard_alone() {
    let sandbox = Provider::sandbox();
    let gateway = start(&sandbox);
    let said = run(
        "console_keyboard.cjs",
        &json!({
            "base": base(&gateway),
            "control": format!("http://{}", gateway.control_addr()),
            "token": TOKEN,
        }),
    );
    assert_eq!(said.len(), 6, "{said:?}");
    let log = gateway.stderr();
    assert!(log.contains("their list has no trace of it"), "{log}");
}
