//! Whether an upstream is there, and how far away.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::certificate;
use super::finding::{Finding, millis};
use crate::config::Upstream;

/// How long a name, a connection or a handshake may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What an upstream is called in findings.
pub(super) fn title(upstream: &Upstream) -> String {
    format!("upstream \"{}\"", upstream.name)
}

/// Goes the way of a request, as far as it goes without one: name, TCP, TLS.
pub(super) async fn check(
    upstream: Arc<Upstream>,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Vec<Finding> {
    let title = title(&upstream);
    match reach(&upstream, tls).await {
        Ok(reached) => {
            let mut findings = vec![Finding::ok(format!("{title}: {}", reached.way))];
            let certificate = reached.certificate;
            findings.extend(certificate.map(|it| certificate::of(&certificate_title(&title), &it)));
            findings
        }
        Err(Broken::Over { end }) => vec![certificate::ends(&certificate_title(&title), end)],
        Err(Broken::Other { what, next }) => vec![Finding::fail(format!("{title}: {what}"), next)],
    }
}

fn certificate_title(title: &str) -> String {
    format!("certificate of {title}")
}

/// An upstream that was reached.
struct Reached {
    /// Where it is, and what each step took.
    way: String,
    certificate: Option<CertificateDer<'static>>,
}

/// Why one was not.
enum Broken {
    /// A certificate is over since `end`, in seconds since 1970.
    Over { end: u64 },
    /// Anything else.
    Other { what: String, next: &'static str },
}

async fn reach(
    upstream: &Upstream,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<Reached, Broken> {
    let (host, port) = (&*upstream.host, upstream.port);
    let (looked_up, name_time) = timed(lookup_host((host, port))).await;
    let addresses: Vec<_> = looked_up
        .map_err(|error| Broken::Other {
            what: format!("the name {host} does not resolve ({error}, after {name_time})"),
            next: "look at its url, and at the name servers of this machine",
        })?
        .collect();

    let (connected, tcp_time) = connect(&addresses).await;
    let (address, tcp) = connected.map_err(|error| Broken::Other {
        what: format!(
            "no connection to {}, port {port} ({error}, after {tcp_time})",
            list(host, &addresses)
        ),
        next: "start it, or look at its url and at the firewalls on the way",
    })?;
    let mut reached = Reached {
        way: format!("{address} reached, name {name_time}, TCP {tcp_time}"),
        certificate: None,
    };

    let Some(config) = tls else {
        return Ok(reached);
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| Broken::Other {
        what: format!("no certificate can be for {host} ({error})"),
        next: "look at its url",
    })?;
    let (shaken, tls_time) = timed(TlsConnector::from(config).connect(name, tcp)).await;
    let stream = shaken.map_err(|error| broken_handshake(&error, address, &tls_time))?;
    let chain = stream.get_ref().1.peer_certificates();
    reached.certificate = chain
        .and_then(<[_]>::first)
        .map(|leaf| leaf.clone().into_owned());
    reached.way += &format!(", TLS {tls_time}");
    Ok(reached)
}

/// Tries one address after the other, as a request does.
async fn connect(addresses: &[SocketAddr]) -> (io::Result<(SocketAddr, TcpStream)>, String) {
    let started = Instant::now();
    let mut last = io::Error::other("the name has no address");
    for &address in addresses {
        match timed(TcpStream::connect(address)).await.0 {
            Ok(tcp) => return (Ok((address, tcp)), millis(started.elapsed())),
            Err(error) => last = error,
        }
    }
    (Err(last), millis(started.elapsed()))
}

/// What a step came to within [`LIMIT`], and how long it took.
async fn timed<T>(step: impl Future<Output = io::Result<T>>) -> (io::Result<T>, String) {
    let started = Instant::now();
    let done = timeout(LIMIT, step).await.unwrap_or_else(|_| {
        let text = format!("no answer within {LIMIT:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    });
    (done, millis(started.elapsed()))
}

fn broken_handshake(error: &io::Error, address: SocketAddr, after: &str) -> Broken {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let next = match inner {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::ExpiredContext { not_after, .. } => {
                return Broken::Over {
                    end: not_after.as_secs(),
                };
            }
            // The latter where a root has the name of its issuer, and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "set tls_roots to the PEM file of the roots that it is trusted by"
            }
            _ => "look at its url and its certificate",
        },
        _ => "look whether TLS is spoken there, and at its url",
    };
    Broken::Other {
        what: format!("no TLS with {address} ({error}, after {after})"),
        next,
    }
}

/// What was tried, for people.
fn list(host: &str, addresses: &[SocketAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(|one| one.ip().to_string()).collect();
    if all == [host] {
        return host.to_owned();
    }
    format!("{host} ({})", all.join(", "))
}
