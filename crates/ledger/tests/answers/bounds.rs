//! Answers that are there to cost memory or work.

use std::io::Write as _;
use std::time::{Duration, Instant};

use onlyonce_core::metered::Source;
use onlyonce_ledger::{End, GaveUp, MeterMemory};

use crate::support::{AMPLE, Encode, brotli, formats_with, gzip, recorded, zstd};

/// A raw block of zstd that is one byte, 128 KiB times.
const ZSTD_RUN: [u8; 4] = [0x02, 0x00, 0x10, b' '];

fn zstd_frame(window: u8, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    for _ in 0..blocks {
        bytes.extend(ZSTD_RUN);
    }
    bytes.extend([1, 0, 0]);
    bytes
}

/// `mebibytes` of spaces.
fn deflated(mebibytes: usize) -> Vec<u8> {
    let level = flate2::Compression::best();
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
    for _ in 0..mebibytes {
        encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn hostile_060_a_bomb_is_given_up_early_and_costs_little() {
    let answers = recorded();
    let answer = &answers[0];
    let spaces = vec![b' '; 20 << 20];
    for (coding, bomb) in [
        ("deflate", deflated(20)),
        ("br", brotli(&spaces)),
        ("zstd", zstd_frame(0x68, 2000)),
    ] {
        let memory = MeterMemory::new(AMPLE);
        let mut meter = answer.meter(Some(coding), &memory);
        let begun = Instant::now();
        meter.see(&answer.body[..0]);
        let mut most = 0;
        for piece in bomb.chunks(1000) {
            meter.see(piece);
            most = most.max(memory.used());
        }
        assert_eq!(meter.gave_up(), Some(GaveUp::TooLong), "{coding}");
        assert!(most < 10 << 20, "{coding}: {most}");
        assert_eq!(memory.used(), 0, "{coding}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{coding}: {:?}",
            begun.elapsed()
        );
        assert_eq!(meter.finish(End::Clean).source, Source::Unknown);
    }
}

#[test]
fn a_bomb_behind_a_usage_is_unknown_however_it_is_cut() {
    let answers = recorded();
    let answer = answers
        .iter()
        .find(|answer| answer.name == "openai-chat/stream")
        .unwrap();
    let mut body = answer.body.clone();
    body.extend(vec![b' '; 8 << 20]);
    for (coding, body) in [
        ("gzip", gzip(&body)),
        ("br", brotli(&body)),
        ("zstd", zstd(&body)),
    ] {
        for size in [1, 100, body.len()] {
            let metered = answer.metered(Some(coding), body.chunks(size), End::Clean);
            assert_eq!(metered.source, Source::Unknown, "{coding} by {size}");
            assert!(metered.usage.is_empty());
        }
    }
}

#[test]
fn meters_share_their_memory() {
    let answers = recorded();
    let answer = answers
        .iter()
        .find(|answer| answer.name == "openai-chat/stream")
        .unwrap();
    let codings: [(&str, Encode); 3] = [("gzip", gzip), ("br", brotli), ("zstd", zstd)];
    for (coding, encode) in codings {
        let body = encode(&answer.body);
        let memory = MeterMemory::new(1 << 20);
        let mut meters = Vec::new();
        for _ in 0..100 {
            let mut meter = answer.meter(Some(coding), &memory);
            meter.see(&body[..body.len() - 1]);
            assert!(memory.used() <= 1 << 20, "{coding}");
            meters.push(meter);
        }
        let refused = meters
            .iter()
            .filter(|meter| meter.gave_up() == Some(GaveUp::Memory));
        let refused = refused.count();
        assert!((1..100).contains(&refused), "{coding}: {refused}");
        // Those that have theirs are not disturbed.
        for mut meter in meters {
            meter.see(&body[body.len() - 1..]);
            let source = match meter.gave_up() {
                None => Source::Provider,
                Some(_) => Source::Unknown,
            };
            assert_eq!(meter.finish(End::Clean).source, source);
        }
        assert_eq!(memory.used(), 0);
    }
    // What is not encoded needs none of it.
    let mut meter = answer.meter(None, &MeterMemory::new(0));
    meter.see(&answer.body);
    assert_eq!(meter.finish(End::Clean).source, Source::Provider);
}

#[test]
fn a_window_that_is_too_large_is_refused_before_it_is_there() {
    let answers = recorded();
    let answer = &answers[0];
    for (coding, body, why) in [
        // 16 MiB, and 1 TiB.
        ("zstd", zstd_frame(0x70, 1), GaveUp::Malformed),
        ("zstd", zstd_frame(0xf0, 1), GaveUp::Malformed),
        // 1 GiB, in brotli's large window extension.
        ("br", vec![0x11, 0x1e, 0, 0], GaveUp::Malformed),
    ] {
        let memory = MeterMemory::new(AMPLE);
        let mut meter = answer.meter(Some(coding), &memory);
        meter.see(&body);
        assert_eq!(meter.gave_up(), Some(why), "{coding}");
        assert_eq!(memory.used(), 0);
    }
}

#[test]
fn zstd_is_read_frame_by_frame() {
    let answers = recorded();
    let answer = answers
        .iter()
        .find(|answer| answer.name == "openai-chat/stream")
        .unwrap();
    let (one, other) = answer.body.split_at(300);
    // Two frames with one to be skipped between them, and an empty one.
    let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"later"].concat();
    let empty = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].to_vec();
    let body = [zstd(one), skipped, empty, zstd(other)].concat();
    for size in [1, 3, body.len()] {
        let metered = answer.metered(Some("zstd"), body.chunks(size), End::Clean);
        assert_eq!(metered.source, Source::Provider, "{size}");
    }
    for wrong in [
        &b"not zstd"[..],
        &[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0xff, 0xff, 0xff],
    ] {
        let metered = answer.metered(Some("zstd"), [wrong], End::Clean);
        assert_eq!(metered.source, Source::Unknown);
    }
}

#[test]
fn an_endless_line_of_a_stream_is_not_kept() {
    let formats = formats_with("openai-chat");
    assert_eq!(formats[0].name(), "openai-chat");
    let answers = recorded();
    let answer = answers
        .iter()
        .find(|answer| answer.name == "openai-chat/stream")
        .unwrap();
    let text = "x".repeat(20 << 20);
    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n");
    let body = [event.as_bytes(), &answer.body].concat();
    let begun = Instant::now();
    let metered = answer.metered(None, body.chunks(16 << 10), End::Clean);
    assert_eq!(metered.source, Source::Provider);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}
