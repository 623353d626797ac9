//! A server that sells reports: it charges a card, makes the report and sends it by mail, once each,
//! whatever becomes of the connection, of the caller and of this process.
//!
//! ```text
//! cargo run -p onlyonce-tower --example report
//! curl -i http://127.0.0.1:8080/reports -H 'Authorization: Bearer me' -H 'Idempotency-Key: order-17' \
//!      -H 'Content-Type: application/json' -d '{"month": "October", "cents": 1999}'
//! ```
//!
//! The bank, the press and the post office are stand-ins, each with a ledger of its own beside the data. With
//! `-- --die-in mail`, the process dies when the mail has just gone out (`charge` and `make` do as well): start
//! it again, and it goes on where it was. With `-- --keyless`, none of the three honours keys: then nobody
//! knows whether the mail went out, and the operation stops there and says so until you settle it.
//!
//! `service` is the whole of what such a server is made of; docs/steps.md walks through it.

mod service;
mod stand_ins;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use onlyonce_tower::Once;
use service::{Elsewhere, Service};
use stand_ins::StandIn;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse()?;
    let once = Once::embedded(args.folder.join("once"))?;
    let mut places = Vec::new();
    for name in ["charge", "make", "mail"] {
        let stand_in = StandIn {
            ledger: args.folder.join(format!("{name}.ledger")),
            honours_keys: !args.keyless,
            dies: args.die_in.as_deref() == Some(name),
        };
        places.push(Elsewhere::at(stand_in.start().await?, !args.keyless));
    }
    let [bank, press, post]: [Elsewhere; 3] = places.try_into().map_err(|_| "three places")?;
    let service = Service::new(bank, press, post, |_| Box::pin(std::future::ready(())));
    let app = service::app(&once, service, true);

    let listener = tokio::net::TcpListener::bind(args.address).await?;
    println!("example listening on http://{}", listener.local_addr()?);
    println!("ledgers in {}", args.folder.display());
    axum::serve(listener, app)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    once.shutdown(Duration::from_secs(30)).await?;
    Ok(())
}

struct Args {
    address: SocketAddr,
    folder: PathBuf,
    die_in: Option<String>,
    keyless: bool,
}

impl Args {
    fn parse() -> Result<Self, Box<dyn std::error::Error>> {
        let mut args = Self {
            address: ([127, 0, 0, 1], 8080).into(),
            folder: std::env::temp_dir().join("onlyonce-report"),
            die_in: None,
            keyless: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match &*word {
                "--keyless" => args.keyless = true,
                "--die-in" => args.die_in = words.next(),
                "--folder" => args.folder = words.next().ok_or("--folder FOLDER")?.into(),
                address => args.address = address.parse()?,
            }
        }
        std::fs::create_dir_all(&args.folder)?;
        Ok(args)
    }
}
