//! Spans for an OpenTelemetry collector, over OTLP (gRPC), and the W3C trace context by which spans of
//! several processes belong together.
//!
//! Spans are those of `tracing`: [`Exporter::layer`] sends Peanut's own, and no others, since those of HTTP/2
//! would be about the sending itself.

use std::fmt;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// The last spans are sent within this time when a process ends.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The collector, as `http://host:4317`, or `https://` with a certificate that the system trusts.
    pub endpoint: String,
    /// The share, from 0 to 1, of traces that begin in this process. Where a caller names a trace, the caller
    /// has decided.
    pub sample: f64,
}

/// Spans cannot be sent so.
#[derive(Debug)]
pub struct SettingsError {
    /// The setting that is wrong.
    pub setting: &'static str,
    why: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for SettingsError {}

impl Settings {
    /// The share of traces where none is given: a hundredth.
    pub const DEFAULT_SAMPLE: f64 = 0.01;

    /// # Errors
    /// Where the endpoint is no URL of HTTP, or the share no share.
    pub fn check(&self) -> Result<(), SettingsError> {
        let endpoint: Result<tonic::codegen::http::Uri, _> = self.endpoint.parse();
        let is_url = endpoint
            .is_ok_and(|url| url.authority().is_some() && matches!(url.scheme_str(), Some("http" | "https")));
        if !is_url {
            let why = format!("`{}` is not like http://host:4317", self.endpoint);
            return Err(SettingsError { setting: "endpoint", why });
        }
        if !(0.0..=1.0).contains(&self.sample) {
            let why = format!("{} is not from 0 to 1", self.sample);
            return Err(SettingsError { setting: "sample", why });
        }
        Ok(())
    }
}

/// Sends spans, in the background, until it is [ended](Self::end). What a collector that cannot be reached
/// would have been sent is dropped.
#[derive(Debug)]
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// An exporter of a service and one instance of it, by OpenTelemetry's names. It needs a runtime of tokio
    /// around it.
    ///
    /// # Errors
    /// Where the [settings](Settings::check) are no good.
    pub fn new(settings: &Settings, service: &'static str, instance: &str) -> Result<Self, SettingsError> {
        settings.check()?;
        let failed = |error| SettingsError { setting: "endpoint", why: format!("{error}") };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&settings.endpoint);
        let exporter = exporter.build().map_err(failed)?;
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let share = Sampler::TraceIdRatioBased(settings.sample);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(share)))
            .with_resource(resource.build());
        Ok(Exporter { provider: provider.build() })
    }

    /// Takes the spans of Peanut's crates, whatever a log filter says.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer = self.provider.tracer_with_scope(InstrumentationScope::builder("peanut").build());
        let is_ours = filter_fn(|it| it.is_span() && it.target().starts_with("peanut"));
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(is_ours.with_max_level_hint(LevelFilter::DEBUG))
    }

    /// Sends what has not been sent yet, for two seconds at most, and no more.
    pub fn end(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// Makes a span part of the trace that a caller named. Nothing happens where the text names none, or where
/// nobody sends spans.
pub fn belongs_to(span: &Span, traceparent: &str) {
    if let Some(parent) = parse(traceparent) {
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// How this span is named to other processes; `None` where nobody sends spans.
pub fn traceparent(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let named = span.span_context();
    let (trace, flags) = (named.trace_id(), named.trace_flags().to_u8());
    named.is_valid().then(|| format!("00-{trace}-{}-{flags:02x}", named.span_id()))
}

fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    let named = SpanContext::new(trace, span, TraceFlags::new(flags), true, TraceState::default());
    named.is_valid().then_some(named)
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::InMemorySpanExporter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_no_endpoint_and_no_share_is_refused() {
        let of = |endpoint: &str, sample| Settings { endpoint: endpoint.to_owned(), sample }.check();
        for good in ["http://localhost:4317", "https://collector.example"] {
            of(good, 0.5).unwrap();
        }
        for bad in ["", "localhost:4317", "ftp://host", "http://", "http://a b"] {
            assert_eq!(of(bad, 0.5).unwrap_err().setting, "endpoint", "{bad}");
        }
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(of("http://h", bad).unwrap_err().setting, "sample", "{bad}");
        }
    }

    #[test]
    fn a_span_belongs_to_its_callers_trace_and_is_named_as_a_part_of_it() {
        let sent = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(sent.clone()).build();
        let exporter = Exporter { provider };
        let subscriber = tracing_subscriber::registry().with(exporter.layer());
        let named = tracing::subscriber::with_default(subscriber, || {
            let span = tracing::debug_span!(target: "peanut", "load");
            belongs_to(&span, CALLER);
            tracing::debug_span!(target: "h2", "frame").in_scope(|| {});
            traceparent(&span)
        });
        let spans = sent.get_finished_spans().unwrap();
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(parse(CALLER).map(|caller| caller.span_id()), Some(span.parent_span_id));
        let of_caller = &CALLER[3..35];
        assert_eq!(span.span_context.trace_id().to_string(), of_caller);
        assert_eq!(named.unwrap(), format!("00-{of_caller}-{}-01", span.span_context.span_id()));
    }

    #[test]
    fn what_a_caller_does_not_want_kept_is_not_sent_and_passed_on_as_such() {
        let sent = InMemorySpanExporter::default();
        let share = Sampler::ParentBased(Box::new(Sampler::AlwaysOn));
        let provider = SdkTracerProvider::builder().with_simple_exporter(sent.clone()).with_sampler(share);
        let exporter = Exporter { provider: provider.build() };
        let subscriber = tracing_subscriber::registry().with(exporter.layer());
        let named = tracing::subscriber::with_default(subscriber, || {
            let span = tracing::debug_span!(target: "peanut", "load");
            belongs_to(&span, &CALLER.replace("-01", "-00"));
            traceparent(&span)
        });
        assert!(sent.get_finished_spans().unwrap().is_empty());
        assert!(named.unwrap().ends_with("-00"));
    }

    #[test]
    fn without_anybody_who_sends_spans_there_is_no_trace() {
        let span = tracing::debug_span!(target: "peanut", "load");
        belongs_to(&span, CALLER);
        assert_eq!(traceparent(&span), None);
        for bad in ["", "00", "00-0-0-0", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
