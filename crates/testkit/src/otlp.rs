//! A collector of traces, as a test sees it: OTLP over HTTP, read with the standard's own messages.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Metric, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;

use crate::signal::eventually;
use crate::upstream::{Exchange, Upstream};

/// A collector that keeps what it takes.
pub struct Collector {
    upstream: Upstream,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    resources: Vec<Resource>,
    spans: Vec<Span>,
    /// Those of the latest message, which tells all of them.
    metrics: Vec<Metric>,
}

impl Collector {
    /// Takes every message.
    pub fn new() -> Self {
        Self::scripted(|_| Some(200))
    }

    /// Answers each message, be it of spans or of metrics, with the status that the script gives, and takes it where that is 200. The
    /// script has answered itself, or hung up, where it gives none.
    pub fn scripted(script: impl Fn(&mut Exchange) -> Option<u16> + Send + Sync + 'static) -> Self {
        let taken = Arc::new(Mutex::new(Taken::default()));
        let taking = Arc::clone(&taken);
        let upstream = Upstream::scripted(move |x| {
            let body = x.read_body();
            let Some(status) = script(x) else { return };
            if status == 200 {
                let mut taken = taking.lock().expect("what was taken");
                match x.path().ends_with("/v1/metrics") {
                    true => taken.take_metrics(&body),
                    false => taken.take(&body),
                }
            }
            x.answer(status, &[("Content-Type", "application/x-protobuf")], b"");
        });
        Self { upstream, taken }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        self.upstream.url()
    }

    /// The server under it: what it saw, and how often.
    pub fn server(&self) -> &Upstream {
        &self.upstream
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        self.taken.lock().expect("what was taken").spans.clone()
    }

    /// Waits until so many spans were taken; panics when they are more, or do not come.
    #[track_caller]
    pub fn wait_for_spans(&self, count: usize) -> &Self {
        eventually(&format!("{count} spans"), || self.spans().len() >= count);
        assert_eq!(self.spans().len(), count, "{}", self.tree());
        self
    }

    /// The sums that the latest message told: name, attributes but for the port, value.
    pub fn metrics(&self) -> Vec<String> {
        let taken = self.taken.lock().expect("what was taken");
        let mut lines = Vec::new();
        for metric in &taken.metrics {
            let Some(Data::Sum(sum)) = &metric.data else {
                continue;
            };
            for point in &sum.data_points {
                let mut line = named(&metric.name, &point.attributes);
                match point.value {
                    Some(number_data_point::Value::AsInt(count)) => {
                        let _ = write!(line, " {count}");
                    }
                    ref other => panic!("{} is {other:?}", metric.name),
                }
                lines.push(line);
            }
        }
        lines
    }

    /// The histograms that the latest message told: name, attributes but for the port, how many were
    /// counted, and the bounds.
    pub fn histograms(&self) -> Vec<(String, u64, Vec<f64>)> {
        let taken = self.taken.lock().expect("what was taken");
        let mut all = Vec::new();
        for metric in &taken.metrics {
            let Some(Data::Histogram(histogram)) = &metric.data else {
                continue;
            };
            for point in &histogram.data_points {
                let name = named(&metric.name, &point.attributes);
                all.push((name, point.count, point.explicit_bounds.clone()));
            }
        }
        all
    }

    /// What the first message said of who sent it.
    pub fn resource(&self) -> Vec<(String, String)> {
        let taken = self.taken.lock().expect("what was taken");
        let resource = taken.resources.first().expect("a message");
        texts(&resource.attributes)
    }

    /// Every span so far as text: children below their parents, in order of time. Operations are
    /// called `op-1` and so on, in the order in which they appear.
    pub fn tree(&self) -> String {
        self.tree_without(&[])
    }

    /// As [`Collector::tree`], without these attributes.
    pub fn tree_without(&self, attributes: &[&str]) -> String {
        let mut spans = self.spans();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        let mut tree = Tree {
            spans: &spans,
            left_out: attributes,
            names: HashMap::new(),
            text: String::new(),
        };
        for span in &spans {
            if !spans.iter().any(|other| is_parent(other, span)) {
                tree.write(span, 0);
            }
        }
        tree.text
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

impl Taken {
    fn take_metrics(&mut self, body: &[u8]) {
        let request = ExportMetricsServiceRequest::decode(body).expect("a message of metrics");
        let scopes = request.resource_metrics.into_iter();
        let scopes = scopes.flat_map(|of_resource| of_resource.scope_metrics);
        self.metrics = scopes.flat_map(|of_scope| of_scope.metrics).collect();
    }

    fn take(&mut self, body: &[u8]) {
        let request = ExportTraceServiceRequest::decode(body).expect("a message of spans");
        for of_resource in request.resource_spans {
            self.resources.extend(of_resource.resource);
            for of_scope in of_resource.scope_spans {
                self.spans.extend(of_scope.spans);
            }
        }
    }
}

struct Tree<'a> {
    spans: &'a [Span],
    left_out: &'a [&'a str],
    /// Of operations, by their ids.
    names: HashMap<String, String>,
    text: String,
}

impl Tree<'_> {
    fn write(&mut self, span: &Span, depth: usize) {
        let indent = "  ".repeat(depth);
        let has_failed = span
            .status
            .as_ref()
            .is_some_and(|status| status.code() == StatusCode::Error);
        let mut line = format!("{indent}{} {}", span.kind().as_str_name(), span.name);
        line = line.replace("SPAN_KIND_", "");
        if has_failed {
            line.push_str(" FAILED");
        }
        if depth == 0 {
            let _ = write!(line, " in {}", self.trace(&span.trace_id));
            if !span.parent_span_id.is_empty() {
                let _ = write!(line, " under {}", hex(&span.parent_span_id));
            }
        }
        let _ = writeln!(self.text, "{line}");
        for (key, value) in texts(&span.attributes) {
            if self.left_out.contains(&&*key) {
                continue;
            }
            let value = match &*key {
                "onlyonce.operation.id" => self.name(&value),
                // Differs from run to run.
                "server.port" => "PORT".to_owned(),
                _ => value,
            };
            let _ = writeln!(self.text, "{indent}| {key} = {value}");
        }
        for link in &span.links {
            let linked = self
                .spans
                .iter()
                .find(|other| other.trace_id == link.trace_id && other.span_id == link.span_id);
            let name = match linked {
                Some(linked) => {
                    let id = texts(&linked.attributes)
                        .into_iter()
                        .find(|(key, _)| key == "onlyonce.operation.id");
                    let id = id.map_or_else(String::new, |(_, id)| self.name(&id));
                    format!("{} {id}", linked.name)
                }
                None => format!("a span of {} that is not here", self.trace(&link.trace_id)),
            };
            let _ = writeln!(self.text, "{indent}> {name}");
        }
        let children: Vec<_> = self
            .spans
            .iter()
            .filter(|other| is_parent(span, other))
            .collect();
        for child in children {
            self.write(child, depth + 1);
        }
    }

    fn name(&mut self, id: &str) -> String {
        let number = self.names.len() + 1;
        let name = self.names.entry(id.to_owned());
        name.or_insert_with(|| format!("op-{number}")).clone()
    }

    /// A trace that is called after an operation, as such.
    fn trace(&mut self, id: &[u8]) -> String {
        let id = hex(id);
        let is_of = |span: &&Span| {
            texts(&span.attributes).iter().any(|(key, value)| {
                key == "onlyonce.operation.id" && value.replace(['-'], "").ends_with(&id)
            })
        };
        let of = self
            .spans
            .iter()
            .find(is_of)
            .map(|span| texts(&span.attributes));
        let operation = of.and_then(|all| {
            all.into_iter()
                .find(|(key, _)| key == "onlyonce.operation.id")
        });
        match operation {
            Some((_, operation)) => format!("the trace of {}", self.name(&operation)),
            None => id,
        }
    }
}

/// A metric with the attributes of a point of it; the port differs from run to run.
fn named(name: &str, attributes: &[KeyValue]) -> String {
    let mut line = name.to_owned();
    for (key, value) in texts(attributes) {
        if key != "server.port" {
            let _ = write!(line, " {key}={value}");
        }
    }
    line
}

fn is_parent(parent: &Span, child: &Span) -> bool {
    parent.trace_id == child.trace_id && parent.span_id == child.parent_span_id
}

fn texts(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |pair: &KeyValue| {
        let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
        let value = match value {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::DoubleValue(number)) => number.to_string(),
            Some(Value::BoolValue(is)) => is.to_string(),
            other => format!("{other:?}"),
        };
        (pair.key.clone(), value)
    };
    attributes.iter().map(text).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
