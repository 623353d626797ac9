//! The gateway: a reverse proxy that makes a retried request run once.

pub mod config;
pub mod metrics;
mod presets;
pub mod shared;
