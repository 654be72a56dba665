//! What every role measures: names and labels, all of them here.

use metrics::{counter, gauge};

const BUILD: &str = "flotilla_build_info";
const SLOW_CONSUMER: &str = "flotilla_nats_slow_consumer_total";

/// Which version runs.
pub(crate) fn build() {
    gauge!(BUILD, "version" => crate::RELEASE.as_str()).set(1.0);
}

/// Messages were dropped because a subscription was not read fast enough.
pub(crate) fn slow_consumer() {
    counter!(SLOW_CONSUMER).increment(1);
}
