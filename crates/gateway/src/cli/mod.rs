//! The command line: what may be typed, and what it leads to.

mod served;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};

pub(crate) use self::served::Served;
use crate::config::{Config, Overrides, parse_address};
use crate::failure::Failure;
use crate::ledger_command::Ledger;
use crate::store_command::StoreCommand;
use crate::{call, demo, doctor, exec, keys, ledger_command, start, store_command, verify};

/// Makes a retried request run once.
#[derive(Debug, Parser)]
#[command(name = "onlyonce", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve(Serve),
    /// Read a configuration file and say whether it is valid
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Look at all that a gateway depends on: store, disk, clock, upstreams, certificates, limits
    Doctor(Served),
    /// Run a pretend paid provider that counts what it executes and fails on request
    Sandbox {
        /// Where to listen
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8790", value_parser = listen_address)]
        listen: SocketAddr,
    },
    /// Show what a dying connection costs without and with the gateway
    Demo,
    /// Look at and settle operations, over the control listener of a running gateway
    Keys(keys::Keys),
    /// Sum what was spent and what was not, over the control listener of a running gateway
    Ledger(Ledger),
    /// Prepare a store that gateways share
    Store(StoreCommand),
    /// Run a command once at most, over the control listener of a running gateway
    Exec(exec::Exec),
    /// Send one request that runs once, however often it is tried
    Call(call::Call),
    /// Drive a running gateway with faults of its own, and judge it by its upstream's ledger
    Verify(Box<verify::Verify>),
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    served: Served,
    /// Where requests come in [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    listen: Option<SocketAddr>,
    /// Where the control listener is [default: 127.0.0.1:8788]
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    control: Option<SocketAddr>,
}

/// Runs the command line `words`, the program's name first, and gives its exit code: 0 when all
/// went well, 2 for a mistake in the words or the configuration, 1 for everything else; those of `call`
/// and `verify` are their own.
pub fn run(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let result = match Cli::try_parse_from(&words) {
        Ok(cli) => dispatch(cli.command),
        Err(error) => return refuse(&error, &words),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            complain(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        // Its exit code is that of the command that it runs.
        Command::Exec(words) => return Ok(exec::run(&words)),
        // 2 where it could not judge.
        Command::Verify(words) => return verify::run(*words),
        Command::Serve(words) => start::serve(words.config()?),
        Command::Check { file } => check(&file),
        Command::Doctor(served) => doctor::run(served),
        Command::Sandbox { listen } => start::sandbox(listen),
        Command::Demo => demo::run(),
        Command::Keys(keys) => keys::run(&keys),
        Command::Ledger(ledger) => ledger_command::run(&ledger),
        Command::Store(command) => store_command::run(command),
        Command::Call(call) => call::run(call),
    }?;
    Ok(ExitCode::SUCCESS)
}

impl Serve {
    fn config(self) -> Result<Config, Failure> {
        let overrides = Overrides {
            listen: self.listen,
            control: self.control,
            ..Overrides::default()
        };
        self.served.config(overrides)
    }
}

fn check(file: &std::path::Path) -> Result<(), Failure> {
    let config = Config::from_file(file, &Overrides::default())?;
    start::check_files(&config)?;
    // The exit code says it too.
    let _ = writeln!(
        io::stdout(),
        "onlyonce: {} is valid: {}, {}",
        file.display(),
        count(config.upstreams.len(), "upstream"),
        count(config.routes.len() + config.work.len(), "route"),
    );
    Ok(())
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    parse_address(text).ok_or_else(|| "write an address and a port, like 127.0.0.1:8787".to_owned())
}

/// Help and version as clap prints them; every mistake in one line.
fn refuse(error: &clap::Error, words: &[OsString]) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let asked_for = error.exit_code() == 0;
        // Nothing can be done about a closed terminal.
        let _ = error.print();
        return if asked_for {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(2)
        };
    }
    complain(&usage_line(error, words));
    ExitCode::from(2)
}

/// The one line of a failure. Where standard error cannot be written, the exit code says it alone.
pub(crate) fn complain(what: &dyn Display) {
    let _ = writeln!(io::stderr(), "onlyonce: {what}");
}

/// clap says what is wrong in its first paragraph; a suggestion stands beside it as context.
fn usage_line(error: &clap::Error, words: &[OsString]) -> String {
    let text = error.to_string();
    let paragraph: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let what = paragraph.join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let suggestion = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ]
    .into_iter()
    .find_map(|kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(list) => list.first().cloned(),
        _ => None,
    });
    let next = suggestion.map_or_else(
        || format!("see `{} --help`", command_of(words)),
        |meant| format!("did you mean `{meant}`?"),
    );
    format!("{what}; {next}")
}

/// The command that was typed, with those that it is a part of.
fn command_of(words: &[OsString]) -> String {
    let mut command = Cli::command();
    let mut typed = command.get_name().to_owned();
    for word in words.iter().skip(1).take_while(|word| *word != "--") {
        if let Some(part) = command.find_subcommand(word).cloned() {
            typed = format!("{typed} {}", part.get_name());
            command = part;
        }
    }
    typed
}

/// The names of all commands.
pub fn commands() -> Vec<String> {
    Cli::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(words: &[&str]) -> String {
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        usage_line(&Cli::try_parse_from(&words).unwrap_err(), &words)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_are_the_promised_ones() {
        assert_eq!(
            commands(),
            [
                "serve", "check", "doctor", "sandbox", "demo", "keys", "ledger", "store", "exec",
                "call", "verify"
            ]
        );
    }

    #[test]
    fn a_mistake_is_one_line_that_says_what_to_do() {
        for (words, expected) in [
            (
                &["onlyonce", "serve", "--lisen", "127.0.0.1:1"][..],
                "unexpected argument '--lisen' found; did you mean `--listen`?",
            ),
            (
                &["onlyonce", "srve"],
                "unrecognized subcommand 'srve'; did you mean `serve`?",
            ),
            (
                &["onlyonce", "serve"],
                "the following required arguments were not provided: --upstream <URL>; see \
                 `onlyonce serve --help`",
            ),
            (
                &["onlyonce", "exec", "--", "serve"],
                "the following required arguments were not provided: --key <KEY>; see `onlyonce \
                 exec --help`",
            ),
            (
                &["onlyonce", "keys", "complete", "k"],
                "the following required arguments were not provided: --status <STATUS> --body <FILE>; see \
                 `onlyonce keys complete --help`",
            ),
            (
                &[
                    "onlyonce",
                    "serve",
                    "--upstream",
                    "http://a",
                    "--config",
                    "f",
                ],
                "the argument '--upstream <URL>' cannot be used with '--config <FILE>'; see \
                 `onlyonce serve --help`",
            ),
            (
                &[
                    "onlyonce",
                    "serve",
                    "--upstream",
                    "http://a",
                    "--listen",
                    "here",
                ],
                "invalid value 'here' for '--listen <ADDR>': write an address and a port, like \
                 127.0.0.1:8787; see `onlyonce serve --help`",
            ),
        ] {
            assert_eq!(mistake(words), expected);
        }
    }

    #[test]
    fn serve_takes_an_upstream_or_a_file() {
        let cli = Cli::try_parse_from(["onlyonce", "serve", "--upstream", "http://up:1/v1"]);
        let Command::Serve(serve) = cli.unwrap().command else {
            panic!("another command");
        };
        let config = serve.config().unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:8787");
        assert_eq!(config.server.control.to_string(), "127.0.0.1:8788");
        assert_eq!(&*config.routes[0].upstream.name, "up:1");
        assert_eq!(&*config.routes[0].upstream.base_path, "/v1");
        assert_eq!(&*config.routes[0].upstream.preset, "generic");
    }
}
