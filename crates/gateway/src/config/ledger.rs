//! `[ledger]` and `[[ledger.sink]]`: how long the books are kept, and who is told what they say.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use onlyonce_ledger::sinks::{Customers, Format, Value, Webhook};
use onlyonce_store::books::Begin;

use super::error::ConfigError;
use super::route::Route;
use super::section::{Entry, OrZero, Section};
use super::value::{Secret, show_duration};

/// The books.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Whether they are kept.
    pub enabled: bool,
    /// How long; zero for ever.
    pub retention: Duration,
    /// Who is told what they say.
    pub sinks: Vec<LedgerSink>,
}

/// One who is told.
#[derive(Clone, Debug)]
pub struct LedgerSink {
    /// Its name, by which the store knows how far it was told.
    pub name: Box<str>,
    /// What it is.
    pub target: SinkTarget,
    /// Where it begins when it is new.
    pub from: Begin,
    /// For how long an entry is tried.
    pub give_up: Duration,
    /// How long one answer may take.
    pub timeout: Duration,
    /// Requests at once.
    pub in_flight: usize,
}

/// What a sink is.
#[derive(Clone, Debug)]
pub enum SinkTarget {
    /// Any URL, by Standard Webhooks.
    Webhook {
        /// Where events go.
        url: Uri,
        /// What they are signed with.
        secrets: Vec<Secret>,
    },
    /// A meter of Stripe's.
    Stripe(Billing),
    /// OpenMeter.
    OpenMeter {
        /// Where events go.
        url: Uri,
        /// Its token, where it wants one.
        secret: Option<Secret>,
        /// The events' source.
        source: Box<str>,
    },
    /// A metric of Lago's.
    Lago(Billing),
    /// Files in a folder.
    File {
        /// The folder.
        folder: PathBuf,
        /// How entries are written.
        format: Format,
    },
}

/// What billing services are told.
#[derive(Clone, Debug)]
pub struct Billing {
    /// Where events go.
    pub url: Uri,
    /// The service's key.
    pub secret: Secret,
    /// The meter's or the metric's name.
    pub event_name: Box<str>,
    /// Who pays, by tenant.
    pub customers: Customers,
    /// What is counted.
    pub value: Value,
}

impl SinkTarget {
    /// Its `kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Stripe(_) => "stripe",
            Self::OpenMeter { .. } => "openmeter",
            Self::Lago(_) => "lago",
            Self::File { .. } => "file",
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Webhook,
    Stripe,
    OpenMeter,
    Lago,
    File,
}

const KINDS: [(&str, Kind); 5] = [
    ("webhook", Kind::Webhook),
    ("stripe", Kind::Stripe),
    ("openmeter", Kind::OpenMeter),
    ("lago", Kind::Lago),
    ("file", Kind::File),
];

const STRIPE: &str = "https://api.stripe.com/v1/billing/meter_events";
const LAGO: &str = "https://api.getlago.com/api/v1/events/batch";

impl Ledger {
    pub(crate) fn read(root: &mut Section<'_>, routes: &[Arc<Route>]) -> Result<Self, ConfigError> {
        let mut section = root.table_or_empty("ledger")?;
        let mut ledger = Self {
            enabled: true,
            retention: Duration::from_secs(400 * 86_400),
            sinks: Vec::new(),
        };
        if let Some(entry) = section.take("enabled") {
            ledger.enabled = entry.boolean()?;
        }
        if let Some(entry) = section.take("retention") {
            ledger.retention = entry.duration(OrZero::Yes)?;
            let windows = routes.iter().map(|route| route.policy.window);
            let longest = windows.max().unwrap_or_default();
            if !ledger.retention.is_zero() && ledger.retention < longest {
                return Err(entry.fail(
                    format!(
                        "is {}, and a route keeps its records for {}",
                        show_duration(ledger.retention),
                        show_duration(longest)
                    ),
                    "write a longer one, or \"0s\" to keep the books for ever: they outlive the \
                     records",
                ));
            }
        }
        for sink in section.tables("sink")? {
            let sink = LedgerSink::read(sink, &ledger)?;
            ledger.sinks.push(sink);
        }
        section.finish()?;
        Ok(ledger)
    }
}

impl LedgerSink {
    fn read(mut section: Section<'_>, ledger: &Ledger) -> Result<Self, ConfigError> {
        let next = "name the sink: the store knows by it how far it was told";
        let entry = section.require("name", next)?;
        let name = entry.name()?;
        let is_taken = ledger.sinks.iter().any(|sink| &*sink.name == name);
        if is_taken || name.contains(['/', ':']) {
            return Err(entry.fail(
                format!("cannot be \"{name}\""),
                "use a name of its own for each sink, without / and :",
            ));
        }
        if !ledger.enabled {
            return Err(section.fail(
                "there are sinks, and no books are kept that they could be told of",
                "take enabled = false away from [ledger], or the sinks",
            ));
        }
        let next = "write kind = \"webhook\", \"stripe\", \"openmeter\", \"lago\" or \"file\"";
        let kind = section.require("kind", next)?.choice(&KINDS)?;
        let target = match kind {
            Kind::Webhook => read_webhook(&mut section)?,
            Kind::Stripe => SinkTarget::Stripe(Billing::read(&mut section, STRIPE)?),
            Kind::OpenMeter => read_openmeter(&mut section)?,
            Kind::Lago => SinkTarget::Lago(Billing::read(&mut section, LAGO)?),
            Kind::File => read_file(&mut section)?,
        };
        let mut sink = Self {
            name: name.into(),
            target,
            from: Begin::Now,
            give_up: Duration::from_secs(3 * 86_400),
            timeout: Duration::from_secs(15),
            in_flight: 8,
        };
        if let Some(entry) = section.take("from") {
            sink.from = entry.choice(&[("now", Begin::Now), ("start", Begin::Start)])?;
        }
        // A file is there or not: nobody answers.
        if !matches!(kind, Kind::File) {
            sink.read_patience(&mut section)?;
        }
        section.finish()?;
        Ok(sink)
    }

    fn read_patience(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        if let Some(entry) = section.take("give_up") {
            self.give_up = entry.duration(OrZero::No)?;
        }
        if let Some(entry) = section.take("timeout") {
            self.timeout = entry.duration(OrZero::No)?;
        }
        if let Some(entry) = section.take("in_flight") {
            self.in_flight = entry.number(1..=256)?;
        }
        Ok(())
    }
}

fn read_webhook(section: &mut Section<'_>) -> Result<SinkTarget, ConfigError> {
    let url = section.require("url", "write where events are to go")?;
    let url = read_url(&url)?;
    let next = "write secret = \"env:NAME\", with whsec_ and base64 in it; several while one takes \
                the place of another: [\"env:NEW\", \"env:OLD\"]";
    let entry = section.require("secret", next)?;
    let secrets = match entry.is_list() {
        true => entry
            .list("[\"env:NEW\", \"env:OLD\"]")?
            .iter()
            .map(Entry::secret)
            .collect::<Result<Vec<_>, _>>()?,
        false => vec![entry.secret()?],
    };
    let exposed = secrets.iter().map(Secret::expose);
    if let Err(error) = Webhook::new(url.clone(), exposed) {
        return Err(entry.fail(
            error.to_string(),
            "make one: printf 'whsec_%s\\n' \"$(openssl rand -base64 32)\"",
        ));
    }
    Ok(SinkTarget::Webhook { url, secrets })
}

fn read_openmeter(section: &mut Section<'_>) -> Result<SinkTarget, ConfigError> {
    let next = "write where events are to go, like \"http://127.0.0.1:8888/api/v1/events\"";
    let url = read_url(&section.require("url", next)?)?;
    let secret = section.take("secret");
    let secret = secret.map(|entry| header_secret(&entry)).transpose()?;
    let source = section.take("source");
    let source = source.map(|entry| entry.filled()).transpose()?;
    Ok(SinkTarget::OpenMeter {
        url,
        secret,
        source: source.unwrap_or("onlyonce").into(),
    })
}

fn read_file(section: &mut Section<'_>) -> Result<SinkTarget, ConfigError> {
    let folder = section.require("folder", "write the folder that files go into")?;
    let formats = [
        ("csv", Format::Csv),
        ("jsonl", Format::Jsonl),
        #[cfg(feature = "parquet")]
        ("parquet", Format::Parquet),
    ];
    let next = "write format = \"csv\", \"jsonl\" or \"parquet\"";
    let format = section.require("format", next)?;
    Ok(SinkTarget::File {
        folder: folder.filled()?.into(),
        format: format.choice(&formats)?,
    })
}

impl Billing {
    fn read(section: &mut Section<'_>, usual: &'static str) -> Result<Self, ConfigError> {
        let url = match section.take("url") {
            Some(entry) => read_url(&entry)?,
            None => Uri::from_static(usual),
        };
        let secret = section.require("secret", "write secret = \"env:NAME\", the service's key")?;
        let next = "write the name of the meter (Stripe) or the code of the metric (Lago)";
        let event_name = section.require("event_name", next)?;
        let next = "write value = \"total_tokens\", \"cost_micros\", \"operations\" or a unit";
        let value = section.require("value", next)?;
        let mut customers = Customers::default();
        if let Some(mut table) = section.table("customers")? {
            for (tenant, entry) in table.take_all() {
                customers
                    .named
                    .insert(tenant.into(), entry.filled()?.into());
            }
        }
        if let Some(entry) = section.take("without_customer") {
            customers.must_be_named = entry.choice(&[("skip", false), ("dead", true)])?;
        }
        Ok(Self {
            url,
            secret: header_secret(&secret)?,
            event_name: event_name.filled()?.into(),
            customers,
            value: Value::named(value.text()?).ok_or_else(|| value.fail("is not known", next))?,
        })
    }
}

/// A secret that can stand in a header.
fn header_secret(entry: &Entry<'_>) -> Result<Secret, ConfigError> {
    let secret = entry.secret()?;
    let is_plain = |byte: u8| (0x21..0x7f).contains(&byte);
    match secret.expose().bytes().all(is_plain) {
        true => Ok(secret),
        false => Err(entry.fail(
            "cannot stand in a header",
            "write the service's key as it is",
        )),
    }
}

fn read_url(entry: &Entry<'_>) -> Result<Uri, ConfigError> {
    let text = entry.filled()?;
    let url = text.parse::<Uri>().ok().filter(|url| {
        let scheme = url.scheme();
        let is_known = scheme == Some(&Scheme::HTTP) || scheme == Some(&Scheme::HTTPS);
        let has_user = url
            .authority()
            .is_some_and(|one| one.as_str().contains('@'));
        is_known && !has_user && url.host().is_some_and(|host| !host.is_empty())
    });
    // It may hold what is secret: it is not repeated.
    url.ok_or_else(|| {
        entry.fail(
            "is no URL of a service",
            "write it like \"https://billing.example.com/hooks/usage\", without a user in it",
        )
    })
}
