//! Who has to catch which planted bug.

use std::fmt;

use onlyonce_core::planted::Bug;

/// A program of tests, built with all bugs in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// The simulator of the protocol.
    Model,
    /// The simulator of the gateway.
    Sim,
    /// The engine's tests, over stores in memory.
    Engine,
    /// Kills, torn commits and rot on the embedded store.
    Crash,
    /// The unit tests of requests and answers.
    Http,
    /// The hostile cases, over sockets against the binary.
    Hostile,
    /// A campaign, short, with the binary.
    Campaign,
}

impl Program {
    /// Those that cargo builds.
    pub const TESTS: [Self; 6] = [
        Self::Model,
        Self::Sim,
        Self::Engine,
        Self::Crash,
        Self::Http,
        Self::Hostile,
    ];

    /// The package that it is of, and its name among that package's tests; the unit tests have none.
    pub const fn target(self) -> Option<(&'static str, Option<&'static str>)> {
        Some(match self {
            Self::Model => ("onlyonce-core", Some("model")),
            Self::Sim => ("onlyonce-gateway", Some("sim")),
            Self::Engine => ("onlyonce-engine", Some("engine")),
            Self::Crash => ("onlyonce-store", Some("embedded_crash")),
            Self::Http => ("onlyonce-http", None),
            Self::Hostile => ("onlyonce-gateway", Some("hostile")),
            Self::Campaign => return None,
        })
    }

    /// Whether it is what cargo calls so.
    pub fn is_called(self, name: &str) -> bool {
        self.target().is_some_and(|(package, test)| {
            test.map_or_else(|| package.replace('-', "_") == name, |test| test == name)
        })
    }
}

/// One test that has to fail with a bug, and to pass without; of a campaign, its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hunter {
    pub program: Program,
    /// The full name of the test.
    pub test: &'static str,
}

impl fmt::Display for Hunter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.program {
            Program::Model => f.write_str("seeds of the model"),
            Program::Sim => f.write_str("seeds of the gateway"),
            Program::Campaign => write!(f, "the campaign {}", self.test),
            _ => f.write_str(self.test.rsplit("::").next().unwrap_or(self.test)),
        }
    }
}

/// Seeds in order, over one kind of store after the other, up to the budget.
pub const SEEDS: Hunter = Hunter {
    program: Program::Model,
    test: "no_seed_breaks_a_guarantee",
};

/// The campaign `block-cuts`, short.
const BLOCK_CUTS: Hunter = Hunter {
    program: Program::Campaign,
    test: "block-cuts",
};

/// Seeds of the simulated gateway in order, up to the budget.
pub const GATEWAY_SEEDS: Hunter = Hunter {
    program: Program::Sim,
    test: "seeds::no_seed_breaks_a_guarantee",
};

/// The tests that have to catch `bug`, each by itself.
pub fn hunters(bug: Bug) -> Vec<Hunter> {
    match bug {
        Bug::LeaseReExecution | Bug::RunningExpires | Bug::ExpiryFromClaim => {
            vec![SEEDS, GATEWAY_SEEDS]
        }
        Bug::EarlyExpiry | Bug::LeaseShortened | Bug::ResendReleased => vec![SEEDS],
        Bug::StateBeforeFingerprint => vec![
            SEEDS,
            GATEWAY_SEEDS,
            hostile("again::hostile_022_one_byte_of_the_body_makes_another_request"),
        ],

        Bug::ClaimAfterSend => vec![
            GATEWAY_SEEDS,
            engine("claims::i02_nobody_may_execute_before_the_claim_is_durable"),
            hostile("guarantees::i02_the_claim_is_durable_before_the_first_byte_goes_upstream"),
        ],
        Bug::LostAckClaimedAgain => vec![
            GATEWAY_SEEDS,
            engine("claims::i14_a_claim_whose_acknowledgement_is_lost_is_read_back_and_executes"),
        ],
        Bug::CompletionUnfenced => vec![
            GATEWAY_SEEDS,
            engine(
                "over_memory::two_gateways::hostile_096_an_owner_that_wakes_after_its_lease_changes_nothing",
            ),
        ],
        Bug::ReleaseUnfenced => vec![engine(
            "over_memory::two_gateways::i01_an_owner_that_was_overtaken_before_it_sent_may_not_send",
        )],
        Bug::LateAnswerUnfenced => vec![engine(
            "over_memory::late::i09_a_late_answer_loses_to_a_resend_and_writes_nothing_into_its_recording",
        )],
        Bug::SendAfterLease => vec![
            GATEWAY_SEEDS,
            engine(
                "over_memory::two_gateways::i09_an_owner_whose_lease_has_lapsed_may_not_send_and_frees_the_key",
            ),
        ],
        Bug::JoinersReExecute => vec![
            GATEWAY_SEEDS,
            engine(
                "join_faults::i18_who_waited_for_a_claim_shares_its_fate_even_if_that_is_sealed_at_once",
            ),
        ],
        Bug::DroppedWriterCleanEnd => vec![
            GATEWAY_SEEDS,
            engine(
                "over_memory::recordings::i05_a_dropped_execution_is_unknown_and_breaks_its_readers",
            ),
        ],
        Bug::EndBeforeRecord => vec![
            GATEWAY_SEEDS,
            engine(
                "over_memory::recordings::i03_the_last_piece_of_a_declared_length_waits_for_the_durable_record",
            ),
            hostile("guarantees::i03_the_last_byte_of_a_counted_body_waits_for_the_durable_record"),
        ],
        Bug::ShortBodyComplete => vec![engine(
            "over_memory::recordings::i05_a_response_short_of_its_declared_length_is_never_completed",
        )],
        Bug::ReaderReadsAgain => vec![engine(
            "over_memory::recordings::any_reader_can_start_at_any_byte",
        )],

        Bug::ScopeLeftOut => vec![
            GATEWAY_SEEDS,
            hostile("again::hostile_025_tenants_are_independent"),
        ],
        Bug::ClaimNotSynced => vec![
            BLOCK_CUTS,
            hostile("guarantees::i02_the_claim_is_durable_before_the_first_byte_goes_upstream"),
        ],
        Bug::PoisonCleared => vec![hostile(
            "store::hostile_090_a_failed_fsync_poisons_until_the_restart",
        )],
        Bug::CorruptAsAbsent => vec![crash(
            "i13_no_flipped_byte_makes_a_used_key_look_new_after_a_kill",
        )],
        Bug::ChecksumIgnored => vec![crash(
            "i13_a_torn_commit_leaves_no_completed_record_without_its_recording",
        )],
        Bug::TornRecordingKept => vec![crash(
            "i13_a_torn_commit_leaves_no_completed_record_without_its_recording",
        )],
        Bug::RestartReExecution => vec![crash(
            "l3_a_kill_leaves_completed_records_completed_and_open_claims_unknown",
        )],
        Bug::LiveSegmentDropped => vec![crash(
            "l7_expired_space_comes_back_though_an_old_operation_lives_on",
        )],

        Bug::FingerprintWithoutLengths => {
            vec![http("fingerprint::tests::parts_do_not_run_into_each_other")]
        }
        Bug::NumbersMerged => vec![http(
            "canonical_json::tests::numbers_beyond_two_to_the_53_do_not_merge",
        )],
        Bug::QueryLeftOut => vec![
            http(
                "fingerprint::tests::hostile_019_to_024_whatever_differs_makes_another_fingerprint",
            ),
            hostile("again::hostile_021_another_query_is_another_request"),
        ],
        Bug::QuotesKept => vec![
            http("key::tests::hostile_012_quoted_and_bare_are_one_key"),
            hostile("keys::hostile_012_a_quoted_and_a_bare_key_are_one_key"),
        ],
        Bug::SetCookieReplayed => vec![
            http("headers::tests::hostile_075_cookies_are_recorded_only_where_allowed"),
            hostile("replies::hostile_075_cookies_are_not_in_replays"),
        ],
        Bug::HeaderOrderLost => vec![
            GATEWAY_SEEDS,
            hostile("replies::hostile_077_many_headers_of_one_name_keep_their_order_and_number"),
        ],
        Bug::OversizeComplete => vec![hostile(
            "upstream::hostile_073_an_answer_without_end_meets_the_size_cap",
        )],
        Bug::ClientGoneCancels => vec![
            GATEWAY_SEEDS,
            hostile(
                "bodies::hostile_058_a_client_gone_after_the_claim_leaves_an_execution_that_finishes",
            ),
        ],
        Bug::QueryStored => vec![hostile("guarantees::i16_no_credential_is_stored_or_logged")],
        Bug::BreakTakenForNotSent | Bug::BlindUpstreamRetry => vec![
            GATEWAY_SEEDS,
            hostile("upstream::hostile_062_a_reset_anywhere_in_the_request_is_unknown"),
        ],
    }
}

const fn engine(test: &'static str) -> Hunter {
    let program = Program::Engine;
    Hunter { program, test }
}

const fn crash(test: &'static str) -> Hunter {
    let program = Program::Crash;
    Hunter { program, test }
}

const fn http(test: &'static str) -> Hunter {
    let program = Program::Http;
    Hunter { program, test }
}

const fn hostile(test: &'static str) -> Hunter {
    let program = Program::Hostile;
    Hunter { program, test }
}
