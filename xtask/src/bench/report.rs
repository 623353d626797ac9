//! `bench/RESULTS.md`: one section for each part, replaced when the part is run again.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::peers::cores;
use crate::command::root;

const INTRODUCTION: &str = "# Results\n\n\
    Written by `cargo xtask bench http`; each section by the part that its heading names. All\n\
    programs of a section ran on the same machine in the same run, in turns. Figures of two runs\n\
    can be compared as ratios only.\n";

/// Replaces a section.
pub fn write(part: &str, title: &str, text: &str) -> Result<()> {
    let path = root().join("bench/RESULTS.md");
    let old = fs::read_to_string(&path).unwrap_or_default();
    let heading = format!("## {title} (`--only {part}`)");
    let new = replace(&old, &heading, &format!("{}\n\n{}", machine(), text.trim()));
    fs::write(path, new)?;
    println!("{text}");
    Ok(())
}

fn replace(old: &str, heading: &str, text: &str) -> String {
    let mut sections: Vec<String> = old
        .split("\n## ")
        .skip(1)
        .map(|section| format!("## {}", section.trim_end()))
        .collect();
    let new = format!("{heading}\n\n{text}");
    match sections
        .iter_mut()
        .find(|section| section.lines().next() == Some(heading))
    {
        Some(section) => *section = new,
        None => sections.push(new),
    }
    format!("{INTRODUCTION}\n{}\n", sections.join("\n\n"))
}

/// The machine, by what matters: processor, cores, kernel.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |model| {
        model.trim_start_matches([' ', '\t', ':'])
    });
    let kernel = Command::new("uname").arg("-r").output();
    let kernel = kernel.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let kernel = kernel.unwrap_or_default();
    let kernel = kernel
        .trim()
        .split('-')
        .next()
        .unwrap_or("unknown")
        .to_string();
    format!("Machine: {model}, {} cores, Linux {kernel}.", cores())
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let first = replace("", "## A", "one");
        let second = replace(&first, "## B", "two");
        let third = replace(&second, "## A", "three");
        assert!(third.contains("## A\n\nthree\n\n## B\n\ntwo\n"));
        assert!(!third.contains("one\n"));
        assert_eq!(third.matches("# Results").count(), 1);
    }
}
