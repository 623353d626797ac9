//! `cargo xtask audit`: what can be said about the dependencies without asking anybody.
//!
//! No advisory database can be fetched where the project is tested, so this checks what the lock
//! file and the packages' own manifests state: where they come from, under what licence, whether
//! the registry has withdrawn them, and which of them must never come in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::Args;
use crate::command::{cargo, headline, quietly};
use crate::prices;

/// Licences that may be combined with ours and linked into one binary.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "NCSA",
    "OpenSSL",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// Crates of which two major versions at once would be a mistake: types that must meet, and
/// code that keeps secrets or speaks TLS.
const ONE_VERSION: &[&str] = &[
    "aws-lc-rs",
    "blake3",
    "bytes",
    "http",
    "http-body",
    "hyper",
    "mio",
    "parking_lot",
    "rustls",
    "rustls-webpki",
    "tokio",
    "tokio-rustls",
    "tracing",
];

/// Crates that must not come in, and why.
const DENIED: &[(&str, &str)] = &[
    ("ansi_term", "unmaintained (RUSTSEC-2021-0139)"),
    ("atty", "unmaintained, unsound (RUSTSEC-2021-0145)"),
    ("failure", "unmaintained, unsound (RUSTSEC-2019-0036)"),
    ("instant", "unmaintained (RUSTSEC-2024-0384)"),
    ("lexical-core", "unsound below 1.0 (RUSTSEC-2023-0086)"),
    ("native-tls", "one TLS stack is enough, and it is rustls"),
    ("net2", "unmaintained (RUSTSEC-2020-0016)"),
    ("openssl-sys", "one TLS stack is enough, and it is rustls"),
    ("proc-macro-error", "unmaintained (RUSTSEC-2024-0370)"),
    ("rustls-pemfile", "unmaintained; rustls-pki-types reads PEM"),
    ("serde_yaml", "unmaintained"),
    ("users", "unmaintained (RUSTSEC-2023-0040)"),
    ("yaml-rust", "unmaintained (RUSTSEC-2024-0320)"),
];

/// Checks all dependencies in the lock file.
pub fn run(args: Args) -> Result<()> {
    args.finish()?;
    headline("auditing the dependencies");
    let metadata = metadata(&[])?;
    let packages: Vec<Package> = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?
        .iter()
        .map(Package::from_json)
        .collect::<Result<_>>()?;

    let mut faults = Vec::new();
    for package in &packages {
        faults.extend(source_fault(package));
        faults.extend(licence_fault(package));
        faults.extend(denied_fault(package));
    }
    faults.extend(doubled_majors(&packages));
    faults.extend(prices::faults(&metadata)?);
    let index = IndexCache::open();
    let mut looked_up = 0;
    for package in packages.iter().filter(|package| package.source.is_some()) {
        if let Some(yanked) = index.is_yanked(&package.name, &package.version) {
            looked_up += 1;
            if yanked {
                faults.push(format!(
                    "{package}: its authors have withdrawn this version"
                ));
            }
        }
    }

    if !faults.is_empty() {
        bail!(
            "the audit found {} faults:\n  {}",
            faults.len(),
            faults.join("\n  ")
        );
    }
    let foreign = packages
        .iter()
        .filter(|package| package.source.is_some())
        .count();
    println!(
        "   {foreign} packages: sources and licences are allowed, none is denied, \
         none of the {looked_up} that the local index knows is withdrawn"
    );
    Ok(())
}

/// Whether a package of the workspace has a feature.
pub fn has_feature(package: &str, feature: &str) -> Result<bool> {
    let output = quietly(
        "cargo metadata",
        cargo().args(["metadata", "--format-version", "1", "--no-deps"]),
    )?;
    let metadata: Value = serde_json::from_str(&output)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    Ok(packages
        .iter()
        .any(|found| found["name"] == package && !found["features"][feature].is_null()))
}

/// The whole dependency tree for every platform, with these features besides the default ones; from the local
/// copies where they are complete.
pub fn metadata(features: &[&str]) -> Result<Value> {
    let features = features.join(",");
    let mut arguments = vec!["metadata", "--format-version", "1", "--locked"];
    if !features.is_empty() {
        arguments.extend(["--features", &features]);
    }
    let output = match quietly("cargo metadata", cargo().args(&arguments).arg("--offline")) {
        Ok(output) => output,
        // A fresh machine has not fetched the packages for other platforms.
        Err(_) => quietly("cargo metadata", cargo().args(arguments))?,
    };
    Ok(serde_json::from_str(&output)?)
}

struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    source: Option<String>,
}

impl Package {
    fn from_json(value: &Value) -> Result<Self> {
        let text = |field: &str| value[field].as_str().map(ToString::to_string);
        Ok(Self {
            name: text("name").context("a package without a name")?,
            version: text("version").context("a package without a version")?,
            licence: text("license"),
            source: text("source"),
        })
    }

    /// The part of the version within which nothing may break.
    fn major(&self) -> &str {
        let mut parts = self.version.match_indices('.').map(|(at, _)| at);
        let first = parts.next().unwrap_or(self.version.len());
        if &self.version[..first] != "0" {
            return &self.version[..first];
        }
        &self.version[..parts.next().unwrap_or(self.version.len())]
    }
}

impl std::fmt::Display for Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

fn source_fault(package: &Package) -> Option<String> {
    let source = package.source.as_deref()?;
    let is_registry = source.starts_with("registry+") || source.starts_with("sparse+");
    (!is_registry).then(|| format!("{package}: comes from {source}, not from the registry"))
}

fn licence_fault(package: &Package) -> Option<String> {
    let Some(licence) = package.licence.as_deref() else {
        return Some(format!("{package}: states no licence"));
    };
    (!is_allowed(licence)).then(|| format!("{package}: licence `{licence}` is not on the list"))
}

/// Whether a licence expression can be met with licences of the list alone.
fn is_allowed(expression: &str) -> bool {
    // Old packages write `MIT/Apache-2.0`. AND binds closer than OR.
    let expression = expression.replace('/', " OR ");
    Expression { rest: &expression }
        .any_of()
        .is_some_and(|(allowed, rest)| allowed && rest.trim().is_empty())
}

/// A licence expression (SPDX annex D), of which `rest` is still unread.
struct Expression<'a> {
    rest: &'a str,
}

impl<'a> Expression<'a> {
    fn any_of(&mut self) -> Option<(bool, &'a str)> {
        let mut allowed = self.all_of()?;
        while self.take("OR") {
            allowed |= self.all_of()?;
        }
        Some((allowed, self.rest))
    }

    fn all_of(&mut self) -> Option<bool> {
        let mut allowed = self.one()?;
        while self.take("AND") {
            allowed &= self.one()?;
        }
        Some(allowed)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let (allowed, _) = self.any_of()?;
            return self.take(")").then_some(allowed);
        }
        let mut name = self.word()?.to_string();
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.word()?);
        }
        Some(LICENCES.contains(&name.as_str()))
    }

    fn word(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let end = text.find([' ', '(', ')']).unwrap_or(text.len());
        self.rest = &text[end..];
        (end > 0).then_some(&text[..end])
    }

    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.trim_start().strip_prefix(token) else {
            return false;
        };
        self.rest = rest;
        true
    }
}

fn denied_fault(package: &Package) -> Option<String> {
    let (_, reason) = DENIED.iter().find(|(name, _)| *name == package.name)?;
    Some(format!("{package}: is denied: {reason}"))
}

fn doubled_majors(packages: &[Package]) -> Vec<String> {
    let mut majors: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        if ONE_VERSION.contains(&package.name.as_str()) {
            majors
                .entry(&package.name)
                .or_default()
                .insert(package.major());
        }
    }
    majors
        .iter()
        .filter(|(_, majors)| majors.len() > 1)
        .map(|(name, majors)| format!("{name}: more than one major version: {majors:?}"))
        .collect()
}

/// Cargo's own copies of the registry's index pages, one file for each package.
struct IndexCache {
    folders: Vec<PathBuf>,
}

impl IndexCache {
    fn open() -> Self {
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
        let folders = home
            .and_then(|home| fs::read_dir(home.join("registry/index")).ok())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join(".cache"))
            .collect();
        Self { folders }
    }

    /// Whether a version was withdrawn; nothing when the copies do not know it.
    fn is_yanked(&self, name: &str, version: &str) -> Option<bool> {
        let lower = name.to_lowercase();
        let file = match lower.len() {
            1 | 2 => format!("{}/{lower}", lower.len()),
            3 => format!("3/{}/{lower}", &lower[..1]),
            _ => format!("{}/{}/{lower}", &lower[..2], &lower[2..4]),
        };
        self.folders.iter().find_map(|folder| {
            let page = fs::read(folder.join(&file)).ok()?;
            page.split(|byte| *byte == 0)
                .filter_map(|part| serde_json::from_slice::<Value>(part).ok())
                .find(|entry| entry["vers"] == version)?["yanked"]
                .as_bool()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Package, doubled_majors, is_allowed, source_fault};

    fn package(name: &str, version: &str, source: Option<&str>) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            licence: Some("MIT".into()),
            source: source.map(Into::into),
        }
    }

    #[test]
    fn licence_expressions_are_read_with_their_precedence() {
        assert!(is_allowed("MIT OR Apache-2.0"));
        assert!(is_allowed("MIT/Apache-2.0"));
        assert!(is_allowed("GPL-3.0 OR MIT"));
        assert!(is_allowed("Apache-2.0 WITH LLVM-exception OR GPL-2.0"));
        assert!(is_allowed("(MIT OR GPL-3.0) AND Unicode-3.0"));
        assert!(!is_allowed("GPL-3.0"));
        assert!(!is_allowed("MIT AND GPL-3.0"));
        assert!(!is_allowed("(MIT"));
        assert!(!is_allowed(""));
    }

    #[test]
    fn a_package_from_elsewhere_is_a_fault() {
        assert!(source_fault(&package("a", "1.0.0", Some("git+ssh://somewhere/a"))).is_some());
        assert!(source_fault(&package("a", "1.0.0", Some("sparse+the-registry"))).is_none());
        assert!(source_fault(&package("a", "1.0.0", None)).is_none());
    }

    #[test]
    fn two_majors_of_a_critical_crate_are_a_fault() {
        let one = package("http", "1.3.1", None);
        let other = package("http", "0.2.12", None);
        let minor = package("http", "1.4.0", None);
        assert_eq!(doubled_majors(&[one, other]).len(), 1);
        assert!(doubled_majors(&[package("http", "1.3.1", None), minor]).is_empty());
    }
}
