//! What a record says of itself.

mod records;

use onlyonce_core::{
    HeaderBlock, Metered, Record, ReleaseReason, State, StateName, UnknownReason, transition,
};
use records::{LEASE, NOW, RETENTION, WINDOW, completed, record, resent, running};

#[test]
fn only_the_write_of_a_claim_is_a_new_claim() {
    for state in [
        StateName::Completed,
        StateName::Unknown,
        StateName::Released,
    ] {
        assert!(!record(state).is_new_claim(), "{state:?}");
    }
    let held = running();
    assert!(held.is_new_claim());
    assert!(resent().is_new_claim(), "a claim over an unknown outcome");
    let raise = std::num::NonZero::<u32>::MIN;
    let renewed = transition::renew(Some(&held), held.fence(), NOW, LEASE, raise);
    assert!(!renewed.expect("it runs").is_new_claim());
    // Its epoch is that of its claim, and it runs no more.
    let mut over = completed();
    over.claim = over.epoch;
    assert!(!over.is_new_claim());
}

#[test]
fn i11_only_what_is_over_for_good_expires() {
    let until = |state| record(state).until();
    let expires = |state| record(state).expires_at();
    assert_eq!(until(StateName::InFlight), Some(NOW.after(LEASE)));
    assert_eq!(expires(StateName::InFlight), None);
    for (state, end) in [
        (StateName::Completed, Some(NOW.after(WINDOW))),
        (StateName::Released, Some(NOW.after(RETENTION))),
        (StateName::Unknown, None),
    ] {
        assert_eq!((until(state), expires(state)), (end, end), "{state:?}");
    }
}

#[test]
fn i13_a_record_without_its_recording_is_unknown_and_entered_once() {
    let unreadable = |record: &Record| {
        matches!(
            record.state,
            State::Unknown {
                since: NOW,
                reason: UnknownReason::Unreadable
            }
        )
    };
    let without_books = completed().without_recording();
    assert!(unreadable(&without_books) && !without_books.entered);
    assert_eq!(without_books.fence(), completed().fence());
    let mut metered = completed();
    metered.metered = Some(Box::new(Metered::default()));
    let lost = metered.clone().without_recording();
    assert!(
        unreadable(&lost) && lost.entered,
        "the books have its entry"
    );
    let mut entered = completed();
    entered.entered = true;
    assert!(entered.without_recording().entered);
    for state in [StateName::InFlight, StateName::Unknown, StateName::Released] {
        assert_eq!(record(state).without_recording(), record(state));
    }
}

#[test]
fn a_block_of_headers_is_empty_where_it_has_no_field() {
    assert!(HeaderBlock::default().is_empty());
    let field: [(&[u8], &[u8]); 1] = [(b"a", b"secret")];
    let block = HeaderBlock::pack(field).expect("a short field");
    assert!(!block.is_empty());
    assert_eq!(format!("{block:?}"), "[\"a\"]", "names alone");
}

#[test]
fn what_did_not_run_used_nothing() {
    let mut held = running();
    held.metered = Some(Box::new(Metered::default()));
    let reason = ReleaseReason::DidNotRun;
    let released = transition::release(Some(&held), held.fence(), reason, NOW, RETENTION);
    assert_eq!(released.expect("it runs").metered, None);
    let lost = transition::lose(Some(&held), held.fence(), UnknownReason::Broke, NOW);
    assert_eq!(lost.expect("it runs").metered, held.metered);
}
