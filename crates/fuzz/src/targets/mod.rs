//! One file for each target.

pub(crate) mod config;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod fingerprint;
pub(crate) mod headers;
pub(crate) mod http1;
pub(crate) mod key;
pub(crate) mod records;
