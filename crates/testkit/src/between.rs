//! A line between a client and a server that a test can disturb.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

/// Passes connections on to a port on this machine, byte for byte, until it is told otherwise.
pub struct Between {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    swallows: AtomicBool,
    /// Connections that were made before it last rose hang.
    hung: AtomicU64,
    refuses: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Between {
    /// A line to `port`.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let between = Self {
            port: listener.local_addr().expect("its address").port(),
            shared: Arc::default(),
        };
        let shared = between.shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                // The server may be down.
                let _ = shared.join(client, port);
            }
        });
        between
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, what the server says is thrown away, and what the client says arrives.
    pub fn swallow_answers(&self) {
        self.shared.swallows.store(true, Ordering::SeqCst);
    }

    /// The connections that there are stay open, and pass nothing on any more; new ones do.
    pub fn hang(&self) {
        self.shared.hung.fetch_add(1, Ordering::SeqCst);
    }

    /// Cuts all connections, and takes no new ones.
    pub fn cut(&self) {
        self.shared.refuses.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().expect("no panic").drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes everything on again, over new connections.
    pub fn mend(&self) {
        self.cut();
        self.shared.swallows.store(false, Ordering::SeqCst);
        self.shared.refuses.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream, port: u16) -> io::Result<()> {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        {
            let mut open = self.open.lock().expect("no panic");
            open.push(client.try_clone()?);
            open.push(server.try_clone()?);
        }
        let (to_server, to_client) = (server.try_clone()?, client.try_clone()?);
        let made = self.hung.load(Ordering::SeqCst);
        let shared = self.clone();
        thread::spawn(move || pass(client, to_server, || shared.hangs(made)));
        let shared = self.clone();
        thread::spawn(move || {
            pass(server, to_client, || {
                shared.hangs(made) || shared.swallows.load(Ordering::SeqCst)
            });
        });
        Ok(())
    }

    fn hangs(&self, made: u64) -> bool {
        self.hung.load(Ordering::SeqCst) != made
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, swallows: impl Fn() -> bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(len) = from.read(&mut bytes)
        && len > 0
    {
        if !swallows() && to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
