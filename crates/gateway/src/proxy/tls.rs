//! TLS towards callers and upstreams.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Config, Tls, Upstream};
use crate::failure::Failure;

/// How this gateway speaks TLS to each upstream.
pub(crate) struct UpstreamTls(Vec<(Box<str>, Arc<ClientConfig>)>);

impl UpstreamTls {
    /// Reads the roots that each upstream is trusted by.
    pub(crate) fn read(config: &Config) -> Result<Self, Failure> {
        let mut all = Vec::new();
        for upstream in config.upstreams.iter().filter(|upstream| upstream.tls) {
            all.push((upstream.name.clone(), Arc::new(client(upstream)?)));
        }
        Ok(Self(all))
    }

    /// What `upstream` is spoken to with; `None` where it is reached without TLS.
    pub(crate) fn of(&self, upstream: &Upstream) -> Option<Arc<ClientConfig>> {
        let (_, config) = self.0.iter().find(|(name, _)| *name == upstream.name)?;
        Some(Arc::clone(config))
    }
}

/// How a service beside the upstreams is spoken to, by the system's roots; `setting` is where its URL
/// stands, `None` where that is without TLS.
pub(crate) fn service_tls(setting: Option<&str>) -> Result<ClientConfig, Failure> {
    let advice = "install them (ca-certificates), or set SSL_CERT_FILE";
    let roots = match setting {
        Some(setting) => system_roots(&format!("the address in {setting}"), advice)?,
        None => RootCertStore::empty(),
    };
    client_with(roots)
}

fn client(upstream: &Upstream) -> Result<ClientConfig, Failure> {
    let roots = match &upstream.tls_roots {
        Some(file) => roots_in(file)?,
        None => system_roots(
            &format!("upstream \"{}\"", upstream.name),
            "install them (ca-certificates), or set tls_roots",
        )?,
    };
    let mut config = client_with(roots)?;
    config.alpn_protocols = match upstream.http2 {
        true => vec![b"h2".to_vec()],
        false => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(config)
}

fn client_with(roots: RootCertStore) -> Result<ClientConfig, Failure> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_failure(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn roots_in(file: &Path) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, "tls_roots")? {
        roots
            .add(certificate)
            .map_err(|error| unusable(file, "tls_roots", &error.to_string()))?;
    }
    Ok(roots)
}

/// The roots that this system trusts. `who` is reached over TLS.
fn system_roots(who: &str, advice: &str) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    let (added, _) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(Failure::other(
            format!("this system has no root certificates, and {who} is reached over TLS"),
            advice,
        ));
    }
    Ok(roots)
}

/// How the gateway speaks TLS to callers.
pub(super) fn server(tls: &Tls) -> Result<Arc<ServerConfig>, Failure> {
    let chain = certificates(&tls.cert, "server.tls.cert")?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| unusable(&tls.key, "server.tls.key", &error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_failure(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&tls.key, "server.tls.key", &error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(file: &Path, setting: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let all: Vec<_> = read.map_err(|error| unusable(file, setting, &error.to_string()))?;
    if all.is_empty() {
        return Err(unusable(file, setting, "there is no certificate in it"));
    }
    Ok(all)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn unusable(file: &Path, setting: &str, why: &str) -> Failure {
    Failure::usage(
        format!("the file {} cannot be used ({why})", file.display()),
        format!("set {setting} to a PEM file that holds what belongs there"),
    )
}

fn tls_failure(error: &rustls::Error) -> Failure {
    Failure::other(
        format!("TLS cannot be used ({error})"),
        "report this: the gateway was built without what it needs",
    )
}
