//! What may have a price: the units of the genai-prices data, and how they contain each other.
//!
//! A unit is a set of traits ("input tokens", "of audio", "read from a cache"). One that has all traits
//! of another and more is a part of it. Units are numbered from the most special to the most general, so
//! that whoever goes through them in order has seen the parts of each before itself.

use onlyonce_core::Unit;

const TOKENS: u32 = 1;
const DURATIONS: u32 = 1 << 1;
const CHARACTERS: u32 = 1 << 2;
const PAGES: u32 = 1 << 3;
const PIXELS: u32 = 1 << 4;
const MESSAGES: u32 = 1 << 5;
const REQUESTS: u32 = 1 << 6;
const RERANKS: u32 = 1 << 7;
const TOOL_CALLS: u32 = 1 << 8;
const INPUT: u32 = 1 << 9;
const OUTPUT: u32 = 1 << 10;
const AUDIO: u32 = 1 << 11;
const TEXT: u32 = 1 << 12;
const IMAGE: u32 = 1 << 13;
const VIDEO: u32 = 1 << 14;
const CACHE_READ: u32 = 1 << 15;
const CACHE_WRITE: u32 = 1 << 16;
const TOOL: u32 = 1 << 17;
const REASONING: u32 = 1 << 18;
const CITATION: u32 = 1 << 19;
const ANNOTATED: u32 = 1 << 20;
const CODE: u32 = 1 << 21;
const SOCIAL: u32 = 1 << 22;
const STORAGE: u32 = 1 << 23;
const WEB: u32 = 1 << 24;
const FIVE_MINUTES: u32 = 1 << 25;
const HOUR: u32 = 1 << 26;

/// Traits of which nothing has two.
const EXCLUSIVE: [u32; 5] = [
    TOKENS | DURATIONS | CHARACTERS | PAGES | PIXELS | MESSAGES | REQUESTS | RERANKS | TOOL_CALLS,
    INPUT | OUTPUT,
    AUDIO | TEXT | IMAGE | VIDEO,
    CACHE_READ
        | CACHE_WRITE
        | TOOL
        | REASONING
        | CITATION
        | ANNOTATED
        | CODE
        | SOCIAL
        | STORAGE
        | WEB,
    FIVE_MINUTES | HOUR,
];

/// The name of the price, for how many units it is, and the traits of the unit. The units of
/// genai-prices 0.2.1; tests compare what comes of them with that crate.
#[rustfmt::skip]
const CHARGES: [(&str, u32, u32); COUNT] = [
    ("cache_audio_write_1h_mtok", 1_000_000, TOKENS | INPUT | AUDIO | CACHE_WRITE | HOUR),
    ("cache_audio_write_5m_mtok", 1_000_000, TOKENS | INPUT | AUDIO | CACHE_WRITE | FIVE_MINUTES),
    ("cache_image_write_1h_mtok", 1_000_000, TOKENS | INPUT | IMAGE | CACHE_WRITE | HOUR),
    ("cache_image_write_5m_mtok", 1_000_000, TOKENS | INPUT | IMAGE | CACHE_WRITE | FIVE_MINUTES),
    ("cache_text_write_1h_mtok", 1_000_000, TOKENS | INPUT | TEXT | CACHE_WRITE | HOUR),
    ("cache_text_write_5m_mtok", 1_000_000, TOKENS | INPUT | TEXT | CACHE_WRITE | FIVE_MINUTES),
    ("cache_video_write_1h_mtok", 1_000_000, TOKENS | INPUT | VIDEO | CACHE_WRITE | HOUR),
    ("cache_video_write_5m_mtok", 1_000_000, TOKENS | INPUT | VIDEO | CACHE_WRITE | FIVE_MINUTES),
    ("cache_audio_read_mtok", 1_000_000, TOKENS | INPUT | AUDIO | CACHE_READ),
    ("cache_audio_write_mtok", 1_000_000, TOKENS | INPUT | AUDIO | CACHE_WRITE),
    ("cache_image_read_mtok", 1_000_000, TOKENS | INPUT | IMAGE | CACHE_READ),
    ("cache_image_write_mtok", 1_000_000, TOKENS | INPUT | IMAGE | CACHE_WRITE),
    ("cache_text_read_mtok", 1_000_000, TOKENS | INPUT | TEXT | CACHE_READ),
    ("cache_text_write_mtok", 1_000_000, TOKENS | INPUT | TEXT | CACHE_WRITE),
    ("cache_video_read_mtok", 1_000_000, TOKENS | INPUT | VIDEO | CACHE_READ),
    ("cache_video_write_mtok", 1_000_000, TOKENS | INPUT | VIDEO | CACHE_WRITE),
    ("cache_write_1h_mtok", 1_000_000, TOKENS | INPUT | CACHE_WRITE | HOUR),
    ("cache_write_5m_mtok", 1_000_000, TOKENS | INPUT | CACHE_WRITE | FIVE_MINUTES),
    ("input_audio_tool_mtok", 1_000_000, TOKENS | INPUT | AUDIO | TOOL),
    ("input_image_tool_mtok", 1_000_000, TOKENS | INPUT | IMAGE | TOOL),
    ("input_text_tool_mtok", 1_000_000, TOKENS | INPUT | TEXT | TOOL),
    ("input_video_tool_mtok", 1_000_000, TOKENS | INPUT | VIDEO | TOOL),
    ("output_audio_citation_mtok", 1_000_000, TOKENS | OUTPUT | AUDIO | CITATION),
    ("output_audio_reasoning_mtok", 1_000_000, TOKENS | OUTPUT | AUDIO | REASONING),
    ("output_image_citation_mtok", 1_000_000, TOKENS | OUTPUT | IMAGE | CITATION),
    ("output_image_reasoning_mtok", 1_000_000, TOKENS | OUTPUT | IMAGE | REASONING),
    ("output_text_citation_mtok", 1_000_000, TOKENS | OUTPUT | TEXT | CITATION),
    ("output_text_reasoning_mtok", 1_000_000, TOKENS | OUTPUT | TEXT | REASONING),
    ("output_video_citation_mtok", 1_000_000, TOKENS | OUTPUT | VIDEO | CITATION),
    ("output_video_reasoning_mtok", 1_000_000, TOKENS | OUTPUT | VIDEO | REASONING),
    ("cache_read_mtok", 1_000_000, TOKENS | INPUT | CACHE_READ),
    ("cache_write_mtok", 1_000_000, TOKENS | INPUT | CACHE_WRITE),
    ("input_annotated_document_kpages", 1_000, PAGES | INPUT | ANNOTATED),
    ("input_audio_hours", 3_600, DURATIONS | INPUT | AUDIO),
    ("input_audio_mtok", 1_000_000, TOKENS | INPUT | AUDIO),
    ("input_image_mtok", 1_000_000, TOKENS | INPUT | IMAGE),
    ("input_text_messages_kcount", 1_000, MESSAGES | INPUT | TEXT),
    ("input_text_mtok", 1_000_000, TOKENS | INPUT | TEXT),
    ("input_tool_mtok", 1_000_000, TOKENS | INPUT | TOOL),
    ("input_video_mtok", 1_000_000, TOKENS | INPUT | VIDEO),
    ("output_audio_hours", 3_600, DURATIONS | OUTPUT | AUDIO),
    ("output_audio_mtok", 1_000_000, TOKENS | OUTPUT | AUDIO),
    ("output_citation_mtok", 1_000_000, TOKENS | OUTPUT | CITATION),
    ("output_image_mtok", 1_000_000, TOKENS | OUTPUT | IMAGE),
    ("output_reasoning_mtok", 1_000_000, TOKENS | OUTPUT | REASONING),
    ("output_text_mtok", 1_000_000, TOKENS | OUTPUT | TEXT),
    ("output_video_mtok", 1_000_000, TOKENS | OUTPUT | VIDEO),
    ("audio_hours", 3_600, DURATIONS | AUDIO),
    ("code_executions_kcount", 1_000, TOOL_CALLS | CODE),
    ("input_mchars", 1_000_000, CHARACTERS | INPUT),
    ("input_document_kpages", 1_000, PAGES | INPUT),
    ("input_gpixels", 1_000_000_000, PIXELS | INPUT),
    ("input_mtok", 1_000_000, TOKENS | INPUT),
    ("output_mtok", 1_000_000, TOKENS | OUTPUT),
    ("social_searches_kcount", 1_000, TOOL_CALLS | SOCIAL),
    ("storage_searches_kcount", 1_000, TOOL_CALLS | STORAGE),
    ("web_searches_kcount", 1_000, TOOL_CALLS | WEB),
    ("requests_kcount", 1_000, REQUESTS),
    ("rerank_searches_kcount", 1_000, RERANKS),
];

/// How many there are.
pub(super) const COUNT: usize = 59;

/// A set of them, one bit each.
pub(super) type Charges = u64;

const PARTS: [Charges; COUNT] = relation(true);
const WHOLES: [Charges; COUNT] = relation(false);

/// Something that may have a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Charge(u8);

impl Charge {
    /// All input tokens: what tiers go by.
    pub(super) const INPUT: Self = Self::with(TOKENS | INPUT);
    /// The call itself.
    pub(super) const CALL: Self = Self::with(REQUESTS);

    /// The one whose price has this name in the data.
    pub(super) fn named(key: &str) -> Option<Self> {
        let at = CHARGES.iter().position(|(name, ..)| *name == key)?;
        Some(Self(u8::try_from(at).ok()?))
    }

    /// What a unit is charged as.
    pub(super) const fn of(unit: Unit) -> Self {
        match unit {
            Unit::Input => const { Self::with(TOKENS | INPUT) },
            Unit::Output => const { Self::with(TOKENS | OUTPUT) },
            Unit::CacheRead => const { Self::with(TOKENS | INPUT | CACHE_READ) },
            Unit::CacheWrite => const { Self::with(TOKENS | INPUT | CACHE_WRITE) },
            Unit::CacheWrite5m => const { Self::with(TOKENS | INPUT | CACHE_WRITE | FIVE_MINUTES) },
            Unit::CacheWrite1h => const { Self::with(TOKENS | INPUT | CACHE_WRITE | HOUR) },
            Unit::Reasoning => const { Self::with(TOKENS | OUTPUT | REASONING) },
            Unit::InputAudio => const { Self::with(TOKENS | INPUT | AUDIO) },
            Unit::OutputAudio => const { Self::with(TOKENS | OUTPUT | AUDIO) },
            Unit::CacheReadAudio => const { Self::with(TOKENS | INPUT | AUDIO | CACHE_READ) },
            Unit::InputImage => const { Self::with(TOKENS | INPUT | IMAGE) },
            Unit::OutputImage => const { Self::with(TOKENS | OUTPUT | IMAGE) },
            Unit::CacheReadImage => const { Self::with(TOKENS | INPUT | IMAGE | CACHE_READ) },
            Unit::InputVideo => const { Self::with(TOKENS | INPUT | VIDEO) },
            Unit::OutputVideo => const { Self::with(TOKENS | OUTPUT | VIDEO) },
            Unit::ToolInput => const { Self::with(TOKENS | INPUT | TOOL) },
            Unit::WebSearches => const { Self::with(TOOL_CALLS | WEB) },
            Unit::StorageSearches => const { Self::with(TOOL_CALLS | STORAGE) },
            Unit::InputPages => const { Self::with(PAGES | INPUT) },
            Unit::InputCharacters => const { Self::with(CHARACTERS | INPUT) },
            Unit::Requests => const { Self::with(REQUESTS) },
        }
    }

    const fn with(traits: u32) -> Self {
        let mut at = 0;
        while at < COUNT {
            if CHARGES[at].2 == traits {
                return Self(at as u8);
            }
            at += 1;
        }
        panic!("no charge has these traits");
    }

    /// The unit that is charged so, if we count it.
    pub(super) fn unit(self) -> Option<Unit> {
        Unit::ALL
            .iter()
            .copied()
            .find(|unit| Self::of(*unit) == self)
    }

    /// The name of its price in the data.
    pub(super) const fn key(self) -> &'static str {
        CHARGES[self.0 as usize].0
    }

    /// For how many units the data states its price.
    pub(super) const fn per(self) -> u32 {
        CHARGES[self.0 as usize].1
    }

    /// Its place, below [`COUNT`].
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }

    /// The set that has only this one.
    pub(super) const fn bit(self) -> Charges {
        1 << self.0
    }

    /// What is counted in this one too.
    pub(super) const fn parts(self) -> Charges {
        PARTS[self.0 as usize]
    }

    /// What this one is counted in too.
    pub(super) const fn wholes(self) -> Charges {
        WHOLES[self.0 as usize]
    }

    /// Whether this one is what `a` and `b` have in common.
    pub(super) const fn is_overlap(self, a: Self, b: Self) -> bool {
        a.traits() | b.traits() == self.traits()
    }

    /// Whether something can be both, and neither is a part of the other.
    fn overlaps(self, other: Self) -> bool {
        let both = self.traits() | other.traits();
        both != self.traits()
            && both != other.traits()
            && EXCLUSIVE
                .iter()
                .all(|traits| (both & traits).count_ones() <= 1)
    }

    const fn traits(self) -> u32 {
        CHARGES[self.0 as usize].2
    }
}

/// The charges of a set, the special before the general.
pub(super) fn each(mut set: Charges) -> impl Iterator<Item = Charge> {
    std::iter::from_fn(move || {
        let next = set.trailing_zeros();
        set &= set.checked_sub(1)?;
        Some(Charge(next as u8))
    })
}

/// Why costs cannot be told from prices for a set of charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// A part has a price and its whole has none.
    Whole { part: Charge, whole: Charge },
    /// Two have a price, and what is both has none; or nothing is known that is both.
    Overlap {
        one: Charge,
        other: Charge,
        both: Option<Charge>,
    },
}

impl Gap {
    /// The first gap in the prices of `set`.
    pub(super) fn find(set: Charges) -> Option<Self> {
        for part in each(set) {
            if let Some(whole) = each(part.wholes() & !set).next() {
                return Some(Self::Whole { part, whole });
            }
            for other in each(set).filter(|other| *other > part && part.overlaps(*other)) {
                let both =
                    each(part.parts() & other.parts()).find(|both| both.is_overlap(part, other));
                if both.is_none_or(|both| both.bit() & set == 0) {
                    return Some(Self::Overlap {
                        one: part,
                        other,
                        both,
                    });
                }
            }
        }
        None
    }
}

const fn relation(parts: bool) -> [Charges; COUNT] {
    let mut sets = [0; COUNT];
    let mut of = 0;
    while of < COUNT {
        let mut other = 0;
        while other < COUNT {
            let (whole, part) = if parts { (of, other) } else { (other, of) };
            if whole != part && CHARGES[part].2 & CHARGES[whole].2 == CHARGES[whole].2 {
                sets[of] |= 1 << other;
            }
            other += 1;
        }
        of += 1;
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_before_their_wholes() {
        for charge in each(u64::MAX >> (64 - COUNT)) {
            assert!(each(charge.parts()).all(|part| part < charge), "{charge:?}");
            assert!(
                each(charge.wholes()).all(|whole| whole > charge),
                "{charge:?}"
            );
        }
    }

    #[test]
    fn the_whole_of_a_unit_is_one_of_its_charge() {
        for unit in Unit::ALL {
            let charge = Charge::of(*unit);
            assert_eq!(charge.unit(), Some(*unit));
            if let Some(whole) = unit.whole() {
                assert_ne!(charge.wholes() & Charge::of(whole).bit(), 0, "{unit}");
            }
        }
    }

    #[test]
    fn prices_without_a_gap_cover_wholes_and_overlaps() {
        let set = |units: &[Unit]| {
            units
                .iter()
                .fold(0, |set, unit| set | Charge::of(*unit).bit())
        };
        let (cached, audio) = (Charge::of(Unit::CacheRead), Charge::of(Unit::InputAudio));
        assert_eq!(
            Gap::find(set(&[Unit::Input, Unit::Output, Unit::CacheRead])),
            None
        );
        assert_eq!(
            Gap::find(set(&[Unit::CacheRead])),
            Some(Gap::Whole {
                part: cached,
                whole: Charge::INPUT
            })
        );
        let both = Charge::of(Unit::CacheReadAudio);
        let overlap = Gap::Overlap {
            one: cached.min(audio),
            other: cached.max(audio),
            both: Some(both),
        };
        let units = [Unit::Input, Unit::CacheRead, Unit::InputAudio];
        assert_eq!(Gap::find(set(&units)), Some(overlap));
        assert_eq!(Gap::find(set(&units) | both.bit()), None);
    }
}
