//! What the sources say of the tests that are in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A test, as its source declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The function's name.
    pub name: String,
    /// The folder of its crate below `crates`.
    pub in_crate: String,
    /// The first paragraph of its doc comment, in one line.
    pub doc: String,
}

/// All tests of the crates of a workspace: functions under a test attribute, those that run on every
/// server or on both drivers, and the rules of the conformance suite.
pub fn tests_of(workspace: &Path) -> Vec<Test> {
    let mut crates: Vec<PathBuf> = entries(&workspace.join("crates"));
    crates.sort();
    let mut tests = Vec::new();
    for folder in crates {
        let name = folder.file_name().expect("a name").to_string_lossy();
        for file in rust_files(&folder) {
            let is_suite = file
                .components()
                .any(|part| part.as_os_str() == "conformance");
            let found = tests_in(&read(&file), is_suite);
            tests.extend(found.into_iter().map(|(function, doc)| Test {
                name: function,
                in_crate: name.clone().into_owned(),
                doc,
            }));
        }
    }
    tests
}

/// Names and docs of the tests in one file.
fn tests_in(source: &str, is_suite: bool) -> Vec<(String, String)> {
    let mut listed = BTreeSet::new();
    for listing in ["\non_every_server! {", "\non_both_drivers! {"] {
        let list = source.split_once(listing);
        let list = list.and_then(|(_, rest)| rest.split_once('}'));
        listed.extend(list.map_or("", |(list, _)| list).split_whitespace());
    }
    let mut found = Vec::new();
    let (mut is_test, mut doc) = (false, Vec::new());
    for line in source.lines().map(str::trim_start) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim());
            continue;
        }
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
        if let Some((before, rest)) = line.split_once("fn ") {
            let name = &rest[..rest.find(['(', '<']).unwrap_or(rest.len())];
            let is_rule = is_suite && before == "pub async ";
            let is_plain = matches!(before, "" | "async ");
            if is_rule || (is_plain && (is_test || listed.contains(name))) {
                let paragraph = doc.split(|line: &&str| line.is_empty()).next();
                found.push((name.to_owned(), paragraph.unwrap_or_default().join(" ")));
            }
            is_test = false;
        }
        // Attributes may stand between a comment and its function.
        if !line.starts_with('#') {
            doc.clear();
        }
    }
    found
}

/// All Rust files under `folder`, in order.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(folder) {
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::tests_in;

    #[test]
    fn tests_are_found_with_their_docs() {
        let source = "/// Of no test.\nfn helper() {}\n\n/// One\n/// of two.\n///\n/// More.\n#[test]\nfn first() {}\n\
                      #[tokio::test(x)]\n#[other]\nasync fn second() {}\n\non_every_server! { alone:\n    third\n}\n\
                      /// Three.\nfn third(server: &mut impl Server) {}\npub async fn rule() {}\n";
        let names = |is_suite| -> Vec<(String, String)> { tests_in(source, is_suite) };
        let of = |name: &str, doc: &str| (name.to_owned(), doc.to_owned());
        let plain = [
            of("first", "One of two."),
            of("second", ""),
            of("third", "Three."),
        ];
        assert_eq!(names(false), plain);
        assert_eq!(names(true).last(), Some(&of("rule", "")));
    }
}
