//! `usage`: the formats by which the gateway reads what a call used.

use std::collections::BTreeMap;
use std::sync::Arc;

use onlyonce_ledger::{RawFormat, UsageFormat};

use super::error::{ConfigError, nearest};
use super::section::{Entry, Section};

/// The formats that a `usage` list may name.
#[derive(Debug, Default)]
pub(crate) struct Formats {
    by_name: BTreeMap<Box<str>, Arc<UsageFormat>>,
}

const EXAMPLE: &str = "[\"openai-chat\", \"mine\"]";

impl Formats {
    /// Reads the `[[usage]]` tables of a configuration: formats that lists may name from now on.
    pub(crate) fn read(&mut self, root: &mut Section<'_>) -> Result<(), ConfigError> {
        let Some(entry) = root.take("usage") else {
            return Ok(());
        };
        for item in entry.list("[[usage]]")? {
            let format = self.compile(&item)?;
            self.add(&[format]);
        }
        Ok(())
    }

    /// Reads a list of formats: names, or tables.
    pub(super) fn list(&self, entry: &Entry<'_>) -> Result<Arc<[Arc<UsageFormat>]>, ConfigError> {
        let mut list: Vec<Arc<UsageFormat>> = Vec::new();
        for item in entry.list(EXAMPLE)? {
            let format = match item.is_table() {
                true => self.compile(&item)?,
                false => self.find(&item)?,
            };
            if list.iter().any(|other| other.name() == format.name()) {
                let what = format!("is \"{}\" again", format.name());
                return Err(item.fail(what, "take one of the two away"));
            }
            list.push(format);
        }
        Ok(list.into())
    }

    /// Lists may name `formats` from now on.
    pub(crate) fn add(&mut self, formats: &[Arc<UsageFormat>]) {
        for format in formats {
            self.by_name
                .insert(format.name().into(), Arc::clone(format));
        }
    }

    fn find(&self, entry: &Entry<'_>) -> Result<Arc<UsageFormat>, ConfigError> {
        let name = entry.text()?;
        self.by_name.get(name).cloned().ok_or_else(|| {
            let names = || self.by_name.keys().map(|name| &**name);
            let next = match nearest(name, names()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("use one of: {}", names().collect::<Vec<_>>().join(", ")),
            };
            entry.fail(format!("cannot be \"{name}\""), next)
        })
    }

    fn compile(&self, entry: &Entry<'_>) -> Result<Arc<UsageFormat>, ConfigError> {
        let raw: RawFormat = entry.deserialized("docs/presets.md describes the keys")?;
        let key = entry.within("name");
        if self.by_name.contains_key(raw.name.as_str()) {
            return Err(key.fail(
                format!("is \"{}\", and there is a format of that name", raw.name),
                "choose another name",
            ));
        }
        let format = UsageFormat::compile(raw)
            .map_err(|error| entry.within(&error.key).fail(error.what, error.next))?;
        Ok(Arc::new(format))
    }
}
