//! How an execution ends, for who watches it from beside.

use std::{fmt, sync::Arc};

use onlyonce_core::{Metered, UnknownReason};

use crate::live::{End, Live, Phase};

/// Tells what became of an [`Execution`](crate::Execution), which settling consumes.
pub struct Fate(Arc<Live>);

/// The outcome of an execution, as its readers were told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The whole response is recorded.
    Completed,
    /// Provably nothing ran.
    Released,
    /// Nobody can say whether it ran.
    Unknown(UnknownReason),
}

impl Fate {
    pub(crate) fn of(live: &Arc<Live>) -> Self {
        Self(live.clone())
    }

    /// How it ended; `None` while it runs. What a late answer makes of it is not told here.
    pub fn ended(&self) -> Option<Ended> {
        match &self.0.state.lock().phase {
            Phase::Ended(End::Completed { .. }) => Some(Ended::Completed),
            Phase::Ended(End::Released { .. }) => Some(Ended::Released),
            Phase::Ended(End::Unknown(reason)) => Some(Ended::Unknown(*reason)),
            // Of an execution there was a claim.
            Phase::Ended(End::NotClaimed(_)) | Phase::Claiming | Phase::Running => None,
        }
    }

    /// What it used and cost, as far as it was [metered](crate::Execution::meter).
    pub fn metered(&self) -> Option<Box<Metered>> {
        self.0.state.lock().metered.clone()
    }

    /// How many attempts have joined it in this process.
    pub fn joined(&self) -> u32 {
        self.0.state.lock().joined
    }
}

impl fmt::Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fate").field(&self.ended()).finish()
    }
}
