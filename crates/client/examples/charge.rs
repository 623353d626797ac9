//! Charges an order once, however often this program is run, killed and run again.
//!
//! ```text
//! cargo run -p onlyonce-client --example charge -- http://127.0.0.1:8787/v1/charges order-17
//! ```

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use onlyonce_client::{Action, BoxError, Error, KeyFolder, OnceClient, Report};
use tower::{Layer, ServiceExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, order] = words.as_slice() else {
        return Err("write the URL and the order".into());
    };
    // A folder that lasts: the keys in it are what makes a second run safe.
    let keys = KeyFolder::open(std::env::temp_dir().join("onlyonce-example-keys"))?;
    let client = OnceClient::builder(keys).build();
    let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let http = client.layer().layer(http);

    let mut request = Request::post(url)
        .header("authorization", "Bearer sk-test")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::from("amount=4200&currency=usd"))?;
    request
        .extensions_mut()
        .insert(Action::new(format!("{order}/charge"))?);

    match http.oneshot(request).await {
        Ok(response) => {
            if let Some(report) = response.extensions().get::<Report>() {
                eprintln!("{report}");
            }
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            println!("{status}\n{}", String::from_utf8_lossy(&body));
            Ok(())
        }
        // It is neither a success nor a failure: nobody may act on a guess.
        Err(error @ Error::Unknown { .. }) => {
            eprintln!("put {order} on the list of what a person looks at");
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}
