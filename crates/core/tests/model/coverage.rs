//! Which situations the seeds have come through: a test that meets none of them proves nothing.

use std::{cell::RefCell, collections::BTreeMap};

/// A power of two, and more than there are situations.
const PLACES: usize = 512;

thread_local! {
    static MET: RefCell<Places> = const { RefCell::new([("", 0); PLACES]) };
}

/// How often each situation was met. A situation is found by where its text lies: some hundred are counted in
/// each seed.
type Places = [(&'static str, u64); PLACES];

/// Counts the situations that the seeds of this thread come through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage;

impl Coverage {
    pub fn count(&mut self, what: &'static str) {
        MET.with_borrow_mut(|places| {
            let start = (what.as_ptr() as usize).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            for offset in 0..PLACES {
                let (held, times) = &mut places[(start + offset) % PLACES];
                if *times == 0 {
                    *held = what;
                }
                if std::ptr::eq(*held, what) {
                    *times += 1;
                    return;
                }
            }
            panic!("there are more situations than places for them");
        });
    }

    /// What the seeds of this thread have met, added to `all`.
    pub fn add_to(all: &mut BTreeMap<&'static str, u64>) {
        let places = MET.replace([("", 0); PLACES]);
        for (what, times) in places.into_iter().filter(|(_, times)| *times > 0) {
            // One text may lie in several places.
            *all.entry(what).or_default() += times;
        }
    }
}
