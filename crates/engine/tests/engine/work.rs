//! What workers execute: claims that are handed over, and settled from any gateway.

use std::{sync::Arc, time::Duration};

use onlyonce_core::{
    Metered, OperationId, Record, Refusal, ReleaseReason, Source, State, StateName, UnknownReason,
};
use onlyonce_engine::{
    ClaimToken, Engine, Frame, Granted, Kind, Purge, Resolution, RoutePolicy, Start, Watch, Work,
    WorkError,
};
use onlyonce_store::Store;

use super::World;
use crate::world::{
    Answer, CHUNK, LEASE, WINDOW, body, eventually, finish, head, no_trailers, other_request,
    policy, ran, read, reject, request, resend,
};

async fn begin<S: Store>(
    engine: &Engine<S>,
    key: &str,
    nonce: Option<&str>,
    policy: &RoutePolicy,
) -> Work<S> {
    let worker = engine.worker(nonce, LEASE);
    let begun = engine.begin_work(request(key), worker, policy).await;
    begun.expect("the store works")
}

async fn grant<S: Store>(engine: &Engine<S>, key: &str) -> Granted {
    granted(begin(engine, key, None, &policy()).await)
}

fn granted<S: Store>(work: Work<S>) -> Granted {
    match work {
        Work::Execute(granted) => granted,
        Work::Replay(_) => panic!("it replays"),
        Work::Join(_) => panic!("it joins"),
        Work::Refuse(refused) => panic!("{refused:?}"),
    }
}

async fn complete<S: Store>(
    engine: &Engine<S>,
    granted: &Granted,
    answer: &'static str,
) -> Result<Arc<Record>, WorkError> {
    let (id, token) = (granted.id, &granted.token);
    engine
        .complete_work(id, token, head(200), answer.into(), WINDOW, None)
        .await
}

fn whole(answer: &str) -> Answer {
    Answer::whole(head(200), Kind::Executed, answer)
}

#[tokio::test]
async fn i02_a_worker_executes_what_it_was_granted_and_its_result_answers_the_rest() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    assert_eq!(granted.attempt, 1);
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
    assert_eq!(world.engine.live(), 0, "no process executes it");
    let joined = tokio::spawn(read(world.join("k").await));
    let record = complete(&world.engine, &granted, "done").await;
    assert_eq!(record.expect("durable").state.name(), StateName::Completed);
    assert_eq!(joined.await.expect("answered"), whole("done"));
    assert_eq!(read(world.replay("k").await).await, whole("done"));
    let Work::Replay(reader) = begin(&world.engine, "k", None, &policy()).await else {
        panic!("it is finished");
    };
    assert_eq!(read(reader).await, whole("done"));
}

#[tokio::test]
async fn i06_another_request_under_a_workers_key_is_refused_and_changes_nothing() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let worker = world.engine.worker(None, LEASE);
    let other = world
        .engine
        .begin_work(other_request("k"), worker, &policy())
        .await;
    let Ok(Work::Refuse(refused)) = other else {
        panic!("it is another request");
    };
    assert_eq!(refused.refusal, Refusal::KeyReused);
    assert_eq!(refused.ticket, None);
    complete(&world.engine, &granted, "done")
        .await
        .expect("durable");
}

#[tokio::test]
async fn i01_of_many_workers_at_once_one_executes() {
    let world = World::new();
    let workers = (0..50).map(|_| {
        let world = world.clone();
        tokio::spawn(async move {
            let begun = begin(&world.engine, "k", None, &reject()).await;
            matches!(begun, Work::Execute(_))
        })
    });
    let mut executing = 0;
    for worker in workers.collect::<Vec<_>>() {
        executing += usize::from(worker.await.expect("decided"));
    }
    assert_eq!(executing, 1);
}

#[tokio::test]
async fn i14_a_worker_that_was_not_told_of_its_claim_gets_the_same_one_again() {
    let world = World::new();
    let first = granted(begin(&world.engine, "k", Some("n-1"), &policy()).await);
    let again = granted(begin(&world.neighbour(2).engine, "k", Some("n-1"), &policy()).await);
    assert_eq!(again.id, first.id);
    assert!(again.token == first.token);
    let other = begin(&world.engine, "k", Some("n-2"), &reject()).await;
    assert!(matches!(other, Work::Refuse(_)), "another worker");
    complete(&world.engine, &again, "done")
        .await
        .expect("durable");
    let finished = begin(&world.engine, "k", Some("n-1"), &policy()).await;
    assert!(matches!(finished, Work::Replay(_)));
}

#[tokio::test]
async fn i08_a_worker_that_comes_back_after_its_lease_is_not_granted_its_claim_again() {
    let world = World::new();
    granted(begin(&world.engine, "k", Some("n"), &policy()).await);
    world.clock.advance(LEASE);
    let Work::Refuse(refused) = begin(&world.engine, "k", Some("n"), &policy()).await else {
        panic!("nobody can say");
    };
    let passed = Refusal::Unknown(UnknownReason::LeasePassed);
    assert_eq!(refused.refusal, passed);
}

#[tokio::test]
async fn any_gateway_takes_a_workers_heartbeat_and_its_result() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let neighbour = world.neighbour(2);
    for _ in 0..4 {
        world.clock.advance(LEASE * 2 / 3);
        let renewed = neighbour
            .engine
            .renew_work(granted.id, &granted.token, LEASE)
            .await;
        let until = renewed.expect("renewed").until();
        assert_eq!(until, Some(world.store.now().after(LEASE)));
        assert_eq!(world.engine.upkeep().await.expired, 0);
    }
    complete(&world.neighbour(3).engine, &granted, "done")
        .await
        .expect("durable");
    assert_eq!(read(world.replay("k").await).await, whole("done"));
}

#[tokio::test]
async fn l3_a_worker_that_is_silent_for_a_lease_becomes_unknown() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let joined = tokio::spawn(read(world.join("k").await));
    world.clock.advance(LEASE);
    world.engine.upkeep().await;
    let reason = UnknownReason::LeasePassed;
    assert_eq!(
        joined.await.expect("answered").start,
        Start::Unknown(reason)
    );
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    let (id, token) = (granted.id, &granted.token);
    let unknown = WorkError::Settled(StateName::Unknown);
    let renewed = world.engine.renew_work(id, token, LEASE).await;
    assert_eq!(renewed.err(), Some(unknown.clone()));
    let released = world.engine.release_work(id, token).await;
    assert_eq!(
        released.err(),
        Some(unknown),
        "I10: it may have been told so"
    );
}

#[tokio::test]
async fn hostile_064_a_result_after_the_lease_is_taken_while_the_claim_stands() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    world.clock.advance(LEASE);
    world.engine.upkeep().await;
    let refused = world.refused(request("k")).await;
    let passed = Refusal::Unknown(UnknownReason::LeasePassed);
    assert_eq!(refused.refusal, passed);
    complete(&world.engine, &granted, "late")
        .await
        .expect("durable");
    assert_eq!(read(world.replay("k").await).await, whole("late"));
}

#[tokio::test]
async fn i09_a_late_result_of_a_claim_that_another_one_followed_changes_nothing() {
    let world = World::new();
    let first = grant(&world.engine, "k").await;
    world.clock.advance(LEASE);
    let second = granted(begin(&world.engine, "k", None, &resend()).await);
    assert_eq!(second.id, first.id);
    // In flight, unknown and completed under the second claim: it is fenced off in every state.
    let fenced = Some(WorkError::Fenced);
    let (id, old) = (first.id, &first.token);
    for lost in [false, true] {
        if lost {
            world.clock.advance(LEASE);
            world.engine.upkeep().await;
            assert_eq!(world.state("k").await, Some(StateName::Unknown));
        }
        let before = world.record("k").await;
        assert_eq!(complete(&world.engine, &first, "old").await.err(), fenced);
        let renewed = world.engine.renew_work(id, old, LEASE).await;
        assert_eq!(renewed.err(), fenced);
        assert_eq!(world.engine.release_work(id, old).await.err(), fenced);
        assert_eq!(world.engine.fail_work(id, old, None).await.err(), fenced);
        assert_eq!(world.record("k").await, before);
    }
    complete(&world.engine, &second, "new")
        .await
        .expect("durable");
    assert_eq!(complete(&world.engine, &first, "old").await.err(), fenced);
    assert_eq!(read(world.replay("k").await).await, whole("new"));
}

#[tokio::test]
async fn i09_a_claim_that_nobody_was_granted_settles_nothing() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let mut text = granted.token.to_string();
    let last = text.pop().expect("a digit");
    text.push(if last == '0' { '1' } else { '0' });
    let guess: ClaimToken = text.parse().expect("a token");
    let guessed = Granted {
        token: guess,
        ..granted.clone()
    };
    let fenced = Some(WorkError::Fenced);
    assert_eq!(complete(&world.engine, &guessed, "x").await.err(), fenced);
    let nobody = Granted {
        id: OperationId::from_bytes([1; 16]),
        ..granted.clone()
    };
    let settled = complete(&world.engine, &nobody, "x").await;
    assert_eq!(settled.err(), Some(WorkError::NotFound));
    // A gateway's own execution was granted to nobody.
    let (execution, _reader) = world.execute("own").await;
    let own = Granted {
        id: execution.id(),
        ..granted
    };
    let settled = complete(&world.engine, &own, "x").await;
    assert_eq!(settled.err(), Some(WorkError::NotFound));
    finish(execution, "charged").await;
}

#[tokio::test]
async fn i10_a_worker_that_did_nothing_frees_the_key_and_its_waiters_share_that() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let joined = tokio::spawn(read(world.join("k").await));
    let released = world.engine.release_work(granted.id, &granted.token).await;
    let state = &released.expect("durable").state;
    assert!(matches!(
        state,
        State::Released {
            reason: ReleaseReason::Worker,
            ..
        }
    ));
    let start = joined.await.expect("answered").start;
    assert!(
        matches!(start, Start::NotSent(_)),
        "I18: they do not run one after another: {start:?}"
    );
    let again = world.engine.release_work(granted.id, &granted.token).await;
    again.expect("said twice");
    let next = grant(&world.engine, "k").await;
    assert_eq!(next.id, granted.id);
    let late = complete(&world.engine, &granted, "old").await;
    assert_eq!(late.err(), Some(WorkError::Fenced));
    complete(&world.engine, &next, "new")
        .await
        .expect("durable");
}

#[tokio::test]
async fn i10_a_resend_that_did_nothing_stays_unknown() {
    let world = World::new();
    grant(&world.engine, "k").await;
    world.clock.advance(LEASE);
    let second = granted(begin(&world.engine, "k", None, &resend()).await);
    let released = world.engine.release_work(second.id, &second.token).await;
    assert_eq!(released.expect("durable").state.name(), StateName::Unknown);
}

#[tokio::test]
async fn a_worker_that_cannot_say_makes_it_unknown_with_what_it_used() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let used = Metered {
        model: "m".into(),
        source: Source::Partial,
        ..Metered::default()
    };
    let failed = world
        .engine
        .fail_work(granted.id, &granted.token, Some(used.clone()))
        .await;
    let record = failed.expect("durable");
    assert!(matches!(
        record.state,
        State::Unknown {
            reason: UnknownReason::WorkerFailed,
            ..
        }
    ));
    assert_eq!(record.metered.as_deref(), Some(&used));
    let again = world
        .engine
        .fail_work(granted.id, &granted.token, None)
        .await;
    again.expect("said twice");
    // It found out after all.
    complete(&world.engine, &granted, "late")
        .await
        .expect("durable");
}

#[tokio::test]
async fn i04_a_result_said_twice_stands_and_another_one_is_refused() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    complete(&world.engine, &granted, "one")
        .await
        .expect("durable");
    let before = world.record("k").await;
    complete(&world.engine, &granted, "one")
        .await
        .expect("it stands");
    assert_eq!(world.record("k").await, before);
    let other = complete(&world.engine, &granted, "two").await;
    assert_eq!(other.err(), Some(WorkError::Settled(StateName::Completed)));
    let failed = world
        .engine
        .fail_work(granted.id, &granted.token, None)
        .await;
    assert_eq!(failed.err(), Some(WorkError::Settled(StateName::Completed)));
    assert_eq!(read(world.replay("k").await).await, whole("one"));
}

#[tokio::test]
async fn i04_of_results_that_differ_one_stands_whole_for_everybody() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    // Longer than a chunk of a streamed recording, and than what one may hold in memory: it is one write
    // all the same.
    let bodies = [body(20 * CHUNK), body(20 * CHUNK + 1), body(21 * CHUNK)];
    let joined = tokio::spawn(read(world.join("k").await));
    let writers = bodies.clone().map(|body| {
        let (engine, granted) = (world.engine.clone(), granted.clone());
        tokio::spawn(async move {
            let (id, token) = (granted.id, &granted.token);
            let done = engine.complete_work(id, token, head(200), body.clone(), WINDOW, None);
            done.await.ok().map(|_| body)
        })
    });
    let mut stands = Vec::new();
    for writer in writers {
        stands.extend(writer.await.expect("it ended"));
    }
    assert_eq!(stands.len(), 1);
    let answer = Answer::whole(head(200), Kind::Executed, stands.remove(0));
    assert_eq!(joined.await.expect("answered"), answer);
    assert_eq!(read(world.replay("k").await).await, answer);
}

#[tokio::test]
async fn i15_a_result_over_the_limit_is_refused_and_nothing_is_lost() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let large = vec![b'x'; (256 << 10) + 1];
    let (id, token) = (granted.id, &granted.token);
    let refused = world
        .engine
        .complete_work(id, token, head(200), large.into(), WINDOW, None)
        .await;
    let limit = 256 << 10;
    assert_eq!(refused.err(), Some(WorkError::OverLimit { limit }));
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
    let longest = vec![b'x'; limit as usize];
    let taken = world
        .engine
        .complete_work(id, token, head(200), longest.into(), WINDOW, None)
        .await;
    taken.expect("durable");
}

#[tokio::test]
async fn i11_the_window_of_a_workers_result_is_counted_from_its_completion() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    world.clock.advance(LEASE / 2);
    complete(&world.engine, &granted, "done")
        .await
        .expect("durable");
    world.clock.advance(WINDOW - Duration::from_millis(1));
    drop(world.replay("k").await);
    world.clock.advance(Duration::from_millis(1));
    let next = grant(&world.engine, "k").await;
    assert_ne!(next.id, granted.id, "another operation");
}

#[tokio::test]
async fn who_watches_is_told_the_end_and_is_no_attempt() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let Ok(Some(Watch::Running(stored, reader))) = world.engine.watch(granted.id).await else {
        panic!("it runs");
    };
    assert_eq!(stored.record.id, granted.id);
    let watching = tokio::spawn(read(reader));
    complete(&world.engine, &granted, "done")
        .await
        .expect("durable");
    assert_eq!(watching.await.expect("answered"), whole("done"));
    let Ok(Some(Watch::Settled(stored))) = world.engine.watch(granted.id).await else {
        panic!("it is finished");
    };
    assert_eq!(stored.attempts, 1);
    let nobody = world.engine.watch(OperationId::from_bytes([1; 16])).await;
    assert!(matches!(nobody, Ok(None)));
}

#[tokio::test]
async fn who_watches_a_gateways_own_execution_is_told_its_end_too() {
    let world = World::new();
    let (execution, _reader) = world.execute("k").await;
    let Ok(Some(Watch::Running(_, reader))) = world.engine.watch(execution.id()).await else {
        panic!("it runs");
    };
    finish(execution, "charged").await;
    assert_eq!(read(reader).await, whole("charged"));
}

#[tokio::test]
async fn an_operator_settles_a_workers_claim_once_it_is_unknown_and_purges_none_in_flight() {
    // An answer of more than a chunk is claimed for.
    for (len, refused) in [
        (CHUNK, WorkError::Settled(StateName::Completed)),
        (3 * CHUNK + 1, WorkError::Fenced),
    ] {
        let world = World::new();
        let granted = grant(&world.engine, "k").await;
        let resolve = |resolution| world.rule(granted.id, resolution);
        let early = resolve(Resolution::Released).await;
        assert!(early.is_err(), "it runs");
        assert_eq!(world.engine.purge(Purge::default()).await, Ok(0));
        world.clock.advance(LEASE);
        world.engine.upkeep().await;
        resolve(ran(body(len))).await.expect("resolved");
        let late = complete(&world.engine, &granted, "late").await;
        assert_eq!(late.err(), Some(refused));
        let answer = Answer::whole(head(200), Kind::Executed, body(len));
        assert_eq!(read(world.replay("k").await).await, answer);
        assert_eq!(world.engine.purge(Purge::default()).await, Ok(1));
        let gone = complete(&world.engine, &granted, "late").await;
        assert_eq!(gone.err(), Some(WorkError::NotFound));
    }
}

#[tokio::test]
async fn a_gateway_that_stops_leaves_what_workers_hold_alone() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    world.engine.shutdown(Duration::ZERO).await;
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
    let neighbour = world.neighbour(2);
    complete(&neighbour.engine, &granted, "done")
        .await
        .expect("durable");
    let worker = world.engine.worker(None, LEASE);
    let begun = world
        .engine
        .begin_work(request("new"), worker, &policy())
        .await;
    assert!(begun.is_err(), "it claims nothing more");
}

#[tokio::test]
async fn the_books_have_what_a_worker_used() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let used = Metered {
        model: "m".into(),
        source: Source::Provider,
        ..Metered::default()
    };
    let (id, token) = (granted.id, &granted.token);
    let metered = Some(used.clone());
    let record = world
        .engine
        .complete_work(id, token, head(200), "done".into(), WINDOW, metered)
        .await;
    assert_eq!(record.expect("durable").metered.as_deref(), Some(&used));
    eventually("it is booked", || async {
        world.engine.upkeep().await.booked == 1
    })
    .await;
}

#[tokio::test]
async fn i03_what_a_worker_sends_is_seen_as_it_comes_by_who_joined_before_and_after() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let mut early = world.join("k").await;
    let (id, token) = (granted.id, &granted.token);
    let taken = world.engine.take_over(id, token, WINDOW).await;
    let mut execution = taken.expect("it is the worker's");
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("it runs");
    execution.push("first".into()).await.expect("it runs");
    let mut late = world.join("k").await;
    for reader in [&mut early, &mut late] {
        let started = Start::Response {
            head: head(200),
            kind: Kind::Executed,
        };
        assert_eq!(reader.start().await, started);
        let frame = reader.next().await.expect("it runs").expect("it runs");
        assert_eq!(frame, Frame::Data("first".into()));
    }
    execution.push(", last".into()).await.expect("it runs");
    execution.complete(no_trailers()).await.expect("durable");
    for mut reader in [early, late] {
        assert_eq!(reader.next().await, Some(Ok(Frame::Data(", last".into()))));
        assert_eq!(reader.next().await, None);
    }
    assert_eq!(read(world.replay("k").await).await, whole("first, last"));
}

#[tokio::test]
async fn i09_a_claim_is_taken_over_once_and_settled_by_who_took_it() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let (id, token) = (granted.id, &granted.token);
    let execution = world.engine.take_over(id, token, WINDOW).await;
    let execution = execution.expect("it is the worker's");
    let runs = Some(WorkError::Settled(StateName::InFlight));
    for engine in [&world.engine, &world.neighbour(2).engine] {
        assert_eq!(engine.take_over(id, token, WINDOW).await.err(), runs);
        assert_eq!(complete(engine, &granted, "other").await.err(), runs);
        assert_eq!(engine.release_work(id, token).await.err(), runs);
        assert_eq!(engine.fail_work(id, token, None).await.err(), runs);
    }
    // Nor does the worker keep alive what its gateway has left.
    let before = world.record("k").await;
    let renewed = world.engine.renew_work(id, token, 2 * LEASE).await;
    renewed.expect("it runs");
    assert_eq!(world.record("k").await, before);
    finish(execution, "done").await;
    assert_eq!(read(world.replay("k").await).await, whole("done"));
    let settled = world.engine.take_over(id, token, WINDOW).await.err();
    assert_eq!(settled, Some(WorkError::Settled(StateName::Completed)));
}

#[tokio::test]
async fn i09_a_claim_that_was_not_granted_or_has_passed_is_not_taken_over() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let guess = grant(&world.engine, "other").await.token;
    let taken = world.engine.take_over(granted.id, &guess, WINDOW).await;
    assert_eq!(taken.err(), Some(WorkError::NotFound));
    world.clock.advance(LEASE);
    world.engine.upkeep().await;
    let (id, token) = (granted.id, &granted.token);
    let taken = world.engine.take_over(id, token, WINDOW).await;
    assert_eq!(taken.err(), Some(WorkError::Settled(StateName::Unknown)));
}

#[tokio::test]
async fn l3_what_a_dead_gateway_took_over_becomes_unknown_within_a_lease() {
    let world = World::new();
    let other = world.neighbour(2);
    let granted = grant(&world.engine, "k").await;
    let (id, token) = (granted.id, &granted.token);
    let execution = other.engine.take_over(id, token, WINDOW).await;
    // It never runs again.
    std::mem::forget(execution.expect("it is the worker's"));
    world.clock.advance(LEASE);
    world
        .engine
        .renew_work(id, token, LEASE)
        .await
        .expect("not yet");
    world.engine.upkeep().await;
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn i09_a_guess_whose_differences_cancel_out_settles_nothing() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    // The same bit is wrong in the last two bytes.
    let text = granted.token.to_string();
    let (known, last) = text.split_at(60);
    let last = u16::from_str_radix(last, 16).expect("4 digits") ^ 0x0101;
    let guess = Granted {
        token: format!("{known}{last:04x}").parse().expect("a token"),
        ..granted
    };
    let settled = complete(&world.engine, &guess, "x").await;
    assert_eq!(settled.err(), Some(WorkError::Fenced));
}

#[tokio::test]
async fn a_claim_token_is_never_written_to_a_log() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    assert_eq!(format!("{:?}", granted.token), "ClaimToken(..)");
    assert!(!format!("{granted:?}").contains(&granted.token.to_string()));
}

#[tokio::test]
async fn a_claim_is_looked_at_by_its_token() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    let claimed = world.engine.claimed(granted.id, &granted.token).await;
    let stored = claimed.expect("readable").expect("there");
    assert_eq!(stored.record.id, granted.id);
    let nobody = OperationId::from_bytes([1; 16]);
    let claimed = world.engine.claimed(nobody, &granted.token).await;
    assert!(claimed.expect("readable").is_none());
}

#[tokio::test]
async fn what_an_operator_freed_is_not_freed_by_its_worker() {
    let world = World::new();
    let granted = grant(&world.engine, "k").await;
    world.clock.advance(LEASE);
    world.engine.upkeep().await;
    let resolved = world.rule(granted.id, Resolution::Released).await;
    resolved.expect("resolved");
    let released = world.engine.release_work(granted.id, &granted.token).await;
    let settled = WorkError::Settled(StateName::Released);
    assert_eq!(released.err(), Some(settled));
}
