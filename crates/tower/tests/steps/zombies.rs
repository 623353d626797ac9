//! Owners that stood still for longer than their lease, and come back.
//!
//! Each process is a runtime of its own that moves only while the test lets it.

use std::time::Duration;

use onlyonce_core::{StateName, UnknownReason};
use onlyonce_tower::{Failure, Once, RunError};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::world::{Counter, LEASE, World, call, charge, reason_of};

fn process() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A process that executes the operation until `told`, and stands still then. `work` goes on once the
/// sender says so.
struct Paused {
    runtime: Runtime,
    running: tokio::task::JoinHandle<Result<usize, RunError>>,
    go: oneshot::Sender<()>,
}

impl Paused {
    /// Two steps; stands still after the first one, or within it.
    fn start(world: &World, bank: &Counter, mail: &Counter, within: bool) -> Self {
        let runtime = process();
        let (go, goes) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel::<()>();
        let once = runtime.block_on(async { world.another() });
        let (bank, mail) = (bank.clone(), mail.clone());
        let running = runtime.spawn(async move {
            once.run(call(), async move |operation| {
                let mut pause = Some((tell, goes));
                let stand_still =
                    |pause: &mut Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>| {
                        let (tell, goes) = pause.take().unwrap();
                        async move {
                            tell.send(()).unwrap();
                            goes.await.unwrap();
                        }
                    };
                match within {
                    true => {
                        let step = operation.step("charge", async || {
                            stand_still(&mut pause).await;
                            Ok::<_, Failure>(bank.hit())
                        });
                        step.await?;
                    }
                    false => {
                        charge(&operation, &bank).await?;
                        stand_still(&mut pause).await;
                    }
                }
                let mail = operation.step("mail", async || Ok::<_, Failure>(mail.hit()));
                Ok::<_, Failure>(mail.await?)
            })
            .await
        });
        runtime.block_on(told).unwrap();
        Self {
            runtime,
            running,
            go,
        }
    }

    /// Lets it go on to its end.
    fn wake(self) -> Result<usize, RunError> {
        self.go.send(()).unwrap();
        self.runtime.block_on(self.running).unwrap()
    }
}

/// The handler as it should be, in a process that is well.
async fn both(
    once: &Once<onlyonce_store::MemoryStore>,
    bank: &Counter,
    mail: &Counter,
) -> Result<usize, RunError> {
    let (bank, mail) = (bank.clone(), mail.clone());
    once.run(call(), async move |operation| {
        charge(&operation, &bank).await?;
        let mail = operation.step("mail", async || Ok::<_, Failure>(mail.hit()));
        Ok::<_, Failure>(mail.await?)
    })
    .await
}

#[test]
fn i01_a_zombie_that_comes_to_a_step_that_the_new_owner_did_gets_its_result() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let (bank, mail) = (Counter::default(), Counter::default());
    let zombie = Paused::start(&world, &bank, &mail, false);
    world.clock.advance(LEASE);
    assert_eq!(here.block_on(both(&world.once, &bank, &mail)).unwrap(), 1);
    // Its operation is not its own any more, whatever it says.
    let woken = zombie.wake();
    assert!(matches!(woken, Err(RunError::Unknown { .. })), "{woken:?}");
    assert_eq!((bank.hits(), mail.hits()), (1, 1));
    let operation = here.block_on(world.operation());
    assert_eq!(operation.state.name(), StateName::Completed);
}

#[test]
fn i01_a_zombie_that_comes_to_a_step_that_the_new_owner_holds_joins_it() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let (bank, mail) = (Counter::default(), Counter::default());
    let zombie = Paused::start(&world, &bank, &mail, false);
    world.clock.advance(LEASE);
    // The new owner stands within the step `mail`.
    let (go, goes) = oneshot::channel::<()>();
    let (tell, told) = oneshot::channel::<()>();
    let once = world.once.clone();
    let (its_bank, its_mail) = (bank.clone(), mail.clone());
    let owner = here.spawn(async move {
        once.run(call(), async move |operation| {
            charge(&operation, &its_bank).await?;
            let step = operation.step("mail", async || {
                tell.send(()).unwrap();
                goes.await.unwrap();
                Ok::<_, Failure>(its_mail.hit())
            });
            Ok::<_, Failure>(step.await?)
        })
        .await
    });
    here.block_on(told).unwrap();
    // The zombie wakes in a thread of its own, and waits for the step that it finds there.
    let woken = std::thread::spawn(move || zombie.wake());
    here.block_on(async {
        let step = world.step("mail").await.unwrap();
        let engine = world.once.engine();
        while engine
            .operation(step.id)
            .await
            .unwrap()
            .unwrap()
            .stored
            .attempts
            < 2
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        go.send(()).unwrap();
        assert_eq!(owner.await.unwrap().unwrap(), 1);
    });
    let woken = woken.join().unwrap();
    assert!(matches!(woken, Err(RunError::Unknown { .. })), "{woken:?}");
    assert_eq!((bank.hits(), mail.hits()), (1, 1));
}

#[test]
fn i09_a_step_whose_owner_stood_still_is_unknown_and_its_late_result_changes_nothing() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let (bank, mail) = (Counter::default(), Counter::default());
    let zombie = Paused::start(&world, &bank, &mail, true);
    world.clock.advance(LEASE);
    let stopped = here.block_on(both(&world.once, &bank, &mail)).unwrap_err();
    assert!(matches!(stopped, RunError::Unknown { .. }), "{stopped:?}");
    assert!(stopped.to_string().contains("charge"), "{stopped}");
    assert_eq!((bank.hits(), mail.hits()), (0, 0));
    // It does what it was about to do: once.
    assert!(zombie.wake().is_err());
    assert_eq!((bank.hits(), mail.hits()), (1, 0));
    let step = here.block_on(world.step("charge")).unwrap();
    assert_eq!(reason_of(&step), Some(UnknownReason::LeasePassed));
    let again = here.block_on(both(&world.once, &bank, &mail));
    assert!(matches!(again, Err(RunError::Unknown { .. })), "{again:?}");
    assert_eq!((bank.hits(), mail.hits()), (1, 0));
}

#[test]
fn i01_a_zombie_is_the_first_to_come_to_a_step_and_the_new_owner_gets_its_result() {
    let here = process();
    let world = here.block_on(async { World::new() });
    let (bank, mail) = (Counter::default(), Counter::default());
    let zombie = Paused::start(&world, &bank, &mail, false);
    world.clock.advance(LEASE);
    let (stopped, went) = (bank.clone(), mail.clone());
    // The new owner has passed the first step, and fails before it comes to the second one.
    let ran = here.block_on(world.once.run(call(), async move |operation| {
        charge(&operation, &stopped).await?;
        Err::<usize, _>(Failure::did_not_run("no line"))
    }));
    assert!(matches!(ran, Err(RunError::Unfinished { .. })), "{ran:?}");
    assert!(zombie.wake().is_err());
    assert_eq!((bank.hits(), mail.hits()), (1, 1));
    assert_eq!(here.block_on(both(&world.once, &bank, &went)).unwrap(), 1);
    assert_eq!((bank.hits(), mail.hits()), (1, 1));
}
