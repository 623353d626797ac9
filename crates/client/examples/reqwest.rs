//! The same with reqwest.
//!
//! ```text
//! cargo run -p onlyonce-client --features reqwest --example reqwest -- http://127.0.0.1:8787/v1/charges order-18
//! ```

use onlyonce_client::{Action, BoxError, KeyFolder, OnceClient, Report};
use reqwest_middleware::ClientBuilder;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, order] = words.as_slice() else {
        return Err("write the URL and the order".into());
    };
    let keys = KeyFolder::open(std::env::temp_dir().join("onlyonce-example-keys"))?;
    let client = OnceClient::builder(keys).build();
    let http = ClientBuilder::new(reqwest::Client::new())
        .with(client.middleware())
        .build();
    let response = http
        .post(url)
        .header("authorization", "Bearer sk-test")
        .header("content-type", "application/x-www-form-urlencoded")
        .body("amount=4200&currency=usd")
        .with_extension(Action::new(format!("{order}/charge"))?)
        .send()
        .await?;
    if let Some(report) = response.extensions().get::<Report>() {
        eprintln!("{report}");
    }
    println!("{}\n{}", response.status(), response.text().await?);
    Ok(())
}
