//! What the page of presets says about each status, against the real binary.

use std::collections::BTreeSet;

use onlyonce_testkit::Upstream;

use crate::{post, setup};

const PAGE: &str = include_str!("../../../../docs/presets.md");

/// The statuses that the page's table for `preset` gives this outcome.
fn statuses(preset: &str, outcome: &str) -> BTreeSet<u16> {
    let heading = format!("\n## {preset}\n");
    let (_, section) = PAGE.split_once(&heading).expect("the preset's section");
    let section = section.split("\n## ").next().expect("its text");
    let mut found = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        if cells[2] == outcome {
            let words = cells[1].split(|c: char| !c.is_ascii_digit());
            found.extend(words.filter_map(|word| word.parse::<u16>().ok()));
        }
    }
    found
}

#[test]
fn each_status_is_released_or_recorded_as_the_page_says() {
    for preset in [
        "generic",
        "openai",
        "anthropic",
        "gemini",
        "bedrock",
        "mistral",
        "cohere",
        "openrouter",
        "stripe",
    ] {
        let upstream = Upstream::scripted(|x| {
            let status = x.path()[1..].parse().unwrap();
            x.answer(status, &[], b"said");
        });
        let gateway = setup(&upstream)
            .upstream(&format!("preset = \"{preset}\""))
            .start();
        let released = statuses(preset, "released");
        let recorded = statuses(preset, "recorded");
        assert!(
            released.len() > 2 && released.is_disjoint(&recorded),
            "{preset}"
        );
        assert!(preset == "generic" || recorded.len() > 2, "{preset}");
        let mut client = gateway.connect();
        for status in [200, 201, 202, 301, 302, 307].into_iter().chain(400..=599) {
            let (path, hits) = (format!("/{status}"), upstream.hits());
            let request = post(&path, &path, "b");
            let mark = match released.contains(&status) {
                true => ["released", "released"],
                false => ["executed", "replayed"],
            };
            for mark in mark {
                client.ask(&request).expect_status(status).expect_mark(mark);
            }
            let ran = 1 + usize::from(mark[1] == "released");
            assert_eq!(upstream.hits(), hits + ran, "{preset} {status}");
        }
    }
}

#[test]
fn stripe_gets_the_key_in_its_own_header_whatever_it_came_in() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .upstream("preset = \"stripe\"")
        .route("key_headers = [\"Idempotency-Key\", \"X-Action\"]")
        .start();
    let request = post("/v1/charges", "k", "amount=1").without("Idempotency-Key");
    gateway
        .send(&request.header("X-Action", "k"))
        .expect_status(200)
        .expect_mark("executed");
    assert_eq!(upstream.seen()[0].head.header("idempotency-key"), Some("k"));
}
