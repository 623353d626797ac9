//! The example `axum` does what its page says; `report` is in story.rs.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use onlyonce_testkit::{Client, Request, Response, ServingExample, example};

fn charge(server: &ServingExample, key: &str, card: &str) -> Response {
    let request = Request::post("/charges")
        .key(key)
        .header("Authorization", "Bearer me")
        .header("Content-Type", "application/json")
        .body(format!(r#"{{"card": "{card}", "cents": 1999}}"#));
    Client::connect(server.addr).ask(&request)
}

fn start(folder: &Path) -> ServingExample {
    // Its data is in the folder of temporary files.
    ServingExample::start(example("axum").arg("127.0.0.1:0").env("TMPDIR", folder))
}

#[test]
fn the_example_axum_charges_once_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let first = charge(&server, "order-17", "visa");
    first.expect_status(200).expect_mark("executed");
    charge(&server, "order-18", "declined").expect_status(402);
    for _ in 0..2 {
        charge(&server, "order-19", "offline")
            .expect_status(503)
            .expect_mark("released");
    }
    drop(server);

    let server = start(folder.path());
    let again = charge(&server, "order-17", "visa");
    again.expect_status(200).expect_mark("replayed");
    assert_eq!(again.text(), first.text());
    charge(&server, "order-18", "declined")
        .expect_status(402)
        .expect_mark("replayed");
    charge(&server, "order-19", "offline")
        .expect_status(503)
        .expect_mark("released");
}
