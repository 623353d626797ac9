//! The servers of shared stores, each in a throwaway folder.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::super::peers::{Running, Stage, free_port, loopback};
use crate::command::{apt_install, quietly};

/// Whom PostgreSQL runs as where we are root, whom it refuses.
const USER: &str = "postgres";

/// A client's wish for TLS, which PostgreSQL answers with one byte.
const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

/// How long the last connections, and a rewrite of a log, may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a store can be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    Redis,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
        }
    }
}

/// A server with an empty store.
pub struct Server {
    pub engine: Engine,
    /// It ends when it is asked to only once nobody is connected.
    running: Running,
}

/// What a server has counted since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Transactions, or commands.
    pub calls: f64,
    /// How often its log was synced, where it counts that.
    pub syncs: Option<f64>,
    /// Bytes written to its log.
    pub log_bytes: f64,
}

impl Server {
    /// Starts one in a folder of this name, and makes the store's tables where it has some.
    pub fn start(stage: &Stage, engine: Engine, name: &str) -> Result<Self> {
        apt_install(&[("ss", "iproute2")])?;
        let name = format!("{name}-{}", engine.name());
        let running = match engine {
            Engine::Postgres => start_postgres(&stage.file(&name))?,
            Engine::Redis => {
                let synced = ["--appendonly", "yes", "--appendfsync", "always"];
                stage.redis(&name, &synced)?
            }
        };
        let server = Self { engine, running };
        if engine == Engine::Postgres {
            let mut migrate = Command::new(stage.program());
            migrate.args(["store", "migrate", &server.url()]);
            quietly("onlyonce store migrate", &mut migrate)?;
        }
        Ok(server)
    }

    /// The URL of the store.
    pub fn url(&self) -> String {
        let address = self.running.address;
        match self.engine {
            Engine::Postgres => format!("postgres://{USER}@{address}/postgres"),
            Engine::Redis => format!("redis://{address}"),
        }
    }

    /// Version and what it does to be durable, as it says itself.
    pub fn described(&self) -> Result<String> {
        Ok(match self.engine {
            Engine::Postgres => {
                let settings = "SELECT current_setting('server_version'), current_setting('fsync'), \
                    current_setting('synchronous_commit')";
                let said = self.sql(settings)?;
                let mut said = said.split('|');
                let version = said.next().unwrap_or_default();
                let version = version.split(' ').next().unwrap_or_default();
                let mut next = || said.next().unwrap_or_default();
                format!(
                    "PostgreSQL {version}, fsync={}, synchronous_commit={}",
                    next(),
                    next()
                )
            }
            Engine::Redis => {
                let info = self.redis_cli(&["INFO", "server"])?;
                let version = text_of(&info, "redis_version")?;
                let setting = |name: &str| -> Result<String> {
                    let said = self.redis_cli(&["CONFIG", "GET", name])?;
                    Ok(said.lines().nth(1).unwrap_or_default().to_string())
                };
                let (log, sync) = (setting("appendonly")?, setting("appendfsync")?);
                format!("Redis {version}, appendonly={log}, appendfsync={sync}")
            }
        })
    }

    /// Processor time of the server so far.
    pub fn cpu(&self) -> Duration {
        self.running.cpu()
    }

    /// Bytes that the clients who are connected now have sent, and that they have received.
    pub fn traffic(&self) -> Result<(f64, f64)> {
        let mut ss = Command::new("ss");
        ss.args(["-tinH", "state", "established", "dst"]);
        ss.arg(self.running.address.to_string());
        let said = quietly("ss", &mut ss)?;
        Ok((
            sum_of(&said, "bytes_sent:"),
            sum_of(&said, "bytes_received:"),
        ))
    }

    /// Counts what it has done; nobody else may be connected.
    pub fn counted(&self) -> Result<Counted> {
        match self.engine {
            Engine::Postgres => {
                self.wait_until_alone()?;
                // Columns: transactions of clients, syncs, bytes of the log.
                let said = self.sql(
                    "SELECT d.xact_commit, w.wal_sync, pg_current_wal_lsn() - '0/0'::pg_lsn \
                     FROM pg_stat_database d, pg_stat_wal w WHERE d.datname = 'postgres'",
                )?;
                let numbers: Vec<f64> = said
                    .split('|')
                    .filter_map(|number| number.parse().ok())
                    .collect();
                let [calls, syncs, log_bytes] = numbers[..] else {
                    bail!("PostgreSQL said: {said}");
                };
                Ok(Counted {
                    calls,
                    syncs: Some(syncs),
                    log_bytes,
                })
            }
            Engine::Redis => {
                let info = self.redis_cli(&["INFO", "everything"])?;
                // A look is an HMGET, all else that an operation does is a script. What scripts call is
                // counted too, and is no round trip: each has one HMGET, so those beyond are looks.
                let [looks_and_scripts, scripts] =
                    ["cmdstat_hmget", "cmdstat_evalsha"].map(|command| {
                        let counted = text_of(&info, command).unwrap_or_default();
                        sum_of(&counted.replace(',', " "), "calls=")
                    });
                Ok(Counted {
                    calls: looks_and_scripts.max(scripts),
                    syncs: None,
                    log_bytes: number_of(&info, "aof_current_size")?,
                })
            }
        }
    }

    /// A process of PostgreSQL reports the last of what it did when it ends.
    fn wait_until_alone(&self) -> Result<()> {
        let others = "SELECT count(*) FROM pg_stat_activity \
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        wait("clients are still connected", || {
            Ok(self.sql(others)? == "0")
        })
    }

    /// The log keeps all that is written to it from now on, so that it can be measured.
    pub fn keep_log(&self) -> Result<()> {
        if self.engine == Engine::Redis {
            self.redis_cli(&["CONFIG", "SET", "auto-aof-rewrite-percentage", "0"])?;
        }
        Ok(())
    }

    /// When Redis syncs its log from now on: `always` or `everysec`.
    pub fn sync_log(&self, when: &str) -> Result<()> {
        let ended = self.redis_cli(&["CONFIG", "SET", "appendfsync", when])?;
        if ended.trim() != "OK" {
            bail!("Redis said: {ended}");
        }
        Ok(())
    }

    /// What the store holds, in bytes, by where; the clients may be connected.
    pub fn held(&self) -> Result<Vec<(String, f64)>> {
        match self.engine {
            Engine::Postgres => self.tables(),
            Engine::Redis => {
                let info = self.redis_cli(&["INFO", "everything"])?;
                let memory = number_of(&info, "used_memory")?;
                self.redis_cli(&["BGREWRITEAOF"])?;
                wait("the log is still rewritten", || {
                    let info = self.redis_cli(&["INFO", "persistence"])?;
                    let is = |name| number_of(&info, name);
                    Ok(is("aof_rewrite_in_progress")? + is("aof_rewrite_scheduled")? == 0.0)
                })?;
                let info = self.redis_cli(&["INFO", "persistence"])?;
                Ok(vec![
                    ("memory".to_string(), memory),
                    (
                        "log, rewritten".to_string(),
                        number_of(&info, "aof_current_size")?,
                    ),
                ])
            }
        }
    }

    /// Tables with their indexes; partitions under the name of their table.
    fn tables(&self) -> Result<Vec<(String, f64)>> {
        let sizes = "SELECT coalesce(p.inhparent::regclass, c.oid::regclass)::text, \
                sum(pg_total_relation_size(c.oid)) \
            FROM pg_class c LEFT JOIN pg_inherits p ON p.inhrelid = c.oid \
            WHERE c.relkind = 'r' AND c.relnamespace = 'onlyonce'::regnamespace \
            GROUP BY 1 HAVING sum(pg_total_relation_size(c.oid)) > 1000000 ORDER BY 2 DESC";
        let said = self.sql(sizes)?;
        let row = |line: &str| {
            let (table, bytes) = line.split_once('|')?;
            let table = table.trim_start_matches("onlyonce.");
            Some((table.to_string(), bytes.parse().ok()?))
        };
        Ok(said.lines().filter_map(row).collect())
    }

    fn sql(&self, text: &str) -> Result<String> {
        let port = self.running.address.port().to_string();
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"])
            .args(["-h", "127.0.0.1", "-p", &port, "-U", USER])
            .args(["-d", "postgres", "-c", text]);
        Ok(quietly("psql", &mut psql)?.trim().to_string())
    }

    fn redis_cli(&self, words: &[&str]) -> Result<String> {
        let port = self.running.address.port().to_string();
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &port]).args(words);
        quietly("redis-cli", &mut cli)
    }
}

/// An empty cluster, as `initdb` makes it, that trusts whoever comes from this machine.
fn start_postgres(folder: &Path) -> Result<Running> {
    apt_install(&[("pg_createcluster", "postgresql")])?;
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    if is_root() {
        let mut chown = Command::new("chown");
        quietly("chown", chown.arg(USER).arg(folder))?;
    }
    let data = folder.join("data");
    let mut initdb = as_the_server("initdb")?;
    initdb.current_dir(folder).arg("-D").arg(&data);
    initdb.args(["-A", "trust", "-U", USER, "-E", "UTF8"]);
    quietly("initdb", &mut initdb)
        .with_context(|| format!("can the user {USER} reach {}?", folder.display()))?;
    let port = free_port()?;
    let mut postgres = as_the_server("postgres")?;
    postgres.current_dir(folder).arg("-D").arg(&data);
    postgres.args(["-p", &port.to_string()]);
    for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories="] {
        postgres.args(["-c", setting]);
    }
    postgres.stderr(fs::File::create(folder.join("log"))?);
    let running = Running::start(&mut postgres, loopback(port), SSL_REQUEST)?;
    // It answers before it is ready.
    wait("PostgreSQL is not ready", || {
        let mut ready = Command::new(postgres_programs().join("pg_isready"));
        ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", USER]);
        Ok(ready.status()?.success())
    })?;
    Ok(running)
}

/// A program of PostgreSQL, as a user whom it accepts.
fn as_the_server(program: &str) -> Result<Command> {
    let program = postgres_programs().join(program);
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={USER}"), &format!("--regid={USER}")]);
        command.args(["--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.stdin(Stdio::null());
    Ok(command)
}

/// Where the newest server's programs are; Debian does not put them on the path.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = versions
        .filter_map(|version| version.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max();
    newest.map_or_else(PathBuf::new, |version| {
        format!("/usr/lib/postgresql/{version}/bin").into()
    })
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Waits until something is so.
fn wait(otherwise: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let since = Instant::now();
    while !is_so()? {
        if since.elapsed() > PATIENCE {
            bail!("{otherwise}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What stands behind `name:` in what Redis says of itself.
fn text_of(info: &str, name: &str) -> Result<String> {
    let line = info.lines().find_map(|line| {
        let (found, text) = line.split_once(':')?;
        (found == name).then_some(text)
    });
    let text = line.with_context(|| format!("Redis does not say {name}"))?;
    Ok(text.trim().to_string())
}

fn number_of(info: &str, name: &str) -> Result<f64> {
    let text = text_of(info, name)?;
    text.parse()
        .with_context(|| format!("{name} is not a number: {text}"))
}

/// The sum of all numbers right behind `name`.
fn sum_of(text: &str, name: &str) -> f64 {
    let numbers = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.parse::<f64>().ok());
    numbers.sum()
}

#[cfg(test)]
mod tests {
    use super::{number_of, sum_of, text_of};

    #[test]
    fn what_redis_says_is_found_by_its_whole_name() {
        let info = "# Memory\r\nused_memory_rss:3\r\nused_memory:2\r\nused_memory_human:2B\r\n";
        assert_eq!(number_of(info, "used_memory").unwrap(), 2.0);
        assert_eq!(text_of(info, "used_memory_human").unwrap(), "2B");
        assert!(number_of(info, "used").is_err());
    }

    #[test]
    fn the_bytes_of_all_connections_are_added() {
        let ss = "0 0 127.0.0.1:1 127.0.0.1:2\n\t bbr bytes_sent:10 bytes_acked:10 bytes_received:3\n\
                  0 0 127.0.0.1:3 127.0.0.1:2\n\t bbr bytes_sent:5\n";
        assert_eq!(sum_of(ss, "bytes_sent:"), 15.0);
        assert_eq!(sum_of(ss, "bytes_received:"), 3.0);
    }
}
