//! Who settles what nobody knows: an operator, who looks around, is sure, and is not always right.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::{Head, HeaderBlock, Record, State, StateName};
use onlyonce_engine::{Engine, Purge, Resolution};
use onlyonce_store::{Query, Store as _};
use tokio::time::{sleep, timeout};

use crate::client::{self, Manner};
use crate::gateway::Gateway;
use crate::noted::{Brought, Name, name_of};
use crate::random::Random;
use crate::store::Way;
use crate::wire::Fields;
use crate::world::World;

/// How long an operator waits for a gateway that may be dead.
const PATIENCE: Duration = Duration::from_secs(3);

/// For how long an operation must have been unknown, and every gateway have been awake, before its operator is
/// sure: what was on its way is there by then (docs/operating.md).
const SURE: Duration = Duration::from_secs(3);

/// How long an answer counts that an operator brings.
const WINDOW: Duration = Duration::from_secs(3_600);

/// Looks around by one gateway after the other, until nothing goes wrong any more.
pub async fn works(world: Arc<World>, gateways: Arc<[Arc<Gateway>]>, mut random: Random) {
    let mut sent = Vec::new();
    while !world.is_calm() {
        sleep(Duration::from_millis(random.next() % 1_000)).await;
        let gateway = &gateways[random.below(gateways.len())];
        let Some(engine) = gateway.engine() else {
            continue;
        };
        let looks = looks(&world, &engine, &mut random);
        // What was asked for by then may be done all the same.
        let freed = timeout(PATIENCE, looks).await.ok().flatten();
        let mut actions = world.actions.iter();
        let action = actions.find(|one| freed.as_ref() == Some(&(one.tenant, one.key.clone())));
        if let Some(action) = action {
            // What is said not to have run is wanted still.
            let (world, gateway) = (Arc::clone(&world), random.below(gateways.len()));
            let (gateways, action) = (Arc::clone(&gateways), action.clone());
            sent.push(tokio::spawn(async move {
                let manner = Manner::patient();
                client::attempt(&world, &gateways[gateway], &action, &manner).await
            }));
        }
    }
    for one in sent {
        // A panic is told of in the end.
        let _ = one.await;
    }
}

/// Gives the key that it freed.
async fn looks(world: &World, engine: &Engine<Way>, random: &mut Random) -> Option<Name> {
    let query = Query {
        limit: 10,
        ..Query::default()
    };
    let page = engine.list(query).await.ok()?;
    let records = page.records.iter().map(|stored| &stored.record);
    let now = world.store.now();
    let is_old = |record: &Record| match record.state {
        State::Unknown { since, .. } => since.after(SURE) <= now,
        _ => false,
    };
    let unknown: Vec<_> = records
        .clone()
        .filter(|record| is_old(record) && world.all_awake_for(SURE))
        .collect();
    if random.chance(5) {
        let is_unknown = |record: &&Arc<Record>| record.state.name() == StateName::Unknown;
        let is_sure = records.filter(is_unknown).count() == unknown.len();
        purges(world, engine, random, is_sure).await;
        return None;
    }
    if !unknown.is_empty() {
        let record = unknown[random.below(unknown.len())];
        return settles(world, engine, record, random).await;
    }
    None
}

async fn settles(
    world: &World,
    engine: &Engine<Way>,
    record: &Record,
    random: &mut Random,
) -> Option<Name> {
    let (id, name) = (record.id, name_of(record));
    // Half of them have several chunks.
    let len = match random.below(2) {
        0 => 70_000,
        _ => random.below(60),
    };
    let brings = random.chance(30);
    let number = world.rules(id, name.clone(), brings, len);
    world.note(|| format!("operator: {id}, ruling {number}, with an answer: {brings}"));
    let answer = world.noted.lock().rulings[number].answer.clone();
    let resolution = answer.map_or(Resolution::Released, |answer| answer.resolution());
    let said = engine.resolve(id, resolution, "operator", "it is so").await;
    world.count(match said {
        Ok(_) => "operators: settled",
        Err(_) => "operators: not done",
    });
    let is_freed = said.is_ok() && !brings;
    world.note(|| format!("operator: ruling {number}: {:?}", said.map(|_| ())));
    is_freed.then_some(name)
}

/// Removes what is unknown only where it is sure of all of it.
async fn purges(world: &World, engine: &Engine<Way>, random: &mut Random, is_sure: bool) {
    let state = [
        Some(StateName::Completed),
        Some(StateName::Unknown),
        Some(StateName::Released),
        None,
    ][random.below(4)]
    .filter(|state| is_sure || *state != StateName::Unknown);
    let purge = Purge {
        tenant: random.chance(50).then(|| "t0".into()),
        state,
        before: None,
    };
    let purged = engine.purge(purge).await;
    world.note(|| format!("operator: purges {state:?}: {purged:?}"));
    if purged.is_ok_and(|purged| purged > 0) {
        world.count("operators: purged");
    }
}

impl Brought {
    fn resolution(&self) -> Resolution {
        Resolution::Completed {
            head: Head {
                status: 200,
                headers: packed(&self.fields),
            },
            body: Bytes::from(self.body.clone()),
            trailers: packed(&self.trailers),
            window: WINDOW,
        }
    }
}

fn packed(fields: &Fields) -> HeaderBlock {
    let fields = fields
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    HeaderBlock::pack(fields).expect("short ones")
}
