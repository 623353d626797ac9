//! A PostgreSQL server of a test's own, thrown away afterwards.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use rustix::process::{Pid, Signal as Unix, getuid, kill_process};

use crate::signal::{eventually, eventually_within};

/// How long a server may take to start or to recover.
const PATIENCE: Duration = Duration::from_secs(60);
/// The user that the server runs as where the test runs as root, which the server refuses.
const USER: &str = "postgres";

/// A server with a folder and a port of its own, that trusts everybody who comes from this machine.
///
/// It ends with its handle, and also when the process of the test ends in any other way.
pub struct Postgres {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    /// Waits for the end of this process, and cleans up.
    keeper: Child,
}

impl Postgres {
    /// One server for all tests of a process that do not harm it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// A new server with `settings` (`fsync=off`).
    #[track_caller]
    pub fn start(settings: &[&str]) -> Self {
        let server = Self::prepare(settings);
        server.run(
            "initdb",
            &[
                "-D",
                &server.data(),
                "-A",
                "trust",
                "-U",
                USER,
                "-N",
                "-E",
                "UTF8",
            ],
        );
        server.restart();
        server
    }

    /// A replica that follows this server.
    #[track_caller]
    pub fn start_replica(&self, settings: &[&str]) -> Self {
        self.start_replica_over(self.port, settings)
    }

    /// As [`Postgres::start_replica`], where this server is reached by another port.
    #[track_caller]
    pub fn start_replica_over(&self, port: u16, settings: &[&str]) -> Self {
        let replica = Self::prepare(settings);
        let port = port.to_string();
        let data = replica.data();
        replica.run(
            "pg_basebackup",
            &[
                "-D",
                &data,
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                USER,
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
            ],
        );
        replica.restart();
        replica
    }

    /// A folder and a port, and somebody who cleans up.
    fn prepare(settings: &[&str]) -> Self {
        let folder = folder_of_the_server("onlyonce-postgres-");
        let clean_up = "read -r _; pid=$(head -n 1 \"$1/data/postmaster.pid\" 2>/dev/null) \
            && kill -CONT \"$pid\" && kill -QUIT \"$pid\"; sleep 0.2; rm -rf \"$1\"";
        let keeper = Command::new("sh")
            .args(["-c", clean_up, "keeper"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        Self {
            folder,
            port: free_port(),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            keeper,
        }
    }

    /// The URL of the database `postgres`, as its superuser.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the server, which is not running, on the same folder and port, and waits for it.
    #[track_caller]
    pub fn restart(&self) {
        let log = fs::File::create(self.folder.join("log")).expect("a log");
        let mut command = self.command("postgres");
        command.args(["-D", &self.data(), "-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=300",
        ] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let mut server = command
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let is_ready = || {
            assert!(
                server.try_wait().is_ok_and(|end| end.is_none()),
                "the server ended: {}",
                self.log()
            );
            let mut ready = self.command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            ready.status().is_ok_and(|status| status.success())
        };
        eventually_within(PATIENCE, "the server is ready", is_ready);
        // Reaped when it ends, so that it does not stay a zombie.
        std::thread::spawn(move || server.wait());
    }

    /// Kills the server and all its processes at once (signal 9).
    #[track_caller]
    pub fn kill(&self) {
        let pids = self.pids();
        for &pid in &pids {
            let _ = kill_process(pid, Unix::KILL);
        }
        let is_gone = |pid: &Pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
        eventually_within(PATIENCE, "the server is gone", || pids.iter().all(is_gone));
        let _ = fs::remove_file(self.folder.join("data/postmaster.pid"));
    }

    /// Stops all processes of the server where they stand (SIGSTOP).
    pub fn pause(&self) {
        self.signal(Unix::STOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.signal(Unix::CONT);
    }

    /// Makes a replica the primary.
    #[track_caller]
    pub fn promote(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "promote", "-w"]);
    }

    /// Runs statements as the superuser, and gives what they say, a line a row.
    #[track_caller]
    pub fn sql(&self, text: &str) -> String {
        let port = self.port.to_string();
        let args = [
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
        ];
        let more = ["-p", &port, "-U", USER, "-d", "postgres", "-c", text];
        self.run("psql", &[&args[..], &more[..]].concat())
    }

    /// Waits until all transactions that write by now have ended.
    #[track_caller]
    pub fn settle(&self) {
        let next = self.sql("SELECT pg_snapshot_xmax(pg_current_snapshot())");
        let settled = format!("SELECT pg_snapshot_xmin(pg_current_snapshot()) >= '{next}'::xid8");
        eventually("what is written by now has ended", || {
            self.sql(&settled) == "t"
        });
    }

    /// All rows of a schema's tables, as text.
    #[track_caller]
    pub fn dump(&self, schema: &str) -> String {
        let port = self.port.to_string();
        let args = ["--data-only", "-h", "127.0.0.1", "-p", &port, "-U", USER];
        self.run(
            "pg_dump",
            &[&args[..], &["-n", schema, "-d", "postgres"]].concat(),
        )
    }

    /// From now on, trusts everybody who comes from `network` (`10.0.0.0/8`), too.
    #[track_caller]
    pub fn trust(&self, network: &str) {
        let rights = self.folder.join("data/pg_hba.conf");
        let before = fs::read_to_string(&rights).expect("its rights");
        let line = format!("host all all {network} trust");
        fs::write(&rights, format!("{before}{line}\n")).expect("its rights");
        self.sql("SELECT pg_reload_conf()");
    }

    /// Gives a file to the user that the server runs as, for its eyes alone.
    #[track_caller]
    pub fn adopt(&self, file: &str) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("its rights");
        if getuid().is_root() {
            let chown = Command::new("chown").args([USER, file]).status();
            assert!(chown.is_ok_and(|status| status.success()), "chown failed");
        }
    }

    /// What the server has logged since its start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Where the server keeps its files.
    pub fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }

    fn signal(&self, signal: Unix) {
        for pid in self.pids() {
            let _ = kill_process(pid, signal);
        }
    }

    /// The server's processes, the first of them first.
    fn pids(&self) -> Vec<Pid> {
        let file = self.folder.join("data/postmaster.pid");
        let text = fs::read_to_string(file).expect("a running server");
        let first: i32 = text
            .lines()
            .next()
            .and_then(|line| line.parse().ok())
            .expect("its number");
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(first)
            .chain(children)
            .filter_map(Pid::from_raw)
            .collect()
    }

    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output();
        let output = output.unwrap_or_else(|error| panic!("{program} does not run: {error}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?} failed: {said}");
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// One of the server's programs, as a user whom it accepts.
    fn command(&self, program: &str) -> Command {
        let mut command = as_the_server(&programs().join(program));
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A temporary folder that belongs to the user whom the server runs as.
pub(crate) fn folder_of_the_server(prefix: &str) -> PathBuf {
    let folder = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .expect("a temporary folder")
        .keep();
    if getuid().is_root() {
        let owner = format!("{USER}:{USER}");
        let chown = Command::new("chown").arg(owner).arg(&folder).status();
        assert!(chown.is_ok_and(|status| status.success()), "chown failed");
    }
    folder
}

/// A program that refuses to run as root, as a user whom it accepts.
pub(crate) fn as_the_server(program: &Path) -> Command {
    if !getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
    command
        .args([&user, &group, "--clear-groups", "--"])
        .arg(program);
    command
}

/// Where the newest server's programs are.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = versions
        .filter_map(|version| version.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max();
    match newest {
        Some(version) => format!("/usr/lib/postgresql/{version}/bin").into(),
        // Those on the path.
        None => PathBuf::new(),
    }
}
