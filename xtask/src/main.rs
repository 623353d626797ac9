//! `cargo xtask ...`: the project's chores, in Rust, so that a fresh clone needs no other tool.

mod args;
mod audit;
mod bench;
mod clients;
mod command;
mod exports;
mod faults;
mod planted;
mod powercut;
mod prices;
mod test;
mod torture;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  test [--only-cargo]      install what the tests need, build, run every test, then a minute of
                           torture, short exports and a short power cut; prints `N passed, N failed`
  clients                  only install the real clients; prints the variables that name them
  audit                    licences, sources and versions of every dependency, offline; that the
                           list prices are those of the package that they come from
  prices                   copies the list prices from that package, after its version was changed
  torture [--minutes N] [--seed S] [--release | --binary FILE]
                           kill -9 at random points under load, checked against the upstream's ledger
  exports [--operations N] [--seed S] [--release | --binary FILE]
                           the same, with a sink that fails at random: what it was told, each id
                           counted once, is what the ledger and the upstream say to the last token
  powercut [--images N] [--seed S] [--release | --binary FILE]
                           power cuts: unsynced writes lost or torn, checked the same way; needs FUSE
  planted [--table]        plants bugs, one at a time, of which the tests have to catch each; --table
                           prints them as docs/reliability.md shows them
  bench http [--only PART,...] [--pairs N] [--seconds N] [--quick] [--binary FILE]
                           against nginx and a published peer; writes bench/RESULTS.md. The parts:
                           throughput, single, streams, joined, million, ledger, console. --quick shows in a minute
                           that they work, and writes target/bench-quick.md
";

fn main() {
    if let Err(error) = run() {
        eprintln!("xtask: {error:#}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let mut args = args::Args::from_env();
    match args.command().as_deref() {
        Some("test") => test::run(args),
        Some("torture") => torture::run(args),
        Some("exports") => exports::run(args),
        Some("powercut") => powercut::run(args),
        Some("planted") => planted::run(args),
        Some("bench") => bench::run(args),
        Some("clients") => clients::run(args),
        Some("audit") => audit::run(args),
        Some("prices") => prices::run(args),
        Some(other) => bail!("there is no command `{other}`\n\n{USAGE}"),
        None => {
            print!("{USAGE}");
            Ok(())
        }
    }
}
