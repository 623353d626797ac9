//! Onlyonce over HTTP, as pure and synchronous code.
//!
//! What a request says: its [`key`], its [`tenant`], its [`fingerprint`], and whether its bytes and its
//! head are such that the gateway takes it at all ([`scan`], [`framing`]). What a response says: which [`headers`] pass,
//! which are recorded, and our own [`marks`]. What a message of the Model Context Protocol says: [`mcp`]. And what
//! Onlyonce says when it refuses: the [`problem`] documents and their pages, in words that fit the [`place`].

pub mod canonical_json;
pub mod fingerprint;
pub mod framing;
pub mod headers;
pub mod key;
pub mod marks;
pub mod mcp;
mod multipart;
pub mod place;
pub mod problem;
pub mod problem_pages;
pub mod query;
pub mod scan;
mod secret;
pub mod tenant;
pub mod work;

pub use fingerprint::{
    BodyRule, FingerprintBuilder, FingerprintRules, RequestIdentity, fingerprint_of_parts,
};
pub use key::{KeyError, call_key, derived_key, key_for, key_for_part, key_of, parse_key};
pub use marks::{Marks, Status};
pub use place::Place;
pub use problem::{Problem, ProblemContext};
pub use secret::HashKeys;
pub use tenant::{Tenant, Tenants, TenantsError};

/// The folder `name` of public test data, or `None` with one printed line where it is missing.
#[cfg(test)]
fn shared_data(name: &str) -> Option<std::path::PathBuf> {
    let beside_the_workspace =
        || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let shared = std::env::var_os("ONLYONCE_SHARED")
        .map_or_else(beside_the_workspace, std::path::PathBuf::from);
    let folder = shared.join("data").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no public test data in {}", folder.display());
    None
}
