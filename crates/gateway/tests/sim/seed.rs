//! One seed: who wants what, and what befalls them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, sleep_until, timeout};

use crate::client::{self, Action, Heard, Manner};
use crate::gateway::{Gateway, ROUTES};
use crate::judge;
use crate::operator;
use crate::panics;
use crate::random::Random;
use crate::world::{Temper, Told, World, part_of};

/// Once nothing goes wrong any more, how long everything may take to have an outcome (L1): the longest
/// exchange, an answer that comes late, a lease, and what a store that fails may put off.
const SETTLED: Duration = Duration::from_secs(25);

/// Who asks waits for his answer for as long as it takes, and so does the seed, up to this.
const ENDS: Duration = Duration::from_secs(600);

/// Runs `world` in a runtime of its own, in which time passes only where nothing else happens.
pub fn in_time<T>(world: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(world)
}

/// Runs one seed, with a log where one is wanted.
pub fn run(seed: u64, logged: bool) -> Told {
    in_time(async {
        let mut random = part_of(seed, 1);
        let temper = Temper::drawn(&mut random);
        let actions = actions(&mut random);
        let world = World::new(seed, temper, None, actions, logged);
        let before = panics::so_far();
        if timeout(ENDS, whole(&world, &mut random)).await.is_err() {
            world.wrong(format!("L1: somebody still waits after {ENDS:?}"));
        }
        for panic in panics::since(before) {
            world.wrong(format!("a panic: {panic}"));
        }
        world.told()
    })
}

async fn whole(world: &Arc<World>, random: &mut Random) {
    let temper = &world.temper;
    world.note(|| format!("{temper:?}"));
    let count = 1 + random.below(2) as u64;
    let gateways: Arc<[_]> = (0..count).map(|n| Gateway::start(world, n)).collect();
    let mut calls = Vec::new();
    for action in &world.actions {
        for _ in 0..1 + random.below(6) {
            let mut action = action.clone();
            if random.chance(4) {
                action.version = 1;
            }
            let most = [1, 300, 5_000][random.below(3)];
            let after = Duration::from_millis(random.next() % most);
            let own = Random::new(random.next());
            let calling = client::call(Arc::clone(world), Arc::clone(&gateways), action, own);
            calls.push(tokio::spawn(async move {
                sleep(after).await;
                calling.await;
            }));
        }
    }
    let mut troubles = Vec::new();
    let (all, death) = (Arc::clone(&gateways), Arc::clone(world));
    let dying = tokio::spawn(async move {
        loop {
            death.gateway_dies.notified().await;
            for gateway in all.iter() {
                gateway.kill();
            }
            sleep(Duration::from_millis(700)).await;
            for gateway in all.iter() {
                gateway.starts();
            }
        }
    });
    for gateway in gateways.iter() {
        if random.chance(temper.troubles) {
            let own = Random::new(random.next());
            troubles.push(tokio::spawn(trouble(Arc::clone(gateway), own)));
        }
    }
    if temper.operator {
        let own = Random::new(random.next());
        let working = operator::works(Arc::clone(world), Arc::clone(&gateways), own);
        troubles.push(tokio::spawn(working));
    }
    sleep_until(world.calm_at()).await;
    for one in calls.into_iter().chain(troubles) {
        // A panic is told of in the end.
        let _ = one.await;
    }
    dying.abort();
    for gateway in gateways.iter() {
        gateway.release();
        gateway.starts();
    }
    sleep(SETTLED).await;
    world.judge_all();
    last_round(world, &gateways).await;
}

/// A gateway dies, stands still, or ends; in time it is back.
async fn trouble(gateway: Arc<Gateway>, mut random: Random) {
    sleep(Duration::from_millis(random.next() % 6_000)).await;
    match random.below(4) {
        0 | 1 => gateway.kill(),
        2 => {
            gateway.hold();
            sleep(Duration::from_millis(random.next() % 9_000)).await;
            gateway.release();
        }
        _ => {
            let drain = Duration::from_millis(random.next() % 4_000);
            gateway.stop(drain).await;
        }
    }
    sleep(Duration::from_millis(random.next() % 4_000)).await;
    gateway.starts();
}

/// Every key is sent once more to every gateway: all say the same, and nothing is in the way.
async fn last_round(world: &Arc<World>, gateways: &[Arc<Gateway>]) {
    for action in &world.actions {
        let mut told = Vec::new();
        for gateway in gateways {
            let mut heard = client::attempt(world, gateway, action, &Manner::patient()).await;
            if let Heard::Answer(_, body) = &heard
                && judge::problem(&body.bytes) == "upstream-unreachable"
            {
                // A connection of before may be stuck still, which takes no byte. It is not used again.
                heard = client::attempt(world, gateway, action, &Manner::patient()).await;
            }
            told.push(match &heard {
                Heard::Answer(head, body) => match head.header("onlyonce-status") {
                    Some("released") => "released".to_owned(),
                    Some(_) => "an answer".to_owned(),
                    None => judge::problem(&body.bytes),
                },
                _ => "nothing".to_owned(),
            });
        }
        let is_outcome =
            |told: &String| ["an answer", "outcome-unknown", "key-reused"].contains(&told.as_str());
        let (tenant, key) = (action.tenant, &action.key);
        if !told.iter().all(is_outcome) {
            world.wrong(format!("L6: in the end, t{tenant}/{key} gets {told:?}"));
        }
        if told.iter().any(|one| *one != told[0]) {
            world.wrong(format!(
                "I4: in the end, the gateways differ on t{tenant}/{key}: {told:?}"
            ));
        }
    }
    world.judge_all();
}

fn actions(random: &mut Random) -> Vec<Action> {
    let mut actions = Vec::new();
    for number in 0..1 + random.below(3) {
        let action = Action {
            tenant: random.below(2),
            key: format!("k{number}"),
            route: random.below(ROUTES.len()),
            version: 0,
            body_len: [0, 200, 5_000][random.below(3)],
        };
        if random.chance(15) {
            // Somebody else has a key of that name.
            actions.push(Action {
                tenant: 1 - action.tenant,
                ..action.clone()
            });
        }
        actions.push(action);
    }
    actions
}

impl Temper {
    /// What the seed wants.
    fn drawn(random: &mut Random) -> Self {
        let mut some = |most: usize| match random.below(2) {
            0 => 0,
            _ => random.below(most + 1),
        };
        let (stalls, slow) = (some(6), some(40));
        Self {
            store_faults: some(40),
            store_stalls: stalls,
            store_slow: slow,
            claims_first: some(1) == 1,
            refuses: some(25),
            slow: some(60),
            breaks: some(40),
            declines: some(40),
            dawdles: some(40),
            leaves: some(40),
            troubles: some(100),
            naps: some(15),
            operator: some(1) == 1,
            skew: Duration::from_millis(some(1_000) as u64),
            calm_after: Duration::from_millis(6_000 + random.next() % 8_000),
        }
    }
}
