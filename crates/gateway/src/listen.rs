//! Taking the addresses that the gateway listens on.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::failure::Failure;

/// Connections that wait to be accepted, for each listener.
const BACKLOG: i32 = 4096;

/// `count` listeners on one address, so that each worker accepts for itself (`SO_REUSEPORT`: the
/// system spreads connections over them). All of them have one port, also where `addr` has none.
pub(crate) fn take_all(addr: SocketAddr, count: usize) -> Result<Vec<TcpListener>, Failure> {
    let failure = |error| cannot_listen(addr, "listen", &error);
    if addr.port() != 0 {
        // Sockets that share a port do not see each other: another gateway's would go unnoticed,
        // and take half of the connections. A socket that does not share says so.
        bind(addr, false).map_err(failure)?;
    }
    let first = listen(addr).map_err(failure)?;
    let taken = first.local_addr().map_err(failure)?;
    let mut all = vec![first];
    while all.len() < count {
        all.push(listen(taken).map_err(failure)?);
    }
    Ok(all)
}

/// One listener that shares its address with nobody.
pub(crate) fn take_one(addr: SocketAddr, setting: &str) -> Result<TcpListener, Failure> {
    let take = || {
        let socket = bind(addr, false)?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    take().map_err(|error| cannot_listen(addr, setting, &error))
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(addr, true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A port in TIME_WAIT, left by the process before, is free.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn cannot_listen(addr: SocketAddr, setting: &str, error: &io::Error) -> Failure {
    let next = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("stop what listens there, or choose another port with --{setting}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("choose a port above 1023 with --{setting}, or run with the right to take it")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("choose an address of this machine with --{setting}")
        }
        _ => format!("choose another address with --{setting}"),
    };
    Failure::other(format!("cannot listen on {addr} ({error})"), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_listeners_of_a_free_port_have_one_port() {
        let all = take_all("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> = all
            .iter()
            .map(|one| one.local_addr().unwrap().port())
            .collect();
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
    }

    #[test]
    fn a_busy_port_is_noticed_although_the_listeners_share_theirs() {
        let addr = "127.0.0.1:0".parse().unwrap();
        let taken = take_all(addr, 2).unwrap();
        let busy = taken[0].local_addr().unwrap();
        let error = take_all(busy, 2).unwrap_err().to_string();
        assert!(error.contains(&busy.to_string()), "{error}");
        assert!(error.contains("; stop what listens there"), "{error}");
        let error = take_one(busy, "control").unwrap_err().to_string();
        assert!(error.contains("--control"), "{error}");
    }
}
