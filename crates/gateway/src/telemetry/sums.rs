//! What executions used, summed up since the start, as metrics. A replay or a join is no execution: it
//! adds nothing.

use std::collections::HashMap;

use onlyonce_core::{Metered, Unit, Usage};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, Sum,
};
use parking_lot::Mutex;

use super::names::{Attributes, Modality, TOKEN_SUMS};
use super::spans::{Executed, now};

/// The most kinds of calls that are told apart (I15); what comes on top is summed as one for each
/// provider.
const MOST_CALLS: usize = 1_000;
/// The name of all other models.
const OTHER: &str = "other";

/// One kind of call of a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) operation: Box<str>,
    pub(super) provider: Box<str>,
    pub(super) request_model: Box<str>,
    pub(super) model: Box<str>,
    pub(super) server: Box<str>,
    pub(super) port: u16,
}

type Counts = [u64; TOKEN_SUMS.len()];

/// The sums.
pub(super) struct Sums {
    /// Since when, in nanoseconds since 1970.
    since: u64,
    calls: Mutex<HashMap<Call, Counts>>,
}

impl Sums {
    pub(super) fn new() -> Self {
        Self {
            since: now(),
            calls: Mutex::default(),
        }
    }

    /// Adds what an execution used.
    pub(super) fn add(&self, executed: &Executed) {
        let Some(metered) = &executed.metered else {
            return;
        };
        let upstream = &executed.route.upstream;
        self.add_call(
            Call::of(metered, &upstream.host, upstream.port),
            &metered.usage,
        );
    }

    fn add_call(&self, mut call: Call, usage: &Usage) {
        if usage.iter().len() == 0 {
            return;
        }
        let mut calls = self.calls.lock();
        if calls.len() >= MOST_CALLS && !calls.contains_key(&call) {
            call.request_model = OTHER.into();
            call.model = OTHER.into();
        }
        let counts = calls.entry(call).or_insert([0; TOKEN_SUMS.len()]);
        for (sum, (_, unit, modality)) in counts.iter_mut().zip(TOKEN_SUMS) {
            let more = count(usage, unit, modality).unwrap_or(0);
            *sum = sum.saturating_add(more);
        }
    }

    /// All of them, as the protocol has it.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let at = now();
        let calls = self.calls.lock().clone();
        let mut metrics: Vec<Metric> = Vec::new();
        for (number, (name, _, modality)) in TOKEN_SUMS.iter().enumerate() {
            let counted = calls.iter().filter(|(_, counts)| counts[number] > 0);
            let points = counted.map(|(call, counts)| NumberDataPoint {
                attributes: Attributes::of_call(call, *modality).0,
                start_time_unix_nano: self.since,
                time_unix_nano: at.max(self.since),
                value: Some(Value::AsInt(
                    i64::try_from(counts[number]).unwrap_or(i64::MAX),
                )),
                ..NumberDataPoint::default()
            });
            let points: Vec<_> = points.collect();
            match metrics.last_mut() {
                _ if points.is_empty() => {}
                Some(Metric {
                    name: last,
                    data: Some(Data::Sum(sum)),
                    ..
                }) if last == name => {
                    sum.data_points.extend(points);
                }
                _ => metrics.push(Metric {
                    name: (*name).to_owned(),
                    unit: "{token}".to_owned(),
                    data: Some(Data::Sum(Sum {
                        data_points: points,
                        aggregation_temporality: AggregationTemporality::Cumulative.into(),
                        is_monotonic: true,
                    })),
                    ..Metric::default()
                }),
            }
        }
        metrics
    }
}

impl Call {
    fn of(metered: &Metered, server: &str, port: u16) -> Self {
        Self {
            operation: metered.operation.clone(),
            provider: metered.provider.clone(),
            request_model: metered.request_model.clone(),
            model: metered.model.clone(),
            server: server.into(),
            port,
        }
    }
}

/// How much of `unit` was of `modality`. Where nothing is said of what a total is made of, it is of a
/// modality that nobody knows.
fn count(usage: &Usage, unit: Unit, modality: Modality) -> Option<u64> {
    let total = usage.get(unit)?;
    let parts: &[Unit] = match unit {
        Unit::Input => &[Unit::InputAudio, Unit::InputImage, Unit::InputVideo],
        Unit::Output => &[Unit::OutputAudio, Unit::OutputImage, Unit::OutputVideo],
        _ => &[],
    };
    let parts: Vec<u64> = parts.iter().filter_map(|part| usage.get(*part)).collect();
    match modality {
        Modality::Unknown => parts.is_empty().then_some(total),
        Modality::Text if parts.is_empty() => None,
        Modality::Text => Some(total.saturating_sub(parts.iter().sum())),
        Modality::Audio | Modality::Image => Some(total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(model: &str) -> Call {
        let metered = Metered {
            provider: "openai".into(),
            model: model.into(),
            ..Metered::default()
        };
        Call::of(&metered, "api.example", 443)
    }

    /// Each metric with its modality and its value, summed over calls.
    fn told(sums: &Sums) -> Vec<(String, i64)> {
        let of = |metric: Metric| {
            let Some(Data::Sum(sum)) = metric.data else {
                panic!("{} is no sum", metric.name);
            };
            assert!(sum.is_monotonic);
            sum.data_points.into_iter().map(move |point| {
                let modality = point
                    .attributes
                    .iter()
                    .find(|pair| pair.key.contains("modality"));
                let modality = format!("{:?}", modality.and_then(|pair| pair.value.clone()));
                let words = ["unknown", "text", "audio", "image"];
                let modality = words.iter().find(|word| modality.contains(**word));
                let Some(Value::AsInt(count)) = point.value else {
                    panic!("no count");
                };
                let name = metric
                    .name
                    .trim_start_matches("gen_ai.client.inference.usage.");
                (format!("{name} {}", modality.unwrap_or(&"")), count)
            })
        };
        sums.metrics().into_iter().flat_map(of).collect()
    }

    #[test]
    fn a_total_is_told_by_what_it_is_made_of_as_far_as_that_is_known() {
        let sums = Sums::new();
        let plain = [(Unit::Input, 10), (Unit::Output, 3), (Unit::CacheRead, 4)];
        let spoken = [(Unit::Input, 10), (Unit::InputAudio, 8)];
        for _ in 0..2 {
            sums.add_call(call("gpt-5"), &Usage::from_iter(plain));
        }
        sums.add_call(call("gpt-5"), &Usage::from_iter(spoken));
        sums.add_call(call("gpt-5"), &Usage::default());
        let expected = [
            ("input_tokens unknown", 20),
            ("input_tokens text", 2),
            ("input_tokens audio", 8),
            ("output_tokens unknown", 6),
            ("cache_read.input_tokens unknown", 8),
        ];
        assert_eq!(
            told(&sums),
            expected.map(|(name, count)| (name.to_owned(), count))
        );
    }

    #[test]
    fn i15_models_without_end_are_summed_as_others() {
        let sums = Sums::new();
        let usage = Usage::from_iter([(Unit::Input, 1)]);
        for number in 0..MOST_CALLS + 50 {
            sums.add_call(call(&format!("model-{number}")), &usage);
        }
        sums.add_call(call("model-0"), &usage);
        let calls = sums.calls.lock().clone();
        assert_eq!(calls.len(), MOST_CALLS + 1);
        let first = |model: &str| calls.iter().find(|(call, _)| &*call.model == model);
        let count = |model| first(model).map(|(_, counts)| counts[0]);
        assert_eq!(count("model-0"), Some(2));
        assert_eq!(count(OTHER), Some(50));
    }
}
