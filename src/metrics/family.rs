//! Families of metrics whose values are read at the time of the scrape.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// The labels of a sample, in their order.
pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// What a family is called, and what it means.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    name: &'a str,
    help: &'a str,
    unit: Option<&'a Unit>,
}

/// A family without a unit.
pub(super) fn about<'a>(name: &'a str, help: &'a str) -> About<'a> {
    About { name, help, unit: None }
}

impl<'a> About<'a> {
    /// The same with a unit, which its name ends in.
    pub(super) fn in_unit(self, unit: &'a Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }

    /// A gauge with its samples; without any, it is absent.
    pub(super) fn gauge<'l, const N: usize, V: EncodeGaugeValue>(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> Result<(), Error> {
        self.encode(encoder, MetricType::Gauge, samples, |metric, value| metric.encode_gauge(&value))
    }

    /// A counter, the same way.
    pub(super) fn counter<'l, const N: usize, V: EncodeCounterValue>(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> Result<(), Error> {
        self.encode(encoder, MetricType::Counter, samples, |metric, value| {
            metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }

    fn encode<'l, const N: usize, V>(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
        one: impl Fn(&mut MetricEncoder<'_>, V) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Self { name, help, unit } = self;
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in samples {
            if N == 0 {
                one(&mut family, value)?;
            } else {
                one(&mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }
}
