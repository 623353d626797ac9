//! Real clients, unmodified, from their registries, through the real binary: official SDKs and
//! curl before it, our sandbox and fake providers that nobody here wrote behind it.
//!
//! `cargo xtask test` installs the clients; then
//! `cargo test -p onlyonce-gateway --features real-clients --test clients` runs these alone.

mod anthropic_python;
mod compared;
mod console;
mod curl;
mod exports;
mod fake_providers;
// One test here sets the clock; what else it can do is for the hostile suite.
#[allow(dead_code)]
#[path = "../hostile/faults.rs"]
mod faults;
mod gemini_python;
mod kit;
mod ledger;
mod mcp_python;
mod openai_node;
mod openai_python;
mod readme;
mod sdk;
mod stripe_node;
mod stripe_python;
