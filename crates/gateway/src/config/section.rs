//! Reading a configuration file table by table.
//!
//! Every setting is asked for by name, converted and checked at once, and whatever nobody asked for
//! is refused at the end: so the code that reads a table is also the list of what may stand in it,
//! and each message can name the line and the setting that was meant. (With derived
//! deserialisation the reasons would stop at "unknown field" and "invalid type".)

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;
use onlyonce_core::Scope;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::error::{ConfigError, nearest};
use super::value::{Secret, parse_duration, parse_size};

/// A configuration's text, and what its secrets are looked up in.
pub struct Source<'a> {
    /// What to call it in messages: the file's path as it was given.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
    /// Looks up `env:NAME`.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Source<'_> {
    /// Parses the text, hands its root table to `read`, and refuses what that left over.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&mut Section<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let root = DeTable::parse(self.text).map_err(|error| ConfigError {
            file: self.name.to_owned(),
            line: error.span().map(|span| self.line(span.start)),
            what: format!(
                "this is not TOML: {}",
                error
                    .message()
                    .lines()
                    .next()
                    .unwrap_or("it cannot be read")
            ),
            next: "strings stand in double quotes, tables in [brackets], lists of tables in \
                   [[double brackets]]"
                .to_owned(),
        })?;
        let mut section = Section::new(self, "the file".to_owned(), None, Some(root.get_ref()));
        let value = read(&mut section)?;
        section.finish()?;
        Ok(value)
    }

    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn fail(&self, offset: Option<usize>, what: String, next: String) -> ConfigError {
        ConfigError {
            file: self.name.to_owned(),
            line: offset.map(|offset| self.line(offset)),
            what,
            next,
        }
    }
}

/// One table of the file.
pub(crate) struct Section<'a> {
    source: &'a Source<'a>,
    title: String,
    /// Where it starts, if it is written at all.
    offset: Option<usize>,
    left: Vec<(&'a str, usize, &'a Spanned<DeValue<'a>>)>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    fn new(
        source: &'a Source<'a>,
        title: String,
        offset: Option<usize>,
        table: Option<&'a DeTable<'a>>,
    ) -> Self {
        let left = table
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.get_ref().as_ref(), key.span().start, value))
            .collect();
        Self {
            source,
            title,
            offset,
            left,
            known: Vec::new(),
        }
    }

    /// The setting `name`, where it is there.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Entry<'a>> {
        self.known.push(name);
        let at = self.left.iter().position(|(key, ..)| *key == name)?;
        let (_, offset, value) = self.left.swap_remove(at);
        Some(Entry {
            source: self.source,
            name: format!("`{name}`"),
            offset,
            value: value.get_ref(),
        })
    }

    /// The setting `name`, which must be there; `next` says what to write.
    pub(crate) fn require(
        &mut self,
        name: &'static str,
        next: &str,
    ) -> Result<Entry<'a>, ConfigError> {
        if let Some(entry) = self.take(name) {
            return Ok(entry);
        }
        // A mistyped name explains a missing one better than its absence does.
        for (given, offset, _) in &self.left {
            if nearest(given, [name]).is_some() {
                return Err(self.unknown(given, *offset, Some(name)));
            }
        }
        Err(self.fail(format!("{} has no `{name}`", self.title), next))
    }

    /// The table `name`, or an empty one: for a table whose every setting has a default.
    pub(crate) fn table_or_empty(&mut self, name: &'static str) -> Result<Self, ConfigError> {
        let title = self.title_of(name);
        match self.take(name) {
            Some(entry) => entry.table(&title),
            None => Ok(Section::new(self.source, title, None, None)),
        }
    }

    /// The table `name`, where it is there.
    pub(crate) fn table(&mut self, name: &'static str) -> Result<Option<Self>, ConfigError> {
        let title = self.title_of(name);
        self.take(name).map(|entry| entry.table(&title)).transpose()
    }

    /// How the table `name` in this one is headed.
    fn title_of(&self, name: &str) -> String {
        let outer = self.title.strip_prefix('[');
        match outer.and_then(|outer| outer.strip_suffix(']')) {
            Some(outer) => format!("[{outer}.{name}]"),
            None => format!("[{name}]"),
        }
    }

    /// The list of tables `name`, empty where it is not there.
    pub(crate) fn tables(&mut self, name: &'static str) -> Result<Vec<Self>, ConfigError> {
        let list = self.title.strip_prefix("[[");
        let title = match list.and_then(|title| title.split_once("]]")) {
            Some((outer, _)) => format!("{outer}.{name}"),
            None => self.title_of(name).trim_matches(['[', ']']).to_owned(),
        };
        self.take(name)
            .map_or(Ok(Vec::new()), |entry| entry.tables(&title))
    }

    /// All settings that are left, for a table whose names are the user's own.
    pub(crate) fn take_all(&mut self) -> Vec<(&'a str, Entry<'a>)> {
        let source = self.source;
        let entry = |(name, offset, value): (&'a str, usize, &'a Spanned<DeValue<'a>>)| {
            let entry = Entry {
                source,
                name: format!("`{name}`"),
                offset,
                value: value.get_ref(),
            };
            (name, entry)
        };
        std::mem::take(&mut self.left)
            .into_iter()
            .map(entry)
            .collect()
    }

    /// What the environment variable `name` says; `None` where it is not set, or empty.
    pub(crate) fn env(&self, name: &str) -> Option<String> {
        let value = (self.source.env)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Refuses what nobody asked for.
    pub(crate) fn finish(self) -> Result<(), ConfigError> {
        match self.left.iter().min_by_key(|(_, offset, _)| *offset) {
            None => Ok(()),
            Some((given, offset, _)) => {
                let meant = nearest(given, self.known.iter().copied());
                Err(self.unknown(given, *offset, meant))
            }
        }
    }

    /// A mistake of the table as a whole.
    pub(crate) fn fail(&self, what: impl Into<String>, next: impl Into<String>) -> ConfigError {
        self.source.fail(self.offset, what.into(), next.into())
    }

    fn unknown(&self, given: &str, offset: usize, meant: Option<&str>) -> ConfigError {
        let what = format!("{} has no setting `{given}`", self.title);
        let next = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if self.known.is_empty() => "take it away".to_owned(),
            None => {
                let mut known = self.known.clone();
                known.sort_unstable();
                format!("take it away, or use one of: {}", known.join(", "))
            }
        };
        self.source.fail(Some(offset), what, next)
    }
}

/// One setting of the file.
pub(crate) struct Entry<'a> {
    source: &'a Source<'a>,
    name: String,
    offset: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Entry<'a> {
    /// A mistake in this setting. `what` follows its name.
    pub(crate) fn fail(&self, what: impl AsRef<str>, next: impl Into<String>) -> ConfigError {
        let what = format!("{} {}", self.name, what.as_ref());
        self.source.fail(Some(self.offset), what, next.into())
    }

    fn wrong_type(&self, wanted: &str, example: &str) -> ConfigError {
        self.fail(
            format!("is {}, and it must be {wanted}", kind(self.value)),
            format!("write it like {example}"),
        )
    }

    /// Text.
    pub(crate) fn text(&self) -> Result<&'a str, ConfigError> {
        match self.value {
            DeValue::String(text) => Ok(text.as_ref()),
            _ => Err(self.wrong_type("a string", "\"text\"")),
        }
    }

    /// Text that is not empty.
    pub(crate) fn filled(&self) -> Result<&'a str, ConfigError> {
        let text = self.text()?;
        if text.is_empty() {
            return Err(self.fail("is empty", "write a value, or take the setting away"));
        }
        Ok(text)
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Result<bool, ConfigError> {
        match self.value {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(self.wrong_type("true or false", "true, without quotes")),
        }
    }

    /// A whole number within `range`.
    pub(crate) fn number<T>(&self, range: RangeInclusive<u64>) -> Result<T, ConfigError>
    where
        T: TryFrom<u64>,
    {
        let DeValue::Integer(number) = self.value else {
            return Err(self.wrong_type("a whole number", &range.start().to_string()));
        };
        u64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                self.fail(
                    format!("is {number}"),
                    format!(
                        "write a whole number from {} to {}",
                        range.start(),
                        range.end()
                    ),
                )
            })
    }

    /// A whole number within `range`, below 0 too.
    pub(crate) fn integer(&self, range: RangeInclusive<i64>) -> Result<i64, ConfigError> {
        let DeValue::Integer(number) = self.value else {
            return Err(self.wrong_type("a whole number", &range.start().to_string()));
        };
        i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (from, to) = (range.start(), range.end());
                self.fail(
                    format!("is {number}"),
                    format!("write a whole number from {from} to {to}"),
                )
            })
    }

    /// A decimal number as it stands there, with or without quotes: one that must not pass through a
    /// float.
    pub(crate) fn digits(&self) -> Result<&'a str, ConfigError> {
        match self.value {
            DeValue::String(text) => Ok(text.as_ref()),
            DeValue::Float(number) => Ok(number.as_str()),
            DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str()),
            _ => Err(self.wrong_type("a decimal number", "\"1.25\"")),
        }
    }

    /// A fraction from 0 to 1.
    pub(crate) fn fraction(&self) -> Result<f64, ConfigError> {
        let text = match self.value {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) => number.as_str(),
            _ => return Err(self.wrong_type("a number from 0 to 1", "0.1")),
        };
        text.parse()
            .ok()
            .filter(|value| (0.0..=1.0).contains(value))
            .ok_or_else(|| self.fail(format!("is {text}"), "write a number from 0 to 1"))
    }

    /// A duration; zero where `or_zero`.
    pub(crate) fn duration(&self, or_zero: OrZero) -> Result<Duration, ConfigError> {
        let DeValue::String(text) = self.value else {
            return Err(self.wrong_type("a duration with its unit", "\"10s\" or \"250ms\""));
        };
        let span = parse_duration(text).ok_or_else(|| {
            self.fail(
                format!("is \"{text}\", which is no duration"),
                "write whole numbers with ms, s, m, h or d, like \"250ms\", \"10s\" or \"1h30m\"",
            )
        })?;
        if span.is_zero() && or_zero == OrZero::No {
            return Err(self.fail("is 0", "write a duration above 0, like \"10s\""));
        }
        // Deadlines are computed by adding to a clock; a century is as good as for ever.
        if span > Duration::from_secs(100 * 365 * 86_400) {
            return Err(self.fail("is more than 100 years", "write a shorter duration"));
        }
        Ok(span)
    }

    /// A size in bytes within `range`.
    pub(crate) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        let text = match self.value {
            DeValue::String(text) => text.as_ref(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            _ => return Err(self.wrong_type("a size", "\"64MiB\"")),
        };
        let size = parse_size(text).ok_or_else(|| {
            self.fail(
                format!("is \"{text}\", which is no size"),
                "write a whole number with B, KiB, MiB, GiB or TiB, like \"64MiB\"",
            )
        })?;
        if !range.contains(&size) {
            return Err(self.fail(
                format!("is {size} bytes"),
                format!(
                    "write a size from {} to {} bytes",
                    range.start(),
                    range.end()
                ),
            ));
        }
        Ok(size)
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let next = match nearest(text, words.iter().copied()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("use one of: {}", words.join(", ")),
        };
        Err(self.fail(format!("cannot be \"{text}\""), next))
    }

    /// What `parse` makes of the text; `next` says what to write.
    pub(crate) fn parsed<T: FromStr>(&self, next: &str) -> Result<T, ConfigError> {
        let text = self.text()?;
        text.parse()
            .map_err(|_| self.fail(format!("cannot be \"{text}\""), next))
    }

    /// A secret: `env:NAME`, `file:PATH`, or the text itself.
    pub(crate) fn secret(&self) -> Result<Secret, ConfigError> {
        // The text may itself be a secret that somebody wrote down: it is never repeated.
        let text = self.filled()?;
        Secret::named(text, self.source.env)
            .map_err(|missing| self.fail(missing.what, missing.next))
    }

    /// A name of ours: of an upstream, a tenant, a preset, a route.
    pub(crate) fn name(&self) -> Result<&'a str, ConfigError> {
        let text = self.filled()?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
        if text.len() > 128 || !text.chars().all(allowed) {
            return Err(self.fail(
                format!("cannot be \"{text}\""),
                "use up to 128 letters, digits and . _ - : /",
            ));
        }
        Ok(text)
    }

    /// A name that keys are unique within, or may be.
    pub(crate) fn namespace(&self) -> Result<&'a str, ConfigError> {
        let name = self.name()?;
        if name.ends_with(Scope::STEPS) {
            return Err(self.fail(
                format!("cannot be \"{name}\""),
                format!(
                    "choose a name that does not end in {}: the steps of operations are there",
                    Scope::STEPS
                ),
            ));
        }
        Ok(name)
    }

    /// The name of an HTTP header.
    pub(crate) fn header_name(&self) -> Result<HeaderName, ConfigError> {
        self.parsed("write the name of an HTTP header, like \"Idempotency-Key\"")
    }

    /// Whether it is a list.
    pub(crate) const fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// The items of a list.
    pub(crate) fn list(&self, example: &str) -> Result<Vec<Self>, ConfigError> {
        let DeValue::Array(items) = self.value else {
            return Err(self.wrong_type("a list", example));
        };
        Ok(items
            .iter()
            .enumerate()
            .map(|(index, item)| Entry {
                source: self.source,
                name: format!("{}[{index}]", self.name),
                offset: item.span().start,
                value: item.get_ref(),
            })
            .collect())
    }

    /// Whether it is a table.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// What a table of another crate's makes of it; `next` says where its keys are described.
    pub(crate) fn deserialized<T: Deserialize<'a>>(&self, next: &str) -> Result<T, ConfigError> {
        if !self.is_table() {
            return Err(self.wrong_type("a table", "[[usage]]"));
        }
        let value = Spanned::new(self.offset..self.offset, self.value.clone());
        T::deserialize(ValueDeserializer::from(value)).map_err(|error| {
            let offset = error.span().map_or(self.offset, |span| span.start);
            let what = format!("{} has a mistake: {}", self.name, error.message());
            self.source.fail(Some(offset), what, next.to_owned())
        })
    }

    /// The setting of this table that `path` names, with dots where a table is in a table; the table
    /// that should have it, where it is not there.
    pub(crate) fn within(&self, path: &str) -> Self {
        let mut entry = Self {
            source: self.source,
            name: format!("`{path}`"),
            offset: self.offset,
            value: self.value,
        };
        for name in path.split('.') {
            let DeValue::Table(table) = entry.value else {
                break;
            };
            let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else {
                break;
            };
            entry.offset = key.span().start;
            entry.value = value.get_ref();
        }
        entry
    }

    /// The settings of a table, called `title` in messages.
    pub(crate) fn table(&self, title: &str) -> Result<Section<'a>, ConfigError> {
        match self.value {
            DeValue::Table(table) => Ok(Section::new(
                self.source,
                title.to_owned(),
                Some(self.offset),
                Some(table),
            )),
            _ => Err(self.wrong_type("a table", title)),
        }
    }

    fn tables(&self, name: &str) -> Result<Vec<Section<'a>>, ConfigError> {
        let DeValue::Array(items) = self.value else {
            let next = format!("write it with two brackets, [[{name}]]");
            return Err(self.fail(
                format!("is {}, not a list of tables", kind(self.value)),
                next,
            ));
        };
        items
            .iter()
            .enumerate()
            .map(|(index, item)| match item.get_ref() {
                DeValue::Table(table) => Ok(Section::new(
                    self.source,
                    format!("[[{name}]] number {}", index + 1),
                    Some(item.span().start),
                    Some(table),
                )),
                _ => Err(self.wrong_type("a list of tables", &format!("[[{name}]]"))),
            })
            .collect()
    }
}

/// Whether a duration may be zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrZero {
    Yes,
    No,
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
