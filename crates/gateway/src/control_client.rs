//! A small HTTP client for the control listener, and what the commands that use it have in common.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::failure::Failure;
use crate::proxy;

/// Where a control listener is, and what opens it.
#[derive(Debug, Args)]
pub(crate) struct Listener {
    /// The control listener of the gateway
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8788",
        global = true
    )]
    control: String,
    /// The control token
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ONLYONCE_CONTROL_TOKEN",
        hide_env_values = true,
        global = true
    )]
    token: Option<String>,
}

impl Listener {
    /// A client of it.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.control, self.token.as_deref())
    }
}

/// How the commands reach a control listener, and how they print what it says.
#[derive(Debug, Args)]
pub(crate) struct Reach {
    #[command(flatten)]
    listener: Listener,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

impl Reach {
    /// Runs `command` with a client of the control listener.
    pub(crate) fn run<F>(&self, command: impl FnOnce(Client) -> F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let client = self.listener.client()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::other(format!("cannot start ({error})"), "try again"))?;
        runtime.block_on(command(client))
    }

    /// Prints `value` as JSON where that is wanted, and else as `show` writes it.
    pub(crate) fn print(
        &self,
        value: &Value,
        show: impl Fn(&Value) -> String,
    ) -> Result<(), Failure> {
        let text = match self.json {
            true => format!("{value:#}\n"),
            false => show(value),
        };
        match io::stdout().write_all(text.as_bytes()) {
            // `| head` has seen enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(cannot_write(&error)),
            _ => Ok(()),
        }
    }
}

fn cannot_write(error: &io::Error) -> Failure {
    Failure::other(
        format!("cannot write to standard output ({error})"),
        "look at where it goes to",
    )
}

/// `rows` with their columns side by side; the last one as it is.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let widths = rows.iter().filter_map(|row| row.get(column));
            let width = widths.map(|cell| cell.chars().count()).max().unwrap_or(0);
            if column + 1 == row.len() {
                out.push_str(cell);
            } else {
                // Writing to a string cannot fail.
                let _ = write!(out, "{cell:width$}  ");
            }
        }
        out.push('\n');
    }
    out
}

/// [`table`] of what a page has, and a word where the list goes on.
pub(crate) fn page_table(rows: &[Vec<String>], page: &Value) -> String {
    let mut out = table(rows);
    if page["next_cursor"].is_string() {
        out.push_str("(there are more: raise --limit)\n");
    }
    out
}

/// A value without quotes, and without what a terminal would obey.
pub(crate) fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Asks one control listener, each time over a connection of its own.
pub(crate) struct Client {
    scheme: Scheme,
    authority: String,
    host: String,
    port: u16,
    base_path: String,
    token: Option<HeaderValue>,
}

impl Client {
    /// A client of the control listener at `url`.
    pub(crate) fn new(url: &str, token: Option<&str>) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(
                format!("--control cannot be \"{url}\""),
                "write it like http://127.0.0.1:8788, or https:// where it is behind TLS",
            )
        };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let scheme = uri.scheme().cloned().ok_or_else(wrong)?;
        let port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(wrong()),
        };
        if authority.host().is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            scheme,
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(port),
            base_path: uri.path().trim_end_matches('/').to_owned(),
            token: token.map(bearer).transpose()?,
        })
    }

    fn title(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// The JSON at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(self.ask(Method::GET, path, Bytes::new()).await?)
            .await
    }

    /// What is answered to `body`, posted to `path`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let response = self
            .ask(Method::POST, path, body.to_string().into())
            .await?;
        self.json(response).await
    }

    /// Copies the bytes at `path` into `out` while they come.
    pub(crate) async fn download(&self, path: &str, out: &mut impl Write) -> Result<(), Failure> {
        let mut response = self.ask(Method::GET, path, Bytes::new()).await?;
        if !response.status().is_success() {
            return self.json(response).await.map(|_| ());
        }
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|_| {
                Failure::other(
                    "the recording broke off, so that what was written is not the whole",
                    "look at the operation with `onlyonce keys show`",
                )
            })?;
            if let Some(bytes) = frame.data_ref() {
                out.write_all(bytes).map_err(|error| cannot_write(&error))?;
            }
        }
        out.flush().map_err(|error| cannot_write(&error))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        self.send(path, request).await
    }

    /// Sends `request` to `path`, and reads the head of the answer. Nothing is sent twice.
    pub(crate) async fn send<B>(
        &self,
        path: &str,
        mut request: Request<B>,
    ) -> Result<Response<Incoming>, Failure>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        *request.uri_mut() = format!("{}{path}", self.base_path)
            .parse()
            .map_err(|_| Failure::usage(format!("{path} is no path"), "correct the words"))?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.authority)
            .map_err(|_| Failure::usage("--control has no valid host", "correct it"))?;
        headers.insert(HOST, host);
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        let stream = TcpStream::connect((&*self.host, self.port)).await;
        let stream = stream.map_err(|error| self.silent(&error))?;
        if self.scheme != Scheme::HTTPS {
            return self.exchange(stream, request).await;
        }
        let name = ServerName::try_from(self.host.clone()).map_err(|error| self.silent(&error))?;
        let tls = TlsConnector::from(Arc::new(proxy::service_tls(Some("--control"))?));
        let stream = tls.connect(name, stream).await;
        let stream = stream.map_err(|error| self.silent(&error))?;
        self.exchange(stream, request).await
    }

    async fn exchange<B>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<B>,
    ) -> Result<Response<Incoming>, Failure>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.silent(&error))?;
        // Its errors come out of the request as well.
        tokio::spawn(connection);
        let response = sender.send_request(request).await;
        response.map_err(|error| self.silent(&error))
    }

    fn silent(&self, error: &dyn std::error::Error) -> Failure {
        Failure::other(
            format!(
                "the control listener {} did not answer ({error})",
                self.title()
            ),
            "start the gateway, or name its control listener with --control",
        )
    }

    /// The list `name` of the pages at `path`, `most` of it at most, and where more of it begins.
    pub(crate) async fn pages(
        &self,
        path: &str,
        filter: &[(&str, Option<&str>)],
        name: &str,
        most: u64,
    ) -> Result<Value, Failure> {
        let mut all: Vec<Value> = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let left = most - all.len() as u64;
            let limit = left.min(1000).to_string();
            let mut parts = filter.to_vec();
            parts.push(("limit", Some(&limit)));
            parts.push(("cursor", cursor.as_deref()));
            let mut page = self.get(&format!("{path}{}", query(&parts))).await?;
            if let Some(list) = page[name].as_array_mut() {
                all.append(list);
            }
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() || all.len() as u64 >= most {
                break;
            }
        }
        Ok(json!({ name: all, "next_cursor": cursor }))
    }

    /// The JSON of an answer; where it is a refusal, what that says.
    pub(crate) async fn json(&self, response: Response<Incoming>) -> Result<Value, Failure> {
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes());
        let body = body.map_err(|error| {
            Failure::other(
                format!("the control listener's answer broke off ({error})"),
                "ask again",
            )
        })?;
        let value: Option<Value> = serde_json::from_slice(&body).ok();
        if let (true, Some(value)) = (status.is_success(), &value) {
            return Ok(value.clone());
        }
        let said = |name: &str| value.as_ref()?.get(name)?.as_str().map(str::to_owned);
        let detail = said("detail").unwrap_or_else(|| {
            format!(
                "{} answered {status}, not as a control listener",
                self.title()
            )
        });
        Err(Failure::other(
            match said("operation") {
                Some(operation) => format!("{operation}: {detail}"),
                None => detail,
            },
            said("next").unwrap_or_else(|| "name the control listener with --control".to_owned()),
        ))
    }
}

fn bearer(token: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        Failure::usage(
            "the control token has characters that no header has",
            "pass the token of server.control_token",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// `?name=value&..` of the parts that are there.
pub(crate) fn query(parts: &[(&str, Option<&str>)]) -> String {
    let mut text = String::new();
    for (name, value) in parts {
        let Some(value) = value else { continue };
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_holds_what_is_there_escaped() {
        assert_eq!(query(&[("a", None)]), "");
        assert_eq!(
            query(&[
                ("key", Some("a b&c=\u{e9}")),
                ("x", None),
                ("limit", Some("1"))
            ]),
            "?key=a%20b%26c%3D%C3%A9&limit=1"
        );
    }

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        let value = serde_json::json!("a\u{1b}[31mb\n");
        assert_eq!(text(&value), "a?[31mb?");
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for url in ["", "127.0.0.1:8788", "https://", "http://", "ftp://a"] {
            let error = Client::new(url, None).err().unwrap();
            assert_eq!(error.exit_code(), 2, "{url}");
        }
        assert!(Client::new("http://127.0.0.1:8788/", Some("t")).is_ok());
        assert!(Client::new("https://[::1]:8788/", Some("t")).is_ok());
        assert!(Client::new("http://a", Some("\n")).is_err());
    }
}
