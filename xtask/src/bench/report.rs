//! The page of results: one section for each part, replaced when the part is run again.

use std::fmt::{Display, Formatter, Write as _};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const INTRODUCTION: &str = "# Results\n\n\
    Written by `cargo xtask bench http`, each section by the part that its heading names, on the day that\n\
    it names. All programs of a section ran on the same machine in the same run, in turns. Figures of two\n\
    runs can be compared as ratios only.\n";

/// What a part found.
pub struct Section {
    /// The figures that have to be reached.
    pub targets: Vec<Target>,
    /// How it was measured, and the figures that these follow from, in Markdown.
    pub figures: String,
}

/// A figure that has to be reached.
pub struct Target {
    what: String,
    target: String,
    figure: String,
    /// Whether it was.
    pub reached: bool,
}

impl Target {
    /// A figure that must not exceed a limit.
    pub fn at_most(what: impl Into<String>, figure: f64, limit: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            target: format!("{} at most", with_unit(&limit.to_string(), unit)),
            figure: with_unit(&rounded(figure), unit),
            reached: figure <= limit,
        }
    }

    /// A figure that must not be below a limit.
    pub fn at_least(what: impl Into<String>, figure: f64, limit: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            target: format!("{} or more", with_unit(&limit.to_string(), unit)),
            figure: with_unit(&rounded(figure), unit),
            reached: figure >= limit,
        }
    }

    /// A figure that must not exceed a limit, and could not be had.
    pub fn unmeasured(what: impl Into<String>, limit: f64, unit: &str) -> Self {
        Self {
            figure: "none".to_owned(),
            ..Self::at_most(what, f64::INFINITY, limit, unit)
        }
    }

    fn verdict(&self) -> &'static str {
        if self.reached { "reached" } else { "missed" }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} ({}; {})",
            self.what,
            self.figure,
            self.target,
            self.verdict()
        )
    }
}

fn with_unit(number: &str, unit: &str) -> String {
    format!("{number} {unit}").trim_end().to_string()
}

/// Digits enough to tell a figure from its target.
fn rounded(figure: f64) -> String {
    if figure.fract() == 0.0 || figure.abs() >= 100.0 {
        format!("{figure:.0}")
    } else if figure.abs() >= 10.0 {
        format!("{figure:.1}")
    } else {
        format!("{figure:.3}")
    }
}

/// Replaces the section under a heading; `headings` are those of all sections, in their order.
pub fn write(
    page: &Path,
    headings: &[String],
    heading: &str,
    conditions: &str,
    section: &Section,
) -> Result<()> {
    let command = command_line(std::env::args().skip(1));
    let mut text = format!(
        "{conditions}\n`{command}`\n\n\
         | what | target | figure | |\n|---|---|---|---|\n"
    );
    for one in &section.targets {
        let (what, target, figure) = (&one.what, &one.target, &one.figure);
        writeln!(text, "| {what} | {target} | {figure} | {} |", one.verdict())?;
    }
    write!(text, "\n{}", section.figures.trim())?;
    let old = fs::read_to_string(page).unwrap_or_default();
    fs::write(page, replace(&old, headings, heading, &text))
        .with_context(|| format!("cannot write {}", page.display()))
}

/// The command as it was given; which file was measured is nobody's business.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let mut line = String::from("cargo xtask");
    let mut is_file = false;
    for arg in args {
        line.push(' ');
        line.push_str(if is_file { "FILE" } else { &arg });
        is_file = arg == "--binary";
    }
    line
}

/// The page with one section new. A section whose heading is not among `headings` is of a part that
/// is no more, and goes.
fn replace(old: &str, headings: &[String], heading: &str, text: &str) -> String {
    let old: Vec<String> = old
        .split("\n## ")
        .skip(1)
        .map(|section| format!("## {}", section.trim_end()))
        .collect();
    let section_of = |wanted: &String| {
        if wanted == heading {
            return Some(format!("{heading}\n\n{text}"));
        }
        let is_wanted = |section: &&String| section.lines().next() == Some(wanted);
        old.iter().find(is_wanted).cloned()
    };
    let sections: Vec<String> = headings.iter().filter_map(section_of).collect();
    format!("{INTRODUCTION}\n{}\n", sections.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::{Target, command_line, replace};

    fn page(sections: &[(&str, &str)]) -> String {
        let headings = ["## A".to_string(), "## B".to_string()];
        sections.iter().fold(String::new(), |old, (heading, text)| {
            replace(&old, &headings, heading, text)
        })
    }

    #[test]
    fn sections_stand_in_the_order_of_the_parts() {
        let page = page(&[("## B", "late"), ("## A", "early")]);
        assert!(page.ends_with("\n## A\n\nearly\n\n## B\n\nlate\n"));
    }

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let page = page(&[
            ("## A", "one\n\n### More"),
            ("## B", "two"),
            ("## A", "three"),
        ]);
        assert!(page.ends_with("\n## A\n\nthree\n\n## B\n\ntwo\n"));
        assert!(!page.contains("one\n") && !page.contains("More"));
        assert_eq!(page.matches("# Results").count(), 1);
    }

    #[test]
    fn a_section_of_a_part_that_is_no_more_goes() {
        let old = "# Results\n\n## Old\n\nwords\n\n## B\n\ntwo\n";
        let page = replace(
            old,
            &["## A".to_string(), "## B".to_string()],
            "## A",
            "one",
        );
        assert!(!page.contains("words"));
        assert!(page.ends_with("\n## A\n\none\n\n## B\n\ntwo\n"));
    }

    #[test]
    fn a_figure_stands_beside_its_target_with_a_verdict() {
        let said = |target: Target| target.to_string();
        let missed = Target::at_least("ratio", 0.7986, 0.8, "");
        assert_eq!(said(missed), "ratio: 0.799 (0.8 or more; missed)");
        let kept = Target::at_most("p99", 14.94, 15.0, "ms");
        assert_eq!(said(kept), "p99: 14.9 ms (15 ms at most; reached)");
        let all = Target::at_least("readers", 1000.0, 1000.0, "");
        assert_eq!(said(all), "readers: 1000 (1000 or more; reached)");
    }

    #[test]
    fn the_command_names_no_file_of_this_machine() {
        let args = ["bench", "http", "--binary", "some/file", "--quick"];
        let line = command_line(args.iter().map(ToString::to_string));
        assert_eq!(line, "cargo xtask bench http --binary FILE --quick");
    }
}
