//! Who waits for a claim is woken.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use loom::{future::block_on, thread};
use onlyonce_core::{Address, Fingerprint};

use crate::{
    in_every_order,
    live::{End, Live, Phase},
};

fn claiming() -> Arc<Live> {
    let address = Address::from_bytes([1; 16]);
    Arc::new(Live::new(address, Fingerprint::from_bytes([2; 32])))
}

#[test]
fn who_waits_for_a_claim_is_woken_and_none_is_forgotten() {
    in_every_order(None, || {
        let live = claiming();
        let waiting = [(); 2].map(|()| {
            let live = live.clone();
            thread::spawn(move || assert!(matches!(block_on(live.claimed()), Phase::Running)))
        });
        live.publish(|state| state.phase = Phase::Running);
        waiting.into_iter().for_each(|one| one.join().unwrap());
    });
}

#[test]
fn who_leaves_takes_nobodys_place() {
    in_every_order(None, || {
        let live = claiming();
        let (stays, leaves) = (live.clone(), live.clone());
        let staying = thread::spawn(move || {
            let phase = block_on(stays.claimed());
            assert!(matches!(phase, Phase::Ended(End::NotClaimed(None))));
        });
        let leaving = thread::spawn(move || {
            let mut claimed = pin!(leaves.claimed());
            let mut cx = Context::from_waker(Waker::noop());
            let polled = claimed.as_mut().poll(&mut cx);
            assert!(matches!(
                polled,
                Poll::Pending | Poll::Ready(Phase::Ended(End::NotClaimed(None)))
            ));
        });
        live.end(End::NotClaimed(None));
        staying.join().unwrap();
        leaving.join().unwrap();
    });
}

#[test]
fn the_first_end_stands() {
    in_every_order(None, || {
        let live = claiming();
        let other = live.clone();
        let ending = thread::spawn(move || {
            other.end(End::Completed { expires_at: None });
            other.state.lock().phase.clone()
        });
        live.end(End::NotClaimed(None));
        let seen = live.state.lock().phase.clone();
        let seen_there = ending.join().unwrap();
        let is_completed = |phase| matches!(phase, Phase::Ended(End::Completed { .. }));
        assert_eq!(is_completed(seen), is_completed(seen_there));
    });
}
