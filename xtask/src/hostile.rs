//! `cargo xtask hostile`: the table of the hostile cases in docs/reliability.md, made from their tests.
//!
//! The tests are the list: what a case is, and the answer to it, stands above the first test of its number, as
//! `/// Case: .... Answer: ....`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use onlyonce_testkit::{Test, tests_of};

use crate::args::Args;
use crate::command::root;
use crate::page::Part;

/// The cases are numbered from 1 to this.
const CASES: u16 = 96;

/// The crate whose tests start the real binary and speak over sockets.
const REAL_BINARY: &str = "gateway";

const PART: Part = Part {
    begin: "<!-- hostile cases: written by `cargo xtask hostile` -->\n",
    end: "<!-- /hostile cases -->\n",
};

/// Writes the table.
pub fn run(args: Args) -> Result<()> {
    args.finish()?;
    PART.write(&table(&tests_of(&root()))?)
}

/// One case.
#[derive(Default)]
struct Case<'a> {
    what: Option<(&'a str, &'a str)>,
    over_sockets: BTreeSet<&'a str>,
    crates: BTreeSet<&'a str>,
}

/// The table, if every case has a test over sockets against the real binary, and is told of once.
fn table(tests: &[Test]) -> Result<String> {
    let mut cases: BTreeMap<u16, Case<'_>> = BTreeMap::new();
    for test in tests {
        let Some(number) = number(&test.name) else {
            continue;
        };
        let case = cases.entry(number).or_default();
        case.crates.insert(&test.in_crate);
        if test.in_crate == REAL_BINARY {
            case.over_sockets.insert(&test.name);
        }
        if let Some(told) = test.doc.strip_prefix("Case: ") {
            let (what, answer) = told
                .split_once(". Answer: ")
                .with_context(|| format!("{} says no answer", test.name))?;
            let answer = answer.trim_end_matches('.');
            ensure!(
                test.in_crate == REAL_BINARY && case.what.is_none(),
                "case {number} is told twice, or not beside a test of the real binary: {}",
                test.name
            );
            case.what = Some((what, answer));
        }
    }
    let mut table =
        "| | the case | the answer | tests | crates |\n|---|---|---|---|---|\n".to_owned();
    for number in 1..=CASES {
        let case = cases.remove(&number).unwrap_or_default();
        let Some((what, answer)) = case.what else {
            bail!("no test tells what case {number} is");
        };
        ensure!(
            !case.over_sockets.is_empty(),
            "case {number} has no test over sockets"
        );
        let tests: Vec<String> = case
            .over_sockets
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        let mut crates = case.crates;
        crates.remove(REAL_BINARY);
        let crates: Vec<&str> = [REAL_BINARY].into_iter().chain(crates).collect();
        table += &format!(
            "| {number} | {what} | {answer} | {} | {} |\n",
            tests.join(", "),
            crates.join(", ")
        );
    }
    if let Some(number) = cases.keys().next() {
        bail!("there is no case {number}");
    }
    Ok(table)
}

/// The number in the name of a test of a hostile case.
fn number(name: &str) -> Option<u16> {
    let (number, _) = name.strip_prefix("hostile_")?.split_once('_')?;
    (number.len() == 3).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page;

    #[test]
    fn the_page_has_the_table_that_the_tests_make() {
        let page = page::read().unwrap();
        let table = table(&tests_of(&root())).unwrap();
        assert!(
            PART.within(&page, &table).unwrap() == page,
            "run `cargo xtask hostile`"
        );
    }

    fn test(number: u16, in_crate: &str, doc: &str) -> Test {
        Test {
            name: format!("hostile_{number:03}_is_tested"),
            in_crate: in_crate.to_owned(),
            doc: doc.to_owned(),
        }
    }

    #[test]
    fn a_case_without_a_test_of_the_real_binary_is_an_error() {
        let told = "Case: this. Answer: that.";
        let mut all: Vec<Test> = (1..=CASES).map(|n| test(n, "gateway", told)).collect();
        let table_of_all = table(&all).unwrap();
        assert!(
            table_of_all.contains("| 7 | this | that | `hostile_007_is_tested` | gateway |\n"),
            "{table_of_all}"
        );
        let removed = all.remove(40);
        assert!(table(&all).is_err(), "41 has no test");
        all.push(test(41, "core", ""));
        assert!(table(&all).is_err(), "41 has a test of the core alone");
        all.push(removed.clone());
        assert!(table(&all).is_ok());
        all.push(removed);
        assert!(table(&all).is_err(), "41 is told twice");
        all.pop();
        all.push(test(97, "gateway", told));
        assert!(table(&all).is_err(), "there is no 97");
    }
}
