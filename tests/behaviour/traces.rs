//! Spans from an application's get to the loader, as an OpenTelemetry collector is told them.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::HeaderMap;
use nix::sys::signal::Signal;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use peanut_client::Client;
use peanut_tests::{Process, ServerProcess, eventually, free_port, group_from, http_client};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::{PEANUT, SCORES, SERVER};

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A collector, which keeps what it is sent: spans with the names of their services.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_service in request.into_inner().resource_spans {
            let attributes = of_service.resource.unwrap_or_default().attributes;
            let name = attributes.iter().find(|it| it.key == "service.name").expect("it has a name");
            let name = format!("{:?}", name.value);
            let name = ["peanut-server", "peanut-proxy"].into_iter().find(|it| name.contains(it)).unwrap();
            let spans = of_service.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans.map(|span| (name.to_owned(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// It, where it listens, and its task.
    async fn start() -> (Self, String, AbortOnDropHandle<()>) {
        let collector = Collector::default();
        let addr = format!("127.0.0.1:{}", free_port());
        let service = TraceServiceServer::new(collector.clone());
        let serving = tonic::transport::Server::builder().add_service(service).serve(addr.parse().unwrap());
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        (collector, format!("http://{addr}"), AbortOnDropHandle::new(serving))
    }

    /// The span of a service with this name, once it has come.
    async fn span(&self, of: &str, name: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        eventually(&format!("the span `{name}` of {of}"), async || {
            let spans = self.spans.lock().unwrap();
            let found = spans.iter().find(|(service, it)| service == of && it.name == name && is_it(it));
            found.map(|(_, span)| span.clone())
        })
        .await
    }
}

/// An origin that notes the trace context of each key that it is asked for.
async fn origin() -> (String, Arc<Mutex<HashMap<String, String>>>, AbortOnDropHandle<()>) {
    let seen: Arc<Mutex<HashMap<String, String>>> = Arc::default();
    let router = Router::new().fallback({
        let seen = seen.clone();
        async move |uri: axum::http::Uri, headers: HeaderMap| {
            let trace = headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or("none");
            seen.lock().unwrap().insert(uri.path().trim_start_matches('/').to_owned(), trace.to_owned());
            "a value"
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/{{key}}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, seen, AbortOnDropHandle::new(serving))
}

/// A node of its own that sends its spans there.
async fn node(collector: &str, sample: &str, url: &str) -> ServerProcess {
    let port = free_port();
    let alone = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    let otlp = format!("[otlp]\nendpoint = \"{collector}\"\nsample = {sample}\n");
    ServerProcess::start_with(SERVER, &format!("{alone}{otlp}{}", group_from("pages", url, ""))).await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a span is named to other processes.
fn traceparent(span: &Span) -> String {
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

#[tokio::test]
async fn a_trace_goes_from_the_applications_span_over_its_get_to_the_load_and_the_origin() {
    let (collector, endpoint, _collecting) = Collector::start().await;
    let (url, seen, _serving) = origin().await;
    // What no caller decides is not sent.
    let mut node = node(&endpoint, "0", &url).await;
    let sent = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(sent.clone()).build();
    let ours = filter_fn(|it| it.is_span() && (it.target().starts_with("peanut") || it.target() == "app"));
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("app")).with_filter(ours);
    // Beside a second one: whether a span is of interest to the only one there is, is asked of the thread
    // that comes by it first, which may be another test's.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _traced = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans));
    let client = Client::builder().nodes([node.addr()]).trace_context(|| {
        let mut headers = HashMap::new();
        TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut headers);
        headers.remove("traceparent")
    });
    let pages = client.build().await.unwrap().group("pages");
    let handler = || tracing::info_span!(target: "app", "handler");
    pages.get("one").instrument(handler()).await.unwrap();
    pages.get_detailed("detailed").instrument(handler()).await.unwrap();
    pages.get_many(["many"]).instrument(handler()).await.remove(0).unwrap();

    let here = sent.get_finished_spans().unwrap();
    let of = |id: &[u8]| here.iter().find(|span| span.span_context.span_id().to_bytes() == id);
    for key in ["one", "detailed", "many"] {
        let named = seen.lock().unwrap()[key].clone();
        let load = collector.span("peanut-server", "load", |load| traceparent(load) == named).await;
        let get = of(&load.parent_span_id).unwrap_or_else(|| panic!("{key}: the load's parent is no get"));
        assert_eq!(get.name, "get");
        let handler = of(&get.parent_span_id.to_bytes()).unwrap();
        assert_eq!(handler.name, "handler");
        assert_eq!(hex(&load.trace_id), handler.span_context.trace_id().to_string());
    }
    let without = Client::builder().nodes([node.addr()]).build().await.unwrap();
    without.group("pages").get("without").await.unwrap();
    node.process().signal(Signal::SIGTERM);
    assert!(node.process().ended().await.success());
    assert_eq!(collector.spans.lock().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_a_part_of_its_callers_traces_and_begins_others() {
    let (collector, endpoint, _collecting) = Collector::start().await;
    let (url, seen, _serving) = origin().await;
    let node = node(&endpoint, "0", &url).await;
    let (http, redis) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let mut command = Command::new(PEANUT);
    command.args(["--nodes", node.addr(), "proxy", "--redis", &redis, "--http", &http]);
    command.args(["--otlp-endpoint", &endpoint, "--otlp-sample", "1"]).env("NO_COLOR", "1");
    let mut proxy = Process::start("peanut proxy", &mut command);
    proxy.wait_for_line("HTTP on ").await;
    let request = http_client().get(format!("http://{http}/v1/pages/http")).header("traceparent", CALLER);
    assert!(request.send().await.unwrap().status().is_success());
    let redis_cli = Command::new("redis-cli")
        .args(["-p", redis.rsplit(':').next().unwrap(), "get", "pages:redis"])
        .output()
        .unwrap();
    assert!(redis_cli.status.success());
    for key in ["http", "redis"] {
        let named = seen.lock().unwrap()[key].clone();
        let load = collector.span("peanut-server", "load", |load| traceparent(load) == named).await;
        let get = collector.span("peanut-proxy", "get", |get| get.span_id == load.parent_span_id).await;
        if key == "redis" {
            assert!(get.parent_span_id.is_empty(), "it begins a trace");
            continue;
        }
        let request = collector.span("peanut-proxy", "request", |it| it.span_id == get.parent_span_id).await;
        assert_eq!(format!("00-{}-{}-01", hex(&request.trace_id), hex(&request.parent_span_id)), CALLER);
    }
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.ended().await.success());
}

/// Nobody is there, and then somebody who swallows all.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_cannot_be_reached_costs_no_get_and_holds_up_no_stop() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let (url, _seen, _serving) = origin().await;
    for endpoint in [nobody, format!("http://{}", silent.local_addr().unwrap())] {
        let mut node = node(&endpoint, "1", &url).await;
        let client = Client::builder().nodes([node.addr()]).build().await.unwrap();
        for key in 0..500 {
            client.group("pages").get(format!("key-{key}")).await.unwrap();
        }
        node.process().signal(Signal::SIGTERM);
        assert!(node.process().ended().await.success(), "{endpoint}");
    }
}

#[test]
fn settings_that_send_nothing_are_refused() {
    for (settings, why) in [
        ("[otlp]\nendpoint = \"collector:4317\"\n", "otlp.endpoint: `collector:4317` is not like http://"),
        ("[otlp]\nendpoint = \"http://h\"\nsample = 2.0\n", "otlp.sample: 2 is not from 0 to 1"),
        ("[otlp]\nsample = 0.5\n", "otlp.sample: it needs `endpoint`"),
        ("[otlp]\nurl = \"http://h\"\n", "peanut.toml:2: unknown field `url`"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peanut.toml");
        std::fs::write(&path, format!("{settings}{SCORES}")).unwrap();
        let run = Command::new(SERVER).arg("--config").arg(&path).arg("--check-config").output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.code() == Some(78) && said.contains(why), "{settings}: {said}");
    }
    for (args, why) in [
        (&["--otlp-endpoint", "collector"][..], "--otlp-endpoint: `collector` is not like http://"),
        (&["--otlp-endpoint", "http://h", "--otlp-sample", "7"], "--otlp-sample: 7 is not from 0 to 1"),
    ] {
        let mut command = Command::new(PEANUT);
        let nobody = format!("127.0.0.1:{}", free_port());
        command.args(["--nodes", &nobody, "proxy", "--redis", "127.0.0.1:0"]).args(args);
        let run = command.output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && said.contains(why), "{args:?}: {said}");
    }
}
