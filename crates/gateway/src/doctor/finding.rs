//! What a check found.

use std::fmt;
use std::time::Duration;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and something is worth a look.
    Warn,
    /// A gateway would not do its work, or would not for long.
    Fail,
}

/// What a check found, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// How it ended.
    pub(super) verdict: Verdict,
    /// What was found, with the figure; after a semicolon, what to do.
    text: String,
}

impl Finding {
    /// All is well.
    pub(super) fn ok(what: impl AsRef<str>) -> Self {
        Self::new(Verdict::Ok, what.as_ref())
    }

    /// Something to look at.
    pub(super) fn warn(what: impl AsRef<str>, next: impl AsRef<str>) -> Self {
        let text = format!("{}; {}", what.as_ref(), next.as_ref());
        Self::new(Verdict::Warn, &text)
    }

    /// Something that has to be mended.
    pub(super) fn fail(what: impl AsRef<str>, next: impl AsRef<str>) -> Self {
        let text = format!("{}; {}", what.as_ref(), next.as_ref());
        Self::new(Verdict::Fail, &text)
    }

    /// The same for a text that has what to do in it, after a semicolon.
    pub(super) fn new(verdict: Verdict, text: &str) -> Self {
        // What others say may have several lines, and colours for a terminal.
        let words = text
            .split(|c: char| c.is_whitespace() || c.is_control())
            .filter(|word| !word.is_empty());
        Self {
            verdict,
            text: words.collect::<Vec<_>>().join(" "),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        write!(f, "{verdict:<4} {}", self.text)
    }
}

/// A time in milliseconds, for people.
pub(super) fn millis(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

/// Bytes, for people: `3.4 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.into_iter().find(|(unit, _)| bytes >= *unit);
    match unit {
        // Tenths, cut off: what is a little too small must not read as enough.
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_whatever_was_said() {
        let finding = Finding::fail("it said\r\n\u{1b}[31mno", "ask\tit");
        assert_eq!(finding.to_string(), "fail it said [31mno; ask it");
        assert_eq!(Finding::ok("well").to_string(), "ok   well");
    }

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            ((64 << 20) - 1, "63.9 MiB"),
            (64 << 30, "64.0 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
