//! The words that say what is served: an upstream, or a file.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, Overrides};
use crate::failure::Failure;

/// What is served.
#[derive(Debug, Args)]
pub(crate) struct Served {
    /// The address of the only upstream
    #[arg(
        long,
        value_name = "URL",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    upstream: Option<String>,
    /// What is known about the upstream: generic, openai, anthropic, gemini, bedrock, mistral, cohere,
    /// openrouter, stripe or mcp
    #[arg(
        long,
        value_name = "NAME",
        default_value = "generic",
        conflicts_with = "config"
    )]
    preset: String,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder [default: ./onlyonce-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Served {
    /// The configuration that the words mean, with `overrides` in the place of what it says itself.
    pub(crate) fn config(self, overrides: Overrides) -> Result<Config, Failure> {
        let overrides = Overrides {
            data: self.data,
            ..overrides
        };
        let config = match (&self.config, &self.upstream) {
            (Some(file), _) => Config::from_file(file, &overrides)?,
            (None, Some(url)) => Config::for_upstream(url, &self.preset, &overrides)?,
            (None, None) => {
                return Err(Failure::usage(
                    "nothing says what is to be served",
                    "add --upstream URL, or --config FILE",
                ));
            }
        };
        Ok(config)
    }
}
