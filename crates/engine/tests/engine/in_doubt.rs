//! Claims in doubt (I14), and what somebody else has written by the time that they are read back.

use onlyonce_core::{OperationId, OwnerId, Record, StateName, transition};
use onlyonce_engine::{Begin, Request, Trouble};
use onlyonce_store::{
    MemoryStore, Store,
    memory::{Call, Fault, Gate},
};
use tokio::task::JoinHandle;

use crate::world::{LEASE, WINDOW, World, name, request};

const CLAIM: Call = Call::WriteOf(StateName::InFlight);

/// An attempt for `key` that has written its claim in doubt, and is about to read it back.
async fn in_doubt(
    world: &World,
    key: &'static str,
    fault: Fault,
) -> (JoinHandle<Result<Begin<MemoryStore>, Trouble>>, Gate) {
    let faults = world.store.faults();
    let first = faults.hold(Call::Load);
    let attempt = {
        let world = world.clone();
        tokio::spawn(async move { world.begin(request(key)).await })
    };
    first.until_waiting(1).await;
    faults.fail(CLAIM, fault, 1);
    drop(first);
    // The first look has passed its gate, and goes on when this task waits.
    let reads_back = faults.hold(Call::Load);
    reads_back.until_waiting(1).await;
    (attempt, reads_back)
}

/// Writes the claim of another gateway for `theirs` over `expected`, which ends at once with an answer where it
/// `completes`.
pub async fn somebody_elses(
    world: &World,
    theirs: Request,
    expected: Option<&Record>,
    completes: bool,
) {
    let address = onlyonce_store::address(world.store.secret(), &theirs.scope, &theirs.key);
    let claim = transition::Claim {
        id: OperationId::from_bytes([9; 16]),
        scope: theirs.scope,
        key: theirs.key,
        fingerprint: theirs.fingerprint,
        request: theirs.line,
        owner: OwnerId::new(99),
        raise: std::num::NonZero::<u32>::MIN,
    };
    let claimed = transition::claim(expected, claim, world.store.now(), LEASE).expect("free");
    let fence = expected.map(Record::fence);
    world.put(address, fence, claimed.clone(), None).await;
    if completes {
        world.put_answer(address, &claimed, (0, 0), None).await;
    }
}

/// Another gateway's claim is not one's own because it is there.
#[tokio::test]
async fn i01_i14_a_claim_in_doubt_where_another_one_stands_joins_that() {
    let world = World::new();
    let (attempt, reads_back) = in_doubt(&world, "k", Fault::InDoubtNotWritten).await;
    somebody_elses(&world, request("k"), None, false).await;
    let before = world.store.status().commits;
    drop(reads_back);
    let begun = attempt.await.expect("no panic");
    assert!(matches!(begun, Ok(Begin::Join(_))), "{}", name(&begun));
    assert_eq!(world.store.status().commits, before, "nothing was renewed");
}

#[tokio::test]
async fn i14_a_claim_in_doubt_is_looked_for_again_where_a_look_fails() {
    let world = World::new();
    let (attempt, reads_back) = in_doubt(&world, "k", Fault::InDoubtWritten).await;
    world.store.faults().fail(Call::Load, Fault::Unavailable, 1);
    drop(reads_back);
    let begun = attempt.await.expect("no panic");
    assert!(matches!(begun, Ok(Begin::Execute(..))), "{}", name(&begun));
}

/// What is there was written after the look that allowed the claim, and its time is over: who claims over it may be on
/// the way, and that may be this attempt.
#[tokio::test]
async fn i14_a_claim_in_doubt_is_not_made_again_over_what_came_and_expired_meanwhile() {
    let world = World::new();
    world.released("k").await;
    let released = world.record("k").await.expect("released");
    let (attempt, reads_back) = in_doubt(&world, "k", Fault::InDoubtNotWritten).await;
    somebody_elses(&world, request("k"), Some(&released), true).await;
    world.clock.advance(WINDOW);
    let before = world.store.status().commits;
    drop(reads_back);
    let begun = attempt.await.expect("no panic");
    assert!(
        matches!(begun, Err(Trouble::InDoubt(_))),
        "{}",
        name(&begun)
    );
    assert_eq!(world.store.status().commits, before);
}
