//! The table in `docs/reliability.md`: what the campaigns have done, from their files.

use std::collections::BTreeSet;

use anyhow::Result;

use super::figures::{Figures, grouped};
use super::runs::{Run, Runs};
use super::{Campaign, mutants, planted};
use crate::page::Part;

const PART: Part = Part {
    begin: "<!-- campaigns: written by `cargo xtask campaign --docs` -->\n",
    end: "<!-- /campaigns -->\n",
};

/// What campaigns named that is no violation.
const REMARKS: Part = Part {
    begin: "<!-- remarks of mutants: written by `cargo xtask campaign --docs` -->\n",
    end: "<!-- /remarks -->\n",
};

/// Writes the table into the page, what mutants were missed, and the table of the planted bugs.
pub fn write(campaigns: &[Campaign]) -> Result<()> {
    PART.write(&table(campaigns)?)?;
    REMARKS.write(&remarks()?)?;
    planted::PART.write(&planted::table())
}

fn table(campaigns: &[Campaign]) -> Result<String> {
    let mut table = String::from(
        "| campaign | to reach | reached | what was counted | violations | positions | commits and days |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for campaign in campaigns {
        table.push_str(&row(campaign, &Runs::read(campaign.name)?.counted()));
    }
    Ok(table)
}

/// The mutants that nothing caught, a line each.
fn remarks() -> Result<String> {
    let runs = Runs::read(mutants::CAMPAIGN.name)?;
    let counted = runs.counted();
    let missed: BTreeSet<_> = counted.iter().flat_map(|run| &run.remarks).collect();
    if missed.is_empty() {
        return Ok("None was missed.\n".to_owned());
    }
    let line = |missed: &&String| match missed.split_once(": ") {
        Some((file, what)) => format!("- `{file}`: `{what}`\n"),
        None => format!("- `{missed}`\n"),
    };
    Ok(format!(
        "Missed:\n\n{}",
        missed.iter().map(line).collect::<String>()
    ))
}

fn row(campaign: &Campaign, runs: &[&Run]) -> String {
    let mut sum = Figures::default();
    for run in runs {
        sum.add_all(&run.figures);
    }
    let list = |texts: Vec<String>| texts.join(", ");
    let targets = campaign.targets.iter();
    let wanted = targets
        .clone()
        .map(|(number, name)| format!("{} {name}", grouped(*number)));
    let reached = targets.map(|(number, name)| share(sum.of(name), *number));
    let commits: BTreeSet<_> = runs.iter().map(|run| (&run.day, &run.commit)).collect();
    let commits = commits
        .iter()
        .map(|(day, commit)| format!("{commit} ({day})"));
    format!(
        "| `{}` | {} | {} | {sum} | {} | {} | {} |\n",
        campaign.name,
        list(wanted.collect()),
        list(reached.collect()),
        violations(runs),
        positions(runs),
        list(commits.collect()),
    )
}

/// How much of a target was reached, rounded down.
fn share(number: u64, target: u64) -> String {
    let percent = u128::from(number) * 100 / u128::from(target.max(1));
    format!("{} ({percent} %)", grouped(number))
}

fn violations(runs: &[&Run]) -> String {
    let all: usize = runs.iter().map(|run| run.violations.len()).sum();
    match runs.iter().rposition(|run| !run.violations.is_empty()) {
        None => all.to_string(),
        Some(last) => {
            let (commit, since) = (&runs[last].commit, last + 1 < runs.len());
            format!(
                "{all}, the last on {commit}{}",
                if since { "; 0 since" } else { "" }
            )
        }
    }
}

/// From the first position up to the last, which was done.
fn positions(runs: &[&Run]) -> String {
    let from = runs.iter().map(|run| run.from).min();
    let to = runs.iter().map(|run| run.to).max();
    match from.zip(to) {
        None => String::new(),
        Some((from, to)) => format!("{} to {}", grouped(from), grouped(to.saturating_sub(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::{PART, REMARKS, remarks, row, table};
    use crate::campaign::figures::Figures;
    use crate::campaign::runs::Run;
    use crate::campaign::{ALL, Campaign, Ended};
    use crate::page;

    #[test]
    fn the_page_says_what_the_files_say() {
        let page = page::read().unwrap();
        let written = PART.within(&page, &table(ALL).unwrap()).unwrap();
        let written = REMARKS.within(&written, &remarks().unwrap()).unwrap();
        assert!(page == written, "run `cargo xtask campaign --docs`");
    }

    #[test]
    fn a_campaign_that_was_violated_says_so_and_what_came_since() {
        const CAMPAIGN: Campaign = Campaign {
            name: "kills",
            about: "",
            targets: &[(20_000, "kills")],
            runs_gateway: false,
            batch: |_| Ok(Ended::Skipped(String::new())),
        };
        let run = |commit: &str, from, to, violations: &[&str]| Run {
            commit: commit.to_owned(),
            day: "2026-03-02".to_owned(),
            minutes: 1.0,
            from,
            to,
            figures: Figures::from([("kills", 1_500)]),
            violations: violations.iter().map(ToString::to_string).collect(),
            remarks: Vec::new(),
            part: None,
        };
        assert_eq!(
            row(
                &CAMPAIGN,
                &[&run("aaa", 1, 4, &["seed 3: I1"]), &run("bbb", 4, 9, &[])]
            ),
            "| `kills` | 20,000 kills | 3,000 (15 %) | 3,000 kills | 1, the last on aaa; 0 since \
             | 1 to 8 | aaa (2026-03-02), bbb (2026-03-02) |\n"
        );
    }
}
