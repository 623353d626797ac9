//! `cargo xtask package`: that the library could be published, offline.
//!
//! `cargo package` refuses what is not to be published, and nothing is to be from here. So the packages are made of a
//! copy of the workspace in which that line is lifted: the facade and all that it depends on, together, since each of
//! them finds the others only so. Then each has to have what a package needs that stands alone; and the facade has to
//! build with each of its features alone, as its users write them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::args::Args;
use crate::audit;
use crate::command::{cargo, headline, quietly, root, target_dir};

/// What users name.
const FACADE: &str = "onlyonce";

/// What a package has to have beside its code.
const FILES: &[&str] = &["Cargo.toml", "README.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// What a manifest has to say.
const FIELDS: &[&str] = &["description", "license", "readme", "rust_version"];

/// Makes the packages and looks at them, then builds the facade with each feature alone.
pub fn run(mut args: Args) -> Result<()> {
    let only_packages = args.flag("--no-features");
    args.finish()?;
    let metadata = audit::metadata(&[])?;
    let packages = packages(&metadata)?;

    headline("packaging the library");
    let mut faults: Vec<String> = packages.iter().flat_map(|one| fields(one)).collect();
    let folder = target_dir().join("packaging");
    copy_workspace(&folder)?;
    let made = make(&folder, &packages)?;
    for package in &made {
        faults.extend(files(package)?);
    }
    if !faults.is_empty() {
        bail!("they cannot be published so:\n  {}", faults.join("\n  "));
    }
    println!(
        "   {} packages, each with its readme and licences",
        made.len()
    );

    if !only_packages {
        headline("building it with each feature alone");
        let facade = packages.iter().find(|package| package["name"] == FACADE);
        let features = facade.and_then(|facade| facade["features"].as_object());
        let features = features.context("it has no features")?;
        for feature in features.keys().map(String::as_str).chain([""]) {
            build(feature)?;
        }
        println!("   {} features, each alone, and none", features.len());
    }
    Ok(())
}

/// The facade, and the packages of the workspace that it depends on.
fn packages(metadata: &Value) -> Result<Vec<&Value>> {
    let all = metadata["packages"].as_array().context("no packages")?;
    let mut found: Vec<&Value> = Vec::new();
    let mut names = BTreeSet::from([FACADE]);
    while let Some(name) = names.pop_first() {
        let package = all
            .iter()
            .find(|package| package["name"] == name && package["source"].is_null())
            .with_context(|| format!("{name} is not in the workspace"))?;
        let dependencies = package["dependencies"].as_array();
        let ours = dependencies.into_iter().flatten().filter(|dependency| {
            !dependency["path"].is_null() && dependency["kind"].as_str() != Some("dev")
        });
        names.extend(ours.filter_map(|dependency| dependency["name"].as_str()));
        found.push(package);
        names.retain(|name| !found.iter().any(|package| package["name"] == *name));
    }
    Ok(found)
}

/// What the manifest of `package` does not say.
fn fields(package: &Value) -> Vec<String> {
    let missing = FIELDS.iter().filter(|field| package[**field].is_null());
    missing
        .map(|field| format!("{}: its Cargo.toml has no `{field}`", package["name"]))
        .collect()
}

/// The workspace as it stands, in `folder`, with what keeps it from being published lifted.
fn copy_workspace(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let mut copy = Command::new("cp");
    // The licences of a package are links to those of the workspace.
    copy.args([
        "--recursive",
        "--dereference",
        "crates",
        "xtask",
        "Cargo.lock",
    ])
    .arg(folder)
    .current_dir(root());
    quietly("cp", &mut copy)?;
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let lifted = manifest.replace("\npublish = false\n", "\npublish = true\n");
    ensure!(
        lifted != manifest,
        "Cargo.toml lets everything be published"
    );
    fs::write(folder.join("Cargo.toml"), lifted)?;
    Ok(())
}

/// Makes all packages; the files that they became.
fn make(folder: &Path, packages: &[&Value]) -> Result<Vec<PathBuf>> {
    let mut command = cargo();
    command
        .current_dir(folder)
        .args([
            "package",
            "--locked",
            "--offline",
            "--allow-dirty",
            "--no-verify",
        ])
        // Of repository, homepage and documentation: see Cargo.toml.
        .args(["--no-metadata", "--target-dir", "target"]);
    for package in packages {
        command
            .arg("--package")
            .arg(package["name"].as_str().unwrap_or_default());
    }
    quietly("cargo package", &mut command)?;
    let file = |package: &Value| {
        let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
        let name = format!("{}-{}.crate", text("name"), text("version"));
        folder.join("target/package").join(name)
    };
    Ok(packages.iter().map(|package| file(package)).collect())
}

/// What `package` lacks of [`FILES`].
fn files(package: &Path) -> Result<Vec<String>> {
    let list = quietly(
        "tar",
        Command::new("tar").arg("--list").arg("--file").arg(package),
    )?;
    let name = package.file_stem().unwrap_or_default().display();
    let has = |file: &str| list.lines().any(|line| line == format!("{name}/{file}"));
    let missing = FILES.iter().filter(|file| !has(file));
    Ok(missing
        .map(|file| format!("{name}: has no {file}"))
        .collect())
}

/// Builds the facade with `feature` alone, without a warning.
fn build(feature: &str) -> Result<()> {
    let mut command = cargo();
    command.args(["check", "--locked", "--quiet", "--package", FACADE]);
    command.args(["--no-default-features", "--features", feature]);
    quietly(
        &format!("cargo check with the feature {feature:?}"),
        &mut command,
    )
    .map(drop)
}
