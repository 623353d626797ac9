//! The transitions, one sentence a test.

use std::{num::NonZero, time::Duration};

use onlyonce_core::{
    Epoch, Fence, NotLawful, OperationId, OwnerId, Record, ReleaseReason, Resolution, State,
    StateName, Timestamp, TraceId, UnknownReason,
    transition::{self, Claim, assert_lawful},
};

mod records;

use records::{
    LEASE, NOW, RETENTION, WINDOW, claim_by, completed, fingerprint, record, released, resent,
    response, running, unknown,
};

const LATER: Timestamp = Timestamp::from_millis(NOW.as_millis() + 5_000);

const BY_ONE: NonZero<u32> = NonZero::<u32>::MIN;

/// Every transition that takes a fence.
const FENCED: [(&str, StateName); 7] = [
    ("renew", StateName::InFlight),
    ("complete", StateName::Completed),
    ("lose", StateName::Unknown),
    ("expire", StateName::Unknown),
    ("release", StateName::Released),
    ("resolve: did not run", StateName::Released),
    ("resolve: ran", StateName::Completed),
];

fn apply(name: &str, held: Option<&Record>, fence: Fence) -> Result<Record, NotLawful> {
    let reason = UnknownReason::TimedOut;
    match name {
        "renew" => transition::renew(held, fence, LATER, LEASE, BY_ONE),
        "complete" => transition::complete(held, fence, response(), LATER, WINDOW),
        "lose" => transition::lose(held, fence, reason, LATER),
        "expire" => transition::expire(held, fence, UnknownReason::LeasePassed, LATER, BY_ONE),
        "release" => transition::release(held, fence, ReleaseReason::DidNotRun, LATER, RETENTION),
        "resolve: did not run" => {
            transition::resolve(held, fence, Resolution::DidNotRun, LATER, RETENTION)
        }
        "resolve: ran" => {
            let ran = Resolution::Ran(response());
            transition::resolve(held, fence, ran, LATER, WINDOW)
        }
        other => panic!("{other} is no transition"),
    }
}

#[test]
fn a_span_lasts_as_long_as_its_claim_and_stands_in_its_callers_trace() {
    let held = running();
    let id = *held.id.as_bytes();
    assert_eq!(held.span().trace.as_bytes(), &id);
    assert_eq!(held.span().span.as_bytes(), &id[8..]);
    assert_eq!(completed().span(), held.span());
    assert_eq!(unknown().span(), held.span());

    let trace = TraceId::from_bytes([3; 16]);
    let mut claim = claim_by(2, 7);
    claim.request.trace = trace;
    let again = transition::claim(Some(&released()), claim, LATER, LEASE).expect("a free key");
    assert_eq!(again.id, held.id);
    assert_eq!(Some(again.span().trace), trace);
    assert_ne!(again.span().span, held.span().span);
}

#[test]
fn i08_there_are_the_drawn_arrows_and_no_others() {
    use StateName::{Completed, InFlight, Released, Unknown};
    for from in StateName::ALL {
        let held = record(from);
        for (name, to) in FENCED {
            let drawn = match name {
                "resolve: did not run" | "resolve: ran" => from == Unknown,
                "complete" => matches!(from, InFlight | Unknown),
                _ => from == InFlight,
            };
            let next = apply(name, Some(&held), held.fence());
            match next {
                Ok(next) if drawn => {
                    assert_eq!(next.state.name(), to, "{name} from {from}");
                    assert_eq!(next.epoch, held.epoch.next(), "I9: {name} from {from}");
                    assert_eq!(next.id, held.id);
                    assert_eq!(next.fingerprint, held.fingerprint);
                    assert_eq!(next.claimed_at, held.claimed_at);
                    assert_eq!(next.recording(), held.recording(), "I9: {name}");
                }
                Err(error) if !drawn => {
                    assert_eq!(error, NotLawful::NoSuchArrow { from, to }, "{name}");
                }
                other => panic!("{name} from {from}: {other:?}"),
            }
        }
        let claimed = transition::claim(Some(&held), claim_by(9, 7), LATER, LEASE);
        let free = matches!(from, Released | Unknown);
        assert_eq!(claimed.is_ok(), free, "claim from {from}");
        if let Err(error) = claimed {
            assert_eq!(error, NotLawful::NoSuchArrow { from, to: InFlight });
        }
    }
    assert_eq!(Completed.to_string(), "completed");
}

#[test]
fn i09_a_writer_that_was_overtaken_writes_nothing() {
    for from in StateName::ALL {
        let held = record(from);
        let overtaken = [
            Fence {
                epoch: Epoch::new(held.epoch.number() - 1),
                ..held.fence()
            },
            Fence {
                epoch: held.epoch.next(),
                ..held.fence()
            },
            Fence {
                id: OperationId::from_bytes([9; 16]),
                ..held.fence()
            },
        ];
        for (name, _) in FENCED {
            for presented in overtaken {
                let fenced = NotLawful::Fenced {
                    presented,
                    held: Some(held.fence()),
                };
                assert_eq!(apply(name, Some(&held), presented), Err(fenced), "{name}");
            }
        }
    }
}

#[test]
fn i09_a_writer_whose_record_is_gone_writes_nothing() {
    let presented = running().fence();
    for (name, _) in FENCED {
        let fenced = NotLawful::Fenced {
            presented,
            held: None,
        };
        assert_eq!(apply(name, None, presented), Err(fenced), "{name}");
    }
}

#[test]
fn a_first_claim_is_all_that_it_was_made_of() {
    let claim = claim_by(3, 7);
    let record = transition::claim(None, claim.clone(), NOW, LEASE).expect("a new key");
    assert_eq!(record.id, claim.id);
    assert_eq!(record.scope, claim.scope);
    assert_eq!(record.key, claim.key);
    assert_eq!(record.fingerprint, claim.fingerprint);
    assert_eq!(record.epoch, Epoch::new(1));
    assert_eq!(record.claim, Epoch::new(1));
    assert_eq!(record.claimed_at, NOW);
    let state = State::InFlight {
        owner: OwnerId::new(3),
        lease_until: NOW.after(LEASE),
        resend_of: None,
    };
    assert_eq!(record.state, state);
}

#[test]
fn a_claim_of_a_released_key_goes_on_in_the_same_operation_with_its_own_request() {
    let held = released();
    let next = transition::claim(Some(&held), claim_by(3, 8), LATER, LEASE).expect("free");
    assert_eq!(next.id, held.id);
    assert_eq!(next.epoch, held.epoch.next());
    assert_eq!(next.fingerprint, fingerprint(8));
    assert_eq!(next.claimed_at, LATER);
    assert_eq!(next.claim, next.epoch);
}

#[test]
fn i09_a_claim_raises_the_epoch_by_what_it_drew_and_two_share_no_name() {
    let held = unknown();
    let claim = |raise| {
        let mut claim: Claim = claim_by(3, 7);
        claim.raise = NonZero::new(raise).expect("not zero");
        transition::claim(Some(&held), claim, LATER, LEASE).expect("unknown")
    };
    let (one, other) = (claim(2), claim(u32::MAX));
    assert_eq!(one.epoch.number(), held.epoch.number() + 2);
    let highest = held.epoch.number() + u64::from(u32::MAX);
    assert_eq!(other.epoch.number(), highest);
    assert_ne!(one.recording(), other.recording());
    let late = apply("release", Some(&other), one.fence());
    assert!(matches!(late, Err(NotLawful::Fenced { .. })), "{late:?}");
}

#[test]
fn i09_epochs_never_overflow() {
    let used_up = Epoch::new(1 << 62);
    assert_eq!(used_up.raised(NonZero::<u32>::MAX), used_up.next());
    let almost = Epoch::new((1 << 62) - 1);
    assert!(almost.raised(NonZero::<u32>::MAX).number() < i64::MAX as u64);
}

#[test]
fn a_renewal_believes_the_owner_for_one_more_lease() {
    let held = running();
    let next = transition::renew(Some(&held), held.fence(), LATER, LEASE, BY_ONE).expect("it runs");
    let state = State::InFlight {
        owner: OwnerId::new(1),
        lease_until: LATER.after(LEASE),
        resend_of: None,
    };
    assert_eq!(next.state, state);
}

#[test]
fn i11_a_clock_that_went_back_does_not_shorten_a_lease() {
    let held = running();
    let earlier = Timestamp::from_millis(NOW.as_millis() - 86_400_000);
    let next =
        transition::renew(Some(&held), held.fence(), earlier, LEASE, BY_ONE).expect("it runs");
    assert_eq!(next.state, held.state);
}

#[test]
fn i11_the_window_is_counted_from_completion() {
    for held in [running(), unknown(), resent()] {
        let next = apply("complete", Some(&held), held.fence()).expect("not settled");
        let State::Completed(completed) = next.state else {
            panic!("{:?}", next.state);
        };
        assert_eq!(completed.completed_at, LATER);
        assert_eq!(completed.expires_at, LATER.after(WINDOW));
        assert_eq!(completed.body_len, response().body_len);
        assert_eq!(completed.chunks, response().chunks);
        assert_eq!(completed.head, response().head);
    }
}

#[test]
fn i11_a_window_at_the_end_of_time_does_not_wrap() {
    let held = running();
    let forever = Duration::MAX;
    let next = transition::complete(Some(&held), held.fence(), response(), NOW, forever);
    let end = next.expect("it runs").expires_at();
    assert_eq!(end, Some(Timestamp::from_millis(u64::MAX)));
}

#[test]
fn a_lost_execution_keeps_its_reason_and_moment() {
    for &reason in UnknownReason::ALL {
        let held = running();
        let next = transition::lose(Some(&held), held.fence(), reason, LATER).expect("it runs");
        let since = LATER;
        assert_eq!(next.state, State::Unknown { since, reason });
    }
}

#[test]
fn a_release_keeps_its_reason_and_is_forgotten_after_its_retention() {
    for &reason in ReleaseReason::ALL {
        let held = running();
        let next = transition::release(Some(&held), held.fence(), reason, LATER, RETENTION);
        let state = State::Released {
            since: LATER,
            reason,
            forget_at: LATER.after(RETENTION),
        };
        assert_eq!(next.expect("it runs").state, state);
    }
}

#[test]
fn an_operators_release_is_told_apart() {
    let held = unknown();
    let next = apply("resolve: did not run", Some(&held), held.fence()).expect("unknown");
    let State::Released { reason, .. } = next.state else {
        panic!("{:?}", next.state);
    };
    assert_eq!(reason, ReleaseReason::Operator);
}

#[test]
fn i10_a_resend_that_did_not_run_does_not_free_the_key() {
    let held = resent();
    for &reason in ReleaseReason::ALL {
        let next = transition::release(Some(&held), held.fence(), reason, LATER, RETENTION);
        let state = State::Unknown {
            since: LATER,
            reason: UnknownReason::Broke,
        };
        assert_eq!(next.expect("it runs").state, state);
    }
}

#[test]
fn i10_a_resend_is_known_as_one_after_its_renewals() {
    let held = resent();
    let renewed = apply("renew", Some(&held), held.fence()).expect("it runs");
    let next = apply("release", Some(&renewed), renewed.fence()).expect("it runs");
    assert_eq!(next.state.name(), StateName::Unknown);
}

#[test]
fn i10_what_an_operator_released_is_no_resend() {
    let held = unknown();
    let freed = apply("resolve: did not run", Some(&held), held.fence()).expect("unknown");
    let again = transition::claim(Some(&freed), claim_by(3, 8), LATER, LEASE).expect("free");
    let next = apply("release", Some(&again), again.fence()).expect("it runs");
    assert_eq!(next.state.name(), StateName::Released);
}

/// `after` as the next write, whatever else it is.
fn next_of(before: &Record, mut after: Record) -> Record {
    after.id = before.id;
    after.epoch = before.epoch.next();
    let is_claim =
        after.state.name() == StateName::InFlight && before.state.name() != StateName::InFlight;
    after.claim = if is_claim { after.epoch } else { before.claim };
    after
}

#[test]
fn i08_the_assertion_takes_the_drawn_arrows_and_no_others() {
    use StateName::{Completed, InFlight, Released, Unknown};
    for from in StateName::ALL {
        for to in StateName::ALL {
            let before = record(from);
            let after = match (from, to) {
                (Unknown, InFlight) => resent(),
                _ => record(to),
            };
            let after = next_of(&before, after);
            let drawn = match from {
                InFlight => true,
                Completed => false,
                Unknown => to != Unknown,
                Released => to == InFlight,
            };
            let checked = std::panic::catch_unwind(|| assert_lawful(Some(&before), &after));
            assert_eq!(checked.is_ok(), drawn, "from {from} to {to}");
        }
    }
    for to in StateName::ALL {
        let after = Record {
            epoch: Epoch::new(1),
            claim: Epoch::new(1),
            ..record(to)
        };
        let checked = std::panic::catch_unwind(|| assert_lawful(None, &after));
        assert_eq!(checked.is_ok(), to == InFlight, "from nothing to {to}");
    }
}

#[test]
#[should_panic(expected = "I6")]
fn i06_the_assertion_refuses_another_fingerprint_over_a_running_operation() {
    let before = running();
    let mut after = next_of(&before, completed());
    after.fingerprint = fingerprint(8);
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I6")]
fn i06_the_assertion_refuses_a_resend_of_another_request() {
    let before = unknown();
    let mut after = next_of(&before, resent());
    after.fingerprint = fingerprint(8);
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I6")]
fn i06_the_claim_itself_refuses_a_resend_of_another_request() {
    let _ = transition::claim(Some(&unknown()), claim_by(2, 8), NOW, LEASE);
}

#[test]
#[should_panic(expected = "I7")]
fn i07_the_assertion_refuses_another_scope() {
    let before = running();
    let mut after = next_of(&before, completed());
    after.scope.tenant = "globex".into();
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I7")]
fn i07_the_assertion_refuses_another_key() {
    let before = released();
    let mut after = next_of(&before, running());
    after.key = onlyonce_core::Key::new("other").expect("a key");
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I8")]
fn i08_the_assertion_refuses_another_id() {
    let before = running();
    let mut after = next_of(&before, completed());
    after.id = OperationId::from_bytes([9; 16]);
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I8")]
fn i08_the_assertion_refuses_to_leave_completed() {
    let before = completed();
    assert_lawful(Some(&before), &next_of(&before, running()));
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_an_epoch_that_stays() {
    let before = running();
    let mut after = next_of(&before, completed());
    after.epoch = before.epoch;
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_an_epoch_that_skips() {
    let before = running();
    let mut after = next_of(&before, completed());
    after.epoch = before.epoch.next().next();
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I8")]
fn i08_a_store_refuses_to_leave_completed() {
    let before = completed();
    let after = next_of(&before, running());
    transition::assert_arrow(Some(before.standing()), &after);
}

#[test]
fn i09_what_follows_on_a_fence_is_of_its_operation_and_of_a_later_epoch() {
    let before = running();
    let next = next_of(&before, completed());
    let fence = before.fence();
    assert!(transition::may_follow(fence, &next));
    let of_another = Record {
        id: OperationId::from_bytes([9; 16]),
        ..next.clone()
    };
    assert!(!transition::may_follow(fence, &of_another));
    let not_later = Record {
        epoch: before.epoch,
        ..next
    };
    assert!(!transition::may_follow(fence, &not_later));
}

#[test]
fn i09_a_renewal_and_an_expiry_raise_the_epoch_by_what_they_drew() {
    let held = running();
    let (fence, raise) = (held.fence(), NonZero::new(7).expect("not zero"));
    let reason = UnknownReason::LeasePassed;
    let renewed = transition::renew(Some(&held), fence, LATER, LEASE, raise);
    let expired = transition::expire(Some(&held), fence, reason, LATER, raise);
    for next in [renewed, expired] {
        let next = next.expect("it runs");
        assert_eq!(next.epoch, held.epoch.raised(raise));
        assert_eq!(next.recording(), held.recording());
        assert!(transition::may_follow(fence, &next));
    }
}

/// `running()` under the claim of a worker.
fn running_by_a_worker() -> Record {
    let mut held = running();
    if let State::InFlight { owner, .. } = &mut held.state {
        *owner = OwnerId::worker(3);
    }
    held
}

#[test]
fn i09_a_workers_claim_is_taken_over_as_it_is_and_a_processs_is_not() {
    let (held, owner) = (running_by_a_worker(), OwnerId::new(9));
    let raise = NonZero::new(7).expect("not zero");
    let take =
        |held: &Record, fence| transition::take_over(Some(held), fence, owner, LATER, LEASE, raise);
    let taken = take(&held, held.fence()).expect("it is a worker's");
    let state = State::InFlight {
        owner,
        lease_until: LATER.after(LEASE),
        resend_of: None,
    };
    assert_eq!(taken.state, state);
    assert_eq!(taken.epoch, held.epoch.raised(raise));
    assert_eq!(taken.recording(), held.recording());
    assert!(take(&held, taken.fence()).is_err(), "fenced");
    for other in [taken, running(), completed(), unknown(), released()] {
        let refused = take(&other, other.fence());
        assert!(matches!(refused, Err(NotLawful::NoSuchArrow { .. })));
    }
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_to_take_a_claim_from_a_process() {
    let before = running();
    let mut after = next_of(&before, running_by_a_worker());
    after.claim = before.claim;
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_a_renewal_that_does_not_raise_the_epoch() {
    let before = running();
    let mut after = next_of(&before, running());
    after.epoch = before.epoch;
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_a_claim_that_does_not_raise_the_epoch() {
    let before = released();
    let mut after = next_of(&before, running());
    (after.epoch, after.claim) = (before.epoch, before.epoch);
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_a_first_claim_that_skips() {
    let epoch = Epoch::new(2);
    let after = Record {
        epoch,
        claim: epoch,
        ..running()
    };
    assert_lawful(None, &after);
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_a_claim_under_the_name_of_the_one_before() {
    let before = released();
    let mut after = next_of(&before, running());
    after.claim = before.claim;
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I9")]
fn i09_the_assertion_refuses_an_answer_under_the_name_of_another_claim() {
    let before = running();
    let mut after = next_of(&before, completed());
    after.claim = after.epoch;
    assert_lawful(Some(&before), &after);
}

#[test]
#[should_panic(expected = "I10")]
fn i10_the_assertion_refuses_to_release_a_resend() {
    let before = resent();
    assert_lawful(Some(&before), &next_of(&before, released()));
}

#[test]
#[should_panic(expected = "I10")]
fn i10_the_assertion_refuses_a_resend_that_looks_like_a_first_claim() {
    let before = unknown();
    assert_lawful(Some(&before), &next_of(&before, running()));
}

#[test]
#[should_panic(expected = "I11")]
fn i11_the_assertion_refuses_a_window_that_ends_before_it_starts() {
    let before = running();
    let mut after = next_of(&before, completed());
    if let State::Completed(completed) = &mut after.state {
        completed.expires_at = Timestamp::from_millis(completed.completed_at.as_millis() - 1);
    }
    assert_lawful(Some(&before), &after);
}

#[test]
fn i13_a_record_that_lost_its_recording_is_unknown_and_can_be_resolved() {
    let held = completed();
    let lost = held.clone().without_recording();
    assert_eq!(lost.fence(), held.fence());
    assert_eq!(lost.recording(), held.recording());
    let state = State::Unknown {
        since: NOW,
        reason: UnknownReason::Unreadable,
    };
    assert_eq!(lost.state, state);
    for (name, to) in [
        ("resolve: did not run", StateName::Released),
        ("resolve: ran", StateName::Completed),
    ] {
        let next = apply(name, Some(&lost), lost.fence()).expect("unknown");
        assert_eq!(next.state.name(), to);
    }
    for other in [running(), unknown(), released()] {
        assert_eq!(other.clone().without_recording(), other);
    }
}
