//! What a campaign counts.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// Numbers by name. Those of two batches are added up; only of one whose name begins with `longest` or `most` the
/// greater one stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    by_name: BTreeMap<String, u64>,
}

impl Figures {
    /// Adds to a figure.
    pub fn add(&mut self, name: &str, number: u64) {
        let figure = self.by_name.entry(name.to_owned()).or_default();
        *figure = if name.starts_with("longest") || name.starts_with("most") {
            number.max(*figure)
        } else {
            *figure + number
        };
    }

    /// Adds each of another batch.
    pub fn add_all(&mut self, others: &Self) {
        for (name, number) in &others.by_name {
            self.add(name, *number);
        }
    }

    /// One of them, or 0.
    pub fn of(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or_default()
    }

    /// Of all whose names begin so, together.
    pub fn of_kind(&self, beginning: &str) -> u64 {
        let of_kind = |(name, _): &(&String, &u64)| name.starts_with(beginning);
        self.by_name.iter().filter(of_kind).map(|(_, n)| n).sum()
    }

    /// As it stands in a file.
    pub fn to_json(&self) -> Value {
        let numbers = self.by_name.iter();
        Value::Object(
            numbers
                .map(|(name, n)| (name.clone(), Value::from(*n)))
                .collect(),
        )
    }

    /// From a file, or from what a program printed; what is no whole number there is left out.
    pub fn from_json(numbers: &Map<String, Value>) -> Self {
        let whole = |(name, number): (&String, &Value)| Some((name.clone(), number.as_u64()?));
        Self {
            by_name: numbers.iter().filter_map(whole).collect(),
        }
    }
}

impl<const N: usize> From<[(&str, u64); N]> for Figures {
    fn from(numbers: [(&str, u64); N]) -> Self {
        let mut figures = Self::default();
        for (name, number) in numbers {
            figures.add(name, number);
        }
        figures
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, number)) in self.by_name.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            // A greatest one reads as `longest start, ms: 35`.
            if name.starts_with("longest") || name.starts_with("most") {
                write!(f, "{comma}{name}: {}", grouped(*number))?;
            } else {
                write!(f, "{comma}{} {name}", grouped(*number))?;
            }
        }
        Ok(())
    }
}

/// A number with a comma before each three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Figures, grouped};

    #[test]
    fn figures_add_up_and_of_the_greatest_the_greater_stays() {
        let mut figures = Figures::from([("kills", 3), ("longest start in ms", 40)]);
        figures.add_all(&Figures::from([("kills", 4), ("longest start in ms", 20)]));
        assert_eq!(figures.to_string(), "7 kills, longest start in ms: 40");
    }

    #[test]
    fn long_numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
