//! The pages keep their word: links lead somewhere, the tests that they name exist, and the contract
//! leaves no problem out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use onlyonce_http::problem_pages::PAGES;
use onlyonce_testkit::tests_of;
use serde_json::Value;

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the workspace")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files right in `folder` whose name ends with `.extension`, in order.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file() && path.extension().is_some_and(|found| found == extension))
        .collect();
    found.sort();
    found
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root(), "md");
    pages.extend(files(&root().join("docs"), "md"));
    assert!(pages.len() > 8, "only {pages:?}");
    pages
}

/// The names of all tests.
fn tests() -> BTreeSet<String> {
    let tests = tests_of(&root());
    tests.into_iter().map(|test| test.name).collect()
}

/// What stands between backticks in `line`.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The rows of all tables of `section` that have `columns` columns, cell by cell.
fn rows(section: &str, columns: usize) -> Vec<Vec<&str>> {
    section
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == columns)
        .collect()
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let tests = tests();
    assert!(tests.len() > 500, "only {} tests found", tests.len());
    let page = text(&root().join("ARCHITECTURE.md"));
    let (_, section) = page
        .split_once("\n## Guarantees")
        .expect("the section of guarantees");

    let mut proved: Vec<(&str, usize)> = Vec::new();
    for cells in rows(section, 3) {
        if let Some(name) = cells[0].strip_prefix("**") {
            let end = name.find([' ', '*']).expect("the end of its name");
            proved.push((&name[..end], 0));
        }
        for test in quoted(cells[1]) {
            assert!(tests.contains(test), "there is no test {test}");
            proved.last_mut().expect("a guarantee before its tests").1 += 1;
        }
    }
    let all = (1..=18)
        .map(|number| format!("I{number}"))
        .chain((1..=7).map(|number| format!("L{number}")));
    assert!(
        all.eq(proved.iter().map(|(name, _)| (*name).to_owned())),
        "{proved:?}"
    );

    // One without a test says so, and why.
    let (_, partial) = section
        .split_once("\n### Where the proof is partial")
        .expect("the section on partial proof");
    for (name, count) in proved {
        assert!(
            count > 0 || partial.contains(&format!("- **{name}** ")),
            "{name} has no test and no reason"
        );
    }
}

#[test]
fn tests_named_anywhere_exist() {
    let tests = tests();
    let is_guarantee = |name: &str| {
        let digits = |rest: &str, count| {
            rest.len() > count
                && rest.as_bytes()[..count].iter().all(u8::is_ascii_digit)
                && rest.as_bytes()[count] == b'_'
        };
        let of = |prefix, count| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| digits(rest, count))
        };
        of("i", 2) || of("l", 1) || of("hostile_", 3)
    };
    for page in pages() {
        for line in text(&page).lines() {
            for name in quoted(line).filter(|name| is_guarantee(name) && !name.contains('.')) {
                assert!(tests.contains(name), "{}: no test {name}", page.display());
            }
        }
    }
}

/// The lines of a page outside of its blocks of code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// The anchors of a page's headings, as they are made for Markdown on the web.
fn anchors(page: &str) -> BTreeSet<String> {
    prose(page)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            heading
                .chars()
                .filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'))
                .map(|char| if char == ' ' { '-' } else { char })
                .collect()
        })
        .collect()
}

#[test]
fn links_between_pages_resolve() {
    let mut count = 0;
    for page in pages() {
        let own = text(&page);
        for line in prose(&own) {
            for link in line.split("](").skip(1) {
                let target = link.split(')').next().unwrap_or_default();
                if target.contains("://") {
                    continue;
                }
                count += 1;
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = page.parent().expect("a folder").join(file);
                let path = if file.is_empty() { page.clone() } else { path };
                let broken = format!("{}: {target} leads nowhere", page.display());
                assert!(path.exists(), "{broken}");
                assert!(
                    anchor.is_empty() || anchors(&text(&path)).contains(anchor),
                    "{broken}"
                );
            }
        }
    }
    assert!(count > 30, "only {count} links found");
}

#[test]
fn every_problem_is_in_the_contract() {
    let contract = text(&root().join("docs/contract.md"));
    for page in &PAGES {
        let row = contract
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&format!("`{}`", page.name)))
            .unwrap_or_else(|| panic!("{} is missing", page.name));
        for status in page.statuses {
            let says = contract.lines().any(|line| {
                line.starts_with('|') && line.contains(&format!("{status} `{}`", page.name))
            });
            assert!(
                says,
                "{} comes with {status}, and the page says {row}",
                page.name
            );
        }
    }
}

/// The tables of the comparison are its results, part by part, and there is nothing else in them.
#[test]
fn the_comparison_shows_its_results() {
    let results = text(&root().join("bench/compare/results.json"));
    let peers: Vec<Value> = serde_json::from_str(&results).expect("a list of peers");
    assert!(peers.len() >= 6, "only {}", peers.len());
    let word = |value: &Value| value.as_str().expect("text").to_owned();
    let mut verdicts: Vec<Vec<String>> = Vec::new();
    let mut told: Vec<Vec<String>> = Vec::new();
    for peer in &peers {
        for (at, part) in list(&peer["parts"]).iter().enumerate() {
            let scenario = word(&part["scenario"]);
            let words: Vec<String> = list(&part["told"]).iter().map(word).collect();
            let ran = format!("{}x", part["executions"]);
            told.push(vec![
                scenario.clone(),
                ran,
                words.join("; "),
                word(&part["seen"]),
            ]);
            if verdicts.len() == at {
                verdicts.push(vec![scenario]);
            }
            verdicts[at].push(word(&part["verdict"]));
        }
    }

    let page = text(&root().join("docs/compare.md"));
    let shown = |name: &str, columns| {
        let start = format!("<!-- {name} -->");
        let end = format!("<!-- /{name} -->");
        let (_, tables) = page.split_once(&start).expect("the start of the tables");
        let (tables, _) = tables.split_once(&end).expect("their end");
        let mut rows = rows(tables, columns);
        rows.retain(|cells| !["scenario", "---"].contains(&cells[0]));
        rows
    };
    let advice = "run python3 bench/compare/compare.py --page";
    assert_eq!(shown("verdicts", peers.len() + 1), verdicts, "{advice}");
    assert_eq!(shown("told", 4), told, "{advice}");
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}
