//! How a metric, or one for each value of a label, is registered under its name.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::Counter;
use super::names;

/// A sample's name without `_total` and unit, which the encoder puts back.
fn base(name: &str) -> (&str, Option<Unit>) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    if let Some(base) = name.strip_suffix("_bytes") {
        (base, Some(Unit::Bytes))
    } else if let Some(base) = name.strip_suffix("_seconds") {
        (base, Some(Unit::Seconds))
    } else {
        (name, None)
    }
}

/// One series without labels.
pub(super) fn single<M>(registry: &mut Registry, name: &'static str) -> M
where
    M: Series + Default,
{
    let metric = M::default();
    let (base, unit) = base(name);
    // The registry ends the help with a full stop of its own.
    let help = names::help(name).trim_end_matches('.');
    match unit {
        Some(unit) => registry.register_with_unit(base, help, unit, metric.clone()),
        None => registry.register(base, help, metric.clone()),
    }
    metric
}

/// One series a label value, in the order of `values`.
pub(super) fn family<M: Series>(
    registry: &mut Registry,
    name: &'static str,
    key: &'static str,
    values: impl Iterator<Item = &'static str>,
    new: impl Fn() -> M,
    happened: Option<&[Counter]>,
) -> Box<[M]> {
    let series: Box<[(&'static str, M)]> = values.map(|value| (value, new())).collect();
    let metrics = series.iter().map(|(_, metric)| metric.clone()).collect();
    registry.register_collector(Box::new(Family {
        name,
        key,
        series,
        happened: happened.map(Box::from),
    }));
    metrics
}

/// A metric that several owners share.
pub(super) trait Series:
    EncodeMetric + TypedMetric + Clone + std::fmt::Debug + Send + Sync + 'static
{
}

impl<M> Series for M where
    M: EncodeMetric + TypedMetric + Clone + std::fmt::Debug + Send + Sync + 'static
{
}

/// The registry's half of a family. The library's own `Family` keeps a hash map, whose order would
/// change from run to run.
#[derive(Debug)]
struct Family<M> {
    name: &'static str,
    key: &'static str,
    series: Box<[(&'static str, M)]>,
    /// Where given, a series whose counter of the same index is zero is left out.
    happened: Option<Box<[Counter]>>,
}

impl<M: Series> Collector for Family<M> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (base, unit) = base(self.name);
        let mut encoder =
            encoder.encode_descriptor(base, names::help(self.name), unit.as_ref(), M::TYPE)?;
        for (at, (value, metric)) in self.series.iter().enumerate() {
            let counter = self.happened.as_ref().and_then(|all| all.get(at));
            if counter.is_none_or(|counter| counter.get() > 0) {
                metric.encode(encoder.encode_family(&[(self.key, *value)])?)?;
            }
        }
        Ok(())
    }
}
