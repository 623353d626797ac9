//! `[route.mcp]`: what a route of kind `mcp` wants beside its policy.

use super::error::ConfigError;
use super::section::{Entry, Section};

/// The member of a call's `_meta` that its key stands in, unless others are named. Its prefix is a domain in
/// reverse, as the protocol has it.
const KEY_NAME: &str = "dev.onlyonce/idempotency-key";

/// How calls of tools are treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mcp {
    /// The members of a call's `_meta` that its key may stand in; the first that is there counts.
    pub meta_keys: Vec<Box<str>>,
    /// The codes of errors by which the server says that it did not run the call.
    pub release_codes: Vec<i64>,
    /// Whether tools pass that their server declares to be read-only or idempotent.
    pub trust_annotations: bool,
    /// The tools whose calls are operations, whatever is declared.
    pub protect: Vec<Box<str>>,
    /// The tools whose calls pass, whatever is declared.
    pub pass: Vec<Box<str>>,
}

impl Default for Mcp {
    fn default() -> Self {
        Self {
            meta_keys: vec![KEY_NAME.into()],
            release_codes: Vec::new(),
            trust_annotations: true,
            protect: Vec::new(),
            pass: Vec::new(),
        }
    }
}

impl Mcp {
    /// The settings of `section` over `base`.
    pub(crate) fn read(mut section: Section<'_>, base: &Self) -> Result<Self, ConfigError> {
        let mut mcp = base.clone();
        if let Some(entry) = section.take("meta_keys") {
            mcp.meta_keys = names(&entry, "[\"com.example/idempotency-key\"]")?;
        }
        if let Some(entry) = section.take("release_codes") {
            let codes = entry.list("[-32602]")?;
            let codes = codes.iter().map(|code| code.integer(-99_999..=99_999));
            mcp.release_codes = codes.collect::<Result<_, _>>()?;
        }
        if let Some(entry) = section.take("trust_annotations") {
            mcp.trust_annotations = entry.boolean()?;
        }
        if let Some(entry) = section.take("protect") {
            mcp.protect = names(&entry, "[\"send_email\"]")?;
        }
        if let Some(entry) = section.take("pass") {
            mcp.pass = names(&entry, "[\"search\"]")?;
            if let Some(both) = mcp.pass.iter().find(|name| mcp.protect.contains(name)) {
                return Err(entry.fail(
                    format!("names \"{both}\", which `protect` names too"),
                    "take it out of one of the two",
                ));
            }
        }
        section.finish()?;
        Ok(mcp)
    }
}

fn names(entry: &Entry<'_>, example: &str) -> Result<Vec<Box<str>>, ConfigError> {
    let items = entry.list(example)?;
    items.iter().map(|item| Ok(item.filled()?.into())).collect()
}
