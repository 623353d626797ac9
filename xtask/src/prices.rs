//! `cargo xtask prices`: the list prices of the ledger, copied from the package whose data they are.
//!
//! The package is a development dependency: the tests compare costs with it. So the version that is copied
//! is the one that Cargo.toml names, and the audit can tell whether the copy is still true.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::args::Args;
use crate::audit;
use crate::command::{headline, root};

const PACKAGE: &str = "genai-prices";

/// What is copied byte for byte: from the package, to the ledger's data.
const COPIES: [(&str, &str); 2] = [
    ("data/prices.json", "genai-prices.json"),
    ("LICENSE", "GENAI-PRICES-LICENSE"),
];

/// Where the version is written down.
const VERSION: &str = "genai-prices.version";

/// Copies the prices.
pub fn run(args: Args) -> Result<()> {
    args.finish()?;
    headline("copying the list prices");
    let metadata = audit::metadata(&[])?;
    let folder = folder();
    for (name, content) in contents(&metadata)? {
        fs::write(folder.join(name), content)
            .with_context(|| format!("cannot write {name} in {}", folder.display()))?;
        println!("   {name}");
    }
    Ok(())
}

/// What is not as it is in the package.
pub fn faults(metadata: &Value) -> Result<Vec<String>> {
    Ok(differences(&folder(), &contents(metadata)?))
}

fn differences(folder: &Path, contents: &[(&str, Vec<u8>)]) -> Vec<String> {
    contents
        .iter()
        .filter(|(name, content)| fs::read(folder.join(name)).ok().as_ref() != Some(content))
        .map(|(name, _)| format!("{name} is not that of {PACKAGE}: run `cargo xtask prices`"))
        .collect()
}

/// The files of the ledger's data, as they should be.
fn contents(metadata: &Value) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let package = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|package| package["name"] == PACKAGE))
        .with_context(|| format!("{PACKAGE} is no dependency"))?;
    let text = |field: &str| package[field].as_str().context("cargo metadata is short");
    let source = Path::new(text("manifest_path")?);
    let mut contents = vec![(VERSION, format!("{}\n", text("version")?).into_bytes())];
    for (from, to) in COPIES {
        let from = source.with_file_name(from);
        let content = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        contents.push((to, content));
    }
    Ok(contents)
}

fn folder() -> PathBuf {
    root().join("crates/ledger/data")
}

#[cfg(test)]
mod tests {
    use super::{differences, folder};

    #[test]
    fn a_copy_that_is_not_true_is_a_fault() {
        let name = super::VERSION;
        let kept = std::fs::read(folder().join(name)).expect("the version");
        let faults = |content| differences(&folder(), &[(name, content)]);
        assert!(faults(kept.clone()).is_empty());
        assert_eq!(faults([kept.as_slice(), b" "].concat()).len(), 1);
        let missing = differences(&folder(), &[("no-such-file", kept)]);
        assert_eq!(missing.len(), 1);
    }
}
