//! The books: each completed operation once, sums, sinks.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Account, Count, Entry, Got, OperationId, OwnerId, Posting, Record, ReleaseReason, Sums,
    Timestamp, UnknownReason,
};

use super::{
    Subject,
    bench::{Bench, Kept, WINDOW, claim_write, complete_record, scope},
};
use crate::{
    Books, Store, Swap, Write,
    books::{
        Advance, Begin, Cell, DeadLetter, EntryQuery, Grain, Held, Hold, Of, Position, SumsQuery,
    },
};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

/// Books until nothing is left to book; gives the count.
async fn book<S: Subject>(bench: &Bench<S>) -> u64 {
    bench.subject.settle();
    let mut count = 0;
    loop {
        let booked = bench.store.book().await.expect("booked");
        count += booked.entries;
        if !booked.more {
            return count;
        }
    }
}

async fn feed<S: Subject>(bench: &Bench<S>, after: Option<Position>) -> Vec<(Position, Entry)> {
    bench.store.feed(after, 10_000).await.expect("a feed")
}

async fn entries<S: Subject>(bench: &Bench<S>) -> Vec<Entry> {
    let feed = feed(bench, None).await;
    feed.into_iter().map(|(_, entry)| entry).collect()
}

fn entry_of(kept: &Kept) -> Entry {
    Entry::of(&kept.record).expect("a completed record has an entry")
}

async fn sums<S: Subject>(bench: &Bench<S>, grain: Grain, of: Of) -> Vec<Cell> {
    let query = SumsQuery {
        grain,
        since: Timestamp::from_millis(0),
        until: bench.now().after(365 * DAY),
        of,
    };
    bench.store.sums(query).await.expect("sums")
}

/// An operation of `tenant` that completes now.
async fn finished_of<S: Subject>(bench: &Bench<S>, key: &str, tenant: &str) -> Kept {
    let mut record = bench.first_claim(key);
    record.scope = scope(tenant);
    let address = crate::address(bench.store.secret(), &record.scope, &record.key);
    bench.put(address, None, claim_write(&record)).await;
    let kept = Kept { address, record };
    bench
        .completed(&kept, &[Bytes::from_static(b"hello")])
        .await
}

/// The clock stands at the beginning of an hour and of a day.
fn to_the_next_day<S: Subject>(bench: &Bench<S>) {
    let next = Grain::Day.period(bench.now()).after(DAY);
    bench.clock.advance(next.since(bench.now()));
}

fn hold(sink: &str, owner: u64, begin: Begin) -> Hold {
    Hold {
        sink: sink.into(),
        owner: OwnerId::new(owner),
        lease: Duration::from_secs(30),
        begin,
    }
}

async fn held<S: Subject>(bench: &Bench<S>, hold: Hold) -> Option<Held> {
    bench.store.hold(hold).await.expect("an answer")
}

async fn advance<S: Subject>(bench: &Bench<S>, step: Advance) -> bool {
    bench.store.advance(step).await.expect("an answer")
}

/// One entry for each operation, as it stands in the record, and not before it is completed.
pub async fn an_entry_comes_with_the_completed_record<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    assert_eq!(book(&bench).await, 0);
    let kept = bench
        .completed(&kept, &[Bytes::from_static(b"hello")])
        .await;
    assert_eq!(book(&bench).await, 1);
    assert_eq!(entries(&bench).await, [entry_of(&kept)]);
    assert_eq!(book(&bench).await, 0);
    assert_eq!(entries(&bench).await, [entry_of(&kept)]);
}

/// A write that loses keeps nothing, nor does an outcome that is not a completion.
pub async fn what_is_not_completed_has_no_entry<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("unknown").await;
    bench.lost(&kept, UnknownReason::Broke).await;
    let kept = bench.claimed("released").await;
    bench.released(&kept, ReleaseReason::NotSent).await;
    let kept = bench.claimed("overtaken").await;
    let renewed = bench.renewed(&kept).await;
    let late = Write {
        record: complete_record(&kept.record, &[], bench.now()),
        last_chunk: None,
        attempt: None,
    };
    let swap = bench.swap(kept.address, Some(kept.fence()), late).await;
    assert_eq!(swap.expect("an answer"), Swap::Lost);
    assert_eq!(book(&bench).await, 0);
    bench.completed(&renewed, &[]).await;
    assert_eq!(book(&bench).await, 1);
}

/// What became unknown and is completed later has its entry then.
pub async fn a_late_answer_makes_the_one_entry<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let kept = bench.lost(&kept, UnknownReason::TimedOut).await;
    assert_eq!(book(&bench).await, 0);
    let kept = bench.completed(&kept, &[Bytes::from_static(b"late")]).await;
    assert_eq!(book(&bench).await, 1);
    assert_eq!(entries(&bench).await, [entry_of(&kept)]);
}

/// Where the books are not kept, a record says nothing of its use, and no entry comes of it.
pub async fn what_is_not_metered_has_no_entry<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let record = Record {
        metered: None,
        ..complete_record(&kept.record, &[], bench.now())
    };
    bench.follow(&kept, record, None).await;
    assert_eq!(book(&bench).await, 0);
}

/// An operation whose recording was lost is completed a second time, and is in the books already.
pub async fn i08_what_is_completed_again_has_one_entry<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let record = Record {
        entered: true,
        ..complete_record(&kept.record, &[], bench.now())
    };
    bench.follow(&kept, record, None).await;
    assert_eq!(book(&bench).await, 0);
}

/// However many gateways book at once, and however often.
pub async fn two_bookers_at_once_book_once<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut expected = BTreeMap::new();
    for number in 0..200 {
        let kept = bench.finished(&format!("k{number}")).await;
        expected.insert(kept.id(), entry_of(&kept));
        if number % 50 == 49 {
            let store = &bench.store;
            let round = tokio::join!(store.book(), store.book(), store.book(), store.book());
            for booked in [round.0, round.1, round.2, round.3] {
                booked.expect("booked");
            }
        }
    }
    book(&bench).await;
    let entries = entries(&bench).await;
    assert_eq!(entries.len(), 200);
    let found: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.id, entry)).collect();
    assert!(found == expected, "entries differ from their records");
    let all = sums(&bench, Grain::Day, Of::All).await;
    let operations: i64 = all
        .iter()
        .map(|cell| cell.sums.get(Count::Operations))
        .sum();
    assert_eq!(operations, 200);
}

/// Who reads on from a position sees each entry once, whatever is booked in between.
pub async fn the_feed_shows_every_entry_once_in_one_order<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut seen: Vec<(Position, Entry)> = Vec::new();
    for round in 0..6 {
        for number in 0..7 {
            bench.finished(&format!("k{round}-{number}")).await;
        }
        book(&bench).await;
        loop {
            let after = seen.last().map(|(position, _)| *position);
            let page = bench.store.feed(after, 3).await.expect("a feed");
            assert!(page.len() <= 3);
            if page.is_empty() {
                break;
            }
            seen.extend(page);
        }
        assert_eq!(seen.len(), 7 * (round + 1));
    }
    assert!(
        seen.is_sorted_by(|(one, _), (next, _)| one < next),
        "positions rise"
    );
    assert!(feed(&bench, None).await == seen, "the order changed");
}

/// By tenant, route, model and time; the last booked first; each once over all pages.
pub async fn entries_are_filtered_and_paged<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let start = bench.now();
    let mut kept = Vec::new();
    for number in 0..12 {
        let tenant = ["acme", "globex", "initech"][number % 3];
        kept.push(finished_of(&bench, &format!("k{number}"), tenant).await);
        book(&bench).await;
        bench.clock.advance(Duration::from_secs(1));
    }
    let ids = |kept: &[&Kept]| kept.iter().rev().map(|kept| kept.id()).collect::<Vec<_>>();
    let found = async |query: EntryQuery| {
        let mut found = Vec::new();
        let mut older_than = query.older_than;
        loop {
            let query = EntryQuery {
                older_than,
                ..query.clone()
            };
            let page = bench.store.entries(query).await.expect("a page");
            assert!(page.entries.len() <= 5);
            found.extend(page.entries.iter().map(|entry| entry.id));
            older_than = page.next;
            if older_than.is_none() {
                return found;
            }
        }
    };
    let all = EntryQuery {
        limit: 5,
        ..EntryQuery::default()
    };
    assert_eq!(
        found(all.clone()).await,
        ids(&kept.iter().collect::<Vec<_>>())
    );
    for kept in &kept {
        let address = bench.store.find(kept.id()).await.expect("an answer");
        assert_eq!(address, Some(kept.address), "an operation of the page");
    }
    let of_globex = EntryQuery {
        tenant: Some("globex".into()),
        ..all.clone()
    };
    let expected: Vec<_> = kept.iter().skip(1).step_by(3).collect();
    assert_eq!(found(of_globex).await, ids(&expected));
    let in_between = EntryQuery {
        since: Some(start.after(Duration::from_secs(2))),
        until: Some(start.after(Duration::from_secs(7))),
        ..all.clone()
    };
    let expected: Vec<_> = kept[2..7].iter().collect();
    assert_eq!(found(in_between).await, ids(&expected));
    for (route, model, count) in [
        (Some("openai"), None, 12),
        (Some("other"), None, 0),
        (None, Some("gpt-5"), 12),
        (None, Some("gpt-4"), 0),
    ] {
        let query = EntryQuery {
            route: route.map(Into::into),
            model: model.map(Into::into),
            ..all.clone()
        };
        assert_eq!(found(query).await.len(), count, "{route:?} {model:?}");
    }
}

/// Of what was booked and what was posted, by hour and by day, by account and together.
pub async fn sums_are_told_by_period_and_account<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    to_the_next_day(&bench);
    let day = bench.now();
    let mut expected: BTreeMap<(Timestamp, Option<Account>), Sums> = BTreeMap::new();
    for number in 0..9_u32 {
        let tenant = ["acme", "globex"][number as usize % 2];
        let kept = finished_of(&bench, &format!("k{number}"), tenant).await;
        let metered = kept.record.metered.as_deref().expect("metered");
        let spared = Posting::spared(&kept.record, metered, bench.now(), Got::Joined, number);
        bench
            .store
            .post(vec![spared.clone(), spared.clone()])
            .await
            .expect("posted");
        for posting in [entry_of(&kept).posting(), spared.clone(), spared] {
            let period = Grain::Hour.period(posting.at);
            for account in [Some(posting.account.clone()), None] {
                expected
                    .entry((period, account))
                    .or_default()
                    .merge(&posting.sums);
            }
        }
        if number % 4 == 3 {
            bench.clock.advance(HOUR);
        }
    }
    book(&bench).await;

    let by_hour = |of: Of| {
        let expected = expected.clone();
        let cells = sums(&bench, Grain::Hour, of.clone());
        async move {
            let cells: Vec<_> = cells
                .await
                .into_iter()
                .map(|cell| ((cell.period, cell.account), cell.sums))
                .collect();
            let expected: Vec<_> = expected
                .into_iter()
                .filter(|((_, account), _)| match &of {
                    Of::All => account.is_none(),
                    Of::Accounts => account.is_some(),
                    Of::Tenant(tenant) => account
                        .as_ref()
                        .is_some_and(|account| account.tenant == *tenant),
                })
                .map(|((period, account), sums)| ((period, account.unwrap_or_default()), sums))
                .collect();
            assert_eq!(cells, expected, "{of:?}");
        }
    };
    by_hour(Of::All).await;
    by_hour(Of::Accounts).await;
    by_hour(Of::Tenant("globex".into())).await;

    let mut whole = Sums::default();
    for ((_, account), sums) in &expected {
        if account.is_none() {
            whole.merge(sums);
        }
    }
    let of_the_day = sums(&bench, Grain::Day, Of::All).await;
    assert_eq!(of_the_day.len(), 1);
    assert_eq!((of_the_day[0].period, of_the_day[0].sums), (day, whole));

    let second_hour = SumsQuery {
        grain: Grain::Hour,
        since: day.after(HOUR),
        until: day.after(2 * HOUR),
        of: Of::All,
    };
    let cells = bench.store.sums(second_hour).await.expect("sums");
    assert_eq!(cells.len(), 1);
    assert_eq!(cells[0].period, day.after(HOUR));
}

/// Neither the end of the window nor an operator who purges takes an entry away.
pub async fn an_entry_outlives_its_record<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let purged = bench.finished("purged").await;
    let expired = bench.finished("expired").await;
    let removed = bench.store.remove(purged.address, purged.fence()).await;
    assert!(removed.expect("removed"));
    bench.clock.advance(2 * WINDOW);
    bench.store.sweep().await.expect("swept");
    book(&bench).await;
    bench.store.sweep().await.expect("swept");
    let mut found: Vec<_> = entries(&bench).await;
    found.sort_unstable_by_key(|entry| entry.id);
    assert_eq!(found, [entry_of(&purged), entry_of(&expired)]);
    let all = EntryQuery {
        limit: 5,
        ..EntryQuery::default()
    };
    let page = bench.store.entries(all).await.expect("a page");
    assert_eq!(page.entries.len(), 2);
    for Entry { id, .. } in page.entries {
        let address = bench.store.find(id).await.expect("an answer");
        assert_eq!(address, None);
    }
}

/// Days that ended before the moment, whole, and nothing of later ones.
pub async fn a_trim_drops_what_is_older_and_no_more<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    to_the_next_day(&bench);
    let first = bench.now();
    bench.finished("first").await;
    book(&bench).await;
    bench.clock.advance(2 * DAY);
    let kept = bench.finished("third").await;
    book(&bench).await;
    bench.store.trim(first).await.expect("trimmed");
    assert_eq!(entries(&bench).await.len(), 2);

    let third = Grain::Day.period(bench.now());
    let position = feed(&bench, None).await[0].0;
    bench.store.trim(third).await.expect("trimmed");
    assert_eq!(entries(&bench).await, [entry_of(&kept)]);
    let periods = async |grain| {
        let cells = sums(&bench, grain, Of::All).await;
        cells
            .into_iter()
            .map(|cell| cell.period)
            .collect::<Vec<_>>()
    };
    assert_eq!(periods(Grain::Day).await, [third]);
    assert_eq!(periods(Grain::Hour).await, [third]);
    // Who stands on what was dropped goes on behind it.
    assert_eq!(feed(&bench, Some(position)).await.len(), 1);
}

/// Until the lease ends, and its holder may take it for longer.
pub async fn one_owner_holds_a_sink<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let nothing = Some(Held { position: None });
    assert_eq!(held(&bench, hold("a", 1, Begin::Start)).await, nothing);
    assert_eq!(held(&bench, hold("a", 2, Begin::Start)).await, None);
    assert_eq!(held(&bench, hold("b", 2, Begin::Start)).await, nothing);
    bench.clock.advance(Duration::from_secs(20));
    assert_eq!(held(&bench, hold("a", 1, Begin::Start)).await, nothing);
    bench.clock.advance(Duration::from_secs(20));
    assert_eq!(held(&bench, hold("a", 2, Begin::Start)).await, None);
    bench.clock.advance(Duration::from_secs(20));
    assert_eq!(held(&bench, hold("a", 2, Begin::Start)).await, nothing);
    assert_eq!(held(&bench, hold("a", 1, Begin::Start)).await, None);
}

/// Only its holder moves a sink, and only from where it is.
pub async fn an_advance_from_elsewhere_loses<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for number in 0..3 {
        bench.finished(&format!("k{number}")).await;
    }
    book(&bench).await;
    let positions: Vec<_> = feed(&bench, None)
        .await
        .into_iter()
        .map(|(position, _)| position)
        .collect();
    held(&bench, hold("a", 1, Begin::Start)).await;
    let step = |owner, from, to| Advance {
        sink: "a".into(),
        owner: OwnerId::new(owner),
        from,
        to,
        bury: Vec::new(),
    };
    assert!(!advance(&bench, step(2, None, positions[0])).await);
    assert!(advance(&bench, step(1, None, positions[0])).await);
    assert!(!advance(&bench, step(1, None, positions[1])).await);
    assert!(advance(&bench, step(1, Some(positions[0]), positions[2])).await);
    bench.clock.advance(Duration::from_secs(31));
    assert!(!advance(&bench, step(1, Some(positions[2]), positions[2])).await);
    let held = held(&bench, hold("a", 2, Begin::Start)).await;
    let position = Some(positions[2]);
    assert_eq!(held, Some(Held { position }));
    assert!(feed(&bench, position).await.is_empty());
}

/// A sink that begins now gets nothing of before, though it may be held and not served for a while.
pub async fn a_new_sink_begins_where_it_is_told<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    bench.finished("before").await;
    book(&bench).await;
    let from_the_start = held(&bench, hold("all", 1, Begin::Start)).await;
    let from_now = held(&bench, hold("new", 1, Begin::Now)).await;
    let after = bench.finished("after").await;
    book(&bench).await;
    let from_the_start = from_the_start.expect("held").position;
    assert_eq!(feed(&bench, from_the_start).await.len(), 2);
    let from_now = from_now.expect("held").position;
    let got = feed(&bench, from_now).await;
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].1, entry_of(&after));
}

/// What was given up is kept until it is forgotten, in the order of the operations.
pub async fn dead_letters_come_back_until_they_are_forgotten<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for number in 0..5 {
        bench.finished(&format!("k{number}")).await;
    }
    book(&bench).await;
    let feed = feed(&bench, None).await;
    let letters: Vec<DeadLetter> = feed
        .iter()
        .map(|(_, entry)| DeadLetter {
            entry: entry.clone(),
            since: bench.now(),
            tries: 7,
            why: "it said 500".into(),
        })
        .collect();
    held(&bench, hold("a", 1, Begin::Start)).await;
    let step = Advance {
        sink: "a".into(),
        owner: OwnerId::new(1),
        from: None,
        to: feed[4].0,
        bury: letters.clone(),
    };
    assert!(advance(&bench, step).await);
    let mut expected = letters;
    expected.sort_unstable_by_key(|letter| letter.entry.id);
    let dead = async |sink, after: Option<OperationId>, limit| {
        let dead = bench.store.dead(sink, after, limit).await;
        dead.expect("dead letters")
    };
    assert_eq!(dead("a", None, 10).await, expected);
    assert_eq!(dead("b", None, 10).await, []);
    assert_eq!(dead("a", None, 2).await, expected[..2]);
    let second = expected[1].entry.id;
    assert_eq!(dead("a", Some(second), 10).await, expected[2..]);
    let ids = [
        second,
        expected[3].entry.id,
        OperationId::from_bytes([9; 16]),
    ];
    let forgotten = bench.store.forget_dead("a", &ids).await;
    assert_eq!(forgotten.expect("forgotten"), 2);
    expected.remove(3);
    expected.remove(1);
    assert_eq!(dead("a", None, 10).await, expected);
}

/// What was kept is booked after a restart, what was booked stays, and so do sums and sinks.
pub async fn the_books_survive_a_restart<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    bench.finished("booked").await;
    book(&bench).await;
    let booked = feed(&bench, None).await;
    held(&bench, hold("a", 1, Begin::Start)).await;
    let step = Advance {
        sink: "a".into(),
        owner: OwnerId::new(1),
        from: None,
        to: booked[0].0,
        bury: vec![DeadLetter {
            entry: booked[0].1.clone(),
            since: bench.now(),
            tries: 1,
            why: "gone".into(),
        }],
    };
    assert!(advance(&bench, step.clone()).await);
    bench.finished("kept").await;
    let Some(bench) = bench.reopened().await else {
        return;
    };
    // A store may book what waits when it closes.
    assert!(book(&bench).await <= 1);
    let after = feed(&bench, Some(booked[0].0)).await;
    assert_eq!(after.len(), 1);
    assert_eq!(feed(&bench, None).await[..1], booked[..]);
    let days = sums(&bench, Grain::Day, Of::All).await;
    let operations: i64 = days
        .iter()
        .map(|cell| cell.sums.get(Count::Operations))
        .sum();
    assert_eq!(operations, 2);
    let dead = bench.store.dead("a", None, 10).await.expect("dead letters");
    assert_eq!(dead, step.bury);
    bench.clock.advance(Duration::from_secs(31));
    let position = Some(booked[0].0);
    let held = held(&bench, hold("a", 2, Begin::Start)).await;
    assert_eq!(held, Some(Held { position }));

    let bench = bench.reopened().await.expect("it was reopened before");
    assert_eq!(book(&bench).await, 0);
    assert_eq!(entries(&bench).await.len(), 2);
}
