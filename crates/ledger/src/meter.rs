//! Reads what one execution used out of its answer, as the answer passes.

use std::borrow::Cow;
use std::io::{self, Write};
use std::mem;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use onlyonce_core::metered::{Metered, Source, Usage, Usd};

use crate::event_stream::Messages;
use crate::format::{MAX_END, UsageFormat, Wanted};
use crate::inflate::{Coding, GaveUp, Inflate, MeterMemory};
use crate::json::{Picker, Scalar};
use crate::prices::stated;
use crate::sse::{Events, Part};

/// What was asked, as far as the answer does not repeat it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The path as the upstream gets it, without the query.
    pub path: &'a str,
    /// The model that the request's body names.
    pub model: Option<&'a str>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its last byte.
    Clean,
    /// Before that.
    Broken,
}

/// Reads one answer. It sees every byte, keeps what its format asks for and nothing else, and never
/// counts anything itself.
pub struct Meter {
    format: Arc<UsageFormat>,
    status: u16,
    request_model: Box<str>,
    /// `Err` where the answer cannot be read, or not on.
    inflate: Result<Inflate<Reader>, GaveUp>,
}

impl Meter {
    /// A meter of the answer to `asked`, by the first of `formats` that is for such calls.
    pub fn of(
        formats: &[Arc<UsageFormat>],
        asked: Asked<'_>,
        status: u16,
        headers: &HeaderMap,
        memory: &MeterMemory,
    ) -> Option<Self> {
        let format = UsageFormat::of_path(formats, asked.path)?;
        let reader = Reader {
            format: Arc::clone(format),
            framing: Framing::of(headers),
            picker: Picker::default(),
            event: Event::default(),
            found: Found::default(),
        };
        let asked_model = asked.model.map(Cow::Borrowed);
        let request_model = asked_model.or_else(|| format.model_of(asked.path));
        Some(Self {
            format: Arc::clone(format),
            status,
            request_model: request_model.as_deref().unwrap_or_default().into(),
            inflate: coding(headers).and_then(|coding| Inflate::new(coding, memory, reader)),
        })
    }

    /// The format that it reads.
    pub fn format(&self) -> &Arc<UsageFormat> {
        &self.format
    }

    /// Takes the next bytes of the body, as they came.
    pub fn see(&mut self, bytes: &[u8]) {
        if let Ok(inflate) = &mut self.inflate
            && let Err(why) = inflate.push(bytes)
        {
            self.inflate = Err(why);
        }
    }

    /// Why the answer is not read on, where it is not.
    pub fn gave_up(&self) -> Option<GaveUp> {
        self.inflate.as_ref().err().copied()
    }

    /// What was used, as far as the answer told.
    pub fn finish(self, end: End) -> Metered {
        let (found, is_whole) = match self.inflate {
            Err(_) => (Found::default(), false),
            Ok(inflate) => {
                let (is_inflated, reader) = inflate.finish();
                let (found, is_whole) = reader.map(Reader::finish).unwrap_or_default();
                (found, is_whole && is_inflated && end == End::Clean)
            }
        };
        let usage = found.usage(&self.format);
        let is_told = !usage.is_empty() || found.cost.is_some();
        let source = match (is_told, self.status) {
            (true, _) if is_whole => Source::Provider,
            (true, _) => Source::Partial,
            (false, 200..=299) if self.format.is_metered() => Source::Unknown,
            (false, _) => Source::NotMetered,
        };
        Metered {
            provider: self.format.provider().into(),
            model: found.model,
            request_model: self.request_model,
            response_id: found.response_id,
            operation: self.format.operation().into(),
            tier: found.tier,
            usage,
            source,
            cost: found.cost.map(stated),
        }
    }
}

/// The coding of a body. Several at once are not undone: no API does that.
fn coding(headers: &HeaderMap) -> Result<Coding, GaveUp> {
    let mut coding = Coding::Identity;
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.to_str().map_err(|_| GaveUp::Coding)?.split(',') {
            let next = Coding::named(name.trim()).ok_or(GaveUp::Coding)?;
            if next != Coding::Identity && mem::replace(&mut coding, next) != Coding::Identity {
                return Err(GaveUp::Coding);
            }
        }
    }
    Ok(coding)
}

/// How a body is divided.
enum Framing {
    /// One JSON text.
    Json,
    /// JSON texts, one after the other.
    JsonLines,
    Events(Events),
    Messages(Messages),
}

impl Framing {
    /// What the content type says; what says nothing is tried as JSON, where that is in vain at the
    /// first byte.
    fn of(headers: &HeaderMap) -> Self {
        let kind = headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let kind = kind
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default();
        match kind.trim().to_ascii_lowercase().as_str() {
            "text/event-stream" => Self::Events(Events::default()),
            "application/vnd.amazon.eventstream" => Self::Messages(Messages::default()),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/stream+json" => Self::JsonLines,
            _ => Self::Json,
        }
    }
}

/// Reads the body of an answer, its coding undone.
struct Reader {
    format: Arc<UsageFormat>,
    framing: Framing,
    picker: Picker,
    event: Event,
    found: Found,
}

/// The current event of a stream.
#[derive(Default)]
struct Event {
    /// Its data, as far as it may be the end of the stream.
    data: Vec<u8>,
    /// Whether its name, its type, or what it holds shows that the stream is whole.
    is_end: bool,
    /// Whether no empty line ends it, but the stream: it need not be whole.
    is_cut: bool,
}

/// What was read so far; what came last counts.
#[derive(Default)]
struct Found {
    model: Box<str>,
    response_id: Box<str>,
    tier: Box<str>,
    counts: Vec<Option<u64>>,
    cost: Option<Usd>,
    /// Whether the stream is whole.
    is_complete: bool,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self {
            format,
            framing,
            picker,
            event,
            found,
        } = self;
        let on_part = |part: Part<'_>| event.take(part, format, picker, found);
        match framing {
            Framing::Events(events) => events.push(bytes, on_part),
            Framing::Messages(messages) => messages
                .push(bytes, on_part)
                .map_err(|_| io::ErrorKind::InvalidData)?,
            Framing::Json | Framing::JsonLines => {
                picker.push(&format.tree, bytes, |wanted, value| {
                    found.take(wanted, value)
                });
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Reader {
    /// What was found, and whether the answer was whole.
    fn finish(mut self) -> (Found, bool) {
        let is_divided_well = match &mut self.framing {
            Framing::Json | Framing::JsonLines => self.picker.is_whole(),
            Framing::Messages(messages) => messages.is_whole(),
            Framing::Events(events) => {
                self.event.is_cut = true;
                events.finish(|part| {
                    self.event
                        .take(part, &self.format, &mut self.picker, &mut self.found);
                });
                true
            }
        };
        let is_complete = matches!(self.framing, Framing::Json)
            || !self.format.has_ends()
            || self.found.is_complete;
        (self.found, is_divided_well && is_complete)
    }
}

impl Event {
    fn take(
        &mut self,
        part: Part<'_>,
        format: &UsageFormat,
        picker: &mut Picker,
        found: &mut Found,
    ) {
        match part {
            Part::Name(name) => self.is_end |= format.ends_with(name.as_bytes()),
            Part::Data(data) => {
                let kept = data.len().min(MAX_END + 1 - self.data.len());
                self.data.extend_from_slice(&data[..kept]);
                picker.push(&format.tree, data, |wanted, value| match (wanted, value) {
                    (Wanted::Type, Scalar::Text(name)) => {
                        self.is_end |= format.ends_with(name.as_bytes());
                    }
                    (Wanted::Complete, _) => self.is_end = true,
                    _ => found.take(wanted, value),
                });
            }
            Part::End => {
                let is_whole = !self.is_cut || picker.is_whole();
                found.is_complete |= (self.is_end && is_whole) || format.ends_with(&self.data);
                self.is_end = false;
                self.data.clear();
                picker.restart();
            }
        }
    }
}

impl Found {
    fn take(&mut self, wanted: Wanted, value: &Scalar<'_>) {
        match (wanted, value) {
            (Wanted::Complete, _) => self.is_complete = true,
            (Wanted::Model, Scalar::Text(text)) => set(&mut self.model, text),
            (Wanted::ResponseId, Scalar::Text(text)) => set(&mut self.response_id, text),
            (Wanted::Tier, Scalar::Text(text)) => set(&mut self.tier, text),
            (Wanted::Cost, Scalar::Number(text)) => {
                self.cost = Usd::parse(text).or(self.cost);
            }
            (Wanted::Cost, Scalar::Text(text)) => self.cost = Usd::parse(text).or(self.cost),
            (Wanted::Count(at), Scalar::Number(text)) => {
                if let Some(count) = count(text) {
                    if self.counts.len() <= at {
                        self.counts.resize(at + 1, None);
                    }
                    self.counts[at] = Some(count);
                }
            }
            _ => {}
        }
    }

    fn usage(&self, format: &UsageFormat) -> Usage {
        let sum = |range: std::ops::Range<usize>| {
            let mut counts = range.filter_map(|at| *self.counts.get(at)?);
            let first = counts.next()?;
            let sum = counts.try_fold(first, u64::checked_add)?;
            // Of a sum, one part of which nobody can have used, the others say too little.
            (sum <= Usage::MOST).then_some(sum)
        };
        let units = format.units.iter();
        units
            .filter_map(|(unit, range)| Some((*unit, sum(range.clone())?)))
            .collect()
    }
}

fn set(into: &mut Box<str>, text: &str) {
    if !text.is_empty() && **into != *text {
        *into = text.into();
    }
}

/// A count: a whole number, which some write with a fraction of nothing.
fn count(text: &str) -> Option<u64> {
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    };
    whole.parse().ok()
}
