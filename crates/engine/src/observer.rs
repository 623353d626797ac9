//! Who is told what came of operations, what they used, and what attempts were spared.

use onlyonce_core::{Got, Metered, Record, Source, UnknownReason};

use crate::Shared;

/// Is told what came of operations, as this process writes that or answers from it.
///
/// It is called while others wait: it must be quick, and not call the engine.
pub trait Observer: Send + Sync + 'static {
    /// The outcome of an execution is unknown, and its record says so.
    fn unknown(&self, reason: UnknownReason);

    /// An operation of `tenant` is completed, and its execution used so much.
    fn completed(&self, tenant: &str, metered: &Metered);

    /// So many attempts for an operation of `tenant` got the answer of an execution that used so much,
    /// and needed none of their own. `got` is [`Got::Replayed`] or [`Got::Joined`].
    fn spared(&self, tenant: &str, metered: &Metered, got: Got, attempts: u32);
}

impl<S> Shared<S> {
    /// A record is unknown from now on.
    pub(crate) fn tell_unknown(&self, reason: UnknownReason) {
        if let Some(observer) = &self.observer {
            observer.unknown(reason);
        }
    }

    /// The operation of `record` is completed, and its execution used so much.
    pub(crate) fn tell_completed(&self, record: &Record, metered: Option<&Metered>) {
        if let (Some(observer), Some(metered)) = (&self.observer, told(metered)) {
            observer.completed(&record.scope.tenant, metered);
        }
    }

    /// So many attempts for the operation of `record` needed no execution of their own.
    pub(crate) fn tell_spared(
        &self,
        record: &Record,
        metered: Option<&Metered>,
        got: Got,
        attempts: u32,
    ) {
        if let (Some(observer), Some(metered), 1..) = (&self.observer, told(metered), attempts) {
            observer.spared(&record.scope.tenant, metered, got, attempts);
        }
    }
}

/// What there is to tell: nothing of an answer that is not metered, unless it has a fixed price.
fn told(metered: Option<&Metered>) -> Option<&Metered> {
    metered.filter(|metered| metered.cost.is_some() || metered.source != Source::NotMetered)
}
