//! The gate under a real runtime.

use super::gate::Gate;

#[tokio::test]
async fn all_waiters_of_a_thread_pass_when_the_gate_opens() {
    let gate = Gate::open_to(0);
    let waiters: Vec<_> = (1..=100)
        .map(|position| tokio::spawn(gate.wait(position)))
        .collect();
    tokio::task::yield_now().await;
    let opener = gate.clone();
    std::thread::spawn(move || opener.open(100))
        .join()
        .expect("the opener");
    for waiter in waiters {
        assert_eq!(waiter.await.expect("no panic"), Ok(()));
    }
}

#[tokio::test]
async fn a_leader_that_is_dropped_hands_its_wake_up_on() {
    let gate = Gate::open_to(0);
    let leader = tokio::spawn(gate.wait(1));
    tokio::task::yield_now().await;
    let follower = tokio::spawn(gate.wait(1));
    tokio::task::yield_now().await;
    gate.open(1);
    leader.abort();
    assert_eq!(follower.await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn i12_a_broken_gate_tells_everybody_but_those_who_had_passed() {
    let gate = Gate::open_to(5);
    let waiter = tokio::spawn(gate.wait(6));
    tokio::task::yield_now().await;
    gate.break_off("the disk is on fire");
    assert!(waiter.await.expect("no panic").is_err());
    assert_eq!(gate.wait(5).await, Ok(()));
    assert!(gate.wait(7).await.is_err());
}
