//! `cargo xtask ...`: the project's chores, in Rust, so that a fresh clone needs no other tool.

mod args;
mod audit;
mod bench;
mod campaign;
mod clients;
mod command;
mod faults;
mod hostile;
mod package;
mod page;
mod prices;
mod process;
mod test;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  test [--only-cargo]      install what the tests need, build, run every test, then each
                           campaign, short; prints `N passed, N failed`
  clients                  only install the real clients; prints the variables that name them
  audit                    licences, sources and versions of every dependency, offline; that the
                           list prices are those of the package that they come from
  package [--no-features]  makes the packages of the library, offline, and looks at what they lack; then builds it
                           with each of its features alone
  prices                   copies the list prices from that package, after its version was changed
  campaign                 lists what is done to break it
  campaign NAME [--minutes N] [--release | --binary FILE]
                           does it for so long, from where it stopped, and notes in
                           docs/reliability/NAME.json what was done
  campaign NAME --seed S   from another seed; notes nothing. --short does a small, fixed piece
  campaign --docs          writes the table in docs/reliability.md from these files
  planted                  plants bugs, one at a time, each of which the tests have to catch
  hostile                  writes the table of the hostile cases in docs/reliability.md from their tests
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
        Some("campaign") => campaign::run(args),
        Some("planted") => campaign::planted::run(args),
        Some("hostile") => hostile::run(args),
        Some("bench") => bench::run(args),
        Some("clients") => clients::run(args),
        Some("audit") => audit::run(args),
        Some("package") => package::run(args),
        Some("prices") => prices::run(args),
        Some(other) => bail!("there is no command `{other}`\n\n{USAGE}"),
        None => {
            print!("{USAGE}");
            Ok(())
        }
    }
}
