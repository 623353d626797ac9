//! The line between a store and its server, as the conformance suite disturbs it.

use onlyonce_store::conformance::Fault;
use onlyonce_testkit::Between;

/// Begins a fault on `line`.
pub fn disturb(line: &Between, fault: Fault) {
    match fault {
        Fault::Cut => line.cut(),
        Fault::Stall => line.stall(),
        Fault::StallOne => line.stall_next(),
        Fault::LoseAnswers => line.swallow_answers(),
        Fault::LateAnswers => line.hold_back_answers(),
    }
}
