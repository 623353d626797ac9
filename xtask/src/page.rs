//! docs/reliability.md, of which some parts are written by commands.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::root;

/// A part that is written by a command, between two lines that mark it.
pub struct Part {
    /// The line before it.
    pub begin: &'static str,
    /// The line behind it.
    pub end: &'static str,
}

impl Part {
    /// Writes it into the page.
    pub fn write(&self, text: &str) -> Result<()> {
        let file = file();
        let page = self.within(&read()?, text)?;
        fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))
    }

    /// The page with this text in it.
    pub fn within(&self, page: &str, text: &str) -> Result<String> {
        let Self { begin, end } = self;
        let (before, rest) = page
            .split_once(begin)
            .with_context(|| format!("the page has no line {begin:?}"))?;
        let (_, after) = rest
            .split_once(end)
            .with_context(|| format!("the page has no line {end:?}"))?;
        Ok(format!("{before}{begin}{text}{end}{after}"))
    }
}

/// The page as it is.
pub fn read() -> Result<String> {
    let file = file();
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

fn file() -> PathBuf {
    root().join("docs/reliability.md")
}
