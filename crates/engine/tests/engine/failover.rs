//! Failovers that forget, under clients that give up after a second and come again.

use std::{num::NonZero, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use onlyonce_core::{Address, OperationId, OwnerId, Refusal, StateName, UnknownReason, transition};
use onlyonce_engine::{Begin, Execution, RoutePolicy, Settings, Start};
use onlyonce_store::{
    Cached, MemoryStore, Store, Write,
    memory::{Call, Fault, Limits, Moment},
};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::{
    random::Random,
    unseen::{Shared, World},
    world::{head, no_trailers, policy, request, resend, settings},
};

/// How long a client waits before it gives up and comes again, on the store's clock.
const SECOND: Duration = Duration::from_secs(1);
/// And how long that takes here: long enough on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_millis(200);
const LEASE: Duration = Duration::from_secs(2);
/// What still runs at the failover has its answer within so many attempts.
const RUNS_FOR: usize = 3;
/// A lease, an upkeep, and what still runs.
const MOST_ATTEMPTS: usize = RUNS_FOR + 5;
const STEPS: usize = 30;
/// `ONLYONCE_SEEDS` takes more.
const SEEDS: u64 = 1_500;
/// They wait side by side.
const AT_ONCE: usize = 500;

/// At which gateway, and what.
type Running = (usize, Execution<Cached<MemoryStore>>);

/// Two gateways on one store, what they execute, and a standby of the store that is behind.
struct Pair {
    random: Random,
    shared: Shared,
    gateways: Vec<World>,
    running: Arc<Mutex<Vec<Running>>>,
    owners: u64,
    new_keys: u64,
    standby: Moment,
    /// What happened, for whoever looks for the cause of a failure.
    log: Vec<String>,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let shared = Shared::new(Limits::default());
        let standby = shared.store.moment();
        let mut pair = Self {
            random: Random::new(seed),
            shared,
            gateways: Vec::new(),
            running: Arc::default(),
            owners: 0,
            new_keys: 0,
            standby,
            log: Vec::new(),
        };
        for _ in 0..2 {
            let gateway = pair.start();
            pair.gateways.push(gateway);
        }
        pair
    }

    /// A gateway that remembers nothing.
    fn start(&mut self) -> World {
        self.owners += 1;
        let lease = Settings {
            lease: LEASE,
            ..settings()
        };
        self.shared.gateway(self.owners, lease)
    }

    fn note(&mut self, what: impl Into<String>) {
        self.log.push(what.into());
    }

    fn some_gateway(&mut self) -> usize {
        self.random.below(self.gateways.len())
    }

    fn some_policy(&mut self) -> RoutePolicy {
        match self.random.chance(30) {
            true => resend(),
            false => policy(),
        }
    }

    async fn step(&mut self) {
        let gateway = self.some_gateway();
        match self.random.below(100) {
            0..25 => {
                let (policy, resets) = (self.some_policy(), self.random.chance(50));
                self.attempt(gateway, &policy, resets).await;
            }
            25..35 => self.attempt_that_is_left(gateway).await,
            35..45 => self.attempt_in_changing_times(gateway).await,
            45..60 => self.ends().await,
            60..70 => drop(self.gateways[gateway].engine.upkeep().await),
            70..80 => {
                let millis = self.random.below(1_500) as u64;
                self.shared.clock.advance(Duration::from_millis(millis));
            }
            80..86 => {
                self.note("the standby catches up");
                self.standby = self.shared.store.moment();
            }
            86..91 => {
                self.note("a failover");
                self.shared.store.forget_since(&self.standby);
            }
            91..94 => self.dies(gateway),
            _ => self.used_keys_come(gateway).await,
        }
    }

    /// Says whether the client has an outcome. Where it leaves before that, by a reset, the attempt ends;
    /// else the attempt goes on, since who has closed its half may still listen.
    async fn attempt(&mut self, gateway: usize, policy: &RoutePolicy, resets: bool) -> bool {
        let engine = self.gateways[gateway].engine.clone();
        let (policy, running) = (*policy, self.running.clone());
        let mut attempt = tokio::spawn(async move {
            match engine.begin(request("k"), &policy).await {
                Err(trouble) => (trouble.to_string(), false),
                Ok(Begin::Execute(execution, _)) => {
                    running.lock().push((gateway, execution));
                    ("executes".to_owned(), true)
                }
                Ok(Begin::Replay(_)) => ("is replayed".to_owned(), true),
                Ok(Begin::Refuse(refused)) => {
                    let done = matches!(refused.refusal, Refusal::Unknown(_));
                    (format!("{:?}", refused.refusal), done)
                }
                Ok(Begin::Join(mut reader)) => {
                    let start = reader.start().await;
                    (format!("joins: {start:?}"), start != Start::Timeout)
                }
            }
        });
        let (what, done) = match timeout(PATIENCE, &mut attempt).await {
            Ok(ended) => ended.expect("no panic"),
            Err(_) => {
                if resets {
                    attempt.abort();
                }
                ("has nothing in time".to_owned(), false)
            }
        };
        self.note(format!("an attempt at {gateway}: {what}"));
        done
    }

    /// Its client leaves in the middle, and what it wrote is written.
    async fn attempt_that_is_left(&mut self, gateway: usize) {
        let faults = self.shared.store.faults();
        let claim = Call::WriteOf(StateName::InFlight);
        faults.fail(claim, Fault::InDoubtWritten, 1);
        let looks = faults.hold(Call::Load);
        let policy = self.some_policy();
        self.attempt(gateway, &policy, true).await;
        drop(looks);
        faults.heal();
    }

    /// By the time that its look is answered, the store takes the next key for another kind.
    async fn attempt_in_changing_times(&mut self, gateway: usize) {
        let looks = self.shared.store.faults().hold(Call::Load);
        self.attempt(gateway, &policy(), false).await;
        self.new_keys_come(gateway).await;
        drop(looks);
        tokio::task::yield_now().await;
        self.note("times have changed");
    }

    /// The gateway takes the next key for new.
    async fn new_keys_come(&mut self, gateway: usize) {
        for _ in 0..16 {
            self.new_key_comes(gateway).await;
        }
        self.note(format!("new keys have come to {gateway}"));
    }

    /// The gateway takes the next key for used.
    async fn used_keys_come(&mut self, gateway: usize) {
        let used = self.new_key_comes(gateway).await;
        let world = self.gateways[gateway].clone();
        for _ in 0..16 {
            let _ = world.store.load(used).await;
        }
        self.note(format!("used keys have come to {gateway}"));
    }

    async fn new_key_comes(&mut self, gateway: usize) -> Address {
        let world = &self.gateways[gateway];
        self.new_keys += 1;
        let request = request(&format!("new-{}", self.new_keys));
        let address = world.address(request.key.as_str());
        let claim = transition::Claim {
            id: OperationId::new(self.new_keys, &[1; 10]),
            scope: request.scope,
            key: request.key,
            fingerprint: request.fingerprint,
            request: request.line,
            owner: OwnerId::new(u64::MAX),
            raise: NonZero::<u32>::MIN,
        };
        let record = transition::claim(None, claim, world.store.now(), LEASE).expect("new");
        let write = Write {
            record,
            last_chunk: None,
            attempt: None,
        };
        let _ = world.store.compare_and_set(address, None, write).await;
        address
    }

    /// An execution ends, one way or another.
    async fn ends(&mut self) {
        let running = self.running.lock().len();
        if running == 0 {
            return;
        }
        let index = self.random.below(running);
        let (gateway, mut execution) = self.running.lock().swap_remove(index);
        let end = self.random.below(5);
        let settled = match end {
            0 => execution.lose(UnknownReason::Broke).await,
            1 => execution.not_sent("refused").await,
            2 => {
                drop(execution);
                Ok(())
            }
            3 => {
                let _ = execution.push("half".into()).await;
                execution.complete(no_trailers()).await
            }
            _ => {
                let answer = execution.respond_whole(head(200), "ok".into(), no_trailers());
                answer.await
            }
        };
        self.note(format!(
            "an execution at {gateway} ends ({end}): {settled:?}"
        ));
    }

    /// `kill -9`, and another one in its place.
    fn dies(&mut self, gateway: usize) {
        self.note(format!("gateway {gateway} dies"));
        let mut running = self.running.lock();
        let (dead, alive): (Vec<_>, Vec<_>) = running.drain(..).partition(|(at, _)| *at == gateway);
        running.extend(alive);
        drop(running);
        dead.into_iter().for_each(std::mem::forget);
        self.gateways[gateway] = self.start();
    }

    /// Faults stop, and a client comes again each second until it has an outcome.
    async fn comes_again(&mut self) -> bool {
        let (gateway, resets) = (self.some_gateway(), self.random.chance(50));
        for attempt in 0..MOST_ATTEMPTS {
            if self.attempt(gateway, &policy(), resets).await {
                return true;
            }
            self.shared.clock.advance(SECOND);
            if attempt == RUNS_FOR {
                while !self.running.lock().is_empty() {
                    self.ends().await;
                }
            }
            for gateway in &self.gateways {
                gateway.engine.upkeep().await;
            }
        }
        false
    }
}

/// Whatever was acknowledged before it, whatever the standby has of it, and whoever still runs. Time passes only where
/// nothing else happens, so that who is patient waits for what hangs, and not for a busy machine.
#[tokio::test(start_paused = true)]
async fn l1_no_failover_leaves_a_key_without_an_outcome() {
    let seeds = std::env::var("ONLYONCE_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok());
    stream::iter(0..seeds.unwrap_or(SEEDS))
        .map(run)
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
}

async fn run(seed: u64) {
    let mut pair = Pair::new(seed);
    for _ in 0..STEPS {
        pair.step().await;
    }
    pair.note("the last failover");
    pair.shared.store.forget_since(&pair.standby);
    if pair.random.chance(50) {
        let after = pair.start();
        pair.gateways.push(after);
    }
    let done = pair.comes_again().await;
    assert!(done, "seed {seed}: {:#?}", pair.log);
    let running = std::mem::take(&mut *pair.running.lock());
    for (_, execution) in running {
        let _ = execution.not_sent("the end").await;
    }
}
