//! How long certificates are good for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::finding::Finding;
use crate::config::Tls;

const DAY: u64 = 24 * 3600;
/// Seconds before its end from which on a certificate is warned about.
const SOON: u64 = 14 * DAY;

/// The certificate that callers see.
pub(super) fn of_server(tls: &Tls) -> Finding {
    let title = format!("certificate of this server ({})", tls.cert.display());
    match CertificateDer::from_pem_file(&tls.cert) {
        Ok(certificate) => of(&title, &certificate),
        Err(error) => Finding::fail(
            format!("{title}: it does not read ({error})"),
            "set server.tls.cert to a PEM file with a certificate",
        ),
    }
}

/// Any certificate, which `title` names.
pub(super) fn of(title: &str, certificate: &CertificateDer<'_>) -> Finding {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => {
            let end = certificate.validity().not_after.timestamp();
            ends(title, u64::try_from(end).unwrap_or(0))
        }
        Err(error) => Finding::fail(
            format!("{title}: it does not read ({error})"),
            "have another one issued",
        ),
    }
}

/// A certificate that ends at `end`, in seconds since 1970.
pub(super) fn ends(title: &str, end: u64) -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    judge(title, end, now.unwrap_or_default().as_secs())
}

fn judge(title: &str, end: u64, now: u64) -> Finding {
    // Some never end, by a year that not every calendar has.
    let date = UNIX_EPOCH
        .checked_add(Duration::from_secs(end.min(253_402_300_799)))
        .map_or_else(String::new, |moment| {
            humantime::format_rfc3339_seconds(moment).to_string()
        });
    let Some(left) = end.checked_sub(now) else {
        return Finding::fail(
            format!("{title}: over since {} ({date})", span(now - end)),
            "renew it",
        );
    };
    let text = format!("{title}: good for {} (until {date})", span(left));
    if left < SOON {
        return Finding::warn(text, "renew it");
    }
    Finding::ok(text)
}

fn span(seconds: u64) -> String {
    if seconds < 2 * DAY {
        return format!("{} h", seconds / 3600);
    }
    format!("{} days", seconds / DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_told_in_time() {
        let now = 1_000 * DAY;
        for (end, text) in [
            (
                now + SOON,
                "ok   c: good for 14 days (until 1972-10-11T00:00:00Z)",
            ),
            (
                now + SOON - 1,
                "warn c: good for 13 days (until 1972-10-10T23:59:59Z); renew it",
            ),
            (
                now,
                "warn c: good for 0 h (until 1972-09-27T00:00:00Z); renew it",
            ),
            (
                now - 3 * DAY,
                "fail c: over since 3 days (1972-09-24T00:00:00Z); renew it",
            ),
        ] {
            assert_eq!(judge("c", end, now).to_string(), text);
        }
        assert!(judge("c", u64::MAX, now).to_string().contains("9999"));
    }
}
