//! Real Redis servers in throwaway folders: one, a cluster, or a master that sentinels watch.
//!
//! `redis-server` must be on the path (Debian: `apt-get install redis-server`), or another program
//! that speaks its protocol, named by `ONLYONCE_REDIS_SERVER`.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{PATIENCE, eventually};

/// A server of its own folder and port. It is killed when dropped.
pub struct RedisServer {
    child: Option<Child>,
    folder: TempDir,
    port: u16,
    tls_port: u16,
    options: Vec<String>,
    password: Option<String>,
}

/// What makes every acknowledged write durable.
pub const SYNCED: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

impl RedisServer {
    /// Starts a server with `options`, as they would stand on its command line.
    pub fn start(options: &[&str]) -> Self {
        Self::start_as("", options)
    }

    fn start_as(kind: &str, options: &[&str]) -> Self {
        let password = options
            .iter()
            .position(|option| *option == "--requirepass")
            .map(|at| options[at + 1].to_owned());
        let mut server = Self {
            child: None,
            folder: tempfile::tempdir().expect("a folder"),
            port: free_port(),
            tls_port: 0,
            options: Vec::new(),
            password,
        };
        if kind.is_empty() {
            server.options.push("--save".into());
            server.options.push(String::new());
        } else {
            // Sentinels write into their configuration file.
            let file = server.folder.path().join("sentinel.conf");
            fs::write(&file, "").expect("a configuration file");
            server.options.push(file.display().to_string());
            server.options.push(kind.into());
        }
        server
            .options
            .extend(options.iter().map(|&one| one.to_owned()));
        server.restart();
        server
    }

    /// Starts a server that speaks TLS too, with a certificate and its key in files.
    pub fn start_tls(certificate: &str, key: &str) -> Self {
        let port = free_port();
        let mut options = vec!["--tls-cert-file", certificate, "--tls-key-file", key];
        let text = port.to_string();
        options.extend(["--tls-auth-clients", "no", "--tls-port", &text]);
        let mut server = Self::start(&options);
        server.tls_port = port;
        server
    }

    /// Its port for TLS.
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// Starts it again in its folder and on its port.
    pub fn restart(&mut self) {
        self.kill();
        let program = std::env::var("ONLYONCE_REDIS_SERVER");
        let program = program.unwrap_or_else(|_| "redis-server".to_owned());
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a log file");
        let (first, rest) = match self.options.first() {
            Some(first) if !first.starts_with("--") => (Some(first), &self.options[1..]),
            _ => (None, &self.options[..]),
        };
        let child = Command::new(&program)
            .args(first)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .arg("--dir")
            .arg(self.folder.path())
            .args(rest)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("{program} does not start: {error}; install it (Debian: redis-server)")
        });
        self.child = Some(child);
        eventually("the Redis server answers", || {
            let gone = |child: &mut Child| child.try_wait().is_ok_and(|end| end.is_some());
            assert!(
                !self.child.as_mut().is_some_and(gone),
                "the Redis server ended: {}",
                self.log()
            );
            self.try_command(&["PING"])
                .is_ok_and(|answer| answer == "PONG")
        });
    }

    /// Kills it with signal 9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it without telling it: it answers nothing, and its sockets stay open.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running server");
        kill_process(Pid::from_child(child), signal).expect("a signal");
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a store on it.
    pub fn url(&self) -> String {
        let login = self
            .password
            .as_ref()
            .map(|password| format!(":{password}@"));
        format!(
            "redis://{}127.0.0.1:{}",
            login.unwrap_or_default(),
            self.port
        )
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.folder.path().join("log")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends one command over a connection of its own, and gives the answer: nested answers one
    /// value a line, errors with their `-`.
    pub fn command(&self, arguments: &[&str]) -> String {
        self.try_command(arguments).expect("an answer")
    }

    /// As [`RedisServer::command`], for a server that may not answer.
    pub fn try_command(&self, arguments: &[&str]) -> io::Result<String> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        if let Some(password) = &self.password {
            exchange(&mut stream, &["AUTH", password])?;
        }
        exchange(&mut stream, arguments)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cluster of masters without replicas, which share the slots evenly.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts a cluster of `masters` servers with `options`.
    pub fn start(masters: usize, options: &[&str]) -> Self {
        let nodes: Vec<RedisServer> = (0..masters)
            .map(|_| {
                let bus = free_port().to_string();
                let mut all = vec!["--cluster-enabled", "yes", "--cluster-port", &bus];
                all.extend(["--cluster-config-file", "nodes.conf"]);
                all.extend(options);
                RedisServer::start(&all)
            })
            .collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        for node in &nodes {
            create.arg(format!("127.0.0.1:{}", node.port));
        }
        let made = create.arg("--cluster-yes").output().expect("redis-cli");
        assert!(made.status.success(), "{made:?}");
        let cluster = Self { nodes };
        eventually("the cluster is ready", || cluster.is_ready());
        cluster
    }

    fn is_ready(&self) -> bool {
        self.nodes.iter().all(|node| {
            node.command(&["CLUSTER", "INFO"])
                .contains("cluster_state:ok")
        })
    }

    /// Its servers.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The URL of a store on it.
    pub fn url(&self) -> String {
        let places: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        format!("redis+cluster://{}", places.join(","))
    }
}

/// A master and its replica, watched by one sentinel that moves to the replica when the master is
/// not heard of for half a second.
pub struct RedisPair {
    /// The server that is the master at first.
    pub master: RedisServer,
    /// Its replica.
    pub replica: RedisServer,
    /// Who watches them.
    pub sentinel: RedisServer,
}

impl RedisPair {
    /// Starts the three, the servers with `options`, and waits until the replica has caught up.
    pub fn start(options: &[&str]) -> Self {
        let master = RedisServer::start(options);
        let port = master.port.to_string();
        let of_master = format!("127.0.0.1 {port}");
        let mut all = vec!["--replicaof", &of_master, "--repl-diskless-sync-delay", "0"];
        all.extend(options);
        let replica = RedisServer::start(&all);
        eventually("the replica follows its master", || {
            let info = replica.command(&["INFO", "replication"]);
            info.contains("master_link_status:up")
        });
        let sentinel = RedisServer::start_as("--sentinel", &[]);
        let tell = |command: &[&str]| {
            let answer = sentinel.command(command);
            assert_eq!(answer, "OK", "{command:?}");
        };
        tell(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "1"]);
        tell(&["SENTINEL", "SET", "main", "down-after-milliseconds", "500"]);
        tell(&["SENTINEL", "SET", "main", "failover-timeout", "3000"]);
        eventually("the sentinel knows the replica", || {
            let replicas = sentinel.command(&["SENTINEL", "REPLICAS", "main"]);
            replicas.contains(&replica.port.to_string())
        });
        Self {
            master,
            replica,
            sentinel,
        }
    }

    /// The URL of a store on it.
    pub fn url(&self) -> String {
        format!(
            "redis+sentinel://127.0.0.1:{}?master=main",
            self.sentinel.port
        )
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn exchange(stream: &mut BufReader<TcpStream>, arguments: &[&str]) -> io::Result<String> {
    let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        request.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        request.extend_from_slice(argument.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    stream.get_mut().write_all(&request)?;
    read_answer(stream)
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    let (kind, rest) = line.split_at(1);
    let count = || rest.parse::<i64>().map_err(io::Error::other);
    match kind {
        "$" => {
            let Ok(len) = usize::try_from(count()?) else {
                return Ok(String::new());
            };
            let mut bytes = vec![0; len + 2];
            stream.read_exact(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
        }
        "*" => {
            let items = (0..count()?).map(|_| read_answer(stream));
            Ok(items.collect::<io::Result<Vec<_>>>()?.join("\n"))
        }
        "-" => Ok(line.to_owned()),
        _ => Ok(rest.to_owned()),
    }
}
