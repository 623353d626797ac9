//! `[[server.token]]`: who may use the control listener, and for what.

use super::error::ConfigError;
use super::section::{Entry, Section};
use super::value::Secret;

/// Something that a caller of the control listener may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// See operations.
    Read,
    /// See what was answered: bodies and header values.
    Payload,
    /// Settle operations whose outcome is unknown.
    Resolve,
    /// Remove records.
    Admin,
    /// Claim operations as a worker, and settle what was claimed.
    Work,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Payload,
        Self::Resolve,
        Self::Admin,
        Self::Work,
    ];

    /// Its name in the configuration and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Payload => "payload",
            Self::Resolve => "resolve",
            Self::Admin => "admin",
            Self::Work => "work",
        }
    }
}

/// A token of the control listener.
#[derive(Clone, Debug)]
pub struct Token {
    /// What logs call its holder.
    pub name: Box<str>,
    /// The token itself.
    pub token: Secret,
    /// The one tenant that its holder sees; all of them where there is none.
    pub tenant: Option<Box<str>>,
    /// What its holder may do.
    pub rights: Vec<Right>,
}

impl Token {
    /// Reads them, next to the `control` token.
    pub(super) fn read_all(
        server: &mut Section<'_>,
        control: Option<&Secret>,
    ) -> Result<Vec<Self>, ConfigError> {
        let mut tokens: Vec<Self> = Vec::new();
        for mut section in server.tables("token")? {
            let name = section.require("name", "name the token after who holds it")?;
            let token = section.require("token", "write token = \"env:NAME\"")?;
            let read = Self {
                name: name.name()?.into(),
                token: token.secret()?,
                tenant: tenant(&mut section)?,
                rights: rights(&section.require("rights", "write rights = [\"read\"]")?)?,
            };
            if &*read.name == Self::CONTROL || tokens.iter().any(|one| one.name == read.name) {
                return Err(name.fail(
                    format!("is \"{}\" again", read.name),
                    "choose another name: logs tell by it who did what",
                ));
            }
            let mut given = tokens.iter().map(|one| &one.token).chain(control);
            if given.any(|token| *token == read.token) {
                return Err(token.fail(
                    "is a token that was already given",
                    "give each its own: `openssl rand -base64 32`",
                ));
            }
            section.finish()?;
            tokens.push(read);
        }
        Ok(tokens)
    }

    /// What logs call who presents `server.control_token`.
    pub(crate) const CONTROL: &str = "control_token";
}

fn tenant(section: &mut Section<'_>) -> Result<Option<Box<str>>, ConfigError> {
    let entry = section.take("tenant");
    entry.map(|entry| Ok(entry.name()?.into())).transpose()
}

fn rights(entry: &Entry<'_>) -> Result<Vec<Right>, ConfigError> {
    let words = Right::ALL.map(|right| (right.as_str(), right));
    let rights: Vec<_> = entry
        .list("[\"read\"]")?
        .iter()
        .map(|item| item.choice(&words))
        .collect::<Result<_, _>>()?;
    // Every view is a look at operations first; a worker needs none.
    if !rights.contains(&Right::Read) && *rights != [Right::Work] {
        return Err(entry.fail(
            "has no \"read\"",
            "write rights = [\"read\"], and what more; or [\"work\"] alone",
        ));
    }
    Ok(rights)
}
