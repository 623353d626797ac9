//! The configuration in force, by the names of docs/configuration.md, with every secret hidden.
//!
//! Each part is taken apart whole, so that a new setting cannot be forgotten here.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use axum::Json;
use axum::http::Uri;
use onlyonce_core::Concurrent;
use onlyonce_store::Store;
use onlyonce_store::books::Begin;
use serde_json::{Map, Value, json};

use super::access::{May, Read};
use super::answer::Refusal;
use crate::config::{
    Billing, ClientGone, Config, Encryption, FingerprintBody, Forward, ForwardKey, Forwarded,
    IncludeUsage, KeyMode, Ledger, LedgerSink, Limits, Matcher, Mcp, OnUnknown, Policy, Retries,
    Right, Route, RouteKind, Secret, Server, SinkTarget, StoreUrl, Telemetry, Tenant, Tls, Token,
    Upstream, WorkRoute, show_duration,
};

/// Stands for a secret that is set (I16).
pub(super) const HIDDEN: &str = "••••••";

/// `GET /v1/config`.
pub(super) async fn show<S: Store>(desk: May<S, Read>) -> Result<Json<Value>, Refusal> {
    Ok(Json(view(&desk.whole()?.shared.config)))
}

/// The configuration as JSON: a table is an object, a list of tables a list.
pub(super) fn view(config: &Config) -> Value {
    let Config {
        server,
        store,
        limits,
        price_file,
        ledger,
        telemetry,
        tenants,
        upstreams,
        routes,
        work,
    } = config;
    let routes = routes.iter().map(|one| route_view(one));
    let work = work.iter().map(work_view);
    json!({
        "server": server_view(server),
        "store": store_view(store),
        "limits": limits_view(limits),
        "prices": { "file": price_file.as_deref().map(path) },
        "ledger": ledger_view(ledger),
        "telemetry": telemetry.as_ref().map(telemetry_view),
        "tenant": tenants.iter().map(tenant_view).collect::<Vec<_>>(),
        "upstream": upstreams.iter().map(|one| upstream_view(one)).collect::<Vec<_>>(),
        "route": work.chain(routes).collect::<Vec<_>>(),
    })
}

fn server_view(server: &Server) -> Value {
    let Server {
        listen,
        control,
        control_token,
        tokens,
        public_url,
        workers,
        allow_anonymous,
        max_connections,
        max_control_connections,
        header_timeout,
        body_timeout,
        idle_timeout,
        write_timeout,
        drain_timeout,
        max_header_bytes,
        max_headers,
        forwarded,
        tls,
    } = server;
    json!({
        "listen": text(listen),
        "control": text(control),
        "control_token": control_token.as_ref().map(hidden),
        "token": tokens.iter().map(token_view).collect::<Vec<_>>(),
        "public_url": public_url,
        "workers": workers,
        "allow_anonymous": allow_anonymous,
        "max_connections": max_connections,
        "max_control_connections": max_control_connections,
        "header_timeout": span(header_timeout),
        "body_timeout": span(body_timeout),
        "idle_timeout": span(idle_timeout),
        "write_timeout": span(write_timeout),
        "drain_timeout": span(drain_timeout),
        "max_header_bytes": max_header_bytes,
        "max_headers": max_headers,
        "forwarded": match forwarded {
            Forwarded::None => "none",
            Forwarded::XForwarded => "x-forwarded",
            Forwarded::Forwarded => "forwarded",
        },
        "tls": tls.as_ref().map(|Tls { cert, key }| json!({ "cert": path(cert), "key": path(key) })),
    })
}

fn token_view(token: &Token) -> Value {
    let Token {
        name,
        token,
        tenant,
        rights,
    } = token;
    json!({
        "name": name,
        "token": hidden(token),
        "tenant": tenant,
        "rights": rights.iter().map(|right: &Right| right.as_str()).collect::<Vec<_>>(),
    })
}

fn store_view(store: &crate::config::Store) -> Value {
    let crate::config::Store {
        url,
        listen_url,
        segment_bytes,
        cache_bytes,
        max_bytes,
        max_records,
        lease,
        released_retention,
        encryption,
    } = store;
    let place = |url: &Secret| StoreUrl::Postgres(url.clone()).place();
    json!({
        "url": url.place(),
        "listen_url": listen_url.as_ref().map(place),
        "segment_bytes": segment_bytes,
        "cache_bytes": cache_bytes,
        "max_bytes": max_bytes,
        "max_records": max_records,
        "lease": span(lease),
        "released_retention": span(released_retention),
        "encryption": encryption.as_ref().map(|Encryption { active, keys }| json!({
            "active": active,
            "keys": keys.iter().map(|(id, _)| json!({ "id": id, "key": HIDDEN })).collect::<Vec<_>>(),
        })),
    })
}

fn limits_view(limits: &Limits) -> Value {
    let Limits {
        request_body,
        spool_above,
        mcp_message,
        response_body,
        operation_memory,
        live_operations,
        tenant_live,
        tenant_records,
        meter_memory,
        observed,
        work_result,
        work_wait,
        work_waiters,
    } = limits;
    json!({
        "request_body": request_body,
        "spool_above": spool_above,
        "mcp_message": mcp_message,
        "response_body": response_body,
        "operation_memory": operation_memory,
        "live_operations": live_operations,
        "tenant_live": tenant_live,
        "tenant_records": tenant_records,
        "meter_memory": meter_memory,
        "observed": observed,
        "work_result": work_result,
        "work_wait": span(work_wait),
        "work_waiters": work_waiters,
    })
}

fn ledger_view(ledger: &Ledger) -> Value {
    let Ledger {
        enabled,
        retention,
        sinks,
    } = ledger;
    json!({
        "enabled": enabled,
        "retention": span(retention),
        "sink": sinks.iter().map(sink_view).collect::<Vec<_>>(),
    })
}

fn sink_view(sink: &LedgerSink) -> Value {
    let LedgerSink {
        name,
        target,
        from,
        give_up,
        timeout,
        in_flight,
    } = sink;
    let mut view = match target {
        SinkTarget::Webhook { url, secrets } => json!({
            "url": text(url),
            "secret": secrets.iter().map(hidden).collect::<Vec<_>>(),
        }),
        SinkTarget::OpenMeter {
            url,
            secret,
            source,
        } => json!({
            "url": text(url),
            "secret": secret.as_ref().map(hidden),
            "source": source,
        }),
        SinkTarget::Stripe(billing) | SinkTarget::Lago(billing) => billing_view(billing),
        SinkTarget::File { folder, format } => json!({
            "folder": path(folder),
            "format": format.as_str(),
        }),
    };
    view["name"] = json!(name);
    view["kind"] = json!(target.kind());
    view["from"] = json!(match from {
        Begin::Now => "now",
        Begin::Start => "start",
    });
    if !matches!(target, SinkTarget::File { .. }) {
        view["give_up"] = json!(span(give_up));
        view["timeout"] = json!(span(timeout));
        view["in_flight"] = json!(in_flight);
    }
    view
}

fn billing_view(billing: &Billing) -> Value {
    let Billing {
        url,
        secret,
        event_name,
        customers,
        value,
    } = billing;
    json!({
        "url": text(url),
        "secret": hidden(secret),
        "event_name": event_name,
        "customers": customers.named,
        "without_customer": if customers.must_be_named { "dead" } else { "skip" },
        "value": value.as_str(),
    })
}

fn telemetry_view(telemetry: &Telemetry) -> Value {
    let Telemetry {
        endpoint,
        metrics,
        metrics_interval,
        headers,
        sample,
        service_name,
        resource,
        timeout,
        queue,
    } = telemetry;
    let names = headers.iter().map(|(name, _)| (name.to_string(), HIDDEN));
    let resource = resource
        .iter()
        .map(|(name, value)| (name.to_string(), value));
    json!({
        "endpoint": without_login(endpoint),
        "metrics": metrics.as_ref().map(without_login),
        "metrics_interval": span(metrics_interval),
        "headers": names.collect::<BTreeMap<_, _>>(),
        "sample": sample,
        "service_name": service_name,
        "resource": resource.collect::<BTreeMap<_, _>>(),
        "timeout": span(timeout),
        "queue": queue,
    })
}

/// An address without user, password and query, in which people put keys.
fn without_login(uri: &Uri) -> String {
    let port = uri.port().map(|port| format!(":{port}"));
    format!(
        "{}://{}{}{}",
        uri.scheme_str().unwrap_or_default(),
        uri.host().unwrap_or_default(),
        port.unwrap_or_default(),
        uri.path()
    )
}

fn tenant_view(tenant: &Tenant) -> Value {
    let Tenant {
        name,
        credentials,
        prices,
    } = tenant;
    json!({
        "prices": prices.len(),
        "name": name,
        "credentials": credentials.iter().map(hidden).collect::<Vec<_>>(),
    })
}

fn upstream_view(upstream: &Upstream) -> Value {
    let Upstream {
        name,
        tls,
        authority,
        host: _,
        port: _,
        base_path,
        http2,
        tls_roots,
        max_idle_per_worker,
        idle_timeout,
        preset,
    } = upstream;
    let scheme = if *tls { "https" } else { "http" };
    json!({
        "name": name,
        "url": format!("{scheme}://{authority}{base_path}"),
        "http2": http2,
        "tls_roots": tls_roots.as_deref().map(path),
        "max_idle_per_worker": max_idle_per_worker,
        "idle_timeout": span(idle_timeout),
        "preset": preset,
    })
}

fn work_view(WorkRoute { matcher }: &WorkRoute) -> Value {
    let Matcher { host, path_prefix } = matcher;
    json!({ "kind": "work", "host": host, "path_prefix": path_prefix })
}

fn route_view(route: &Route) -> Value {
    let Route {
        name,
        kind,
        matcher: Matcher { host, path_prefix },
        strip_prefix,
        upstream,
        namespace,
        policy,
        per_call,
        // Made of the policy.
        engine_policy: _,
        fingerprint_rules: _,
        index: _,
    } = route;
    let mut view = Map::new();
    view.insert("name".to_owned(), json!(name));
    let kind = match kind {
        RouteKind::Http => "http",
        RouteKind::Mcp => "mcp",
        RouteKind::Work => "work",
    };
    view.insert("kind".to_owned(), json!(kind));
    view.insert("host".to_owned(), json!(host));
    view.insert("path_prefix".to_owned(), json!(path_prefix));
    view.insert("strip_prefix".to_owned(), json!(strip_prefix));
    view.insert("upstream".to_owned(), json!(upstream.name));
    view.insert("namespace".to_owned(), json!(namespace));
    view.insert(
        "per_call".to_owned(),
        json!(per_call.as_ref().map(|price| text(&price.amount()))),
    );
    if let Value::Object(policy) = policy_view(policy) {
        view.extend(policy);
    }
    Value::Object(view)
}

fn policy_view(policy: &Policy) -> Value {
    let Policy {
        key,
        key_headers,
        derived_window,
        concurrent,
        join_timeout,
        on_unknown,
        client_gone,
        forward,
        window,
        release,
        fingerprint_headers,
        fingerprint_body,
        ignore_pointers,
        forward_key,
        upstream_honours_keys,
        allow_set_cookie,
        allow_close_delimited,
        streams,
        usage,
        include_usage,
        observe_window,
        late_answer,
        connect_timeout,
        first_byte_timeout,
        between_bytes_timeout,
        total_timeout,
        credential_query,
        retries,
        mcp,
    } = policy;
    json!({
        "key": match key {
            KeyMode::Optional => "optional",
            KeyMode::Required => "required",
            KeyMode::Derived => "derived",
            KeyMode::Observe => "observe",
        },
        "key_headers": key_headers.iter().map(text).collect::<Vec<_>>(),
        "derived_window": span(derived_window),
        "concurrent": match concurrent {
            Concurrent::Join => "join",
            Concurrent::Reject => "reject",
        },
        "join_timeout": span(join_timeout),
        "on_unknown": match on_unknown {
            OnUnknown::Report => "report",
            OnUnknown::Resend => "resend",
            OnUnknown::ResendMayRunTwice => "resend:may-run-twice",
        },
        "client_gone": match client_gone {
            ClientGone::Finish => "finish",
            ClientGone::Cancel => "cancel",
        },
        "forward": match forward {
            Forward::Stream => "stream",
            Forward::AfterDurable => "after-durable",
        },
        "window": span(window),
        "release": release,
        "fingerprint_headers": fingerprint_headers.iter().map(text).collect::<Vec<_>>(),
        "fingerprint_body": match fingerprint_body {
            FingerprintBody::Bytes => "bytes",
            FingerprintBody::Json => "json",
        },
        "ignore_pointers": ignore_pointers.iter().map(text).collect::<Vec<_>>(),
        "forward_key": match forward_key {
            ForwardKey::AsItCame => "as-it-came",
            ForwardKey::Never => "never",
            ForwardKey::In(header) => header.as_str(),
        },
        "upstream_honours_keys": upstream_honours_keys,
        "allow_set_cookie": allow_set_cookie,
        "allow_close_delimited": allow_close_delimited,
        "streams": streams.iter().map(|kind| json!({
            "begins": text(&kind.begins),
            "ends": kind.ends.iter().map(text).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "usage": usage.iter().map(|format| format.name()).collect::<Vec<_>>(),
        "include_usage": match include_usage {
            IncludeUsage::AsAsked => "as-asked",
            IncludeUsage::Add => "add",
        },
        "observe_window": span(observe_window),
        "late_answer": span(late_answer),
        "connect_timeout": span(connect_timeout),
        "first_byte_timeout": span(first_byte_timeout),
        "between_bytes_timeout": span(between_bytes_timeout),
        "total_timeout": span(total_timeout),
        "credential_query": credential_query,
        "retries": retries_view(retries),
        "mcp": mcp_view(mcp),
    })
}

fn mcp_view(mcp: &Mcp) -> Value {
    let Mcp {
        meta_keys,
        release_codes,
        trust_annotations,
        protect,
        pass,
    } = mcp;
    json!({
        "meta_keys": meta_keys,
        "release_codes": release_codes,
        "trust_annotations": trust_annotations,
        "protect": protect,
        "pass": pass,
    })
}

fn retries_view(retries: &Retries) -> Value {
    let Retries {
        max,
        backoff,
        max_backoff,
        budget,
    } = retries;
    json!({
        "max": max,
        "backoff": span(backoff),
        "max_backoff": span(max_backoff),
        "budget": budget,
    })
}

fn text(value: &impl Display) -> String {
    value.to_string()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn span(span: &Duration) -> String {
    show_duration(*span)
}

fn hidden(_: &Secret) -> &'static str {
    HIDDEN
}
