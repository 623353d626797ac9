//! Finding operations: by id, and in lists.

use std::{collections::BTreeSet, time::Duration};

use onlyonce_core::{
    OperationId, Record, ReleaseReason, StateName, UnknownReason,
    transition::{self, Resolution},
};

use super::{
    Subject,
    bench::{Bench, Kept, MILLISECOND, RETENTION, WINDOW, claim_write, make_key, noise, scope},
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
    let all = list(&bench, page(6)).await;
    assert_eq!((all.records.len(), all.next), (5, None));
    assert!(list(&bench, page(0)).await.records.is_empty());

    let four = list(&bench, page(4)).await;
    assert!(four.next.is_some(), "one is left");
    let rest = rest_of(&bench, page(4), &four).await;
    assert_eq!(rest, [all.records[4].record.id]);
    let five = list(&bench, page(5)).await;
    assert_eq!(five.records.len(), 5);
    let rest = rest_of(&bench, page(5), &five).await;
    assert!(rest.is_empty(), "all of it was on the page");
}

/// What stands behind `page`, up to the end.
async fn rest_of<S: Subject>(bench: &Bench<S>, query: Query, page: &Page) -> Vec<OperationId> {
    let mut rest = Vec::new();
    let mut older_than = page.next;
    for _ in 0..1_000 {
        if older_than.is_none() {
            return rest;
        }
        let query = Query {
            older_than,
            ..query.clone()
        };
        let page = list(bench, query).await;
        rest.extend(page.records.iter().map(|stored| stored.record.id));
        older_than = page.next;
    }
    panic!("the cursors do not end");
}

/// The pages of `query`, one after another.
async fn all_pages<S: Subject>(bench: &Bench<S>, query: Query) -> Vec<OperationId> {
    let first = list(bench, query.clone()).await;
    let ids = first.records.iter().map(|stored| stored.record.id);
    let mut all: Vec<_> = ids.collect();
    all.extend(rest_of(bench, query, &first).await);
    all
}

/// Within a millisecond the ids say what is newer, in whatever order they came, and a cursor may stand
/// anywhere among them, also where nothing is kept any more.
pub async fn a_page_goes_on_inside_a_millisecond<S: Subject>(subject: S) {
    const OF_A_MILLISECOND: usize = 20;
    let bench = Bench::new(subject).await;
    let noise = noise(1, 3 * OF_A_MILLISECOND * 10);
    let mut kept = Vec::new();
    let mut moments = Vec::new();
    for (number, random) in noise.chunks_exact(10).enumerate() {
        if number % OF_A_MILLISECOND == 0 {
            bench.clock.advance(MILLISECOND);
            moments.push(bench.now());
        }
        let key = format!("k{number}");
        let random = random.try_into().expect("ten bytes");
        let record = Record {
            id: OperationId::new(bench.now().as_millis(), random),
            ..bench.first_claim(&key)
        };
        let address = bench.address(&key);
        bench.put(address, None, claim_write(&record)).await;
        kept.push(Kept { address, record });
    }
    let mut expected: Vec<_> = kept.iter().map(Kept::id).collect();
    assert!(!expected.is_sorted(), "some come before older ones");
    expected.sort_unstable();
    expected.reverse();

    for limit in [1, 7, OF_A_MILLISECOND, 3 * OF_A_MILLISECOND] {
        let query = Query {
            limit,
            ..Query::default()
        };
        assert_eq!(all_pages(&bench, query.clone()).await, expected, "{limit}");
        let page = ids(&bench, query).await;
        assert_eq!(page, expected[..limit], "a page of {limit}");
    }

    // A cursor inside the middle millisecond, and what is asked for ends with that.
    let (first, middle) = (OF_A_MILLISECOND, OF_A_MILLISECOND + 8);
    let gone = kept.iter().find(|kept| kept.id() == expected[middle]);
    let gone = gone.expect("it was claimed");
    let behind = |limit| Query {
        since: Some(moments[1]),
        until: Some(moments[2]),
        older_than: Some(gone.id()),
        limit,
        ..Query::default()
    };
    let rest = &expected[middle + 1..first + OF_A_MILLISECOND];
    assert_eq!(all_pages(&bench, behind(3)).await, rest);
    let removed = bench.store.remove(gone.address, gone.fence()).await;
    assert!(removed.expect("an answer"));
    for limit in [3, rest.len(), rest.len() + 1] {
        assert_eq!(all_pages(&bench, behind(limit)).await, rest, "{limit}");
    }
}

/// One operation of a key is listed, as it stands: none that it was claimed after, and in no state that
/// it was in before.
pub async fn a_list_shows_what_stands_there_now<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut former = Vec::new();
    for number in 0..12 {
        bench.clock.advance(MILLISECOND);
        former.push(bench.finished(&format!("again{number}")).await);
    }
    let claimed = bench.claimed("resent").await;
    let resent = bench.lost(&claimed, UnknownReason::Broke).await;
    bench.clock.advance(WINDOW - RETENTION / 2);
    let claimed = bench.claimed("released").await;
    let released = bench.released(&claimed, ReleaseReason::NotSent).await;
    bench.clock.advance(RETENTION / 2);

    // Before a sweep has come by: the next operation takes the place of the one that has expired.
    let mut expected = vec![resent.id(), released.id()];
    for number in 0..12 {
        bench.clock.advance(MILLISECOND);
        let kept = bench.claimed(&format!("again{number}")).await;
        expected.push(kept.id());
    }
    expected.reverse();
    // An operation keeps its place, whoever claims it again.
    let record = bench.claim_again("released", Some(&released.record));
    let again = claim_write(&record);
    bench
        .put(released.address, Some(released.fence()), again)
        .await;
    let running = Kept { record, ..released };
    let answered = bench.completed(&resent, &["late".into()]).await;

    let of = |state, limit| Query {
        state,
        limit,
        ..Query::default()
    };
    for swept in [false, true] {
        for limit in [1, 5, 14, 15] {
            let all = all_pages(&bench, of(None, limit)).await;
            assert_eq!(all, expected, "{limit} a page, swept: {swept}");
        }
        let in_flight = all_pages(&bench, of(Some(StateName::InFlight), 4)).await;
        assert_eq!(in_flight, expected[..13]);
        assert_eq!(in_flight.last(), Some(&running.id()));
        let completed = all_pages(&bench, of(Some(StateName::Completed), 1)).await;
        assert_eq!(completed, [answered.id()]);
        for state in [StateName::Unknown, StateName::Released] {
            assert!(ids(&bench, of(Some(state), 10)).await.is_empty(), "{state}");
        }
        for kept in &former {
            let found = bench.store.find(kept.id()).await.expect("an answer");
            assert_eq!(found, None, "another operation stands there");
        }
        bench.store.sweep().await.expect("a sweep");
    }
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
