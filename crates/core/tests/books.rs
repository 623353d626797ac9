//! What the books say of a record.

mod records;

use onlyonce_core::{
    Account, Basis, Cost, Count, Entry, Got, Metered, Posting, Source, Sums, Unit, Usd,
};
use records::{NOW, completed, running, unknown};

fn metered() -> Metered {
    Metered {
        provider: "openai".into(),
        model: "gpt-5".into(),
        usage: [(Unit::Input, 12), (Unit::Output, 345)]
            .into_iter()
            .collect(),
        source: Source::Provider,
        cost: Some(Cost {
            amount: Usd::from_nanos(70),
            basis: Basis::Table,
            version: "1".into(),
        }),
        ..Metered::default()
    }
}

#[test]
fn only_an_operation_that_is_completed_for_the_first_time_has_an_entry() {
    let with = |mut record: onlyonce_core::Record| {
        record.metered = Some(Box::new(metered()));
        record
    };
    let record = with(completed());
    let entry = Entry::of(&record).expect("it is completed");
    assert_eq!((entry.id, entry.at, entry.status), (record.id, NOW, 200));
    assert_eq!(
        (entry.scope, entry.metered),
        (record.scope.clone(), metered())
    );
    assert_eq!(Entry::of(&completed()), None, "no books are kept");
    assert_eq!(Entry::of(&with(running())), None);
    assert_eq!(Entry::of(&with(unknown())), None);
    let mut again = record;
    again.entered = true;
    assert_eq!(Entry::of(&again), None, "the books have it");
}

#[test]
fn what_was_spared_is_what_each_attempt_would_have_cost() {
    for (got, count) in [
        (Got::Joined, Count::Joined),
        (Got::Replayed, Count::Replayed),
    ] {
        let posting = Posting::spared(&completed(), &metered(), NOW, got, 3);
        let expected = [
            (count, 3),
            (Count::Saved, 210),
            (Count::SavedInput, 36),
            (Count::SavedOutput, 1_035),
        ];
        assert_eq!(posting.sums, expected.into_iter().collect::<Sums>());
        assert_eq!(posting.sums.saved(), Usd::from_nanos(210));
        assert_eq!(posting.sums.cost(), Usd::ZERO);
        let account = Account {
            tenant: "acme".into(),
            route: "".into(),
            provider: "openai".into(),
            model: "gpt-5".into(),
        };
        assert_eq!((posting.at, posting.account), (NOW, account));
    }
}

#[test]
fn sums_of_two_are_added_count_by_count() {
    let mut sums: Sums = [(Count::Cost, 3), (Count::Input, 4)].into_iter().collect();
    sums.merge(&[(Count::Cost, 5), (Count::Output, 6)].into_iter().collect());
    let expected = [(Count::Cost, 8), (Count::Input, 4), (Count::Output, 6)];
    assert_eq!(sums, expected.into_iter().collect());
}
