//! A line to a PostgreSQL server that stops at a statement of a test's choice.
//!
//! It reads what passes: a client sends units that end with a `Sync` or are a simple `Query`, and the server
//! ends its answer to each with a `ReadyForQuery`. Both drivers wait for the one before they send the next.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where in a unit the line stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// It was sent, and nothing of it has arrived.
    Before,
    /// Half of its bytes have arrived.
    Midway,
    /// It has arrived. Its answer is not passed on.
    Arrived,
    /// Its answer is there, and is not passed on.
    Answered,
}

impl Point {
    pub const ALL: [Self; 4] = [Self::Before, Self::Midway, Self::Arrived, Self::Answered];
}

/// A line to a port on this machine.
pub struct Line {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Where to stop: the number of a unit, from 1, and where in it.
    stop: Option<(u32, Point)>,
    /// Units since the line was told where to stop.
    units: u32,
    is_reached: bool,
    /// The connection whose answers are not passed on.
    muted: Option<u64>,
    made: u64,
    open: Vec<TcpStream>,
}

impl Line {
    /// A line to `port`.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let line = Self {
            port: listener.local_addr().unwrap().port(),
            shared: Arc::default(),
        };
        let shared = line.shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // The server may be down.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    shared.clone().join(client, server);
                }
            }
        });
        line
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Counts units anew, and stops at the one with the number `unit`.
    pub fn stop_at(&self, unit: u32, point: Point) {
        let mut state = self.shared.state();
        state.stop = Some((unit, point));
        state.units = 0;
        state.is_reached = false;
        state.muted = None;
    }

    /// Counts units anew, and passes all of them.
    pub fn count(&self) {
        self.stop_at(u32::MAX, Point::Before);
    }

    /// Units that came since then.
    pub fn units(&self) -> u32 {
        self.shared.state().units
    }

    /// Whether it has stopped.
    pub fn has_stopped(&self) -> bool {
        self.shared.state().is_reached
    }

    /// Waits until it has stopped.
    #[track_caller]
    pub fn wait_until_stopped(&self) {
        let state = self.shared.state();
        let waits = |state: &mut State| !state.is_reached;
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, waits);
        assert!(!waited.unwrap().1.timed_out(), "it was not reached");
    }

    /// Cuts all connections, and takes new ones.
    pub fn cut(&self) {
        let mut state = self.shared.state();
        for stream in state.open.drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        state.stop = None;
        state.muted = None;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn join(self: Arc<Self>, client: TcpStream, server: TcpStream) {
        let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let number = {
            let mut state = self.state();
            state.open.extend(
                [client.try_clone(), server.try_clone()]
                    .into_iter()
                    .flatten(),
            );
            state.made += 1;
            state.made
        };
        let shared = self.clone();
        thread::spawn(move || self.pass_units(number, client, server));
        thread::spawn(move || shared.pass_answers(number, server_too, client_too));
    }

    fn pass_units(&self, connection: u64, mut client: TcpStream, mut server: TcpStream) {
        // The first message has no type.
        let mut is_first = true;
        let mut unit = Vec::new();
        while let Some((kind, bytes)) = next_message(&mut client, is_first) {
            unit.extend(bytes);
            if is_first || matches!(kind, b'S' | b'Q' | b'X') {
                let passed = match is_first || kind == b'X' {
                    true => server.write_all(&unit).is_ok(),
                    false => self.pass_unit(connection, &unit, &mut server),
                };
                if !passed {
                    break;
                }
                unit.clear();
            }
            is_first = false;
        }
        let _ = (
            server.shutdown(Shutdown::Both),
            client.shutdown(Shutdown::Both),
        );
    }

    fn pass_unit(&self, connection: u64, unit: &[u8], server: &mut TcpStream) -> bool {
        let point = {
            let mut state = self.state();
            state.units += 1;
            let units = state.units;
            let point = state
                .stop
                .filter(|(at, _)| *at == units)
                .map(|(_, point)| point);
            if let Some(Point::Arrived | Point::Answered) = point {
                state.muted = Some(connection);
            }
            point
        };
        let arrives = match point {
            Some(Point::Before) => 0,
            Some(Point::Midway) => unit.len() / 2,
            _ => unit.len(),
        };
        if server.write_all(&unit[..arrives]).is_err() {
            return false;
        }
        match point {
            Some(Point::Before | Point::Midway) => {
                self.reach();
                // Until it is cut, nothing more arrives.
                let state = self.state();
                drop(self.changed.wait_while(state, |state| state.stop.is_some()));
                false
            }
            Some(Point::Arrived) => {
                self.reach();
                true
            }
            _ => true,
        }
    }

    fn reach(&self) {
        self.state().is_reached = true;
        self.changed.notify_all();
    }

    fn pass_answers(&self, connection: u64, mut server: TcpStream, mut client: TcpStream) {
        while let Some((kind, bytes)) = next_message(&mut server, false) {
            let is_muted = self.state().muted == Some(connection);
            if is_muted && kind == b'Z' {
                self.reach();
            }
            if !is_muted && client.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = (
            server.shutdown(Shutdown::Both),
            client.shutdown(Shutdown::Both),
        );
    }
}

/// One message and its type.
fn next_message(from: &mut TcpStream, is_first: bool) -> Option<(u8, Vec<u8>)> {
    let mut bytes = vec![0; if is_first { 4 } else { 5 }];
    from.read_exact(&mut bytes).ok()?;
    let kind = if is_first { 0 } else { bytes[0] };
    let len = u32::from_be_bytes(*bytes.last_chunk()?) as usize;
    let head = bytes.len();
    bytes.resize(head + len.checked_sub(4)?, 0);
    from.read_exact(&mut bytes[head..]).ok()?;
    Some((kind, bytes))
}
