//! `onlyonce store`: what there is to do with a store beside serving from it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use futures_util::FutureExt;
use onlyonce_store::postgres::{self, Migrated};

use crate::config::{Config, Overrides, Secret, StoreUrl};
use crate::copy::Sides;
use crate::failure::Failure;
use crate::{open, start};

/// The words after `onlyonce store`.
#[derive(Debug, Args)]
pub(crate) struct StoreCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the tables of a store on PostgreSQL, or bring them to this version
    Migrate {
        /// Where the store is, or env:NAME or file:PATH for a URL that nobody else should see
        #[arg(
            value_name = "URL",
            required_unless_present = "config",
            conflicts_with = "config"
        )]
        url: Option<String>,
        /// The configuration file whose store it is
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Move all records from one store to a new one, so that no key that was used runs again
    Copy {
        /// The store that the records are in, or env:NAME or file:PATH
        from: String,
        /// The store to make and to fill, or env:NAME or file:PATH
        to: String,
        /// A configuration file with the keys of [store.encryption] that both stores are sealed with
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Give up a copy that is not finished: serve from the first store again
        #[arg(long)]
        cancel: bool,
    },
}

/// Does it.
pub(crate) fn run(command: StoreCommand) -> Result<(), Failure> {
    match command.action {
        Action::Migrate { url, config } => migrate(url, config),
        Action::Copy {
            from,
            to,
            config,
            cancel,
        } => {
            let config = config
                .map(|file| Config::from_file(&file, &Overrides::default()))
                .transpose()?;
            let encryption = config.and_then(|config| config.store.encryption);
            let sides = Sides::new(parse(&from)?, parse(&to)?, encryption)?;
            start::runtime()?.block_on(if cancel {
                sides.cancel().boxed()
            } else {
                sides.copy().boxed()
            })
        }
    }
}

fn migrate(url: Option<String>, config: Option<PathBuf>) -> Result<(), Failure> {
    let (url, options) = match (config, url) {
        (Some(file), _) => {
            let config = Config::from_file(&file, &Overrides::default())?;
            let options = open::postgres_options(&config.store, &config.limits);
            (config.store.url, options)
        }
        (None, url) => (
            parse(&url.unwrap_or_default())?,
            postgres::Options::default(),
        ),
    };
    let StoreUrl::Postgres(url) = url else {
        println!("onlyonce: this store has no tables; there is nothing to migrate");
        return Ok(());
    };
    let migrated = start::runtime()?.block_on(postgres::migrate(url.expose(), &options));
    match migrated.map_err(|error| open::failure(&error))? {
        Migrated { from, to } if from == to => {
            println!("onlyonce: the store has version {to} already");
        }
        Migrated { from: 0, to } => println!("onlyonce: the store was made, with version {to}"),
        Migrated { from, to } => println!("onlyonce: the store went from version {from} to {to}"),
    }
    Ok(())
}

/// A URL from the command line.
fn parse(text: &str) -> Result<StoreUrl, Failure> {
    let url = Secret::named(text, &|name| std::env::var(name).ok())
        .map_err(|missing| Failure::usage(format!("{text} {}", missing.what), missing.next))?;
    StoreUrl::parse(url.expose()).ok_or_else(|| {
        Failure::usage(
            "that is not the URL of a store",
            "write embedded:FOLDER, postgres://USER@HOST/DATABASE, redis://HOST, env:NAME or file:PATH",
        )
    })
}
