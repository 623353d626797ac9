//! What executions used and how long they took, summed up since the start, as metrics. A replay or a join
//! is no execution: it adds nothing.

use std::collections::HashMap;

use onlyonce_core::{Metered, Unit, Usage};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
};
use parking_lot::Mutex;

use super::names::{
    Attributes, BOUNDS, DURATION, Modality, TO_FIRST_CHUNK, TOKEN_SUMS, error_of, seconds,
    time_to_first_chunk,
};
use super::spans::{Executed, now};

/// The most kinds of calls that are told apart (I15); what comes on top is summed as one for each
/// provider.
const MOST_CALLS: usize = 1_000;
/// The name of all other models.
const OTHER: &str = "other";

/// One kind of call of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) operation: Box<str>,
    pub(super) provider: Box<str>,
    pub(super) request_model: Box<str>,
    pub(super) model: Box<str>,
    pub(super) server: Box<str>,
    pub(super) port: u16,
    /// What it failed with, where that is told apart; empty where it did not.
    pub(super) error: Box<str>,
}

type Counts = [u64; TOKEN_SUMS.len()];

/// How often something took how long.
#[derive(Clone, Default)]
struct Times {
    /// In seconds.
    sum: f64,
    /// Of each of [`BOUNDS`], what is not above it and above the one before; last, what is above all.
    counts: [u64; BOUNDS.len() + 1],
}

/// One figure for each kind of call.
struct Calls<T>(Mutex<HashMap<Call, T>>);

impl<T: Default + Clone> Calls<T> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn note(&self, mut call: Call, note: impl FnOnce(&mut T)) {
        let mut calls = self.0.lock();
        if calls.len() >= MOST_CALLS && !calls.contains_key(&call) {
            call.request_model = OTHER.into();
            call.model = OTHER.into();
        }
        note(calls.entry(call).or_default());
    }

    fn all(&self) -> HashMap<Call, T> {
        self.0.lock().clone()
    }
}

impl Calls<Times> {
    fn took(&self, call: Call, seconds: f64) {
        self.note(call, |times| {
            times.sum += seconds;
            times.counts[BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        });
    }
}

/// The sums.
pub(super) struct Sums {
    /// Since when, in nanoseconds since 1970.
    since: u64,
    tokens: Calls<Counts>,
    durations: Calls<Times>,
    to_first_chunk: Calls<Times>,
}

impl Sums {
    pub(super) fn new() -> Self {
        Self {
            since: now(),
            tokens: Calls::new(),
            durations: Calls::new(),
            to_first_chunk: Calls::new(),
        }
    }

    /// Adds what an execution used, and how long it took: of calls of a model, as far as an answer told
    /// which.
    pub(super) fn add(&self, executed: &Executed) {
        let Some(metered) = &executed.metered else {
            return;
        };
        let upstream = &executed.route.upstream;
        let call = Call::of(metered, &upstream.host, upstream.port);
        if !call.operation.is_empty() {
            if let Some(seconds) = time_to_first_chunk(executed) {
                self.to_first_chunk.took(call.clone(), seconds);
            }
            let failed = Call {
                error: error_of(executed).unwrap_or_default().into(),
                ..call.clone()
            };
            let took = seconds(executed.begun, executed.ended);
            self.durations.took(failed, took);
        }
        self.add_call(call, &metered.usage);
    }

    fn add_call(&self, call: Call, usage: &Usage) {
        if usage.is_empty() {
            return;
        }
        self.tokens.note(call, |counts| {
            for (sum, (_, unit, modality)) in counts.iter_mut().zip(TOKEN_SUMS) {
                let more = count(usage, unit, modality).unwrap_or(0);
                *sum = sum.saturating_add(more);
            }
        });
    }

    /// All of them, as the protocol has it.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let at = now().max(self.since);
        let mut metrics = self.token_sums(at);
        metrics.extend(self.histogram(DURATION, &self.durations, at));
        metrics.extend(self.histogram(TO_FIRST_CHUNK, &self.to_first_chunk, at));
        metrics
    }

    /// `None` where there is nothing to tell yet.
    fn histogram(&self, name: &str, calls: &Calls<Times>, at: u64) -> Option<Metric> {
        let point = |(call, times): (Call, Times)| HistogramDataPoint {
            attributes: Attributes::of_call(&call, None).0,
            start_time_unix_nano: self.since,
            time_unix_nano: at,
            count: times.counts.iter().sum(),
            sum: Some(times.sum),
            bucket_counts: times.counts.to_vec(),
            explicit_bounds: BOUNDS.to_vec(),
            ..HistogramDataPoint::default()
        };
        let points: Vec<_> = calls.all().into_iter().map(point).collect();
        (!points.is_empty()).then(|| Metric {
            name: name.to_owned(),
            unit: "s".to_owned(),
            data: Some(Data::Histogram(Histogram {
                data_points: points,
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
            })),
            ..Metric::default()
        })
    }

    fn token_sums(&self, at: u64) -> Vec<Metric> {
        let calls = self.tokens.all();
        let mut metrics: Vec<Metric> = Vec::new();
        for (number, (name, _, modality)) in TOKEN_SUMS.iter().enumerate() {
            let counted = calls.iter().filter(|(_, counts)| counts[number] > 0);
            let points = counted.map(|(call, counts)| NumberDataPoint {
                attributes: Attributes::of_call(call, Some(*modality)).0,
                start_time_unix_nano: self.since,
                time_unix_nano: at,
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
            error: "".into(),
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
    fn a_time_counts_at_the_first_bound_that_it_is_not_above() {
        let sums = Sums::new();
        for seconds in [0.01, 0.011, 81.92, 100.0] {
            sums.durations.took(call("gpt-5"), seconds);
        }
        let metrics = sums.metrics();
        let [
            Metric {
                data: Some(Data::Histogram(histogram)),
                ..
            },
        ] = &metrics[..]
        else {
            panic!("{metrics:?}");
        };
        let point = &histogram.data_points[0];
        assert_eq!(point.count, 4);
        assert_eq!(point.explicit_bounds, BOUNDS);
        let counts = &point.bucket_counts;
        assert_eq!(counts.len(), BOUNDS.len() + 1);
        assert_eq!((counts[0], counts[1], counts[13], counts[14]), (1, 1, 1, 1));
    }

    #[test]
    fn i15_models_without_end_are_summed_as_others() {
        let sums = Sums::new();
        let usage = Usage::from_iter([(Unit::Input, 1)]);
        for number in 0..MOST_CALLS + 50 {
            sums.add_call(call(&format!("model-{number}")), &usage);
        }
        sums.add_call(call("model-0"), &usage);
        let calls = sums.tokens.all();
        assert_eq!(calls.len(), MOST_CALLS + 1);
        let first = |model: &str| calls.iter().find(|(call, _)| &*call.model == model);
        let count = |model| first(model).map(|(_, counts)| counts[0]);
        assert_eq!(count("model-0"), Some(2));
        assert_eq!(count(OTHER), Some(50));
    }
}
