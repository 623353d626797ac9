//! Values as people write them: durations, sizes, secrets.

use std::{fmt, fs::File, io::Read, time::Duration};

/// A text that must never be shown or logged (I16).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

/// Bytes of a file that holds a secret, at most.
const LONGEST_SECRET_FILE: u64 = 64 << 10;

/// Why a secret that is named is not there, without a word of what it may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoSecret {
    pub(crate) what: String,
    pub(crate) next: String,
}

impl Secret {
    /// The secret that `text` names: the variable of `env:NAME`, what is in the file of `file:PATH`, or the
    /// text itself. Space around what is named is left out.
    pub(crate) fn named(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, NoSecret> {
        let (value, place) = if let Some(name) = text.strip_prefix("env:") {
            (
                of_the_environment(name, env)?,
                format!("the environment variable {name}"),
            )
        } else if let Some(path) = text.strip_prefix("file:") {
            (of_a_file(path)?, format!("the file {path}"))
        } else {
            return Ok(Self::new(text));
        };
        match value.trim() {
            "" => Err(NoSecret {
                what: format!("names {place}, which is empty"),
                next: "put the secret there".to_owned(),
            }),
            value => Ok(Self::new(value)),
        }
    }

    /// Keeps `text` out of sight.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text itself, to compare with or to send.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn of_the_environment(
    name: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, NoSecret> {
    if name.is_empty() {
        return Err(NoSecret {
            what: "names no environment variable".to_owned(),
            next: "write it like env:NAME".to_owned(),
        });
    }
    env(name).ok_or_else(|| NoSecret {
        what: format!("names the environment variable {name}, which is not set"),
        next: format!("set {name} before the start"),
    })
}

fn of_a_file(path: &str) -> Result<String, NoSecret> {
    let mut text = String::new();
    let read = File::open(path)
        .and_then(|file| file.take(LONGEST_SECRET_FILE + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() as u64 > LONGEST_SECRET_FILE => Err(NoSecret {
            what: format!("names the file {path}, which is longer than 64 KiB"),
            next: "name a file with the secret alone in it".to_owned(),
        }),
        Ok(_) => Ok(text),
        Err(error) => Err(NoSecret {
            what: format!("names the file {path}, which cannot be read ({error})"),
            next: "name a text file that exists and that this user may read".to_owned(),
        }),
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads `250ms`, `10s`, `1h30m`; `None` for anything else, a number without a unit included.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_number(rest)?;
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, millis) = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == unit.trim())?;
        total = total.checked_add(number.checked_mul(*millis)?)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

/// Reads `64MiB`, `1KiB`, `500MB`, `0`; `None` for anything else.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let unit = unit.trim();
    if unit.is_empty() {
        return Some(number);
    }
    let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*bytes)
}

/// Writes a duration as it may be read again.
pub fn show_duration(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let (unit, size) = DURATION_UNITS
        .iter()
        .rev()
        .find(|(_, size)| millis != 0 && millis.is_multiple_of(*size))
        .unwrap_or(&DURATION_UNITS[1]);
    format!("{}{unit}", millis / size)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_their_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("2m", 120_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("0", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "10 parsecs",
            "1h30",
            "99999999999999999999d",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_carry_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("32KiB", 32_768),
            ("1 MiB", 1_048_576),
            ("2GB", 2_000_000_000),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "1.5GiB", "-1", "1kb", "99999999TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn a_shown_duration_reads_back() {
        for text in ["250ms", "10s", "2m", "24h", "1h", "0s", "90s"] {
            let span = parse_duration(text).unwrap();
            assert_eq!(parse_duration(&show_duration(span)), Some(span), "{text}");
        }
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("sk-1")), "Secret(..)");
    }
}
