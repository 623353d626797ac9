//! What a store must do: one rule a function, the same for every backend.
//!
//! A backend says how it is made in a [`Subject`], and takes all rules as its tests with
//! [`conformance_tests!`](crate::conformance_tests):
//!
//! ```
//! use std::sync::Arc;
//! use onlyonce_store::{MemoryStore, clock::ManualClock, conformance::Subject};
//!
//! struct Memory;
//!
//! impl Subject for Memory {
//!     type Store = MemoryStore;
//!
//!     async fn make(&mut self, clock: ManualClock) -> Arc<MemoryStore> {
//!         Arc::new(MemoryStore::with_clock(clock))
//!     }
//! }
//!
//! onlyonce_store::conformance_tests!(Memory);
//! # fn main() {}
//! ```
//!
//! What may go wrong between a store and what it keeps is for a [`Faulty`] subject, which takes its rules
//! with [`fault_tests!`](crate::fault_tests).
//!
//! A rule panics where the backend breaks it. Rules that need a hook which the subject does not
//! have pass at once.

use std::{future::Future, sync::Arc};

use onlyonce_core::Address;

use crate::{Store, clock::ManualClock};

mod attempts;
mod bench;
mod books;
mod claims;
mod durability;
mod faults;
mod joins;
mod lists;
mod marks;
mod recordings;
mod upkeep;
mod windows;

pub use attempts::*;
pub use books::*;
pub use claims::*;
pub use durability::*;
pub use faults::*;
pub use joins::*;
pub use lists::*;
pub use marks::*;
pub use recordings::*;
pub use upkeep::*;
pub use windows::*;

/// A backend under test, and what a test can do to it from outside.
pub trait Subject: Send + Sync + 'static {
    /// The backend.
    type Store: Store;

    /// A new and empty store on `clock`. Called more than once, it makes stores that share
    /// nothing.
    fn make(&mut self, clock: ManualClock) -> impl Future<Output = Arc<Self::Store>> + Send;

    /// Whether several gateways can share such a store, so that each can follow what another one
    /// records.
    fn is_shared(&self) -> bool {
        true
    }

    /// Waits until all that was kept by now can be booked, where others who use the same server may hold
    /// that up for a moment.
    fn settle(&self) {}

    /// Closes `store` and opens anew what it has kept; `None` for a backend that keeps nothing.
    fn reopen(
        &mut self,
        store: Arc<Self::Store>,
        clock: ManualClock,
    ) -> impl Future<Output = Option<Arc<Self::Store>>> + Send {
        let _ = (store, clock);
        async { None }
    }

    /// Damages what `store` keeps at `address`, and gives the store to go on with, which may be a
    /// reopened one; `None` for a backend that a test cannot damage.
    fn damage(
        &mut self,
        store: Arc<Self::Store>,
        clock: ManualClock,
        address: Address,
    ) -> impl Future<Output = Option<Arc<Self::Store>>> + Send {
        let _ = (store, clock, address);
        async { None }
    }

    /// As [`Subject::damage`], of the first chunk of the recording at `address` alone.
    fn damage_chunk(
        &mut self,
        store: Arc<Self::Store>,
        clock: ManualClock,
        address: Address,
    ) -> impl Future<Output = Option<Arc<Self::Store>>> + Send {
        let _ = (store, clock, address);
        async { None }
    }
}

/// Makes a `#[tokio::test]` of every rule, for the [`Subject`] that the expression gives.
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @rules $subject;
            an_absent_key_is_absent
            a_claim_is_read_back_as_written
            a_claim_of_a_held_key_loses
            one_of_a_hundred_concurrent_claims_wins
            one_of_many_writers_with_the_same_fence_wins
            concurrent_claims_of_many_keys_all_win
            a_lost_write_changes_nothing
            a_stale_fence_loses
            the_fence_of_another_operation_loses
            a_fence_loses_where_nothing_is_held
            the_epoch_rises_by_one_with_every_write
            i09_two_claims_over_one_record_share_no_fence
            i09_a_renewal_and_an_expiry_share_no_fence_with_what_was_forgotten
            an_unlawful_write_never_lands
            scopes_share_nothing
            every_state_is_read_back_as_written
            a_released_key_is_claimed_again_under_its_id
            an_unknown_operation_takes_its_late_answer
            an_unknown_operation_is_claimed_again_where_a_resend_is_allowed
            a_cancelled_write_is_whole_or_absent
            hostile_081_the_window_ends_at_its_very_millisecond
            a_released_record_is_forgotten_at_its_end
            an_expired_record_takes_no_write_under_its_fence
            a_running_operation_never_expires
            an_unknown_operation_never_expires
            the_next_operation_of_a_key_starts_afresh
            a_claim_notes_its_attempt
            attempts_are_numbered_in_order
            concurrent_attempts_get_numbers_of_their_own
            the_latest_attempts_are_kept
            attempts_go_on_after_a_release
            another_operation_has_no_attempts
            chunks_are_read_back_while_the_operation_runs
            a_large_recording_is_read_back_byte_for_byte
            many_small_chunks_keep_their_order
            the_last_chunk_comes_with_the_record
            an_empty_body_has_no_chunk
            a_missing_chunk_is_an_error
            a_recording_is_not_read_under_another_id
            a_completed_recording_is_not_added_to
            a_new_execution_starts_a_new_recording
            i09_chunks_of_a_former_claim_are_refused
            a_recording_without_a_record_takes_no_chunk
            an_operators_answer_replaces_what_was_recorded
            concurrent_recordings_do_not_mix
            who_follows_is_shown_the_recording
            what_chunks_hold_is_not_shown_any_more
            nothing_is_shown_twice
            i09_a_former_claim_shows_nothing_of_the_next_one
            an_operation_is_found_by_its_id
            a_list_is_newest_first
            a_list_is_filtered
            a_list_is_cut_at_its_limit
            a_page_goes_on_inside_a_millisecond
            a_list_shows_what_stands_there_now
            pages_visit_every_operation_once
            a_list_leaves_out_what_has_expired
            a_list_by_state_follows_the_records
            a_record_is_removed_under_its_fence_only
            a_removed_key_is_free
            a_sweep_drops_what_has_expired_and_no_more
            a_key_is_claimed_again_before_and_after_a_sweep
            overdue_begins_where_the_lease_ends
            overdue_is_cut_at_its_limit
            a_mark_is_set_where_it_is_the_one_expected
            a_store_that_moved_takes_no_claim_and_settles_what_runs
            what_settles_beside_a_refused_claim_is_written
            no_claim_lands_once_a_store_moved
            a_mark_survives_a_restart
            a_walk_comes_by_everything_once
            i13_a_walk_comes_by_what_cannot_be_read
            an_attempt_keeps_the_time_that_it_brings
            the_status_counts_records_and_writes
            the_clock_is_the_one_given
            stores_have_secrets_of_their_own
            a_closed_store_takes_no_write
            a_completed_operation_survives_a_restart
            a_running_operation_is_never_absent_after_a_restart
            unknown_and_released_survive_a_restart
            chunks_of_a_former_claim_stay_gone_over_a_restart
            hostile_082_the_window_goes_on_over_a_restart
            a_removed_record_stays_removed_over_a_restart
            lists_and_ids_survive_a_restart
            the_secret_survives_a_restart
            hostile_085_a_damaged_record_is_an_error_of_its_key_alone
            i13_a_completed_record_without_its_recording_is_unknown
            an_entry_comes_with_the_completed_record
            what_is_not_completed_has_no_entry
            a_late_answer_makes_the_one_entry
            what_is_not_metered_has_no_entry
            i08_what_is_completed_again_has_one_entry
            two_bookers_at_once_book_once
            the_feed_shows_every_entry_once_in_one_order
            entries_are_filtered_and_paged
            sums_are_told_by_period_and_account
            an_entry_outlives_its_record
            a_trim_drops_what_is_older_and_no_more
            one_owner_holds_a_sink
            an_advance_from_elsewhere_loses
            a_new_sink_begins_where_it_is_told
            dead_letters_come_back_until_they_are_forgotten
            the_books_survive_a_restart
        }
    };
    (@rules $subject:expr; $($rule:ident)*) => {
        $(
            #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                $crate::conformance::$rule($subject).await;
            }
        )*
    };
}

/// Makes a `#[tokio::test]` of every rule about faults, for the [`Faulty`] subject that the expression
/// gives.
#[macro_export]
macro_rules! fault_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @rules $subject;
            i12_a_cut_line_refuses_and_service_resumes
            i14_a_stall_ends_in_errors_and_nothing_is_doubled
            i14_a_lost_answer_is_in_doubt_and_read_back
            l5_a_stalled_connection_stalls_nobody_longer_than_its_time_out
            i09_answers_in_the_other_order_leave_one_winner
            i01_a_late_answer_is_not_taken_for_that_of_a_later_call
        }
    };
}

#[cfg(test)]
mod tests {
    /// A rule that is not in the macro's list would never run.
    #[test]
    fn every_rule_is_in_the_list() {
        let list = include_str!("conformance.rs");
        let rules = [
            include_str!("conformance/attempts.rs"),
            include_str!("conformance/books.rs"),
            include_str!("conformance/claims.rs"),
            include_str!("conformance/durability.rs"),
            include_str!("conformance/faults.rs"),
            include_str!("conformance/joins.rs"),
            include_str!("conformance/lists.rs"),
            include_str!("conformance/marks.rs"),
            include_str!("conformance/recordings.rs"),
            include_str!("conformance/upkeep.rs"),
            include_str!("conformance/windows.rs"),
        ];
        let names = rules.iter().flat_map(|file| {
            file.split("\npub async fn ")
                .skip(1)
                .filter_map(|rest| rest.split('<').next())
        });
        let mut count = 0;
        for name in names {
            assert!(
                list.lines().any(|line| line.trim() == name),
                "{name} is missing in conformance_tests!"
            );
            count += 1;
        }
        assert!(count > 60, "only {count} rules found");
    }
}
