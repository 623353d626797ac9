//! A line between a client and a server that a test can disturb.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
};

/// Passes connections on to a port on this machine, byte for byte, until it is told otherwise.
pub struct Between {
    port: u16,
    line: Arc<Line>,
}

#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a test has asked for.
#[derive(Default)]
struct State {
    /// Connections that were made so far; each is known by its number.
    made: u64,
    swallows: bool,
    refuses: bool,
    stalls: bool,
    stalls_next: bool,
    stalled: HashSet<u64>,
    /// What the server says on connections with a smaller number waits.
    held_back: u64,
    open: Vec<TcpStream>,
}

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Between {
    /// A line to `port`.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let between = Self {
            port: listener.local_addr().expect("its address").port(),
            line: Arc::default(),
        };
        let line = between.line.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // The server may be down.
                let _ = line.join(client, port);
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
        self.line.state().swallows = true;
    }

    /// All that is said waits until it is let go, on new connections too.
    pub fn stall(&self) {
        self.line.state().stalls = true;
    }

    /// The next connection on which the client speaks stalls, in both directions.
    pub fn stall_next(&self) {
        self.line.state().stalls_next = true;
    }

    /// What the server says on the connections that there are waits until it is let go.
    pub fn hold_back_answers(&self) {
        let mut state = self.line.state();
        state.held_back = state.made;
    }

    /// All goes on as it should, over the same connections: what waited arrives, and what was thrown
    /// away stays away.
    pub fn let_go(&self) {
        let mut state = self.line.state();
        state.swallows = false;
        state.refuses = false;
        state.stalls = false;
        state.stalls_next = false;
        state.stalled.clear();
        state.held_back = 0;
        self.line.changed.notify_all();
    }

    /// Cuts all connections, and takes no new ones.
    pub fn cut(&self) {
        let mut state = self.line.state();
        state.refuses = true;
        for stream in state.open.drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes everything on again, over new connections.
    pub fn mend(&self) {
        self.cut();
        self.let_go();
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn join(self: &Arc<Self>, client: TcpStream, port: u16) -> io::Result<()> {
        if self.state().refuses {
            return Ok(());
        }
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let number = {
            let mut state = self.state();
            state.open.push(client.try_clone()?);
            state.open.push(server.try_clone()?);
            state.made += 1;
            state.made - 1
        };
        let ways = [
            (Side::Client, client.try_clone()?, server.try_clone()?),
            (Side::Server, server, client),
        ];
        for (side, from, to) in ways {
            let line = self.clone();
            thread::spawn(move || line.pass(number, side, from, to));
        }
        Ok(())
    }

    /// Passes on what one side says, until it ends.
    fn pass(&self, connection: u64, side: Side, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(len) = from.read(&mut bytes)
            && len > 0
        {
            if self.lets_through(connection, side) && to.write_all(&bytes[..len]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Waits as long as what was just said must; says whether it is passed on at all.
    fn lets_through(&self, connection: u64, side: Side) -> bool {
        let mut state = self.state();
        if state.stalls_next && side == Side::Client {
            state.stalls_next = false;
            state.stalled.insert(connection);
        }
        let waits = |state: &mut State| {
            let is_held_back = side == Side::Server && connection < state.held_back;
            state.stalls || state.stalled.contains(&connection) || is_held_back
        };
        let state = self.changed.wait_while(state, waits).expect("no panic");
        side == Side::Client || !state.swallows
    }
}
