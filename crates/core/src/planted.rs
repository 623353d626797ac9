//! Bugs that are planted on purpose, so that the tests can be tested: each must be caught.
//!
//! They are there only with the feature `planted`, which no build without debug assertions takes: no
//! release carries one. Which of them a process has is said by the environment variable
//! [`VARIABLE`], read once; without it, the process has none. Without the feature, [`planted`] is a
//! constant `false`, and the code of every bug goes with it.
//!
//! `cargo xtask planted` lists them and hunts each.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("the feature `planted` is for tests: no release is built with it");

/// The environment variable that names the bug of a process.
pub const VARIABLE: &str = "ONLYONCE_PLANTED";

macro_rules! bugs {
    ($($bug:ident = $name:literal, $what:literal;)*) => {
        /// A bug of the kind that is written when nobody looks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $what] $bug,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// Its name, as [`VARIABLE`] takes it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }

            /// What is wrong with it, in a sentence.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$bug => $what,)*
                }
            }
        }
    };
}

bugs! {
    // The protocol.
    LeaseReExecution = "lease-re-execution",
        "A claim whose lease has passed is released, and the next attempt executes again.";
    RunningExpires = "running-expires",
        "A claim that is not renewed in time counts as absent, and its key as new.";
    EarlyExpiry = "early-expiry",
        "A record stops to answer one millisecond before its window ends.";
    ExpiryFromClaim = "expiry-from-claim",
        "The window is counted from the claim, and not from completion.";
    LeaseShortened = "lease-shortened",
        "A renewal by a clock that went back shortens a lease that others believe in.";
    ResendReleased = "resend-released",
        "A resend that did not run frees the key, though what ran before it is in doubt.";
    StateBeforeFingerprint = "state-before-fingerprint",
        "The state is looked at before the fingerprint: another request is answered from the record.";
    HeaderOrderLost = "header-order-lost",
        "Recorded headers are kept as a map: their order is lost, and all but one of each name.";

    // The engine.
    ClaimAfterSend = "claim-after-send",
        "The execution begins while its claim is still being written.";
    LostAckClaimedAgain = "lost-ack-claimed-again",
        "A claim whose acknowledgement was lost is not read back, but made again.";
    CompletionUnfenced = "completion-unfenced",
        "A completion that lost its compare-and-set is tried again with the fence that stands there.";
    ReleaseUnfenced = "release-unfenced",
        "A release that lost its compare-and-set is tried again with the fence that stands there.";
    LateAnswerUnfenced = "late-answer-unfenced",
        "A late answer is written over whatever followed the unknown outcome that it belongs to.";
    SendAfterLease = "send-after-lease",
        "Whether the lease has passed is not asked again before the first byte is sent.";
    JoinersReExecute = "joiners-re-execute",
        "Who waited for an execution that is released executes in turn.";
    DroppedWriterCleanEnd = "dropped-writer-clean-end",
        "The end of a recording whose writer went away reads as the end of the answer.";
    EndBeforeRecord = "end-before-record",
        "The last byte of an answer goes to the caller before the record is durable.";
    ShortBodyComplete = "short-body-complete",
        "A body that is shorter than its head said is recorded as complete.";
    ReaderReadsAgain = "reader-reads-again",
        "A reader that fell behind is given a chunk from its start, and not from where it stood.";

    // The stores.
    ScopeLeftOut = "scope-left-out",
        "A record's address is made of the key alone, without tenant and namespace.";
    ClaimNotSynced = "claim-not-synced",
        "A claim counts as written before it is synced to the disk.";
    PoisonCleared = "poison-cleared",
        "A sync that failed is passed over, and the log goes on.";
    CorruptAsAbsent = "corrupt-as-absent",
        "A record that is damaged is left out when the store is opened.";
    ChecksumIgnored = "checksum-ignored",
        "The checksum of an entry is not compared when it is read.";
    TornRecordingKept = "torn-recording-kept",
        "A completed record is kept though a torn commit has lost a part of its recording.";
    RestartReExecution = "restart-re-execution",
        "Claims of the process before are released at the start, since it is known to be dead.";
    LiveSegmentDropped = "live-segment-dropped",
        "The oldest segment of the log is dropped without a look at what still lives in it.";

    // Requests and answers.
    FingerprintWithoutLengths = "fingerprint-without-lengths",
        "The parts of a fingerprint run into each other, since none has its length before it.";
    QueryLeftOut = "query-left-out",
        "The query is not part of the fingerprint.";
    NumbersMerged = "numbers-merged",
        "Canonical JSON takes every number for a double, so that large ones merge.";
    QuotesKept = "quotes-kept",
        "A key with quotes around it is another key than the same without.";
    SetCookieReplayed = "set-cookie-replayed",
        "Cookies are recorded, and set in everybody who gets a replay.";
    OversizeComplete = "oversize-complete",
        "An answer that goes over the limit is recorded as complete where it was cut off.";
    ClientGoneCancels = "client-gone-cancels",
        "An execution ends when the caller that began it leaves.";
    QueryStored = "query-stored",
        "The query goes into the record with the path, and the credential that is in it.";
    BreakTakenForNotSent = "break-taken-for-not-sent",
        "A connection that broke after the request was written releases the key.";
    BlindUpstreamRetry = "blind-upstream-retry",
        "A request whose connection broke is sent to the upstream once more.";
}

impl Bug {
    /// The bug of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }
}

/// Whether this process has `bug`: never, without the feature `planted`.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

// The compiler knows it, whatever the environment says.
#[cfg(not(feature = "planted"))]
const _: () = assert!(!planted(Bug::LeaseReExecution));

/// Whether this process has `bug`.
///
/// # Panics
///
/// If [`VARIABLE`] names no bug: a hunt for nothing would find nothing.
#[cfg(feature = "planted")]
pub fn planted(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        Some(Bug::named(&name).unwrap_or_else(|| panic!("{VARIABLE}={name} is no planted bug")))
    });
    *chosen == Some(bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_found_by_its_name_and_no_two_have_one() {
        for &bug in Bug::ALL {
            assert_eq!(Bug::named(bug.name()), Some(bug));
        }
        assert_eq!(Bug::named(""), None);
    }
}
