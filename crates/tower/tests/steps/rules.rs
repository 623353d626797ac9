//! What a step promises, and what becomes of its operation.

use std::time::Duration;

use onlyonce_core::{State, StateName, UnknownReason};
use onlyonce_store::Store;
use onlyonce_store::books::{Books, EntryQuery};
use onlyonce_tower::{Call, Failure, Key, Metered, RunError, StepError};

use crate::world::{Broke, Counter, DAY, World, call, charge, lost, reason_of};

#[tokio::test]
async fn i01_a_step_runs_once_and_an_operation_that_is_continued_gets_its_result() {
    let world = World::new();
    let (bank, keys) = (Counter::default(), Counter::default());
    let first = bank.clone();
    lost(&world.once, call(), async move |operation| {
        assert_eq!(charge(&operation, &first).await?, 1);
        Err(Broke.into())
    })
    .await;
    assert_eq!(
        reason_of(&*world.operation().await),
        Some(UnknownReason::HandlerFailed)
    );
    let again = bank.clone();
    let key_of_the_first = world.operation().await.id;
    let got = world.once.run(call(), async move |operation| {
        keys.hit();
        assert_eq!(operation.id(), key_of_the_first);
        charge(&operation, &again).await
    });
    assert_eq!(got.await.unwrap(), 1);
    assert_eq!(bank.hits(), 1);
    let step = world.step("charge").await.unwrap();
    assert_eq!(&*step.scope.namespace, "run/steps");
    assert_eq!(
        step.key.as_str(),
        format!("{}/charge", world.operation().await.id)
    );
    assert_eq!(step.state.name(), StateName::Completed);
}

#[tokio::test]
async fn i02_i03_a_step_is_claimed_before_it_runs_and_recorded_before_it_is_over() {
    let world = World::new();
    let store = world.store.clone();
    let step = move |operation: &onlyonce_tower::Operation| {
        let scope = onlyonce_core::Scope {
            tenant: operation.tenant().into(),
            namespace: "run/steps".into(),
        };
        let key = Key::new(&format!("{}/charge", operation.id())).unwrap();
        let address = onlyonce_store::address(store.secret(), &scope, &key);
        let store = store.clone();
        async move { Some(store.load(address).await.unwrap()?.record.state.name()) }
    };
    let ran = world.once.run(call(), async move |operation| {
        assert_eq!(step(&operation).await, None);
        let during = operation.step("charge", || {
            let state = step(&operation);
            async move { Ok::<_, Failure>(state.await.map(|state| state.as_str().to_owned())) }
        });
        let during = during.await?;
        assert_eq!(step(&operation).await, Some(StateName::Completed));
        Ok::<_, Failure>(during)
    });
    assert_eq!(ran.await.unwrap().as_deref(), Some("in_flight"));
}

#[tokio::test]
async fn i10_an_operation_whose_only_step_did_not_run_is_released() {
    let world = World::new();
    let ran = world.once.run(call(), async move |operation| {
        let step = operation.step("charge", async || {
            Err::<(), _>(Failure::did_not_run("no line"))
        });
        step.await?;
        Ok::<_, Failure>(0)
    });
    let error = ran.await.unwrap_err();
    assert!(matches!(error, RunError::DidNotRun { .. }), "{error:?}");
    assert!(error.to_string().contains("no line"), "{error}");
    assert_eq!(world.operation().await.state.name(), StateName::Released);
    assert_eq!(world.state_of("charge").await, Some(StateName::Released));
    // The key is free, and so is the step.
    let bank = Counter::default();
    let ran = world.once.run(call(), async move |operation| {
        charge(&operation, &bank).await
    });
    assert_eq!(ran.await.unwrap(), 1);
}

#[tokio::test]
async fn i10_an_operation_with_a_finished_step_is_never_released_and_continues() {
    let world = World::new();
    let bank = Counter::default();
    let first = bank.clone();
    let ran = world.once.run(call(), async move |operation| {
        charge(&operation, &first).await?;
        let mail = operation.step("mail", async || {
            Err::<(), _>(Failure::did_not_run("no line"))
        });
        mail.await?;
        Ok::<_, Failure>(0)
    });
    let error = ran.await.unwrap_err();
    assert!(matches!(error, RunError::Unfinished { .. }), "{error:?}");
    assert!(
        error.to_string().contains("mail did not run: no line"),
        "{error}"
    );
    let operation = world.operation().await;
    assert_eq!(reason_of(&operation), Some(UnknownReason::Unfinished));

    // Long after a released operation would have been forgotten.
    world.clock.advance(DAY);
    world.store.sweep().await.unwrap();
    let again = bank.clone();
    let ran = world.once.run(call(), async move |operation| {
        let number = charge(&operation, &again).await?;
        let mail = operation.step("mail", async || Ok::<_, Failure>(number + 100));
        Ok::<_, Failure>(mail.await?)
    });
    assert_eq!(ran.await.unwrap(), 101);
    assert_eq!(bank.hits(), 1);
    assert_eq!(world.operation().await.id, operation.id);
}

#[tokio::test]
async fn a_step_that_failed_is_unknown_and_stops_its_operation_whatever_that_says() {
    let world = World::new();
    let bank = Counter::default();
    let first = bank.clone();
    let error = lost(&world.once, call(), async move |operation| {
        let step = operation.step("charge", async || {
            first.hit();
            Err::<usize, _>(Failure::from(Broke))
        });
        assert!(matches!(step.await, Err(StepError::Unknown { .. })));
        // Its handler does as if nothing had happened.
        Ok(7)
    })
    .await;
    let step = world.step("charge").await.unwrap();
    for part in ["charge", &step.id.to_string(), "it broke"] {
        assert!(
            error.to_string().contains(part),
            "{part} is not in: {error}"
        );
    }
    let operation = world.operation().await;
    assert_eq!(reason_of(&operation), Some(UnknownReason::StepUnknown));

    // It is not run again, however often its operation is.
    for _ in 0..2 {
        let again = bank.clone();
        let error = lost(&world.once, call(), async move |operation| {
            Ok(charge(&operation, &again).await?)
        });
        let error = error.await.to_string();
        assert!(error.contains(&step.id.to_string()), "{error}");
    }
    assert_eq!(bank.hits(), 1);

    // Somebody finds out that it ran, with this result.
    world.resolve(step.id, Some("41")).await;
    let again = bank.clone();
    let ran = world.once.run(call(), async move |operation| {
        charge(&operation, &again).await
    });
    assert_eq!(ran.await.unwrap(), 41);
    assert_eq!(bank.hits(), 1);
}

#[tokio::test]
async fn a_step_that_is_settled_as_not_run_runs_with_the_next_attempt() {
    let world = World::new();
    lost(&world.once, call(), async move |operation| {
        let step = operation.step("charge", async || Err::<usize, _>(Failure::from(Broke)));
        Ok(step.await?)
    })
    .await;
    world
        .resolve(world.step("charge").await.unwrap().id, None)
        .await;
    let bank = Counter::default();
    let ran = world.once.run(call(), async move |operation| {
        charge(&operation, &bank).await
    });
    assert_eq!(ran.await.unwrap(), 1);
}

#[tokio::test]
async fn a_panic_within_a_step_leaves_it_unknown() {
    let world = World::new();
    lost(&world.once, call(), async move |operation| {
        let step = operation.step("charge", async || -> Result<usize, Failure> {
            panic!("a bug in a step")
        });
        Ok(step.await?)
    })
    .await;
    let step = world.step("charge").await.unwrap();
    assert_eq!(reason_of(&step), Some(UnknownReason::HandlerFailed));
    let operation = world.operation().await;
    assert_eq!(reason_of(&operation), Some(UnknownReason::StepUnknown));
}

#[tokio::test]
async fn a_step_that_is_dropped_in_the_middle_stops_its_operation() {
    let world = World::new();
    let error = lost(&world.once, call(), async move |operation| {
        let step = operation.step("charge", async || {
            std::future::pending::<()>().await;
            Ok::<_, Failure>(1)
        });
        tokio::select! {
            biased;
            _ = step => {}
            () = tokio::task::yield_now() => {}
        }
        Ok(7)
    })
    .await;
    assert!(error.to_string().contains("charge was dropped"), "{error}");
}

#[tokio::test]
async fn i01_a_step_whose_downstream_honours_its_key_runs_again_under_the_same_key() {
    let world = World::new();
    let bank = Counter::default();
    let mut keys = Vec::new();
    for attempt in 1..=3 {
        let (bank, (tell, told)) = (bank.clone(), std::sync::mpsc::channel());
        let ran = world.once.run(call(), async move |operation| {
            let charge = operation.step("charge", async || {
                tell.send(operation.key_for("charge")).unwrap();
                match bank.hit() {
                    1 => Err(Failure::from(Broke)),
                    2 => panic!("a bug in a step"),
                    number => Ok(number),
                }
            });
            charge.downstream_honours_the_key().await
        });
        let ran = ran.await;
        keys.push(told.recv().unwrap());
        match attempt {
            3 => assert_eq!(ran.unwrap(), 3),
            _ => assert!(matches!(ran, Err(RunError::Unfinished { .. })), "{ran:?}"),
        }
    }
    assert_eq!(keys[0], keys[1]);
    assert_eq!(keys[0], keys[2]);
    assert_eq!(world.operation().await.state.name(), StateName::Completed);
}

#[tokio::test]
async fn a_name_is_used_once_in_an_execution() {
    let world = World::new();
    let bank = Counter::default();
    let first = bank.clone();
    lost(&world.once, call(), async move |operation| {
        charge(&operation, &first).await?;
        let twice = charge(&operation, &first).await;
        assert!(matches!(twice, Err(StepError::Twice { .. })), "{twice:?}");
        Ok(twice?)
    })
    .await;
    assert_eq!(bank.hits(), 1);
}

#[tokio::test]
async fn a_step_that_did_not_run_may_be_tried_again_in_the_same_execution() {
    let world = World::new();
    let bank = Counter::default();
    let ran = world.once.run(call(), async move |operation| {
        let step = operation.step("charge", async || {
            Err::<usize, _>(Failure::did_not_run("no line"))
        });
        assert!(matches!(step.await, Err(StepError::DidNotRun { .. })));
        charge(&operation, &bank).await
    });
    assert_eq!(ran.await.unwrap(), 1);
}

#[tokio::test]
async fn i06_a_step_with_another_input_in_a_later_execution_is_refused() {
    let world = World::new();
    let bank = Counter::default();
    for (cents, other) in [(100, false), (200, true)] {
        let bank = bank.clone();
        lost(&world.once, call(), async move |operation| {
            let step = operation.step("charge", async || Ok::<_, Failure>(bank.hit()));
            let charged = step.input(&serde_json::json!({"cents": cents})).await;
            assert_eq!(matches!(charged, Err(StepError::Reused { .. })), other);
            Err(Broke.into())
        })
        .await;
    }
    assert_eq!(bank.hits(), 1);
}

#[tokio::test]
async fn names_that_cannot_be_are_refused() {
    let world = World::new();
    lost(&world.once, call(), async move |operation| {
        for name in ["", "two words", "~request-1", "é", &"x".repeat(201)] {
            let step = operation.step(name, async || Ok::<_, Failure>(1)).await;
            assert!(matches!(step, Err(StepError::BadName { .. })), "{name}");
        }
        operation
            .step(&"x".repeat(200), async || Ok::<_, Failure>(1))
            .await?;
        Err(Broke.into())
    })
    .await;
}

#[tokio::test]
async fn what_is_recorded_and_is_no_such_result_is_an_error() {
    let world = World::new();
    for _ in 0..2 {
        lost(&world.once, call(), async move |operation| {
            let step = operation.step("charge", async || Ok::<_, Failure>("a text".to_owned()));
            if operation.attempt() == 1 {
                step.await?;
                return Err(Broke.into());
            }
            drop(step);
            let step = operation.step("charge", async || Ok::<_, Failure>(1));
            let read = step.await;
            assert!(matches!(read, Err(StepError::BadJson { .. })), "{read:?}");
            Ok(read?)
        })
        .await;
    }
}

#[tokio::test]
async fn i11_an_operation_continues_only_while_its_steps_are_remembered() {
    let margin = DAY;
    for (late, continues) in [(Duration::from_millis(1), true), (Duration::ZERO, false)] {
        let world = World::new();
        let bank = Counter::default();
        let call = || call().steps_window(10 * DAY);
        let first = bank.clone();
        lost(&world.once, call(), async move |operation| {
            charge(&operation, &first).await?;
            Err(Broke.into())
        })
        .await;
        // 10 days, less a day, less a little.
        world.clock.advance(10 * DAY - margin - late);
        let again = bank.clone();
        let ran = world.once.run(call(), async move |operation| {
            charge(&operation, &again).await
        });
        match (ran.await, continues) {
            (Ok(number), true) => assert_eq!(number, 1),
            (Err(error @ RunError::Unknown { .. }), false) => {
                assert!(error.to_string().contains("so long ago"), "{error}");
            }
            (ran, _) => panic!("{late:?}: {ran:?}"),
        }
        assert_eq!(bank.hits(), 1);
    }
}

#[tokio::test]
async fn i11_an_execution_that_lasts_beyond_the_memory_of_its_steps_comes_to_none_of_them() {
    let world = World::new();
    let (bank, clock) = (Counter::default(), world.clock.clone());
    let call = call().steps_window(10 * DAY);
    let again = bank.clone();
    let error = lost(&world.once, call, async move |operation| {
        charge(&operation, &again).await?;
        clock.advance(9 * DAY);
        let step = operation.step("mail", async || Ok::<_, Failure>(again.hit()));
        Ok(step.await?)
    })
    .await;
    assert!(error.to_string().contains("so long ago"), "{error}");
    assert_eq!(bank.hits(), 1);
}

#[tokio::test]
async fn i11_a_step_is_remembered_for_longer_than_its_operation_may_be_continued() {
    let world = World::new();
    let call = || call().steps_window(10 * DAY);
    lost(&world.once, call(), async move |operation| {
        charge(&operation, &Counter::default()).await?;
        Err(Broke.into())
    })
    .await;
    let step = world.step("charge").await.unwrap();
    let State::Completed(completed) = &step.state else {
        panic!("{step:?}")
    };
    let first_claimed = world.operation().await.id.first_claimed();
    assert!(completed.expires_at >= first_claimed.after(10 * DAY));
}

#[tokio::test]
async fn i11_a_step_that_was_settled_is_remembered_for_longer_than_its_operation_may_be_continued()
{
    let world = World::new();
    lost(&world.once, call(), async move |operation| {
        let step = operation.step("charge", async || Err::<usize, _>(Failure::from(Broke)));
        Ok(step.await?)
    })
    .await;
    let step = world.step("charge").await.unwrap();
    world.resolve(step.id, Some("41")).await;
    world.clock.advance(28 * DAY);
    world.store.sweep().await.unwrap();
    let bank = Counter::default();
    let hits = bank.clone();
    let ran = world.once.run(call(), async move |operation| {
        charge(&operation, &bank).await
    });
    assert_eq!(ran.await.unwrap(), 41);
    assert_eq!(hits.hits(), 0);
}

#[tokio::test]
async fn i04_the_next_operation_under_a_key_has_steps_of_its_own() {
    // It sent its downstream the key of the one before, and was given that one's receipt.
    let world = World::new();
    let bank = Counter::default();
    let mut keys = std::collections::HashSet::new();
    for number in 1..=2 {
        let bank = bank.clone();
        let call = Call::new(Key::new("k").unwrap()).window(DAY).resume();
        let ran = world.once.run(call, async move |operation| {
            let number = charge(&operation, &bank).await?;
            Ok::<_, StepError>((number, operation.key_for("charge").as_str().to_owned()))
        });
        let (charged, key) = ran.await.unwrap();
        assert_eq!(charged, number);
        assert!(keys.insert(key), "the operation before had the same key");
        // The window of the operation has passed, and that of its steps has not.
        world.clock.advance(DAY);
        world.store.sweep().await.unwrap();
    }
}

#[tokio::test]
async fn steps_are_no_entries_of_the_books_unless_they_were_metered() {
    let world = World::new();
    let used = Metered {
        provider: "bank".into(),
        ..Metered::default()
    };
    let ran = world.once.run(call(), async move |operation| {
        operation.meter(Metered {
            provider: "whole".into(),
            ..Metered::default()
        });
        charge(&operation, &Counter::default()).await?;
        let step = operation.step("ask", async || Ok::<_, Failure>(3));
        Ok::<_, Failure>(step.metering(move |_| used).await?)
    });
    ran.await.unwrap();
    // One that an operator settles has none either.
    let call = Call::new(Key::new("other").unwrap());
    lost(&world.once, call, async move |operation| {
        let step = operation.step("lost", async || Err::<usize, _>(Failure::from(Broke)));
        Ok(step.await?)
    })
    .await;
    world
        .resolve(world.step("lost").await.unwrap().id, Some("1"))
        .await;
    world.once.engine().upkeep().await;
    let query = EntryQuery {
        limit: 10,
        ..EntryQuery::default()
    };
    let entries = world.store.entries(query).await.unwrap().entries;
    let mut providers: Vec<_> = entries
        .iter()
        .map(|entry| &*entry.metered.provider)
        .collect();
    providers.sort_unstable();
    assert_eq!(providers, ["bank", "whole"]);
}

#[tokio::test]
async fn i07_steps_of_two_tenants_have_nothing_to_do_with_each_other() {
    let world = World::new();
    let bank = Counter::default();
    for (number, tenant) in ["one", "other"].into_iter().enumerate() {
        let bank = bank.clone();
        let ran = world
            .once
            .run(call().tenant(tenant), async move |operation| {
                charge(&operation, &bank).await
            });
        assert_eq!(ran.await.unwrap(), number + 1);
    }
    let tenants: Vec<_> = world
        .records()
        .await
        .iter()
        .map(|record| record.scope.tenant.clone())
        .collect();
    assert_eq!(
        tenants.iter().filter(|tenant| &***tenant == "one").count(),
        2
    );
}
