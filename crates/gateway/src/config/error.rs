//! What is wrong with a configuration, in one line that says where and what to do.

use std::fmt::{self, Write as _};

/// One mistake in a configuration.
///
/// It reads `<file> line <n>: <what is wrong>; <what to do>`, so that it fits on one line behind
/// `onlyonce: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, or the command line.
    pub file: String,
    /// The line in it, counted from 1, where the mistake has one.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub next: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
        }
        // What a file holds is repeated in it, line ends too.
        for c in format!(": {}; {}", self.what, self.next).chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The one of `known` that was probably meant by `given`, if any is near enough.
pub(crate) fn nearest<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = given.to_ascii_lowercase().replace('-', "_");
    // A third of the letters wrong is a typo; more is another word.
    let most = (given.len() / 3).max(1);
    known
        .into_iter()
        .map(|name| {
            (
                distance(&given, &name.to_ascii_lowercase().replace('-', "_")),
                name,
            )
        })
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters must be added, removed, changed or swapped with the next to get from `a` to
/// `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_with_the_fewest_changes() {
        let known = ["listen", "control", "idle_timeout", "header_timeout"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("lsiten", known), Some("listen"));
        assert_eq!(nearest("Idle-Timeout", known), Some("idle_timeout"));
        assert_eq!(nearest("header_timeot", known), Some("header_timeout"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", known), None);
    }

    #[test]
    fn a_mistake_is_one_line() {
        let error = ConfigError {
            file: "a.toml".into(),
            line: Some(3),
            what: "it is wrong".into(),
            next: "make it right".into(),
        };
        assert_eq!(
            error.to_string(),
            "a.toml line 3: it is wrong; make it right"
        );
        let error = ConfigError {
            what: "it is \"a\n\tb\"".into(),
            ..error
        };
        assert_eq!(
            error.to_string(),
            "a.toml line 3: it is \"a\\n\\tb\"; make it right"
        );
    }
}
