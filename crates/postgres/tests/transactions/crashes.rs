//! Whatever crashes, and at whatever statement: each effect is there once, and its result.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use onlyonce_postgres::{Error, Settings, Transactions};
use onlyonce_testkit::{Between, eventually_within};
use tokio::task::{block_in_place, spawn_blocking};

use crate::bank::{Bank, aside, pay};
use crate::child::Paying;
use crate::drivers::{Client, on_both_drivers};
use crate::line::{Line, Point};

const PATIENCE: Duration = Duration::from_secs(60);

on_both_drivers! {
    i01_a_process_killed_at_any_statement_leaves_each_effect_once
    i01_a_server_killed_at_any_statement_has_each_effect_once
    i14_a_connection_cut_at_any_statement_is_resolved
    i14_a_commit_that_nobody_can_ask_about_is_in_doubt_and_told_by_the_next_call
    i01_random_kills_of_processes_that_race_leave_each_effect_once
}

/// The units that one payment takes on a connection of its own; the last one is its commit.
async fn units<C: Client>(bank: &Bank, line: &Line) -> u32 {
    line.count();
    let mut client = C::connect(&bank.business_url(line.port())).await;
    bank.pay(&mut client, "dry").await.unwrap();
    drop(client);
    let units = line.units();
    assert!(
        units >= 7,
        "begin, look, claim, two writes, result, commit: {units}"
    );
    units
}

/// What is sure of the effect of a payment whose line stopped at a unit: how often it is there.
fn effects(unit: u32, units: u32, point: Point) -> std::ops::RangeInclusive<usize> {
    match point {
        _ if unit < units => 0..=0,
        Point::Before | Point::Midway => 0..=0,
        Point::Arrived => 0..=1,
        Point::Answered => 1..=1,
    }
}

/// Each key is paid once and has its letter for a result, and nothing else was paid or booked.
fn verify(bank: &Bank, paid: &BTreeMap<String, i64>) {
    for (key, letter) in paid {
        assert_eq!(bank.told(Some(key)).1, [*letter], "{key}");
    }
    let (cents, letters) = bank.told(None);
    assert_eq!(cents, letters.len() as i64);
    assert_eq!(cents, bank.operations(2));
    assert_eq!(bank.booked(), [cents; 2]);
    assert_eq!([1, 3, 4].map(|state| bank.operations(state)), [0; 3]);
}

async fn i01_a_process_killed_at_any_statement_leaves_each_effect_once<C: Client>() {
    let bank = Bank::open().await;
    let line = Line::start(bank.server.port());
    let units = units::<C>(&bank, &line).await;
    let mut keys = vec!["dry".to_owned()];
    for unit in 1..=units {
        for point in Point::ALL {
            let key = format!("{unit}-{point:?}");
            line.stop_at(unit, point);
            let paying = Paying::start::<C>(&bank, line.port(), std::slice::from_ref(&key));
            block_in_place(|| line.wait_until_stopped());
            let said = paying.kill_9();
            line.cut();
            assert!(said.is_empty(), "{said:?}");
            block_in_place(|| bank.server.settle());
            let found = bank.told(Some(&key)).1.len();
            assert!(
                effects(unit, units, point).contains(&found),
                "{key}: {found}"
            );
            keys.push(key);
        }
    }
    let paid = block_in_place(|| Paying::start::<C>(&bank, bank.server.port(), &keys).all());
    assert_eq!(paid.len(), keys.len());
    verify(&bank, &paid);
}

async fn i01_a_server_killed_at_any_statement_has_each_effect_once<C: Client>() {
    let bank = Arc::new(Bank::open_alone().await);
    let line = Line::start(bank.server.port());
    let units = units::<C>(&bank, &line).await;
    let mut paid = BTreeMap::new();
    for unit in 1..=units {
        // Before one statement is after the one before it.
        for point in [Point::Arrived, Point::Answered] {
            let key = format!("{unit}-{point:?}");
            line.stop_at(unit, point);
            let first = pays_aside::<C>(&bank, &line, &key);
            let first = block_in_place(|| {
                line.wait_until_stopped();
                bank.server.kill();
                line.cut();
                bank.server.restart();
                first.join().unwrap()
            });
            let found = bank.told(Some(&key)).1.len();
            assert!(
                effects(unit, units, point).contains(&found),
                "{key}: {found}"
            );
            // Nobody is told that it is not there where it is, or the other way round.
            assert_eq!(first.is_ok(), found == 1, "{key}: {first:?}");
            let letter = again::<C>(&bank, &key).await;
            assert!(first.is_err_and(|error| error.may_be_retried()) || found == 1);
            paid.insert(key, letter);
        }
    }
    paid.insert("dry".to_owned(), again::<C>(&bank, "dry").await);
    verify(&bank, &paid);
}

async fn i14_a_connection_cut_at_any_statement_is_resolved<C: Client>() {
    let bank = Arc::new(Bank::open().await);
    let line = Line::start(bank.server.port());
    let units = units::<C>(&bank, &line).await;
    let mut paid = BTreeMap::new();
    for unit in 1..=units {
        for point in Point::ALL {
            let key = format!("{unit}-{point:?}");
            line.stop_at(unit, point);
            let first = pays_aside::<C>(&bank, &line, &key);
            let first = block_in_place(|| {
                line.wait_until_stopped();
                line.cut();
                first.join().unwrap()
            });
            // The commit has arrived: it is done, and that is found out.
            let is_committed = unit == units && matches!(point, Point::Arrived | Point::Answered);
            assert_eq!(first.is_ok(), is_committed, "{key}: {first:?}");
            let letter = again::<C>(&bank, &key).await;
            match first {
                Ok(first) => assert_eq!(first, letter, "{key}"),
                Err(error) => assert!(error.may_be_retried(), "{error:?}"),
            }
            paid.insert(key, letter);
        }
    }
    verify(&bank, &paid);
}

async fn i14_a_commit_that_nobody_can_ask_about_is_in_doubt_and_told_by_the_next_call<C: Client>() {
    let bank = Bank::open().await;
    let line = Line::start(bank.server.port());
    let units = units::<C>(&bank, &line).await;
    let of_the_store = Between::start(bank.server.port());
    let settings = Settings {
        lock_wait: Duration::from_millis(300),
        ..Settings::default()
    };
    let url = format!(
        "{}?schema={}",
        bank.business_url(of_the_store.port()),
        bank.store_schema()
    );
    let url = url.replace("?sslmode=disable", "");
    let once = Transactions::open(&url, settings).await.unwrap();
    let mut client = C::connect(&bank.business_url(line.port())).await;
    // Counted from here on, it is connected already.
    line.stop_at(units, Point::Answered);
    let cutting = spawn_blocking(move || {
        line.wait_until_stopped();
        of_the_store.cut();
        line.cut();
    });
    let in_doubt = pay(&once, &bank.schema, &mut client, "k").await;
    cutting.await.unwrap();
    assert!(
        matches!(in_doubt, Err(Error::InDoubt { .. })),
        "{in_doubt:?}"
    );
    let letter = again::<C>(&bank, "k").await;
    assert_eq!(bank.told(Some("k")).1, [letter]);
}

/// Three processes pay keys out of the same few, and are killed anywhere. `ONLYONCE_SEED` repeats a run, as
/// far as the processes are not faster or slower.
async fn i01_random_kills_of_processes_that_race_leave_each_effect_once<C: Client>() {
    const FOR: Duration = Duration::from_secs(6);
    const KEYS: u64 = 40;
    let seed = std::env::var("ONLYONCE_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("ONLYONCE_SEED={seed}");
    let bank = Bank::open().await;
    let ends_at = Instant::now() + FOR;
    let told: Vec<(String, i64)> = block_in_place(|| {
        thread::scope(|scope| {
            let racers = (1..=3).map(|racer| {
                let bank = &bank;
                scope.spawn(move || {
                    race::<C>(bank, &mut Random(seed * 1_000 + racer), ends_at, KEYS)
                })
            });
            let racers: Vec<_> = racers.collect();
            racers
                .into_iter()
                .flat_map(|racer| racer.join().unwrap())
                .collect()
        })
    });
    let keys: Vec<String> = (0..KEYS).map(|number| format!("k{number}")).collect();
    block_in_place(|| bank.server.settle());
    let before = bank.told(None).1.len();
    let paid = block_in_place(|| Paying::start::<C>(&bank, bank.server.port(), &keys).all());
    assert_eq!(paid.len(), keys.len());
    verify(&bank, &paid);
    for (key, letter) in &told {
        assert_eq!(paid[key], *letter, "{key}");
    }
    println!(
        "{} were told, {before} of {KEYS} were paid under kills",
        told.len()
    );
    assert!(!told.is_empty() && before > 0);
}

/// Starts processes and kills them, one after the other; gives what they said.
fn race<C: Client>(
    bank: &Bank,
    random: &mut Random,
    ends_at: Instant,
    keys: u64,
) -> Vec<(String, i64)> {
    let line = Line::start(bank.server.port());
    let mut told = Vec::new();
    while Instant::now() < ends_at {
        let keys: Vec<String> = (0..4).map(|_| format!("k{}", random.below(keys))).collect();
        let point = Point::ALL[random.below(4) as usize];
        line.stop_at(1 + random.below(40) as u32, point);
        let mut paying = Paying::start::<C>(bank, line.port(), &keys);
        eventually_within(PATIENCE, "it stopped or ended", || {
            line.has_stopped() || paying.has_ended()
        });
        told.extend(paying.kill_9());
        line.cut();
    }
    told
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

/// Pays on a thread of its own, over the line.
fn pays_aside<C: Client>(
    bank: &Arc<Bank>,
    line: &Line,
    key: &str,
) -> thread::JoinHandle<Result<i64, Error>> {
    let (url, key) = (bank.business_url(line.port()), key.to_owned());
    aside(bank.clone(), async move |bank| {
        let mut client = C::connect(&url).await;
        bank.pay(&mut client, &key).await
    })
}

/// Pays on a good connection, again while the store finds its server.
async fn again<C: Client>(bank: &Bank, key: &str) -> i64 {
    let gives_up_at = Instant::now() + PATIENCE;
    let mut client = bank.connect::<C>().await;
    loop {
        match bank.pay(&mut client, key).await {
            Ok(letter) => return letter,
            Err(error) if error.may_be_retried() && Instant::now() < gives_up_at => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}
