//! A pooler before a PostgreSQL server.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use crate::{
    Postgres,
    postgres::{as_the_server, folder_of_the_server, free_port},
    signal::eventually,
};

/// PgBouncer, which gives every transaction one of a few connections to the server.
pub struct Pgbouncer {
    folder: PathBuf,
    port: u16,
    pooler: Child,
}

impl Pgbouncer {
    /// A pooler before `server`, with `connections` to it.
    #[track_caller]
    pub fn start(server: &Postgres, connections: u32) -> Self {
        let folder = folder_of_the_server("onlyonce-pgbouncer-");
        let port = free_port();
        let users = folder.join("users");
        fs::write(&users, "\"postgres\" \"\"\n").expect("a list of users");
        let configuration = folder.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = {connections}\nmax_client_conn = 500\n\
             ignore_startup_parameters = extra_float_digits\n",
            server.port(),
            users.display()
        );
        fs::write(&configuration, text).expect("a configuration");
        let log = fs::File::create(folder.join("log")).expect("a log");
        let pooler = as_the_server(Path::new("/usr/sbin/pgbouncer"))
            .arg(&configuration)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("pgbouncer starts");
        eventually("the pooler listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            folder,
            port,
            pooler,
        }
    }

    /// The URL of the server's database `postgres` through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        let _ = self.pooler.kill();
        let _ = self.pooler.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
