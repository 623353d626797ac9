//! How an API tells what was used, as data: a `[[usage]]` table, checked and made ready.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use onlyonce_core::metered::Unit;
use onlyonce_http::canonical_json::Pointer;
use percent_encoding::percent_decode_str;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::json::Tree;
use crate::prices::{PerCall, Statuses, parse_amount};

/// A `[[usage]]` table as it is written. docs/presets.md describes its keys.
///
/// Pointers are JSON pointers (RFC 6901); `*` stands for every element of an array.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFormat {
    /// What configurations call it.
    pub name: String,
    /// The paths of the calls, as the upstream gets them.
    pub paths: OneOrMore,
    /// `gen_ai.provider.name` of OpenTelemetry.
    pub provider: String,
    /// What the price table calls the provider, where that is another name.
    pub prices: Option<String>,
    /// `gen_ai.operation.name` of OpenTelemetry.
    #[serde(default)]
    pub operation: String,
    /// Where the object stands that the pointers below start from; several where answers and the
    /// events of a stream differ. The document itself unless set.
    #[serde(default)]
    pub within: OneOrMore,
    /// The model that answered.
    pub model: Option<String>,
    /// The provider's id of the answer.
    pub response_id: Option<String>,
    /// The class of service.
    pub tier: Option<String>,
    /// The object that the pointers of `units` and `cost` start from.
    pub at: Option<String>,
    /// What each unit is counted by; several counts are added up.
    #[serde(default)]
    pub units: BTreeMap<String, OneOrMore>,
    /// The cost in US dollars, where the provider states it.
    pub cost: Option<String>,
    /// What shows that a stream is whole: the name of an event, its whole data (`[DONE]`), or a pointer
    /// to something that is there, and not `false` or `null`. Nothing: a clean end.
    #[serde(default)]
    pub complete: OneOrMore,
    /// Whether streams tell what was used only where the request says so, with
    /// `stream_options.include_usage` of the OpenAI API.
    #[serde(default)]
    pub include_usage: bool,
    /// A fixed price of each call in US dollars.
    pub per_call: Option<String>,
    /// The statuses that are charged `per_call`: `2xx`, or `404`. `2xx` unless set.
    pub charge_on: Option<OneOrMore>,
}

/// A text, or a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneOrMore(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore(texts))
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

/// What cannot be in a `[[usage]]` table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {what}; {next}")]
pub struct FormatError {
    /// The key, with a dot before one of a table in it: `units.input`.
    pub key: String,
    /// What is wrong, to follow the key.
    pub what: String,
    /// What to do.
    pub next: String,
}

/// How an API tells what was used.
#[derive(Debug)]
pub struct UsageFormat {
    raw: RawFormat,
    paths: Vec<PathPattern>,
    pub(crate) tree: Tree<Wanted>,
    /// Which counts make up each unit.
    pub(crate) units: Vec<(Unit, Range<usize>)>,
    /// The names or the data of events that end a stream.
    ends: Vec<Box<str>>,
    per_call: Option<PerCall>,
}

/// All of it follows from how it is written.
impl PartialEq for UsageFormat {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

/// What a value of an answer is wanted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A count, with its number.
    Count(usize),
    Model,
    ResponseId,
    Tier,
    Cost,
    /// What shows that a stream is whole.
    Complete,
    /// The type of an event, which is what its name says.
    Type,
}

impl UsageFormat {
    /// Makes `raw` ready, or says what is wrong with it.
    pub fn compile(raw: RawFormat) -> Result<Self, FormatError> {
        for (key, text) in [("name", &raw.name), ("provider", &raw.provider)] {
            if text.is_empty() {
                return Err(wrong(key, "is empty", "write a name"));
            }
        }
        let paths = raw.paths.0.iter().map(|path| PathPattern::parse(path));
        let paths: Vec<_> = paths.collect::<Result<_, _>>()?;
        if paths.is_empty() {
            return Err(wrong("paths", "is empty", "list the paths of the calls"));
        }
        let mut format = Self {
            paths,
            tree: Tree::default(),
            units: Vec::new(),
            ends: Vec::new(),
            per_call: per_call(&raw)?,
            raw,
        };
        format.want_all()?;
        if format.units.is_empty() && format.raw.cost.is_none() && format.per_call.is_none() {
            return Err(wrong(
                "units",
                "is empty, and there is no `cost` and no `per_call`",
                "say what is counted, like units.input = \"/input_tokens\"",
            ));
        }
        Ok(format)
    }

    /// What configurations call it.
    pub fn name(&self) -> &str {
        &self.raw.name
    }

    /// `gen_ai.provider.name` of OpenTelemetry.
    pub fn provider(&self) -> &str {
        &self.raw.provider
    }

    /// What the price table calls the provider.
    pub fn price_provider(&self) -> &str {
        self.raw.prices.as_deref().unwrap_or(&self.raw.provider)
    }

    /// `gen_ai.operation.name` of OpenTelemetry.
    pub fn operation(&self) -> &str {
        &self.raw.operation
    }

    /// Whether streams tell what was used only where the request says `stream_options.include_usage`.
    pub fn needs_include_usage(&self) -> bool {
        self.raw.include_usage
    }

    /// The one of `formats` that calls of `path`, which has no query, are told in: the first that
    /// matches.
    pub fn of_path<'a>(formats: &'a [Arc<Self>], path: &str) -> Option<&'a Arc<Self>> {
        formats.iter().find(|format| format.matches(path))
    }

    /// Whether calls of `path`, which has no query, are told in this format.
    pub fn matches(&self, path: &str) -> bool {
        self.paths
            .iter()
            .any(|pattern| pattern.captures(path).is_some())
    }

    /// The model that `path` names, where the format says that it does.
    pub fn model_of<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        let segment = self
            .paths
            .iter()
            .find_map(|pattern| pattern.captures(path))??;
        percent_decode_str(segment).decode_utf8().ok()
    }

    /// Whether the paths of its calls name the model.
    pub fn names_model(&self) -> bool {
        self.paths.iter().any(PathPattern::names_model)
    }

    /// The fixed price of a call, whatever its answer says.
    pub fn per_call(&self) -> Option<&PerCall> {
        self.per_call.as_ref()
    }

    /// Whether answers say what was used. Otherwise they only have a price.
    pub(crate) fn is_metered(&self) -> bool {
        !self.units.is_empty() || self.raw.cost.is_some()
    }

    /// Whether a stream says when it is whole.
    pub(crate) fn has_ends(&self) -> bool {
        !self.raw.complete.0.is_empty()
    }

    /// Whether an event with this name, or with this as its data, ends a stream.
    pub(crate) fn ends_with(&self, text: &[u8]) -> bool {
        self.ends
            .iter()
            .any(|end| end.as_bytes() == text.trim_ascii())
    }

    fn want_all(&mut self) -> Result<(), FormatError> {
        let document = [Vec::new()];
        let within = self.raw.within.0.iter().map(|text| match text.as_str() {
            "" => Ok(Vec::new()),
            text => tokens("within", text),
        });
        let within: Vec<_> = within.collect::<Result<_, _>>()?;
        let within = match within.is_empty() {
            true => &document[..],
            false => &within,
        };
        let at = match &self.raw.at {
            None => Vec::new(),
            Some(text) => tokens("at", text)?,
        };
        let raw = &self.raw;
        for (key, pointer, wanted) in [
            ("model", &raw.model, Wanted::Model),
            ("response_id", &raw.response_id, Wanted::ResponseId),
            ("tier", &raw.tier, Wanted::Tier),
        ] {
            if let Some(pointer) = pointer {
                want(&mut self.tree, within, &[], &tokens(key, pointer)?, wanted);
            }
        }
        if let Some(pointer) = &raw.cost {
            want(
                &mut self.tree,
                within,
                &at,
                &tokens("cost", pointer)?,
                Wanted::Cost,
            );
        }
        let mut counts = 0;
        for (name, pointers) in &raw.units {
            let key = format!("units.{name}");
            let unit = Unit::named(name).ok_or_else(|| {
                let known: Vec<_> = Unit::ALL.iter().map(|unit| unit.as_str()).collect();
                wrong(
                    &key,
                    "is no unit",
                    &format!("use one of: {}", known.join(", ")),
                )
            })?;
            let first = counts;
            for pointer in &pointers.0 {
                let pointer = tokens(&key, pointer)?;
                want(&mut self.tree, within, &at, &pointer, Wanted::Count(counts));
                counts += 1;
            }
            if counts == first {
                return Err(wrong(&key, "is empty", "write a pointer, or take it away"));
            }
            self.units.push((unit, first..counts));
        }
        for end in &raw.complete.0 {
            match end.as_str() {
                "" => return Err(wrong("complete", "holds an empty text", "take it away")),
                pointer if pointer.starts_with('/') => {
                    let pointer = tokens("complete", pointer)?;
                    want(&mut self.tree, within, &[], &pointer, Wanted::Complete);
                }
                name if name.len() > MAX_END => {
                    let what = format!("holds a text of more than {MAX_END} bytes");
                    return Err(wrong("complete", &what, "name an event"));
                }
                name => self.ends.push(name.into()),
            }
        }
        if !self.ends.is_empty() {
            self.tree.want(["type"], Wanted::Type);
        }
        Ok(())
    }
}

/// The name or the whole data of an event that ends a stream is not longer than this.
pub(crate) const MAX_END: usize = 64;

fn wrong(key: &str, what: &str, next: &str) -> FormatError {
    FormatError {
        key: key.to_owned(),
        what: what.to_owned(),
        next: next.to_owned(),
    }
}

fn tokens(key: &str, text: &str) -> Result<Vec<String>, FormatError> {
    let pointer = Pointer::parse(text).map_err(|_| {
        wrong(
            key,
            &format!("is \"{text}\", which is no JSON pointer"),
            "write it like \"/usage/input_tokens\" (RFC 6901: `~` is ~0, `/` in a name is ~1)",
        )
    })?;
    Ok(pointer.tokens().to_vec())
}

fn want(
    tree: &mut Tree<Wanted>,
    within: &[Vec<String>],
    at: &[String],
    pointer: &[String],
    wanted: Wanted,
) {
    for within in within {
        let tokens = within.iter().chain(at).chain(pointer);
        tree.want(tokens.map(String::as_str), wanted);
    }
}

fn per_call(raw: &RawFormat) -> Result<Option<PerCall>, FormatError> {
    let charged = raw.charge_on.as_ref().map(charged).transpose()?;
    let Some(text) = &raw.per_call else {
        return match charged {
            None => Ok(None),
            Some(_) => Err(wrong(
                "charge_on",
                "has no effect without a price",
                "set per_call beside it",
            )),
        };
    };
    let amount = parse_amount(text).ok_or_else(|| {
        let what = format!("is \"{text}\", which is no price");
        wrong("per_call", &what, "write US dollars, like \"0.002\"")
    })?;
    let charged = charged.unwrap_or_else(Statuses::success);
    let whose = format!("usage {}", raw.name);
    Ok(Some(PerCall::new(&whose, amount, charged)))
}

fn charged(on: &OneOrMore) -> Result<Statuses, FormatError> {
    let parse = |text: &String| {
        Statuses::parse(text).ok_or_else(|| {
            let what = format!("holds \"{text}\", which is no status");
            wrong("charge_on", &what, "write it like \"2xx\" or \"404\"")
        })
    };
    let statuses = on.0.iter().map(parse).reduce(|all, one| Ok(all?.and(one?)));
    statuses.unwrap_or_else(|| Err(wrong("charge_on", "is empty", "list the statuses")))
}

/// Some paths: `/v1/*/messages`, `**/models/{model}:generateContent`.
#[derive(Debug)]
struct PathPattern {
    /// From the front.
    front: Vec<Segment>,
    /// From the back, where there may be any segments between the two.
    back: Option<Vec<Segment>>,
}

/// A segment of a path: a text, or what stands around something that may be any.
#[derive(Debug)]
struct Segment {
    before: Box<str>,
    any: Option<Any>,
}

#[derive(Debug)]
struct Any {
    after: Box<str>,
    is_model: bool,
}

impl PathPattern {
    fn parse(text: &str) -> Result<Self, FormatError> {
        let refused = |why: &str| {
            let next = "write it like \"/v1/chat/completions\", \"**/messages\" or \
                        \"/model/{model}/converse\"";
            wrong("paths", &format!("holds \"{text}\", {why}"), next)
        };
        let segments = match text.strip_prefix('/') {
            Some(rest) => rest,
            None if text == "**" || text.starts_with("**/") => text,
            None => return Err(refused("which does not start with / or **")),
        };
        let mut front = Vec::new();
        let mut back = None;
        for segment in segments.split('/') {
            if segment == "**" {
                if back.replace(Vec::new()).is_some() {
                    return Err(refused("which has ** twice"));
                }
                continue;
            }
            let segment = Segment::parse(segment)
                .ok_or_else(|| refused("which has more than one * or {model} in a segment"))?;
            back.as_mut().unwrap_or(&mut front).push(segment);
        }
        Ok(Self { front, back })
    }

    fn names_model(&self) -> bool {
        let back = self.back.iter().flatten();
        let mut segments = self.front.iter().chain(back);
        segments.any(|segment| segment.any.as_ref().is_some_and(|any| any.is_model))
    }

    /// Where `path` is one of them: the segment, or the part of it, that names the model.
    fn captures<'a>(&self, path: &'a str) -> Option<Option<&'a str>> {
        let segments: Vec<_> = path.strip_prefix('/')?.split('/').collect();
        let back = self.back.as_deref().unwrap_or_default();
        let between = segments.len().checked_sub(self.front.len() + back.len())?;
        if self.back.is_none() && between > 0 {
            return None;
        }
        let patterns = self.front.iter().chain(back);
        let ends = segments[..self.front.len()]
            .iter()
            .chain(&segments[self.front.len() + between..]);
        let mut model = None;
        for (pattern, segment) in patterns.zip(ends) {
            let any = pattern.matches(segment)?;
            model = model.or(any);
        }
        Some(model)
    }
}

impl Segment {
    fn parse(text: &str) -> Option<Self> {
        let (before, after, is_model) = match (text.split_once("{model}"), text.split_once('*')) {
            (None, None) => {
                return Some(Self {
                    before: text.into(),
                    any: None,
                });
            }
            (Some((before, after)), None) => (before, after, true),
            (None, Some((before, after))) => (before, after, false),
            (Some(_), Some(_)) => return None,
        };
        let is_simple = !after.contains('*') && !after.contains("{model}");
        is_simple.then(|| Self {
            before: before.into(),
            any: Some(Any {
                after: after.into(),
                is_model,
            }),
        })
    }

    /// Where `segment` is one of them: what names the model in it.
    fn matches<'a>(&self, segment: &'a str) -> Option<Option<&'a str>> {
        let rest = segment.strip_prefix(&*self.before)?;
        let Some(any) = &self.any else {
            return rest.is_empty().then_some(None);
        };
        let found = rest
            .strip_suffix(&*any.after)
            .filter(|found| !found.is_empty())?;
        Some(any.is_model.then_some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawFormat {
        RawFormat {
            name: "mine".into(),
            paths: OneOrMore(vec!["/v1/generate".into()]),
            provider: "me".into(),
            units: [("input".to_owned(), OneOrMore(vec!["/in".into()]))].into(),
            ..RawFormat::default()
        }
    }

    #[test]
    fn paths_are_matched_by_segment() {
        for (pattern, path, model) in [
            ("/v1/generate", "/v1/generate", Some(None)),
            ("/v1/generate", "/v1/generate/", None),
            ("/v1/generate", "/v2/v1/generate", None),
            ("**/messages", "/messages", Some(None)),
            ("**/messages", "/a/b/messages", Some(None)),
            ("**/messages", "/a/messages/b", None),
            ("**", "/", Some(None)),
            ("/a/**/b/*", "/a/b/c", Some(None)),
            ("/a/**/b/*", "/a/x/y/b/c", Some(None)),
            ("/a/**/b/*", "/a/c", None),
            ("/a/*/b", "/a//b", None),
            (
                "/model/{model}/converse",
                "/model/a.b-v1%3A0/converse",
                Some(Some("a.b-v1:0")),
            ),
            (
                "**/models/{model}:gen",
                "/v1/models/gemini-2:gen",
                Some(Some("gemini-2")),
            ),
            ("**/models/{model}:gen", "/v1/models/:gen", None),
            ("**/models/{model}:gen", "/v1/models/gemini-2:genX", None),
        ] {
            let paths = OneOrMore(vec![pattern.into()]);
            let format = UsageFormat::compile(RawFormat { paths, ..raw() }).expect("a format");
            assert_eq!(format.matches(path), model.is_some(), "{pattern} {path}");
            assert_eq!(
                format.model_of(path).as_deref(),
                model.flatten(),
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn mistakes_name_the_key_and_say_what_to_write() {
        let one = |text: &str| OneOrMore(vec![text.to_owned()]);
        let unit = |name: &str, pointers: OneOrMore| [(name.to_owned(), pointers)].into();
        for (wrong, message) in [
            (
                RawFormat {
                    name: String::new(),
                    ..raw()
                },
                "`name` is empty; write a name",
            ),
            (
                RawFormat {
                    paths: OneOrMore::default(),
                    ..raw()
                },
                "`paths` is empty; list the paths of the calls",
            ),
            (
                RawFormat {
                    paths: one("v1"),
                    ..raw()
                },
                "`paths` holds \"v1\", which does not start with / or **; write it like \
                 \"/v1/chat/completions\", \"**/messages\" or \"/model/{model}/converse\"",
            ),
            (
                RawFormat {
                    units: unit("input", one("in")),
                    ..raw()
                },
                "`units.input` is \"in\", which is no JSON pointer; write it like \
                 \"/usage/input_tokens\" (RFC 6901: `~` is ~0, `/` in a name is ~1)",
            ),
            (
                RawFormat {
                    units: unit("input", OneOrMore::default()),
                    ..raw()
                },
                "`units.input` is empty; write a pointer, or take it away",
            ),
            (
                RawFormat {
                    units: BTreeMap::new(),
                    ..raw()
                },
                "`units` is empty, and there is no `cost` and no `per_call`; say what is counted, \
                 like units.input = \"/input_tokens\"",
            ),
            (
                RawFormat {
                    per_call: Some("cheap".into()),
                    ..raw()
                },
                "`per_call` is \"cheap\", which is no price; write US dollars, like \"0.002\"",
            ),
            (
                RawFormat {
                    charge_on: Some(one("2xx")),
                    ..raw()
                },
                "`charge_on` has no effect without a price; set per_call beside it",
            ),
            (
                RawFormat {
                    per_call: Some("1".into()),
                    charge_on: Some(one("9xx")),
                    ..raw()
                },
                "`charge_on` holds \"9xx\", which is no status; write it like \"2xx\" or \"404\"",
            ),
        ] {
            assert_eq!(
                UsageFormat::compile(wrong)
                    .expect_err("a mistake")
                    .to_string(),
                message
            );
        }
        let units = unit("tokens", one("/in"));
        let error = UsageFormat::compile(RawFormat { units, ..raw() }).expect_err("a mistake");
        assert_eq!((&*error.key, &*error.what), ("units.tokens", "is no unit"));
        for pattern in ["/a/**/b/**", "/*x*", "/{model}*"] {
            let paths = one(pattern);
            assert!(
                UsageFormat::compile(RawFormat { paths, ..raw() }).is_err(),
                "{pattern}"
            );
        }
    }
}
