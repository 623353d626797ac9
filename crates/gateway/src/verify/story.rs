//! What is done with one key. It follows from the seed and the key's number alone.

use std::time::Duration;

use super::words::Plan;

/// What happens to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Story {
    /// Its number in the run.
    pub(super) number: u64,
    /// Whether a stream is asked for.
    pub(super) streamed: bool,
    /// Which of the faults its requests ask the upstream for.
    pub(super) fault: Option<usize>,
    /// The first attempts.
    pub(super) opening: Opening,
    /// Attempts right after that, one after the other.
    pub(super) retries: u64,
    /// When another request comes under the key.
    pub(super) misuse: Option<Misuse>,
    /// How many stories ago the key was new that is sent again after this one.
    pub(super) again: Option<u64>,
}

/// The first attempts of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// One, whose answer is read to its end.
    Calm,
    /// One that leaves so soon that there may be no answer yet, and one right after it.
    LeavesEarly(Duration),
    /// One that leaves after so many bytes of the answer's body, and one right after it.
    LeavesAmid(u64),
    /// One that leaves before its own body is sent, and one right after it.
    HalfSent,
    /// So many at the same time.
    AtOnce(u64),
}

/// When another request comes under a used key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misuse {
    /// While the answer of the first is read.
    Amid,
    /// Once that is over.
    After,
}

impl Story {
    /// The story of a key.
    pub(super) fn of(plan: &Plan, number: u64) -> Self {
        let mut random = Random::of(plan.seed, number);
        let streamed = plan.stream_body.is_some() && random.one_in(2);
        let opening = match random.below(10) {
            0..=2 => Opening::Calm,
            3..=4 => Opening::LeavesEarly(Duration::from_millis(random.below(60))),
            5..=6 => Opening::LeavesAmid(random.below(2_000)),
            7 => Opening::HalfSent,
            _ => Opening::AtOnce(2 + random.below(4)),
        };
        let faults = plan.faults.len() as u64;
        let fault = (faults > 0 && random.one_in(8)).then(|| random.below(faults) as usize);
        Self {
            number,
            streamed,
            fault,
            opening,
            retries: random.below(3),
            misuse: match random.below(4) {
                0 => Some(Misuse::Amid),
                1 => Some(Misuse::After),
                _ => None,
            },
            again: random.one_in(5).then(|| 10 + random.below(200)),
        }
    }

    /// Its key.
    pub(super) fn key(&self, plan: &Plan) -> String {
        key(plan, self.number)
    }

    /// The body of its requests, or of another request under its key.
    pub(super) fn body(&self, plan: &Plan, another: bool) -> String {
        let template = match (&plan.stream_body, self.streamed) {
            (Some(template), true) => template,
            _ => &plan.body,
        };
        let text = if another { "another" } else { "a" };
        template
            .replace("{text}", &format!("{text} text of story {}", self.number))
            .replace("{key}", &self.key(plan))
    }
}

/// The key of a story. The run is part of it: a gateway remembers the keys of the last run.
pub(super) fn key(plan: &Plan, number: u64) -> String {
    format!("verify-{}-{number}", plan.run)
}

/// Numbers that follow from a seed: a hash of it, as long as needed.
struct Random(blake3::OutputReader);

impl Random {
    fn of(seed: u64, number: u64) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes())
            .update(&number.to_le_bytes());
        Self(hash.finalize_xof())
    }

    /// A number below `limit`, which must not be 0.
    fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }

    fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }
}
