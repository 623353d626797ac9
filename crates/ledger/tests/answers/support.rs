//! Recorded answers, the formats of the presets, and the codings.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use flate2::Compression;
use http::{HeaderMap, HeaderName, HeaderValue};
use onlyonce_core::metered::Metered;
use onlyonce_ledger::{Asked, End, Meter, MeterMemory, RawFormat, UsageFormat};

pub const AMPLE: usize = 64 << 20;

/// An answer, and what it tells.
pub struct Recorded {
    pub name: String,
    pub formats: Vec<Arc<UsageFormat>>,
    pub path: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub expected: String,
}

impl Recorded {
    /// A meter of it, where `coding` is its content coding.
    pub fn meter(&self, coding: Option<&str>, memory: &MeterMemory) -> Meter {
        let mut headers = self.headers.clone();
        if let Some(coding) = coding {
            let coding = HeaderValue::from_str(coding).unwrap();
            headers.insert("content-encoding", coding);
        }
        let asked = Asked {
            path: &self.path,
            model: None,
        };
        Meter::of(&self.formats, asked, self.status, &headers, memory).expect("a format")
    }

    /// What is metered where `pieces` are its body.
    pub fn metered<'a>(
        &self,
        coding: Option<&str>,
        pieces: impl IntoIterator<Item = &'a [u8]>,
        end: End,
    ) -> Metered {
        let memory = MeterMemory::new(AMPLE);
        let mut meter = self.meter(coding, &memory);
        pieces.into_iter().for_each(|piece| meter.see(piece));
        let metered = meter.finish(end);
        assert_eq!(memory.used(), 0, "memory is given back");
        metered
    }
}

/// All recorded answers.
pub fn recorded() -> &'static [Recorded] {
    static ALL: LazyLock<Vec<Recorded>> = LazyLock::new(read_all);
    &ALL
}

fn read_all() -> Vec<Recorded> {
    let mut all = Vec::new();
    for folder in listed(&fixtures().join("answers")) {
        let format = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let formats = formats_with(&format);
        for file in listed(&folder) {
            if file
                .extension()
                .is_some_and(|extension| extension == "http")
            {
                all.push(read(&file, &format, formats.clone()));
            }
        }
    }
    assert!(all.len() > 25, "{}", all.len());
    all
}

fn read(file: &Path, format: &str, formats: Vec<Arc<UsageFormat>>) -> Recorded {
    let text = fs::read_to_string(file).unwrap();
    let (head, body) = text.split_once("\n\n").expect("a head");
    let mut lines = head.lines();
    let path = lines
        .next()
        .unwrap()
        .strip_prefix("POST ")
        .unwrap()
        .to_owned();
    let first = formats.iter().find(|format| format.matches(&path));
    assert_eq!(first.map(|first| first.name()), Some(format), "{path}");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers: HeaderMap = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            (name, value.parse().unwrap())
        })
        .collect();
    let body = match headers["content-type"].to_str().unwrap() {
        "application/vnd.amazon.eventstream" => aws_messages(body),
        _ => body.into(),
    };
    Recorded {
        name: format!("{format}/{}", file.file_stem().unwrap().to_str().unwrap()),
        formats,
        path,
        status: status.parse().unwrap(),
        headers,
        body,
        expected: fs::read_to_string(file.with_extension("expected")).unwrap(),
    }
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The formats of the preset that has the format `name`.
pub fn formats_with(name: &str) -> Vec<Arc<UsageFormat>> {
    #[derive(serde::Deserialize)]
    struct Preset {
        #[serde(default)]
        usage: Vec<RawFormat>,
    }
    let presets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/presets");
    for file in listed(&presets) {
        let preset: Preset = toml::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        if preset.usage.iter().any(|format| format.name == name) {
            let compiled = preset.usage.into_iter().map(UsageFormat::compile);
            return compiled.map(|format| Arc::new(format.unwrap())).collect();
        }
    }
    panic!("no preset has the format {name}");
}

/// One line for each thing that was told.
pub fn shown(metered: &Metered) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("provider", &metered.provider),
        ("operation", &metered.operation),
        ("model", &metered.model),
        ("request_model", &metered.request_model),
        ("response_id", &metered.response_id),
        ("tier", &metered.tier),
    ] {
        if !value.is_empty() {
            writeln!(text, "{name} = {value}").unwrap();
        }
    }
    for (unit, count) in metered.usage.iter() {
        writeln!(text, "{unit} = {count}").unwrap();
    }
    if let Some(cost) = &metered.cost {
        writeln!(text, "cost = {} {}", cost.amount, cost.basis).unwrap();
    }
    writeln!(text, "source = {}", metered.source).unwrap();
    text
}

/// Makes coded bytes of plain ones.
pub type Encode = fn(&[u8]) -> Vec<u8>;

/// The content codings, with what makes them.
pub const CODINGS: [(&str, Encode); 6] = [
    ("gzip", gzip),
    ("deflate", zlib),
    ("Deflate", raw_deflate),
    ("br", brotli),
    ("zstd", zstd),
    ("X-GZIP", two_members),
];

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let builder = flate2::GzBuilder::new().filename("answer").comment("none");
    let mut encoder = builder.write(Vec::new(), Compression::default());
    // As a server does that streams.
    for event in bytes.split_inclusive(|byte| *byte == b'\n') {
        encoder.write_all(event).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

fn two_members(bytes: &[u8]) -> Vec<u8> {
    let (one, other) = bytes.split_at(bytes.len() / 2);
    [gzip(one), gzip(other)].concat()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
    for event in bytes.split_inclusive(|byte| *byte == b'\n') {
        encoder.write_all(event).unwrap();
        encoder.flush().unwrap();
    }
    encoder.into_inner()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    ruzstd::encoding::compress_to_vec(bytes, level)
}

/// Lines of an event's type and its payload, as AWS frames them.
fn aws_messages(lines: &str) -> Vec<u8> {
    let text_header = |name: &str, value: &str| {
        let mut bytes = vec![name.len() as u8];
        bytes.extend(name.as_bytes());
        bytes.push(7);
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(value.as_bytes());
        bytes
    };
    let mut all = Vec::new();
    for line in lines.lines() {
        let (name, payload) = line.split_once(' ').unwrap();
        let headers = [
            text_header(":event-type", name),
            text_header(":content-type", "application/json"),
            text_header(":message-type", "event"),
        ]
        .concat();
        let mut message = (16 + headers.len() as u32 + payload.len() as u32)
            .to_be_bytes()
            .to_vec();
        message.extend((headers.len() as u32).to_be_bytes());
        message.extend(crc32fast::hash(&message).to_be_bytes());
        message.extend(headers);
        message.extend(payload.as_bytes());
        message.extend(crc32fast::hash(&message).to_be_bytes());
        all.extend(message);
    }
    all
}
