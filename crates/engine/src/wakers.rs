//! Who waits for a live operation to change.
//!
//! One waiter, the usual case, costs no allocation. A thousand are woken by one call.

use std::task::Waker;

/// The tasks to wake at the next change.
#[derive(Debug)]
pub(crate) struct Wakers {
    /// Counts the changes, from 1; a seat of an earlier round is not taken any more.
    round: u64,
    first: Option<Waker>,
    rest: Vec<Option<Waker>>,
    /// Indices in `rest` whose waiter has left.
    vacant: Vec<usize>,
}

/// Where one waiter waits; it keeps it between polls.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    round: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    First,
    Rest(usize),
}

/// Wakers taken out, to be woken without a lock held: waking may drop a task, and with it a
/// reader that wants the lock.
#[must_use = "whoever waits must be woken"]
pub(crate) struct Woken {
    first: Option<Waker>,
    rest: Vec<Option<Waker>>,
}

impl Wakers {
    pub(crate) fn new() -> Self {
        Self {
            round: 1,
            first: None,
            rest: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// Lets `waker` wait in `seat`.
    pub(crate) fn sit(&mut self, seat: &mut Seat, waker: &Waker) {
        if seat.round != self.round {
            seat.round = self.round;
            seat.place = self.free_place();
        }
        let at = match seat.place {
            Place::First => &mut self.first,
            Place::Rest(index) => &mut self.rest[index],
        };
        match at {
            Some(sitting) if sitting.will_wake(waker) => {}
            at => *at = Some(waker.clone()),
        }
    }

    fn free_place(&mut self) -> Place {
        if self.first.is_none() {
            return Place::First;
        }
        Place::Rest(self.vacant.pop().unwrap_or_else(|| {
            self.rest.push(None);
            self.rest.len() - 1
        }))
    }

    /// Gives the waker of a waiter that leaves back, to be dropped without a lock held.
    pub(crate) fn leave(&mut self, seat: &mut Seat) -> Option<Waker> {
        if seat.round != self.round {
            return None;
        }
        seat.round = 0;
        match seat.place {
            Place::First => self.first.take(),
            Place::Rest(index) => {
                self.vacant.push(index);
                self.rest[index].take()
            }
        }
    }

    /// Takes everybody out and starts a new round.
    pub(crate) fn take(&mut self) -> Woken {
        self.round += 1;
        self.vacant.clear();
        Woken {
            first: self.first.take(),
            rest: std::mem::take(&mut self.rest),
        }
    }
}

impl Woken {
    pub(crate) fn wake(self) {
        let Self { first, rest } = self;
        for waker in first.into_iter().chain(rest.into_iter().flatten()) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn everybody_who_sits_is_woken_once_and_who_left_is_not() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut wakers = Wakers::new();
        let mut seats: Vec<Seat> = (0..5).map(|_| Seat::default()).collect();
        for seat in &mut seats {
            wakers.sit(seat, &waker);
            wakers.sit(seat, &waker);
        }
        wakers.leave(&mut seats[0]);
        wakers.leave(&mut seats[3]);
        wakers.take().wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
        wakers.take().wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn i15_coming_and_going_between_two_changes_takes_no_room() {
        let waker = Waker::from(Arc::new(Count::default()));
        let mut wakers = Wakers::new();
        let mut stays = Seat::default();
        wakers.sit(&mut stays, &waker);
        for _ in 0..1_000 {
            let mut seat = Seat::default();
            wakers.sit(&mut seat, &waker);
            wakers.leave(&mut seat);
        }
        assert!(wakers.rest.len() <= 1);
    }

    #[test]
    fn a_seat_of_an_earlier_round_leaves_nobody_elses_place() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut wakers = Wakers::new();
        let mut old = Seat::default();
        wakers.sit(&mut old, &waker);
        wakers.take().wake();
        let mut new = Seat::default();
        wakers.sit(&mut new, &waker);
        assert!(wakers.leave(&mut old).is_none());
        wakers.take().wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn l2_who_is_polled_by_another_task_is_woken_there() {
        let counts = [0, 1].map(|_| Arc::new(Count::default()));
        let wakers_of = counts.clone().map(Waker::from);
        let mut wakers = Wakers::new();
        let mut seat = Seat::default();
        for waker in &wakers_of {
            wakers.sit(&mut seat, waker);
        }
        wakers.take().wake();
        assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [0, 1]);
    }
}
