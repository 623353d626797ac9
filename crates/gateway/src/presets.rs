//! What is known about each upstream, as data: the files in `presets/`, and `[[preset]]` tables of
//! the configuration.

use std::collections::BTreeMap;

use crate::config::section::Section;
use crate::config::usage::Formats;
use crate::config::{ConfigError, Policy, Source, nearest};

/// The presets that come with the gateway. Each extends one before it.
const BUILT_IN: [(&str, &str); 10] = [
    ("generic", include_str!("../presets/generic.toml")),
    ("openai", include_str!("../presets/openai.toml")),
    ("anthropic", include_str!("../presets/anthropic.toml")),
    ("gemini", include_str!("../presets/gemini.toml")),
    ("bedrock", include_str!("../presets/bedrock.toml")),
    ("mistral", include_str!("../presets/mistral.toml")),
    ("cohere", include_str!("../presets/cohere.toml")),
    ("openrouter", include_str!("../presets/openrouter.toml")),
    ("stripe", include_str!("../presets/stripe.toml")),
    ("mcp", include_str!("../presets/mcp.toml")),
];

/// All presets that a configuration may name.
pub(crate) struct Presets {
    by_name: BTreeMap<Box<str>, Policy>,
    /// What their `usage` and that of routes may name.
    formats: Formats,
}

impl Presets {
    /// The presets that come with the gateway.
    pub(crate) fn built_in() -> Result<Self, ConfigError> {
        let mut presets = Self {
            by_name: BTreeMap::new(),
            formats: Formats::default(),
        };
        presets.add("generic", Policy::default());
        for (name, text) in BUILT_IN {
            let source = Source {
                name: &format!("presets/{name}.toml"),
                text,
                env: &|_| None,
            };
            let policy = source.read(|section| presets.read_one(section))?;
            presets.add(name, policy);
        }
        Ok(presets)
    }

    /// The presets that come with the gateway, and those that the file adds.
    pub(crate) fn read(root: &mut Section<'_>) -> Result<Self, ConfigError> {
        let mut presets = Self::built_in()?;
        presets.formats.read(root)?;
        for mut section in root.tables("preset")? {
            let entry = section.require("name", "name the preset")?;
            let name = entry.name()?;
            if presets.find(name).is_some() {
                return Err(entry.fail(
                    format!("is \"{name}\", and there is a preset of that name"),
                    format!("choose another name, and extends = \"{name}\" to start from it"),
                ));
            }
            let policy = presets.read_one(&mut section)?;
            section.finish()?;
            presets.add(name, policy);
        }
        Ok(presets)
    }

    fn add(&mut self, name: &str, policy: Policy) {
        self.formats.add(&policy.usage);
        self.by_name.insert(name.into(), policy);
    }

    fn read_one(&self, section: &mut Section<'_>) -> Result<Policy, ConfigError> {
        let base = match section.take("extends") {
            None => self.policy("generic"),
            Some(entry) => {
                let base = entry.text()?;
                self.find(base).cloned().ok_or_else(|| {
                    let next = match nearest(base, self.names()) {
                        Some(meant) => format!("did you mean \"{meant}\"?"),
                        None => format!("use one that stands above it, or: {}", self.list()),
                    };
                    entry.fail(format!("cannot be \"{base}\""), next)
                })?
            }
        };
        let policy = Policy::read(section, &base, &self.formats)?;
        policy.check(section)?;
        Ok(policy)
    }

    /// The preset `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&Policy> {
        self.by_name.get(name)
    }

    /// The preset `name`, which was found before; the defaults otherwise.
    pub(crate) fn policy(&self, name: &str) -> Policy {
        self.find(name).cloned().unwrap_or_default()
    }

    /// What `usage` may name.
    pub(crate) fn formats(&self) -> &Formats {
        &self.formats
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(|name| &**name)
    }

    /// All names in one line.
    pub(crate) fn list(&self) -> String {
        self.names().collect::<Vec<_>>().join(", ")
    }
}
