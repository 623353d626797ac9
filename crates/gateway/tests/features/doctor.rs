//! `onlyonce doctor`: what it finds, and that it leaves nothing behind.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onlyonce_testkit::{
    Postgres, RedisServer, Refusing, Run, SYNCED, Setup, Upstream, run_to_exit,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;

use crate::peers::Peer;
use crate::{BIN, expect_executed};

/// What doctor said.
struct Said(Run);

impl Said {
    /// Its line on `what`, which begins with the verdict.
    #[track_caller]
    fn on(&self, what: &str) -> &str {
        let about = |line: &&str| line.get(5..).is_some_and(|rest| rest.starts_with(what));
        let found = self.0.stdout.lines().find(about);
        found.unwrap_or_else(|| panic!("nothing on {what}: {:?}", self.0))
    }

    #[track_caller]
    fn expect(&self, verdict: &str, what: &str, words: &[&str]) -> &Self {
        let line = self.on(what);
        assert_eq!(line[..5].trim_end(), verdict, "{line}");
        for word in words {
            assert!(line.contains(word), "no {word}: {line}");
        }
        assert_eq!(line.contains("; "), verdict != "ok", "what to do: {line}");
        self
    }

    /// Nothing failed, and nothing is to be looked at but these.
    #[track_caller]
    fn expect_well_but(&self, warned: &[&str]) {
        let run = &self.0;
        assert_eq!((run.code, &*run.stderr), (Some(0), ""), "{run:?}");
        for line in run.stdout.lines() {
            let may_warn = warned.iter().any(|what| line[5..].starts_with(what));
            assert!(line.starts_with("ok ") || may_warn, "{line}: {run:?}");
        }
    }

    #[track_caller]
    fn expect_failed(&self, count: usize) -> &Self {
        let run = &self.0;
        assert_eq!(run.code, Some(1), "{run:?}");
        let lines = run.stdout.lines();
        let failed = lines.filter(|line| line.starts_with("fail ")).count();
        assert_eq!(failed, count, "{run:?}");
        assert!(
            run.stderr.starts_with(&format!("onlyonce: {count} of ")),
            "{run:?}"
        );
        self
    }
}

/// A folder on the disk that the tests are built on: the temporary one may be in memory.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A configuration whose limits any machine meets.
fn modest(upstream_url: &str) -> Setup {
    Setup::new(BIN, upstream_url)
        .server("max_connections = 50")
        .limits("live_operations = 50\ntenant_live = 50")
        .store("segment_bytes = 1048576\nmax_bytes = 4194304")
        .upstream("max_idle_per_worker = 4")
}

/// Writes the file of `setup` for a data folder, and has it looked at.
fn doctor(setup: &Setup, data: &Path) -> Said {
    let folder = tempfile::tempdir().unwrap();
    let file = written(setup, data, folder.path());
    Said(run_to_exit(BIN, &["doctor", "--config", &file], &[]))
}

fn written(setup: &Setup, data: &Path, folder: &Path) -> String {
    let file = folder.join("onlyonce.toml");
    std::fs::write(&file, setup.text(data)).unwrap();
    file.display().to_string()
}

#[test]
fn a_healthy_machine_is_told_so_and_stays_as_it_is() {
    let upstream = Upstream::counting();
    let folder = folder();
    let data = folder.path().join("data");
    let setup = modest(&upstream.url());
    let said = doctor(&setup, &data);
    said.expect_well_but(&[]);
    said.expect("ok", "store: there is none", &[]);
    for what in ["disk", "space", "commit", "upstream \"up\"", "files"] {
        said.on(what);
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);

    let mut gateway = setup.clone().data(&data).start();
    expect_executed(&gateway.post("/x", "k", "b"));
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    let said = doctor(&setup, &data);
    said.expect_well_but(&[]);
    said.expect("ok", "store: opened in ", &[" 1 records, "])
        .expect("ok", "commit: a durable claim", &[" ms"]);
    gateway.start_again();
    let held = gateway.control().json("/v1/operations");
    let held = held["operations"].as_array().unwrap();
    assert_eq!(held.len(), 1, "it left a record behind: {held:?}");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn the_folder_of_a_running_gateway_is_looked_at_without_opening_it() {
    let upstream = Upstream::counting();
    let folder = folder();
    let data = folder.path().join("data");
    let setup = modest(&upstream.url());
    let gateway = setup.clone().data(&data).start();
    expect_executed(&gateway.post("/x", "k", "b"));
    let said = doctor(&setup, &data);
    said.expect_well_but(&[]);
    said.expect("ok", "store: ", &["open in another process"])
        .expect("ok", "commit: a write and its sync", &[" ms"]);
    gateway.post("/x", "k", "b").expect_mark("replayed");
}

#[test]
fn a_damaged_folder_fails() {
    let folder = folder();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("meta"), "nonsense").unwrap();
    std::fs::write(data.join("seg-00000001.log"), "nonsense").unwrap();
    let upstream = Upstream::counting();
    doctor(&modest(&upstream.url()), &data)
        .expect_failed(1)
        .expect("fail", "store: ", &["meta", "restore"]);
}

#[test]
fn a_log_that_may_outgrow_the_disk_is_warned_about() {
    let upstream = Upstream::counting();
    let folder = folder();
    let setup = Setup::new(BIN, &upstream.url())
        .server("max_connections = 50")
        .limits("live_operations = 50\ntenant_live = 50")
        .store("max_bytes = 1125899906842624");
    let said = doctor(&setup, &folder.path().join("data"));
    said.expect_well_but(&["space"]);
    said.expect("warn", "space: ", &["1048576.0 GiB more", "max_bytes"]);
}

#[test]
fn a_data_folder_in_memory_fails() {
    let upstream = Upstream::counting();
    // Every Linux has it, and it is a tmpfs.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    doctor(&modest(&upstream.url()), &folder.path().join("data"))
        .expect_failed(1)
        .expect("fail", "disk: ", &["tmpfs"]);
}

#[test]
fn a_store_in_memory_is_warned_about() {
    let upstream = Upstream::counting();
    let setup = modest(&upstream.url()).store("url = \"memory:\"");
    let said = doctor(&setup, Path::new("/nowhere"));
    said.expect_well_but(&["store"]);
    said.expect("warn", "store: memory", &["store.url"]);
}

#[test]
fn upstreams_that_are_not_there_fail() {
    let folder = folder();
    let refusing = Refusing::new();
    let setup = modest(&refusing.url()).extra(
        "[[upstream]]\nname = \"lost\"\nurl = \"http://no-such-host.invalid\"\n\
         [[route]]\nupstream = \"lost\"\npath_prefix = \"/lost\"\n",
    );
    doctor(&setup, &folder.path().join("data"))
        .expect_failed(2)
        .expect("fail", "upstream \"up\"", &["127.0.0.1", "refused", " ms"])
        .expect("fail", "upstream \"lost\"", &["no-such-host.invalid"]);
}

#[test]
fn a_check_that_lasts_is_told_of() {
    // Nobody accepts, so the handshake waits for its first word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let folder = folder();
    let (roots, _) = certificate(90);
    let setup = modest(&url).upstream(&roots_line(&roots));
    let said = doctor(&setup, &folder.path().join("data"));
    let stderr = &said.0.stderr;
    assert!(
        stderr.contains("upstream \"up\": still looking, 2 s so far"),
        "{stderr}"
    );
    let line = said.on("upstream \"up\"");
    assert!(
        line.starts_with("fail ") && line.contains("no TLS"),
        "{line}"
    );
    assert_eq!(said.0.code, Some(1));
}

/// A certificate for `localhost` that ends in so many days, in a folder, and what presents it.
pub(crate) fn certificate(days: i64) -> (TempDir, Arc<ServerConfig>) {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let shift = day * u32::try_from(days.abs()).unwrap();
    let end = if days < 0 { now - shift } else { now + shift };
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end + Duration::from_secs(60);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (folder, Arc::new(server))
}

pub(crate) fn pem(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

fn roots_line(folder: &TempDir) -> String {
    format!("tls_roots = \"{}\"", pem(folder, "cert.pem").display())
}

/// What a server presents.
pub(crate) fn tls_line(folder: &TempDir) -> String {
    format!(
        "tls = {{ cert = \"{}\", key = \"{}\" }}",
        pem(folder, "cert.pem").display(),
        pem(folder, "key.pem").display()
    )
}

/// Looks at an upstream, and a server, whose certificates end in so many days.
fn with_certificates(upstream_days: i64, server_days: i64) -> Said {
    let (roots, tls) = certificate(upstream_days);
    let peer = Peer::start(Some(tls));
    let (own, _) = certificate(server_days);
    let folder = folder();
    let setup = modest(&format!("https://localhost:{}", peer.port()))
        .upstream(&roots_line(&roots))
        .server(&tls_line(&own));
    doctor(&setup, &folder.path().join("data"))
}

#[test]
fn certificates_are_told_how_long_they_are_good_for() {
    let (theirs, own) = (
        "certificate of upstream \"up\"",
        "certificate of this server",
    );
    let said = with_certificates(90, 60);
    said.expect_well_but(&[]);
    said.expect("ok", theirs, &["good for 90 days"])
        .expect("ok", own, &["good for 60 days"])
        .expect("ok", "upstream \"up\"", &["name ", "TCP ", "TLS "]);

    let said = with_certificates(13, 5);
    said.expect_well_but(&["certificate"]);
    said.expect("warn", theirs, &["good for 13 days"])
        .expect("warn", own, &["good for 5 days"]);

    with_certificates(-3, -40)
        .expect_failed(2)
        .expect("fail", theirs, &["over since 2 days"])
        .expect("fail", own, &["over since 39 days"]);
}

#[test]
fn an_upstream_that_is_not_trusted_fails() {
    let (_, tls) = certificate(90);
    let peer = Peer::start(Some(tls));
    let (others, _) = certificate(90);
    let folder = folder();
    let setup =
        modest(&format!("https://localhost:{}", peer.port())).upstream(&roots_line(&others));
    doctor(&setup, &folder.path().join("data"))
        .expect_failed(1)
        .expect(
            "fail",
            "upstream \"up\"",
            &["invalid peer certificate", "tls_roots"],
        );
}

#[test]
fn a_low_limit_on_open_files_is_warned_about() {
    let upstream = Upstream::counting();
    let (folder, place) = (folder(), tempfile::tempdir().unwrap());
    let data = folder.path().join("data");
    let file = written(&modest(&upstream.url()), &data, place.path());
    let script = "ulimit -n 64; exec \"$0\" \"$@\"";
    let run = run_to_exit("sh", &["-c", script, BIN, "doctor", "--config", &file], &[]);
    let said = Said(run);
    said.expect_well_but(&["files"]);
    // 50 of callers, 50 of operations, 100 of others.
    said.expect("warn", "files: 64 may be open", &["200", "LimitNOFILE"]);
}

#[test]
fn a_redis_that_does_not_sync_is_warned_about() {
    let upstream = Upstream::counting();
    let on = |server: &RedisServer| {
        let setup = modest(&upstream.url()).store(&format!("url = \"{}\"", server.url()));
        doctor(&setup, Path::new("/nowhere"))
    };
    let lazy = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let said = on(&lazy);
    said.expect_well_but(&["durability"]);
    said.expect("warn", "durability: ", &["appendfsync"])
        .expect("ok", "clock: ", &[" ms "])
        .expect("ok", "commit: a durable claim", &[" ms"]);
    let forgetful = on(&RedisServer::start(&["--appendonly", "no"]));
    forgetful.expect("warn", "durability: ", &["appendonly"]);
    let synced = RedisServer::start(&SYNCED);
    let said = on(&synced);
    said.expect_well_but(&["commit"]);
    // The store's own key alone is left: no record, no index.
    let left = synced.command(&["KEYS", "*"]);
    let records = left.lines().filter(|key| !key.ends_with(":meta")).count();
    assert_eq!(records, 0, "{left}");
}

#[test]
fn a_redis_that_evicts_or_is_gone_fails() {
    let upstream = Upstream::counting();
    let mut server = RedisServer::start(&["--maxmemory-policy", "allkeys-lru"]);
    let setup = modest(&upstream.url()).store(&format!("url = \"{}\"", server.url()));
    doctor(&setup, Path::new("/nowhere"))
        .expect_failed(1)
        .expect("fail", "store: ", &["allkeys-lru"]);
    server.kill();
    doctor(&setup, Path::new("/nowhere"))
        .expect_failed(1)
        .expect("fail", "store: ", &["127.0.0.1"])
        // The rest is looked at all the same.
        .expect("ok", "upstream \"up\"", &[]);
}

#[test]
fn a_postgres_that_does_not_sync_is_warned_about() {
    let upstream = Upstream::counting();
    let server = Postgres::start(&["synchronous_commit=off"]);
    let setup = modest(&upstream.url()).store(&format!("url = \"{}\"", server.url()));
    doctor(&setup, Path::new("/nowhere"))
        .expect_failed(1)
        .expect("fail", "store: ", &["onlyonce store migrate"]);
    let migrated = run_to_exit(BIN, &["store", "migrate", &server.url()], &[]);
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
    let said = doctor(&setup, Path::new("/nowhere"));
    said.expect_well_but(&["durability", "commit"]);
    said.expect("warn", "durability: ", &["synchronous_commit=off"])
        .expect("ok", "clock: ", &[" ms "]);
    let dump = server.dump("onlyonce");
    assert!(!dump.contains("onlyonce-doctor"), "{dump}");
}

#[test]
fn mistakes_in_the_configuration_are_no_findings() {
    let folder = folder();
    let file = folder.path().join("onlyonce.toml");
    std::fs::write(&file, "[sever]\n").unwrap();
    let file = file.display().to_string();
    for words in [
        &["doctor"][..],
        &["doctor", "--config", &file],
        &["doctor", "--upstream", "ftp://x"],
        &["doctor", "--upstream", "http://x", "--config", &file],
    ] {
        let run = run_to_exit(BIN, words, &[]);
        assert_eq!((run.code, &*run.stdout), (Some(2), ""), "{run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    }
}

#[test]
fn an_upstream_needs_no_file() {
    let upstream = Upstream::counting();
    let folder = folder();
    let data = folder.path().join("data").display().to_string();
    let words = ["doctor", "--upstream", &upstream.url(), "--data", &data];
    let said = Said(run_to_exit(BIN, &words, &[]));
    said.expect_well_but(&["space", "files", "commit"]);
    said.expect("ok", "store: there is none", &[&data])
        .expect("ok", "upstream \"127.0.0.1", &[]);
}
