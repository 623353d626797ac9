//! What recorded answers tell, however they come.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used)]

mod bounds;
mod support;

use std::io::Write as _;
use std::sync::Arc;

use http::HeaderMap;
use onlyonce_core::Timestamp;
use onlyonce_core::metered::{Basis, Source, Unit};
use onlyonce_ledger::prices::{Prices, Sale};
use onlyonce_ledger::{Asked, End, GaveUp, Meter, MeterMemory, RawFormat, UsageFormat};
use proptest::prelude::*;

use support::{AMPLE, CODINGS, Recorded, fixtures, recorded, shown};

#[test]
fn answers_tell_what_was_used() {
    for answer in recorded() {
        let metered = answer.metered(None, [&*answer.body], End::Clean);
        assert_eq!(shown(&metered), answer.expected, "{}", answer.name);
    }
}

#[test]
fn no_cut_changes_the_usage() {
    for answer in recorded() {
        let body = &answer.body;
        for at in 0..=body.len() {
            let metered = answer.metered(None, [&body[..at], &body[at..]], End::Clean);
            assert_eq!(
                shown(&metered),
                answer.expected,
                "{} cut at {at}",
                answer.name
            );
        }
        let metered = answer.metered(None, body.chunks(1), End::Clean);
        assert_eq!(
            shown(&metered),
            answer.expected,
            "{} byte by byte",
            answer.name
        );
    }
}

#[test]
fn no_coding_changes_the_usage() {
    for answer in recorded() {
        for (coding, encode) in CODINGS {
            let body = encode(&answer.body);
            for size in [1, 7, body.len()] {
                let metered = answer.metered(Some(coding), body.chunks(size), End::Clean);
                let name = &answer.name;
                assert_eq!(
                    shown(&metered),
                    answer.expected,
                    "{name} {coding} by {size}"
                );
            }
        }
    }
}

/// What is told of the first bytes is never called all of it.
#[track_caller]
fn is_no_more_than_partial(answer: &Recorded, coding: Option<&str>, start: &[u8]) {
    let metered = answer.metered(coding, start.chunks(64), End::Broken);
    let is_told = !metered.usage.is_empty() || metered.cost.is_some();
    let source = match (is_told, answer.status) {
        (true, _) => Source::Partial,
        (false, 200) => Source::Unknown,
        (false, _) => Source::NotMetered,
    };
    assert_eq!(metered.source, source, "{} at {}", answer.name, start.len());
    // Nor where nothing but the end of the body shows that it was cut.
    let metered = answer.metered(coding, start.chunks(64), End::Clean);
    if metered.source == Source::Provider {
        assert_eq!(
            shown(&metered),
            answer.expected,
            "{} at {}",
            answer.name,
            start.len()
        );
    }
}

#[test]
fn an_answer_that_breaks_is_partial_or_unknown() {
    let mut partial = 0;
    for answer in recorded() {
        for at in 0..=answer.body.len() {
            is_no_more_than_partial(answer, None, &answer.body[..at]);
        }
        for (coding, encode) in CODINGS {
            let body = encode(&answer.body);
            for at in (0..body.len()).step_by(5) {
                is_no_more_than_partial(answer, Some(coding), &body[..at]);
            }
        }
        let most = &answer.body[..answer.body.len() - 1];
        let metered = answer.metered(None, [most], End::Broken);
        partial += usize::from(metered.source == Source::Partial);
    }
    assert!(partial > 20, "{partial}");
}

#[test]
fn what_came_of_a_broken_encoded_stream_counts() {
    let answers = recorded();
    let answer = find(answers, "anthropic-messages/stream");
    // The usage of the start, and then more than any decoder holds back.
    let mut body = answer.body.clone();
    let mut number = 7_u32;
    for _ in 0..40_000 {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        body.extend(format!("event: ping\ndata: {{\"type\":\"ping\",\"n\":{number}}}\n\n").bytes());
    }
    let start = answer
        .body
        .windows(12)
        .position(|part| part == b"message_stop")
        .unwrap();
    body.drain(start - 7..answer.body.len());
    for (coding, encode) in CODINGS {
        let body = encode(&body);
        let metered = answer.metered(Some(coding), [&body[..body.len() / 3]], End::Broken);
        assert_eq!(metered.source, Source::Partial, "{coding}");
        assert_eq!(metered.usage.get(Unit::Input), Some(572), "{coding}");
    }
}

/// A decoder of brotli says that it wants more input while it has more output than there was room for.
#[test]
fn a_brotli_answer_is_read_as_far_as_it_came() {
    let answer = find(recorded(), "anthropic-messages/stream");
    let mut body = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
        .repeat(1_000)
        .into_bytes();
    body.extend(&answer.body);
    // All of it in one block, which lacks its last byte.
    let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
    encoder.write_all(&body).unwrap();
    let coded = encoder.into_inner();
    let most = &coded[..coded.len() - 1];
    for size in [64, most.len()] {
        let metered = answer.metered(Some("br"), most.chunks(size), End::Broken);
        assert_eq!(metered.usage.get(Unit::Input), Some(572), "by {size}");
    }
}

/// The encoders of the other tests are those of the decoders' authors; these files are not.
#[test]
fn what_the_reference_encoders_make_is_read() {
    let answer = find(recorded(), "openai-responses/stream");
    let long = find(recorded(), "anthropic-messages/stream");
    for (file, coding, answer) in [
        ("responses.19.zst", "zstd", answer),
        ("responses.stream.zst", "zstd", answer),
        ("responses.11.br", "br", answer),
        ("responses.gz", "gzip", answer),
        ("messages-in-many-blocks.zst", "zstd", long),
        ("messages-in-many-blocks.br", "br", long),
    ] {
        let body = std::fs::read(fixtures().join("encoded").join(file)).expect("a file");
        for size in [1, 1000, body.len()] {
            let metered = answer.metered(Some(coding), body.chunks(size), End::Clean);
            assert_eq!(shown(&metered), answer.expected, "{file} by {size}");
        }
        let metered = answer.metered(Some(coding), [&body[..body.len() - 9]], End::Broken);
        assert!(metered.source != Source::Provider, "{file}");
    }
    // All of this is within one window, which decoders like to hold back.
    for (file, coding) in [
        ("messages-in-many-blocks.zst", "zstd"),
        ("messages-in-many-blocks.br", "br"),
    ] {
        let body = std::fs::read(fixtures().join("encoded").join(file)).expect("a file");
        let metered = long.metered(Some(coding), [&body[..body.len() / 2]], End::Broken);
        assert_eq!(metered.source, Source::Partial, "{file}");
        assert_eq!(metered.usage.get(Unit::Input), Some(572), "{file}");
    }
}

fn find<'a>(answers: &'a [Recorded], name: &str) -> &'a Recorded {
    answers
        .iter()
        .find(|answer| answer.name == name)
        .expect("a recorded answer")
}

#[test]
fn a_coding_that_is_not_known_is_given_up() {
    let answers = recorded();
    let answer = find(answers, "openai-chat/plain");
    for coding in ["compress", "gzip, br", "gzip, gzip", "dcb"] {
        let memory = MeterMemory::new(AMPLE);
        let mut meter = answer.meter(Some(coding), &memory);
        meter.see(&answer.body);
        assert_eq!(meter.gave_up(), Some(GaveUp::Coding), "{coding}");
        let metered = meter.finish(End::Clean);
        assert_eq!(metered.source, Source::Unknown);
        assert!(metered.usage.is_empty());
    }
    let metered = answer.metered(Some("identity"), [&*answer.body], End::Clean);
    assert_eq!(shown(&metered), answer.expected);
}

#[test]
fn what_is_encoded_otherwise_than_said_is_given_up() {
    let answers = recorded();
    let answer = find(answers, "openai-chat/plain");
    for (coding, _) in CODINGS {
        let metered = answer.metered(Some(coding), [&*answer.body], End::Clean);
        assert_eq!(metered.source, Source::Unknown, "{coding}");
    }
    let answer = find(answers, "bedrock-converse/stream");
    let mut wrong = answer.body.clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    let metered = answer.metered(None, [&*wrong], End::Clean);
    assert_eq!(metered.source, Source::Unknown);
}

fn format(text: &str) -> Vec<Arc<UsageFormat>> {
    let raw: RawFormat = toml::from_str(text).expect("a format");
    vec![Arc::new(UsageFormat::compile(raw).expect("a format"))]
}

fn metered(
    formats: &[Arc<UsageFormat>],
    path: &str,
    status: u16,
    kind: &str,
    body: &str,
) -> Option<onlyonce_core::metered::Metered> {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", kind.parse().unwrap());
    let asked = Asked {
        path,
        model: Some("asked"),
    };
    let memory = MeterMemory::new(0);
    let mut meter = Meter::of(formats, asked, status, &headers, &memory)?;
    meter.see(body.as_bytes());
    Some(meter.finish(End::Clean))
}

#[test]
fn a_user_adds_a_format() {
    // As docs/presets.md has it.
    let page = include_str!("../../../../docs/presets.md");
    let example = page
        .split_once("```toml\n[[usage]]\n")
        .expect("an example")
        .1;
    let formats = format(example.split("```").next().expect("its end"));
    let lines = "{\"model\":\"m\",\"done\":false}\n{\"model\":\"m\",\"done\":true,\
                 \"prompt_eval_count\":26,\"eval_count\":298}\n";
    let ndjson = "application/x-ndjson";
    let all = metered(&formats, "/api/chat", 200, ndjson, lines).expect("a format");
    assert_eq!((&*all.model, &*all.request_model), ("m", "asked"));
    assert_eq!(all.usage.get(Unit::Input), Some(26));
    assert_eq!(all.usage.get(Unit::Output), Some(298));
    assert_eq!(all.source, Source::Provider);
    let first = lines.lines().next().unwrap();
    let cut = metered(&formats, "/api/chat", 200, ndjson, first).expect("a format");
    assert_eq!(cut.source, Source::Unknown);
    assert!(metered(&formats, "/api/tags", 200, ndjson, lines).is_none());
}

#[test]
fn a_call_has_its_price() {
    let formats = format(
        "name = \"search\"\npaths = \"/v1/search\"\nprovider = \"mine\"\nper_call = \"0.002\"\n\
         charge_on = [\"2xx\", \"404\"]",
    );
    let prices = Prices::vendored();
    for (status, cost) in [
        (200, "0.002"),
        (204, "0.002"),
        (404, "0.002"),
        (400, "0.00"),
        (500, "0.00"),
    ] {
        let mut metered = metered(&formats, "/v1/search", status, "text/html", "<p>").unwrap();
        assert_eq!(metered.source, Source::NotMetered, "{status}");
        let sale = Sale {
            tenant: "anyone",
            seller: Some(formats[0].price_provider()),
            per_call: formats[0].per_call(),
            status,
            at: Timestamp::from_millis(0),
        };
        prices.price(&mut metered, &sale);
        let cost_of = metered
            .cost
            .map(|cost| (cost.basis, cost.version, cost.amount.to_string()));
        let expected = (Basis::Route, "usage search 0.002".into(), cost.to_owned());
        assert_eq!(cost_of, Some(expected), "{status}");
    }
}

#[test]
fn absent_is_not_0_and_null_takes_nothing_away() {
    let formats = format(
        "name = \"x\"\npaths = \"**\"\nprovider = \"x\"\nat = \"/u\"\n\
         units = { input = [\"/a\", \"/b\"], output = \"/c\", reasoning = \"/d\" }",
    );
    for (body, usage) in [
        (r#"{"u":{"a":0}}"#, vec![(Unit::Input, 0)]),
        (
            r#"{"u":{"b":7,"a":null,"c":1}}"#,
            vec![(Unit::Input, 7), (Unit::Output, 1)],
        ),
        (
            r#"{"u":{"a":1},"u":{"a":null,"c":2}}"#,
            vec![(Unit::Input, 1), (Unit::Output, 2)],
        ),
        (r#"{"u":{"a":-1,"b":1.5,"c":"8","d":{}}}"#, vec![]),
        (
            r#"{"u":{"a":1.0,"d":12.000}}"#,
            vec![(Unit::Input, 1), (Unit::Reasoning, 12)],
        ),
        (
            r#"{"u":{"a":18446744073709551615,"b":1,"c":3}}"#,
            vec![(Unit::Output, 3)],
        ),
        (
            r#"{"u":{"a":18446744073709551616,"c":3}}"#,
            vec![(Unit::Output, 3)],
        ),
        (r#"{"a":1,"c":1}"#, vec![]),
    ] {
        let metered = metered(&formats, "/x", 200, "application/json", body).unwrap();
        assert!(
            metered.usage.iter().eq(usage.iter().copied()),
            "{body}: {:?}",
            metered.usage
        );
    }
}

#[test]
fn what_is_no_json_in_one_event_takes_nothing_from_the_next() {
    let formats =
        format("name = \"x\"\npaths = \"**\"\nprovider = \"x\"\nunits = { input = \"/u/a\" }");
    for before in [
        "hello",
        "{\"u\":",
        "{\"u\":{\"a\":1",
        "\"",
        "[[[[",
        "{\"u\":{\"a\":1}}}",
    ] {
        let body = format!("data: {before}\n\ndata: {{\"u\":{{\"a\":3}}}}\n\n");
        let metered = metered(&formats, "/x", 200, "text/event-stream", &body).unwrap();
        assert_eq!(metered.usage.get(Unit::Input), Some(3), "{before}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_any_coding_gives_the_same(
        answer in 0_usize..1000,
        coding in 0..CODINGS.len() + 1,
        cuts in proptest::collection::vec(1_usize..200, 1..100),
    ) {
        let answers = recorded();
        let answer = &answers[answer % answers.len()];
        let (coding, body) = match CODINGS.get(coding) {
            Some((coding, encode)) => (Some(*coding), encode(&answer.body)),
            None => (None, answer.body.clone()),
        };
        let mut pieces = Vec::new();
        let mut rest = &body[..];
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at(rest.len().min(*cut));
            pieces.push(piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let metered = answer.metered(coding, pieces, End::Clean);
        prop_assert_eq!(shown(&metered), &*answer.expected);
    }

    #[test]
    fn nothing_that_comes_makes_it_panic(
        answer in 0_usize..1000,
        coding in 0..CODINGS.len() + 1,
        changes in proptest::collection::vec((0_usize..100_000, any::<u8>()), 0..20),
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        keeps_body in any::<bool>(),
        size in 1_usize..300,
    ) {
        let answers = recorded();
        let answer = &answers[answer % answers.len()];
        let (coding, mut body) = match CODINGS.get(coding) {
            Some((coding, encode)) => (Some(*coding), encode(&answer.body)),
            None => (None, answer.body.clone()),
        };
        if !keeps_body {
            body.clear();
        }
        body.extend(noise);
        for (at, byte) in changes {
            let length = body.len();
            if length > 0 {
                body[at % length] = byte;
            }
        }
        let cut_so = answer.metered(coding, body.chunks(size), End::Clean);
        let whole = answer.metered(coding, [&*body], End::Clean);
        // How much of a broken encoded body is decoded until it breaks is the decoder's affair.
        let is_provider = [&cut_so, &whole].iter().any(|one| one.source == Source::Provider);
        if coding.is_none() || is_provider {
            prop_assert_eq!(shown(&cut_so), shown(&whole));
        }
    }
}
