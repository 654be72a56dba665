//! Logs, metrics and trace context. Prompt content never reaches any of them.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::Error;
use crate::config::{LogFormat, Telemetry};

/// Histograms are folded this often: samples would pile up where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// From one decoder step to the longest answer.
const SECONDS: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Batches and tokens.
const COUNTS: [f64; 14] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

/// What the process measures, for `/metrics`.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// As Prometheus reads it.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Telemetry of the process.
pub struct Guard {
    metrics: Metrics,
}

impl Guard {
    /// For [`crate::health::serve`].
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }
}

/// Sets up logs and metrics of the process, once. Logs go to stderr: stdout is for data.
pub fn init(telemetry: &Telemetry) -> Result<Guard, Error> {
    logs(telemetry)?;
    let recorder = recorder().map_err(|error| Error::Setup(format!("metrics: {error}")))?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| Error::Setup(format!("metrics: {error}")))?;
    crate::metrics::build();
    let upkeep = handle.clone();
    std::thread::Builder::new()
        .name("metrics-upkeep".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(UPKEEP);
                upkeep.run_upkeep();
            }
        })
        .map_err(|error| Error::Setup(format!("metrics: {error}")))?;
    Ok(Guard { metrics: Metrics(handle) })
}

fn logs(telemetry: &Telemetry) -> Result<(), Error> {
    let setup = |error: &dyn fmt::Display| Error::Setup(format!("telemetry.filter '{}': {error}", telemetry.filter));
    // The client's own lines say again what `bus` says; a filter that names it stands over this.
    let filter = EnvFilter::try_new(format!("async_nats=warn,{}", telemetry.filter)).map_err(|error| setup(&error))?;
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::registry().with(filter);
    let people = match telemetry.log {
        LogFormat::Auto => terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let set = if people {
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
        lines.with(layer).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).json().flatten_event(true);
        lines.with(layer.with_current_span(true).with_span_list(false)).try_init()
    };
    set.map_err(|error| Error::Setup(format!("logs: {error}")))
}

fn recorder() -> Result<metrics_exporter_prometheus::PrometheusRecorder, metrics_exporter_prometheus::BuildError> {
    let suffix = |end: &str| Matcher::Suffix(end.to_owned());
    Ok(PrometheusBuilder::new()
        .with_recommended_naming(true)
        .set_buckets_for_metric(suffix("_seconds"), &SECONDS)?
        .set_buckets_for_metric(suffix("_size"), &COUNTS)?
        .set_buckets_for_metric(suffix("_tokens"), &COUNTS)?
        .build_recorder())
}

/// W3C trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    trace: u128,
    span: u64,
    flags: u8,
}

impl Trace {
    /// Reads a `traceparent`; a malformed one is `None`.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let hex = |text: &str, length: usize| match text.len() {
            found if found != length => None,
            _ => text.bytes().try_fold(0_u128, |number, byte| Some(number << 4 | u128::from(digit(byte)?))),
        };
        let mut fields = traceparent.trim().split('-');
        let version = hex(fields.next()?, 2)?;
        let trace = hex(fields.next()?, 32)?;
        let span = hex(fields.next()?, 16)?;
        let flags = hex(fields.next()?, 2)?;
        // Version 0 ends here; later ones may go on.
        let ended = fields.next().is_none();
        let valid = version != 0xff && (version > 0 || ended) && trace != 0 && span != 0;
        valid.then_some(Self { trace, span: u64::try_from(span).ok()?, flags: u8::try_from(flags).ok()? })
    }

    /// A new trace, sampled.
    #[must_use]
    pub fn start() -> Self {
        Self { trace: rand::random::<u128>().max(1), span: new_span(), flags: 1 }
    }

    /// The request's own, or a new one.
    #[must_use]
    pub fn from_header(traceparent: Option<&str>) -> Self {
        traceparent.and_then(Self::parse).unwrap_or_else(Self::start)
    }

    /// The same trace, a new span.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span: new_span(), ..*self }
    }

    /// Id of the trace in hexadecimal: the field `trace_id` of spans and logs.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Id of the span in hexadecimal.
    #[must_use]
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }
}

fn new_span() -> u64 {
    rand::random::<u64>().max(1)
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.to_string(), text);
        assert_eq!(trace.child().trace_id(), trace.trace_id());
        assert_ne!(trace.child().span_id(), trace.span_id());
        assert_eq!(Trace::parse(&Trace::start().to_string()).map(|trace| trace.flags), Some(1));
    }

    #[test]
    fn a_malformed_traceparent_is_none() {
        for bad in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_keep_their_suffix_and_seconds_are_buckets() {
        let recorder = recorder().unwrap();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("flotilla_requests_total").increment(1);
            metrics::histogram!("flotilla_queue_wait_seconds").record(0.2);
        });
        let text = handle.render();
        assert!(text.contains("flotilla_requests_total 1"), "{text}");
        assert!(text.contains("flotilla_queue_wait_seconds_bucket{le=\"0.25\"} 1"), "{text}");
    }
}
