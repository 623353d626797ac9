//! A browser's session: a cookie that says which token began it, and until when it holds.
//!
//! Nothing of it is kept: it is authenticated under the store's secret, so that it holds on every
//! gateway of the store, over restarts, and ends with the token that began it.

use axum::http::HeaderMap;
use axum::http::header::COOKIE;
use onlyonce_store::Store;

use super::access::same;
use crate::config::Secret;

/// How long a session holds, in seconds.
const LIFE: u64 = 12 * 3600;

/// The cookie's name over https, where the browser keeps it to this very host; and over http.
const NAMES: [&str; 2] = ["__Host-onlyonce", "onlyonce"];

/// A session as a browser presents it. Whether it holds is for [`Session::is_of`] to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session(Box<str>);

impl Session {
    /// Begins one for the holder of `token`.
    pub(super) fn begin(store: &impl Store, name: &str, token: &Secret) -> Self {
        let expiry = store.now().as_millis() / 1000 + LIFE;
        let mac = session_mac(store, name, expiry, token);
        Self(format!("v1.{name}.{expiry}.{mac}").into())
    }

    /// The one that the cookies of a request name.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers.get_all(COOKIE).iter();
        let pairs = cookies
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        let mut own = pairs.filter(|(name, _)| NAMES.contains(name));
        own.next().map(|(_, value)| Self(value.into()))
    }

    /// Whether the token `name` began it, and it has not ended.
    pub(super) fn is_of(&self, store: &impl Store, name: &str, token: &Secret) -> bool {
        let mut parts = self.0.rsplitn(3, '.');
        let (Some(mac), Some(expiry), Some(named)) = (parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let Ok(expiry) = expiry.parse() else {
            return false;
        };
        named.strip_prefix("v1.") == Some(name)
            && store.now().as_millis() / 1000 < expiry
            && same(
                mac.as_bytes(),
                session_mac(store, name, expiry, token).as_bytes(),
            )
    }

    /// The `Set-Cookie` that hands it to a browser.
    pub(super) fn cookie(&self, is_https: bool) -> String {
        cookie(is_https, &self.0, LIFE)
    }

    /// The `Set-Cookie` that takes it back.
    pub(super) fn no_cookie(is_https: bool) -> String {
        cookie(is_https, "", 0)
    }
}

fn cookie(is_https: bool, value: &str, age: u64) -> String {
    let [https, http] = NAMES;
    let (name, secure) = match is_https {
        true => (https, "; Secure"),
        false => (http, ""),
    };
    format!("{name}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={age}{secure}")
}

/// What the forms of a session carry, so that no other page can fill them in. Without a session it
/// is the same for everybody, and still not to be guessed.
pub(super) fn form_mac(store: &impl Store, session: Option<&Session>) -> String {
    let session = session.map_or("", |session| &*session.0);
    mac(store, b"onlyonce console form v1", &[session.as_bytes()])
}

fn session_mac(store: &impl Store, name: &str, expiry: u64, token: &Secret) -> String {
    let parts = [
        name.as_bytes(),
        &expiry.to_be_bytes(),
        token.expose().as_bytes(),
    ];
    mac(store, b"onlyonce console session v1", &parts)
}

fn mac(store: &impl Store, what: &[u8], parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new_keyed(store.secret());
    hasher.update(what);
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::HeaderValue;
    use onlyonce_store::MemoryStore;
    use onlyonce_store::clock::ManualClock;

    use super::*;

    fn sent_back(cookie: &str) -> Session {
        let (pair, _) = cookie.split_once(';').unwrap();
        let line = HeaderValue::from_str(&format!("other=1; {pair}")).unwrap();
        Session::of(&HeaderMap::from_iter([(COOKIE, line)])).unwrap()
    }

    #[test]
    fn a_session_ends_with_its_time_and_with_its_token() {
        let clock = ManualClock::default();
        let store = MemoryStore::with_clock(clock.clone());
        let token = Secret::new("one");
        let session = Session::begin(&store, "a.b", &token);
        let session = sent_back(&session.cookie(true));
        assert!(session.is_of(&store, "a.b", &token));
        assert!(!session.is_of(&store, "a.b", &Secret::new("another")));
        assert!(!session.is_of(&store, "b", &token));
        assert!(
            !session.is_of(&MemoryStore::new(), "a.b", &token),
            "of another store"
        );
        clock.advance(Duration::from_secs(LIFE - 1));
        assert!(session.is_of(&store, "a.b", &token));
        clock.advance(Duration::from_secs(1));
        assert!(!session.is_of(&store, "a.b", &token));
    }

    #[test]
    fn what_is_no_session_is_nobodys() {
        let store = MemoryStore::new();
        let token = Secret::new("one");
        let good = Session::begin(&store, "a", &token).0;
        let later = good.replacen("v1.a.", "v1.a.9", 1);
        for value in [
            "",
            "v1",
            "v1.a.1.",
            "a.b.c.d",
            &later,
            &good[1..],
            &good[..9],
        ] {
            assert!(!Session(value.into()).is_of(&store, "a", &token), "{value}");
        }
    }

    #[test]
    fn a_form_belongs_to_its_session() {
        let store = MemoryStore::new();
        let session = Session::begin(&store, "a", &Secret::new("one"));
        let other = Session::begin(&store, "b", &Secret::new("one"));
        let macs = [None, Some(&session), Some(&other)].map(|one| form_mac(&store, one));
        assert!(macs[0] != macs[1] && macs[1] != macs[2]);
    }
}
