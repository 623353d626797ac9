//! Finding operations: by id, and in lists.

use std::{collections::BTreeSet, time::Duration};

use onlyonce_core::{
    OperationId, ReleaseReason, StateName, UnknownReason,
    transition::{self, Resolution},
};

use super::{
    Subject,
    bench::{Bench, Kept, MILLISECOND, RETENTION, WINDOW, claim_write, make_key, scope},
};
use crate::{Page, Query, Store};

async fn list<S: Subject>(bench: &Bench<S>, query: Query) -> Page {
    bench.store.list(query).await.expect("a page")
}

async fn ids<S: Subject>(bench: &Bench<S>, query: Query) -> Vec<OperationId> {
    let page = list(bench, query).await;
    page.records.iter().map(|stored| stored.record.id).collect()
}

fn all() -> Query {
    Query {
        limit: 1_000,
        ..Query::default()
    }
}

/// An id leads to its operation, in every state, and to no other.
pub async fn an_operation_is_found_by_its_id<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let other = bench.finished("other").await;
    for one in [&kept, &other] {
        let found = bench.store.find(one.id()).await.expect("an answer");
        assert_eq!(found, Some(one.address));
    }
    let nobody = OperationId::from_bytes([9; 16]);
    assert_eq!(bench.store.find(nobody).await.expect("an answer"), None);
    assert!(
        bench
            .store
            .remove(kept.address, kept.fence())
            .await
            .expect("removed")
    );
    assert_eq!(bench.store.find(kept.id()).await.expect("an answer"), None);
}

/// By the moment of the first claim, whatever was written since.
pub async fn a_list_is_newest_first<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut expected = Vec::new();
    let mut oldest = None;
    for number in 0..20 {
        // Some within one millisecond, some not.
        if number % 3 == 0 {
            bench.clock.advance(MILLISECOND);
        }
        let kept = bench.claimed(&format!("k{number}")).await;
        expected.insert(0, kept.id());
        oldest.get_or_insert(kept);
    }
    bench.renewed(&oldest.expect("twenty were claimed")).await;
    assert_eq!(ids(&bench, all()).await, expected);

    let page = list(&bench, all()).await;
    let first = &page.records[0];
    assert_eq!(first.record.key, make_key("k19"));
    assert_eq!(first.attempts, 1);
}

/// By key, tenant, state and time; the edges of time are `since <= t < until`.
pub async fn a_list_is_filtered<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let start = bench.now();
    let step = Duration::from_secs(1);
    let running = bench.claimed("running").await;
    bench.clock.advance(step);
    let completed = bench.finished("completed").await;
    bench.clock.advance(step);
    let claimed = bench.claimed("unknown").await;
    let unknown = bench.lost(&claimed, UnknownReason::Broke).await;
    bench.clock.advance(step);
    let claimed = bench.claimed("released").await;
    let released = bench.released(&claimed, ReleaseReason::NotSent).await;
    bench.clock.advance(step);
    let mut record = bench.first_claim("running");
    record.scope = scope("globex");
    let address = crate::address(bench.store.secret(), &record.scope, &record.key);
    bench.put(address, None, claim_write(&record)).await;
    let theirs = Kept { address, record };

    for (state, expected) in [
        (StateName::InFlight, vec![&theirs, &running]),
        (StateName::Completed, vec![&completed]),
        (StateName::Unknown, vec![&unknown]),
        (StateName::Released, vec![&released]),
    ] {
        let query = Query {
            state: Some(state),
            ..all()
        };
        let expected: Vec<_> = expected.into_iter().map(Kept::id).collect();
        assert_eq!(ids(&bench, query).await, expected, "{state}");
    }

    let by_key = Query {
        key: Some(make_key("running")),
        ..all()
    };
    let both = [theirs.id(), running.id()];
    assert_eq!(ids(&bench, by_key.clone()).await, both);
    let by_key_and_tenant = Query {
        tenant: Some("acme".into()),
        ..by_key
    };
    assert_eq!(ids(&bench, by_key_and_tenant).await, [running.id()]);
    let by_tenant = Query {
        tenant: Some("globex".into()),
        ..all()
    };
    assert_eq!(ids(&bench, by_tenant).await, [theirs.id()]);
    let nobody = Query {
        tenant: Some("nobody".into()),
        ..all()
    };
    assert!(ids(&bench, nobody).await.is_empty());

    let between = Query {
        since: Some(start.after(step)),
        until: Some(start.after(3 * step)),
        ..all()
    };
    assert_eq!(ids(&bench, between).await, [unknown.id(), completed.id()]);
}

/// No page is longer than it was asked to be, and a cursor says where it went on.
pub async fn a_list_is_cut_at_its_limit<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for number in 0..5 {
        bench.claimed(&format!("k{number}")).await;
    }
    let page = |limit| Query {
        limit,
        ..Query::default()
    };
    let two = list(&bench, page(2)).await;
    assert_eq!(two.records.len(), 2);
    assert_eq!(two.next, Some(two.records[1].record.id));
    assert_eq!(list(&bench, page(5)).await.records.len(), 5);
    let all = list(&bench, page(6)).await;
    assert_eq!((all.records.len(), all.next), (5, None));
    assert!(list(&bench, page(0)).await.records.is_empty());
}

/// Following the cursors shows every operation once, filters and newcomers notwithstanding.
pub async fn pages_visit_every_operation_once<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut expected = BTreeSet::new();
    for number in 0..30 {
        bench.clock.advance(MILLISECOND);
        let kept = bench.claimed(&format!("k{number}")).await;
        if number % 3 != 0 {
            let kept = bench.completed(&kept, &["x".into()]).await;
            expected.insert(kept.id());
        }
    }
    let mut seen = BTreeSet::new();
    let mut older_than = None;
    for page in 0.. {
        assert!(page < 30, "the cursors do not end");
        let query = Query {
            state: Some(StateName::Completed),
            older_than,
            limit: 7,
            ..Query::default()
        };
        let page = list(&bench, query).await;
        for stored in &page.records {
            assert!(seen.insert(stored.record.id), "seen twice");
        }
        older_than = page.next;
        if older_than.is_none() {
            break;
        }
        bench.clock.advance(MILLISECOND);
        bench.finished(&format!("newcomer-{}", seen.len())).await;
    }
    assert_eq!(seen, expected);
}

/// A list shows the records that count, swept or not.
pub async fn a_list_leaves_out_what_has_expired<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let running = bench.claimed("running").await;
    bench.finished("completed").await;
    let claimed = bench.claimed("released").await;
    bench.released(&claimed, ReleaseReason::NotSent).await;

    bench.clock.advance(RETENTION);
    assert_eq!(ids(&bench, all()).await.len(), 2);
    bench.clock.advance(WINDOW - RETENTION);
    assert_eq!(ids(&bench, all()).await, [running.id()]);
    bench.store.sweep().await.expect("a sweep");
    assert_eq!(ids(&bench, all()).await, [running.id()]);
}

/// What is in a list by state is in that state now, whatever it was.
pub async fn a_list_by_state_follows_the_records<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let in_state = async |state| {
        let query = Query {
            state: Some(state),
            ..all()
        };
        ids(&bench, query).await
    };
    let mut kept = Vec::new();
    for key in ["settled", "removed", "again"] {
        bench.clock.advance(MILLISECOND);
        let claimed = bench.claimed(key).await;
        kept.insert(0, bench.lost(&claimed, UnknownReason::Broke).await);
    }
    let expected: Vec<_> = kept.iter().map(Kept::id).collect();
    assert_eq!(in_state(StateName::Unknown).await, expected);
    assert!(in_state(StateName::InFlight).await.is_empty());

    let [again, removed, settled] = kept.try_into().expect("three");
    let (held, fence) = (Some(&settled.record), settled.fence());
    let next = transition::resolve(held, fence, Resolution::DidNotRun, bench.now(), RETENTION);
    let settled = bench.follow(&settled, next.expect("unknown"), None).await;
    let removal = bench.store.remove(removed.address, removed.fence()).await;
    assert!(removal.expect("removed"));
    let record = bench.claim_again("again", Some(&again.record));
    let again = bench.follow(&again, record, None).await;
    assert!(in_state(StateName::Unknown).await.is_empty());
    assert_eq!(in_state(StateName::Released).await, [settled.id()]);
    assert_eq!(in_state(StateName::InFlight).await, [again.id()]);

    let record = bench.claim_again("settled", Some(&settled.record));
    let settled = bench.follow(&settled, record, None).await;
    let settled = bench.completed(&settled, &["x".into()]).await;
    bench.completed(&again, &["x".into()]).await;
    for state in [StateName::InFlight, StateName::Released, StateName::Unknown] {
        assert!(in_state(state).await.is_empty(), "{state}");
    }
    let both = [again.id(), settled.id()];
    assert_eq!(in_state(StateName::Completed).await, both);
}
