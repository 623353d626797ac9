//! Bugs that are planted on purpose, so that the tests can be tested: each must be caught.
//!
//! They are there only with the feature `planted`, which no build without debug assertions takes: no
//! release carries one. Which of them a process has is said by the environment variable
//! [`VARIABLE`], read once; without it, the process has none. Without the feature, [`planted`] is a
//! constant `false`, and the code of every bug goes with it.
//!
//! `cargo xtask planted` lists them and hunts each.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("the feature `planted` is for tests: no release is built with it");

/// The environment variable that names the bug of a process.
pub const VARIABLE: &str = "ONLYONCE_PLANTED";

macro_rules! bugs {
    ($($bug:ident = $name:literal, $what:literal;)*) => {
        /// A bug of the kind that is written when nobody looks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $what] $bug,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// Its name, as [`VARIABLE`] takes it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }

            /// What is wrong with it, in a sentence.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$bug => $what,)*
                }
            }
        }
    };
}

bugs! {
    LeaseReExecution = "lease-re-execution",
        "A claim whose lease has passed is released, and the next attempt executes again.";
    EarlyExpiry = "early-expiry",
        "A record stops to answer one millisecond before its window ends.";
    ExpiryFromClaim = "expiry-from-claim",
        "The window is counted from the claim, and not from completion.";
    RunningExpires = "running-expires",
        "A claim that is not renewed in time counts as absent, and its key as new.";
    LeaseShortened = "lease-shortened",
        "A renewal by a clock that went back shortens a lease that others believe in.";
    ResendReleased = "resend-released",
        "A resend that did not run frees the key, though what ran before it is in doubt.";
    StateBeforeFingerprint = "state-before-fingerprint",
        "The state is looked at before the fingerprint: another request joins, or gets the answer.";
}

impl Bug {
    /// The bug of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }
}

/// Whether this process has `bug`: never, without the feature `planted`.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

// The compiler knows it, whatever the environment says.
#[cfg(not(feature = "planted"))]
const _: () = assert!(!planted(Bug::LeaseReExecution));

/// Whether this process has `bug`.
///
/// # Panics
///
/// If [`VARIABLE`] names no bug: a hunt for nothing would find nothing.
#[cfg(feature = "planted")]
pub fn planted(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        Some(Bug::named(&name).unwrap_or_else(|| panic!("{VARIABLE}={name} is no planted bug")))
    });
    *chosen == Some(bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_found_by_its_name_and_no_two_have_one() {
        for &bug in Bug::ALL {
            assert_eq!(Bug::named(bug.name()), Some(bug));
        }
        assert_eq!(Bug::named(""), None);
    }
}
