//! The decision, one sentence a test.

use std::time::Duration;

use onlyonce_core::{
    Concurrent, Decision, Epoch, Held, OnUnknown, Policy, Record, Refusal, StateName, Timestamp,
    UnknownReason, decide, view,
};

mod records;

use records::{
    LEASE, NOW, RETENTION, WINDOW, completed, fingerprint, record, released, resent, running,
    unknown,
};

const MILLISECOND: Duration = Duration::from_millis(1);

const REJECT: Policy = Policy {
    concurrent: Concurrent::Reject,
    on_unknown: OnUnknown::Report,
};
const RESEND: Policy = Policy {
    concurrent: Concurrent::Join,
    on_unknown: OnUnknown::Resend,
};
const RESEND_AND_REJECT: Policy = Policy {
    concurrent: Concurrent::Reject,
    on_unknown: OnUnknown::Resend,
};

fn policies() -> [Policy; 4] {
    [Policy::default(), REJECT, RESEND, RESEND_AND_REJECT]
}

fn at(record: &Record, now: Timestamp, policy: Policy) -> Decision {
    decide(view(Some(record), now), &fingerprint(7), &policy)
}

fn another(record: &Record, policy: Policy) -> Decision {
    decide(view(Some(record), NOW), &fingerprint(8), &policy)
}

#[test]
fn a_route_joins_and_reports_unless_it_says_otherwise() {
    assert_eq!(Policy::default().concurrent, Concurrent::Join);
    assert_eq!(Policy::default().on_unknown, OnUnknown::Report);
}

#[test]
fn a_new_key_executes() {
    for policy in policies() {
        let decision = decide(view(None, NOW), &fingerprint(7), &policy);
        assert_eq!(decision, Decision::Execute { after: Epoch::ZERO });
    }
}

#[test]
fn a_finished_operation_is_replayed() {
    for policy in policies() {
        assert_eq!(at(&completed(), NOW, policy), Decision::Replay);
    }
}

#[test]
fn a_running_operation_is_joined_or_refused_as_the_route_says() {
    let refused = Decision::Refuse(Refusal::InFlight);
    assert_eq!(at(&running(), NOW, Policy::default()), Decision::Join);
    assert_eq!(at(&running(), NOW, RESEND), Decision::Join);
    assert_eq!(at(&running(), NOW, REJECT), refused);
    assert_eq!(at(&resent(), NOW, RESEND_AND_REJECT), refused);
}

#[test]
fn an_unknown_outcome_is_reported_with_its_reason() {
    let report = Decision::Refuse(Refusal::Unknown(UnknownReason::Broke));
    assert_eq!(at(&unknown(), NOW, Policy::default()), report);
    assert_eq!(at(&unknown(), NOW, REJECT), report);
}

#[test]
fn an_unknown_outcome_is_resent_only_where_the_route_allows_it() {
    let again = Decision::Execute {
        after: unknown().epoch,
    };
    assert_eq!(at(&unknown(), NOW, RESEND), again);
}

#[test]
fn i11_an_unknown_outcome_is_resent_only_if_its_key_was_first_claimed_since_the_moment_that_counts()
{
    let claimed = unknown().id.first_claimed();
    let again = Decision::Execute {
        after: unknown().epoch,
    };
    let report = Decision::Refuse(Refusal::Unknown(UnknownReason::Broke));
    for (moment, decision) in [(claimed, again), (claimed.after(MILLISECOND), report)] {
        let policy = Policy {
            on_unknown: OnUnknown::ResendIfClaimedSince(moment),
            ..Policy::default()
        };
        assert_eq!(at(&unknown(), NOW, policy), decision);
    }
}

#[test]
fn hostile_032_a_released_key_is_free_for_any_request() {
    let again = Decision::Execute {
        after: released().epoch,
    };
    for policy in policies() {
        assert_eq!(at(&released(), NOW, policy), again);
        assert_eq!(another(&released(), policy), again);
    }
}

#[test]
fn hostile_030_i06_another_request_is_refused_whatever_the_state_is() {
    let taken = [running(), resent(), completed(), unknown()];
    for policy in policies() {
        for held in &taken {
            let refused = Decision::Refuse(Refusal::KeyReused);
            assert_eq!(another(held, policy), refused, "{}", held.state.name());
        }
    }
}

#[test]
fn i06_another_request_does_not_even_learn_that_a_lease_has_passed() {
    let held = running();
    let later = view(Some(&held), NOW.after(2 * LEASE));
    let decision = decide(later, &fingerprint(8), &Policy::default());
    assert_eq!(decision, Decision::Refuse(Refusal::KeyReused));
}

#[test]
fn i08_a_passed_lease_is_written_down_and_never_executed_on() {
    for policy in policies() {
        let end = NOW.after(LEASE);
        let last = NOW.after(LEASE - MILLISECOND);
        assert_ne!(at(&running(), last, policy), Decision::ExpireLease);
        for now in [end, end.after(MILLISECOND), end.after(100 * WINDOW)] {
            assert_eq!(at(&running(), now, policy), Decision::ExpireLease);
        }
    }
}

#[test]
fn hostile_081_i11_the_window_ends_at_its_very_millisecond() {
    let new = Decision::Execute { after: Epoch::ZERO };
    let policy = Policy::default();
    let last = NOW.after(WINDOW - MILLISECOND);
    assert_eq!(at(&completed(), last, policy), Decision::Replay);
    assert_eq!(at(&completed(), NOW.after(WINDOW), policy), new);
    assert_eq!(at(&completed(), NOW.after(2 * WINDOW), policy), new);

    let last = NOW.after(RETENTION - MILLISECOND);
    assert_ne!(at(&released(), last, policy), new);
    assert_eq!(at(&released(), NOW.after(RETENTION), policy), new);
}

#[test]
fn i11_what_runs_or_is_unknown_never_becomes_new() {
    let years = NOW.after(10_000 * WINDOW);
    for name in [StateName::InFlight, StateName::Unknown] {
        let held = record(name);
        assert!(held.expires_at().is_none());
        for policy in policies() {
            let new = Decision::Execute { after: Epoch::ZERO };
            assert_ne!(at(&held, years, policy), new, "{name}");
        }
    }
}

#[test]
fn i13_what_cannot_be_read_is_unknown_and_never_absent() {
    for policy in policies() {
        let decision = decide(Held::Unreadable, &fingerprint(7), &policy);
        let unknown = Refusal::Unknown(UnknownReason::Unreadable);
        assert_eq!(decision, Decision::Refuse(unknown));
    }
}
