//! Changed inputs, the same in every run.

use crate::Target;

/// No input grows longer.
const LONGEST: usize = 4096;
/// Bytes at which code tends to decide otherwise.
const EDGES: [u8; 16] = [
    0, 1, 0x7f, 0x80, 0xff, b'\r', b'\n', b' ', b'\t', b'"', b'\\', b':', b',', b';', b'0', b'{',
];

/// Makes inputs for one target out of its seeds.
pub struct Mutator {
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
    state: u64,
}

impl Mutator {
    /// The one whose numbers follow from `seed`.
    pub fn new(target: &Target, seed: u64) -> Self {
        Self {
            seeds: (target.seeds)(),
            words: target.words,
            state: seed,
        }
    }

    /// The next input: one of the seeds with one to eight changes.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.seed();
        for _ in 0..=self.below(8) {
            self.change(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn seed(&mut self) -> Vec<u8> {
        let at = self.below(self.seeds.len().max(1));
        self.seeds.get(at).cloned().unwrap_or_default()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        match self.below(8) {
            0 => {
                let bit = 1 << self.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
            1 => {
                let edge = EDGES[self.below(EDGES.len())];
                if let Some(byte) = input.get_mut(at) {
                    *byte = edge;
                }
            }
            2 => input.insert(at, self.next() as u8),
            3 => {
                let end = (at + 1 + self.below(16)).min(input.len());
                input.drain(at.min(end)..end);
            }
            4 => {
                let end = (at + 1 + self.below(64)).min(input.len());
                let copy = input[at.min(end)..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            5 => {
                let other = self.seed();
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => input.truncate(at),
            _ => {
                let word = self.words.get(self.below(self.words.len().max(1)));
                let word = word.unwrap_or(&"").as_bytes();
                let end = match self.below(2) {
                    0 => at,
                    _ => (at + word.len()).min(input.len()),
                };
                input.splice(at..end, word.iter().copied());
            }
        }
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
