//! The largest few of many.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Keeps the largest of what it is offered, a given number of them, and no room for more.
pub struct Largest<T> {
    most: usize,
    /// The least of them on top.
    kept: BinaryHeap<Reverse<T>>,
}

impl<T: Ord> Largest<T> {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            kept: BinaryHeap::new(),
        }
    }

    /// What something must be larger than to be kept, once there are enough.
    pub fn least(&self) -> Option<&T> {
        let least = self.kept.peek().filter(|_| self.kept.len() >= self.most);
        least.map(|Reverse(least)| least)
    }

    pub fn offer(&mut self, offered: T) {
        if self.kept.len() < self.most {
            self.kept.push(Reverse(offered));
        } else if let Some(mut least) = self.kept.peek_mut()
            && offered > least.0
        {
            *least = Reverse(offered);
        }
    }

    /// The largest first.
    pub fn into_vec(self) -> Vec<T> {
        let kept = self.kept.into_sorted_vec().into_iter();
        kept.map(|Reverse(kept)| kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_in_order() {
        for most in [0, 1, 3, 7, 8] {
            let mut largest = Largest::new(most);
            for offered in [3, 1, 4, 15, 9, 2, 6] {
                largest.offer(offered);
            }
            assert_eq!(largest.least().is_some(), (1..=7).contains(&most));
            let expected = [15, 9, 6, 4, 3, 2, 1];
            assert_eq!(largest.into_vec(), expected[..most.min(7)]);
        }
    }
}
