//! What one execution used and cost, as far as its answer tells.

use std::fmt;

use crate::numbered::numbered;

/// An amount of money in US dollars, exact to a thousand-millionth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd {
    nanos: i64,
}

const NANOS: i64 = 1_000_000_000;

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0 };

    /// So many thousand-millionths of a dollar.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { nanos }
    }

    /// In thousand-millionths of a dollar.
    pub const fn nanos(self) -> i64 {
        self.nanos
    }

    /// The amount that a decimal number tells, as JSON writes it (`12`, `0.000125`, `1.25e-4`); what is
    /// finer than a nano is rounded, half to even. `None` where it is no number or none that fits.
    pub fn parse(text: &str) -> Option<Self> {
        let nanos = decimal(text, 9)?;
        Some(Self::from_nanos(i64::try_from(nanos).ok()?))
    }
}

/// The decimal number in `text`, as JSON writes it (`12`, `0.000125`, `1.25e-4`), times 10 to the power
/// of `places`; what is finer is rounded, half to even. `None` where it is no number or none that fits.
pub fn decimal(text: &str, places: u32) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (is_negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty()
        || !whole
            .bytes()
            .chain(fraction.bytes())
            .all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        digits = digits
            .checked_mul(10)?
            .checked_add(i128::from(digit - b'0'))?;
    }
    let scale = exponent
        .checked_sub(i32::try_from(fraction.len()).ok()?)?
        .checked_add(i32::try_from(places).ok()?)?;
    let scaled = match u32::try_from(scale) {
        Ok(scale) => digits.checked_mul(
            10_i128
                .checked_pow(scale)
                .or_else(|| (digits == 0).then_some(0))?,
        )?,
        Err(_) => match 10_i128.checked_pow(scale.unsigned_abs()) {
            Some(divisor) => rounded(digits, divisor),
            None => 0,
        },
    };
    Some(if is_negative { -scaled } else { scaled })
}

/// `dividend / divisor`, rounded half to even. The divisor is positive.
pub fn rounded(dividend: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (dividend.div_euclid(divisor), dividend.rem_euclid(divisor));
    // `rest` is below `divisor`, so this is the comparison of twice `rest` with it.
    match rest.cmp(&(divisor - rest)) {
        std::cmp::Ordering::Less => quotient,
        std::cmp::Ordering::Greater => quotient + 1,
        std::cmp::Ordering::Equal => quotient + (quotient & 1),
    }
}

/// A plain decimal number with at least two places: `0.00`, `12.50`, `0.000125`.
impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.unsigned_abs();
        let fraction = format!("{:09}", nanos % NANOS.unsigned_abs());
        let places = fraction.trim_end_matches('0').len().max(2);
        write!(
            f,
            "{sign}{}.{}",
            nanos / NANOS.unsigned_abs(),
            &fraction[..places]
        )
    }
}

numbered! {
    /// What is counted. Input is all of it and output is all of it; other units say which part of the
    /// two was of a special kind ([`Unit::whole`]), or are counted apart.
    Unit {
        /// Tokens of the request, those from a cache included.
        Input = 1, "input";
        /// Tokens of the answer, reasoning included.
        Output = 2, "output";
        /// Input tokens read from a cache.
        CacheRead = 3, "cache_read";
        /// Input tokens written to a cache.
        CacheWrite = 4, "cache_write";
        /// Of those, kept for five minutes.
        CacheWrite5m = 5, "cache_write_5m";
        /// Of those, kept for an hour.
        CacheWrite1h = 6, "cache_write_1h";
        /// Output tokens spent on reasoning.
        Reasoning = 7, "reasoning";
        /// Input tokens of audio.
        InputAudio = 8, "input_audio";
        /// Output tokens of audio.
        OutputAudio = 9, "output_audio";
        /// Input tokens of audio, read from a cache.
        CacheReadAudio = 10, "cache_read_audio";
        /// Input tokens of images.
        InputImage = 11, "input_image";
        /// Output tokens of images.
        OutputImage = 12, "output_image";
        /// Input tokens of images, read from a cache.
        CacheReadImage = 13, "cache_read_image";
        /// Input tokens of video.
        InputVideo = 14, "input_video";
        /// Output tokens of video.
        OutputVideo = 15, "output_video";
        /// Input tokens that came from the provider's own tools.
        ToolInput = 16, "tool_input";
        /// Searches of the web.
        WebSearches = 17, "web_searches";
        /// Searches of stored files.
        StorageSearches = 18, "storage_searches";
        /// Pages read.
        InputPages = 19, "input_pages";
        /// Characters of the request.
        InputCharacters = 20, "input_characters";
        /// Calls.
        Requests = 21, "requests";
    }
}

impl Unit {
    /// The unit with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|unit| unit.as_str() == name)
    }

    /// The unit that this one is a part of.
    pub const fn whole(self) -> Option<Self> {
        match self {
            Self::CacheRead
            | Self::CacheWrite
            | Self::InputAudio
            | Self::InputImage
            | Self::InputVideo
            | Self::ToolInput => Some(Self::Input),
            Self::CacheWrite5m | Self::CacheWrite1h => Some(Self::CacheWrite),
            Self::Reasoning | Self::OutputAudio | Self::OutputImage | Self::OutputVideo => {
                Some(Self::Output)
            }
            Self::CacheReadAudio | Self::CacheReadImage => Some(Self::CacheRead),
            Self::Input
            | Self::Output
            | Self::WebSearches
            | Self::StorageSearches
            | Self::InputPages
            | Self::InputCharacters
            | Self::Requests => None,
        }
    }
}

/// How much was used, by unit. What is absent was not told, which is not 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Usage(Vec<(Unit, u64)>);

impl Usage {
    /// The most of one unit that an operation can have used. What says more has counted nothing: beyond it,
    /// not every program reads a number as it was written, and sums would run over.
    pub const MOST: u64 = 1 << 53;

    /// How much of `unit`.
    pub fn get(&self, unit: Unit) -> Option<u64> {
        let at = self.0.binary_search_by_key(&unit, |(unit, _)| *unit).ok()?;
        Some(self.0[at].1)
    }

    /// Says how much of `unit`; what was said before counts no more.
    pub fn set(&mut self, unit: Unit, count: u64) {
        match self.0.binary_search_by_key(&unit, |(unit, _)| *unit) {
            Ok(at) => self.0[at].1 = count,
            Err(at) => self.0.insert(at, (unit, count)),
        }
    }

    /// Whether nothing was told.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was told, by the number of the unit.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Unit, u64)> {
        self.0.iter().copied()
    }
}

impl FromIterator<(Unit, u64)> for Usage {
    fn from_iter<I: IntoIterator<Item = (Unit, u64)>>(counts: I) -> Self {
        let mut usage = Self::default();
        for (unit, count) in counts {
            usage.set(unit, count);
        }
        usage
    }
}

numbered! {
    /// Who says what was used.
    Source {
        /// The provider, in an answer that is whole.
        Provider = 1, "provider";
        /// The provider, in an answer that broke: it may have counted more since.
        Partial = 2, "partial";
        /// Nobody: the answer tells nothing that could be read.
        Unknown = 3, "unknown";
        /// Nobody: such answers are not metered.
        NotMetered = 4, "none";
    }
}

numbered! {
    /// Whose price a cost follows, strongest first.
    Basis {
        /// The provider stated the cost itself.
        Stated = 1, "stated";
        /// The tenant's own prices.
        Tenant = 2, "tenant";
        /// The route's fixed price of a call.
        Route = 3, "route";
        /// The table of list prices.
        Table = 4, "table";
    }
}

/// What an execution cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// How much.
    pub amount: Usd,
    /// By whose price.
    pub basis: Basis,
    /// Which version of those prices: `genai-prices 0.2.1`, `stated`, `tenant 3f2a91c0`.
    pub version: Box<str>,
}

/// What one execution used and cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Who was paid, by the name that OpenTelemetry gives (`gen_ai.provider.name`).
    pub provider: Box<str>,
    /// The model that answered; empty where nobody said.
    pub model: Box<str>,
    /// The model that was asked for; empty where nobody said.
    pub request_model: Box<str>,
    /// The provider's own id of the answer; empty where there is none.
    pub response_id: Box<str>,
    /// What was done, by the name that OpenTelemetry gives (`gen_ai.operation.name`).
    pub operation: Box<str>,
    /// The provider's class of service; empty where nobody said.
    pub tier: Box<str>,
    /// How much was used.
    pub usage: Usage,
    /// Who says so.
    pub source: Source,
    /// What it cost; `None` where there is no price, which is not 0.
    pub cost: Option<Cost>,
}

impl Metered {
    /// The model that is paid for: the one that answered, or that was asked for where the answer names
    /// none; empty where nobody said.
    pub fn paid_model(&self) -> &str {
        match self.model.is_empty() {
            true => &self.request_model,
            false => &self.model,
        }
    }
}

impl Default for Metered {
    /// Of an answer that is not metered.
    fn default() -> Self {
        Self {
            provider: "".into(),
            model: "".into(),
            request_model: "".into(),
            response_id: "".into(),
            operation: "".into(),
            tier: "".into(),
            usage: Usage::default(),
            source: Source::NotMetered,
            cost: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_doubles_reads_the_most_and_no_more() {
        let as_double = |count: u64| (count as f64) as u64;
        assert_eq!(as_double(Usage::MOST), Usage::MOST);
        assert_ne!(as_double(Usage::MOST + 1), Usage::MOST + 1);
    }

    #[test]
    fn amounts_are_read_exactly() {
        for (text, nanos) in [
            ("0", 0),
            ("12", 12 * NANOS),
            ("0.000125", 125_000),
            ("1.25e-4", 125_000),
            ("1E2", 100 * NANOS),
            ("-0.5", -NANOS / 2),
            ("0.0000000005", 0),
            ("0.0000000015", 2),
            ("0.00000000251", 3),
            ("1e-60", 0),
            ("0e60", 0),
            ("9223372036.854775807", i64::MAX),
        ] {
            assert_eq!(Usd::parse(text), Some(Usd::from_nanos(nanos)), "{text}");
        }
        for text in [
            "",
            "-",
            ".5",
            "1.2.3",
            "0x1",
            "1e",
            "NaN",
            "1e60",
            "9223372036.854775808",
            "1 ",
        ] {
            assert_eq!(Usd::parse(text), None, "{text}");
        }
    }

    #[test]
    fn amounts_are_written_as_they_are_read() {
        for text in ["0.00", "12.50", "0.000125", "-3.10", "0.000000001"] {
            assert_eq!(Usd::parse(text).expect("an amount").to_string(), text);
        }
    }

    #[test]
    fn halves_are_rounded_to_even() {
        for (dividend, result) in [
            (5, 0),
            (15, 2),
            (25, 2),
            (-5, 0),
            (-15, -2),
            (14, 1),
            (16, 2),
        ] {
            assert_eq!(rounded(dividend, 10), result, "{dividend}");
        }
    }

    #[test]
    fn every_part_ends_in_a_whole() {
        for unit in Unit::ALL {
            let mut steps = 0;
            let mut whole = unit.whole();
            while let Some(unit) = whole {
                steps += 1;
                whole = unit.whole();
            }
            assert!(steps <= 2, "{unit}");
            assert_eq!(Unit::named(unit.as_str()), Some(*unit));
        }
        assert_eq!(Unit::CacheWrite1h.whole(), Some(Unit::CacheWrite));
        assert_eq!(Unit::Requests.whole(), None);
    }

    #[test]
    fn what_is_said_last_counts() {
        assert!(Usage::default().is_empty());
        let mut usage: Usage = [(Unit::Output, 3), (Unit::Input, 5)].into_iter().collect();
        assert!(!usage.is_empty());
        usage.set(Unit::Output, 8);
        assert_eq!(usage.get(Unit::Output), Some(8));
        assert_eq!(usage.get(Unit::Reasoning), None);
        assert!(usage.iter().eq([(Unit::Input, 5), (Unit::Output, 8)]));
    }
}
