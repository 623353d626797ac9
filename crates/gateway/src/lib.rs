//! The gateway: a reverse proxy that makes a retried request run once.

pub mod config;
mod presets;
