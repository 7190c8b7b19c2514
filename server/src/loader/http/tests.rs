//! The HTTP loader against real origins.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, LOCATION};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

use super::*;
use crate::loader::asked;

/// What an origin was asked: paths with queries, and whether a trace or a login came along.
type Asked = Arc<Mutex<Vec<(String, bool)>>>;

/// An origin that answers by the last segment of the path.
async fn origin() -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let answer = |State(asked): State<Asked>, request: Request| async move {
        let headers = request.headers();
        let has_secrets = headers.contains_key("traceparent") || headers.contains_key("authorization");
        let path = request.uri().path_and_query().unwrap().as_str().to_owned();
        asked.lock().unwrap().push((path.clone(), has_secrets));
        let control = |directive: &'static str| ([(CACHE_CONTROL, directive)], "value").into_response();
        let to = |location: String| (StatusCode::FOUND, [(LOCATION, location)]).into_response();
        match path.rsplit('/').next().unwrap() {
            "missing" => StatusCode::NOT_FOUND.into_response(),
            "missing-unkept" => (StatusCode::NOT_FOUND, [(CACHE_CONTROL, "no-store")]).into_response(),
            "gone" => StatusCode::GONE.into_response(),
            "broken" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            "minute" => control("public, max-age=60"),
            "private" => control("private, max-age=60"),
            "unkept" => control("no-store"),
            "huge" => vec![0u8; MAX_VALUE_BYTES + 1].into_response(),
            "slow" => std::future::pending::<Response>().await,
            // `via-`, a status, what its cache control says, and where to.
            last if last.starts_with("via-") => {
                let last = percent_encoding::percent_decode_str(last).decode_utf8().unwrap();
                let [_, status, control, target] = last.splitn(4, '-').collect::<Vec<_>>()[..] else {
                    panic!("{last}")
                };
                let (control, target) = match (control, target.split_once('-')) {
                    ("max" | "no", Some((rest, target))) => (format!("{control}-{rest}"), target),
                    _ => (control.to_owned(), target),
                };
                let status = StatusCode::from_u16(status.parse().unwrap()).unwrap();
                let location = format!("/elsewhere/{target}");
                match control.is_empty() {
                    true => (status, [(LOCATION, location)]).into_response(),
                    false => (status, [(LOCATION, location), (CACHE_CONTROL, control)]).into_response(),
                }
            }
            "circle" => to("circle".to_owned()),
            // Where a key says, after `to-`: a full URL.
            last if last.starts_with("to-") => {
                let location = last.strip_prefix("to-").unwrap();
                to(percent_encoding::percent_decode_str(location).decode_utf8().unwrap().into_owned())
            }
            _ => "value".into_response(),
        }
    };
    let router = Router::new().fallback(answer).with_state(asked.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (addr, asked)
}

fn loader_of(addr: SocketAddr) -> HttpLoader {
    HttpLoader::new(&format!("http://{addr}/{{group}}/{{key}}"), Duration::from_secs(30)).unwrap()
}

#[tokio::test]
async fn statuses_and_lifetimes_are_read() {
    let loader = loader_of(origin().await.0);
    let load = async |key: &str| loader.load(&LoadRequest::new("scores", key.to_owned())).await;
    let for_seconds = |seconds| Loaded::found("value").ttl(Duration::from_secs(seconds));
    assert_eq!(load("Tom").await.unwrap(), Loaded::found("value"));
    assert_eq!(load("minute").await.unwrap(), for_seconds(60));
    assert_eq!(load("private").await.unwrap(), for_seconds(0));
    assert_eq!(load("unkept").await.unwrap(), for_seconds(0));
    assert_eq!(load("missing").await.unwrap(), Loaded::not_found());
    assert_eq!(load("missing-unkept").await.unwrap(), Loaded::not_found().ttl(Duration::ZERO));
    assert_eq!(load("gone").await.unwrap(), Loaded::not_found());
    assert!(load("broken").await.unwrap_err().to_string().contains("500"));
    let huge = load("huge").await.unwrap_err();
    assert!(huge.to_string().contains("8388608") && huge.is_of_key());
}

#[tokio::test]
async fn every_key_comes_back_as_itself_and_dots_are_refused() {
    let (addr, asked) = origin().await;
    let loader = loader_of(addr);
    let mut keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    for key in [
        "%2e",
        "%2E%2E",
        "a/../b",
        "..%2f",
        "a//b",
        "\\",
        "..\\x",
        "/",
        "//",
        "a/b?c=%{group}",
        "...",
        "..",
        ".",
    ] {
        keys.push(key.as_bytes().to_vec());
    }
    for key in keys {
        asked.lock().unwrap().clear();
        let loaded = loader.load(&LoadRequest::new("my group", key.clone())).await;
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        if matches!(&key[..], b"." | b"..") {
            assert!(loaded.unwrap_err().is_of_key() && asked.is_empty());
            continue;
        }
        assert_eq!(loaded.unwrap(), Loaded::found("value"));
        let [(path, _)] = &asked[..] else { panic!("{key:?}: {asked:?}") };
        let last = path.strip_prefix("/my%20group/").unwrap_or_else(|| panic!("{key:?}: {path}"));
        assert!(!last.contains('/'), "{path}");
        assert_eq!(percent_encoding::percent_decode_str(last).collect::<Vec<u8>>(), key);
    }
}

#[tokio::test]
async fn redirects_are_followed_at_the_origin_and_name_what_is_elsewhere() {
    let ((addr, asked), (other, strangers)) = (origin().await, origin().await);
    let url = format!("http://me:secret@{addr}/g/{{key}}");
    let loader = HttpLoader::new(&url, Duration::from_secs(30)).unwrap();
    let trace: Arc<str> = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
    let load = async |key: String| {
        let mut request = LoadRequest::new("g", key);
        request.traceparent = Some(trace.clone());
        loader.load(&request).await
    };
    // What is found lives no longer than any answer on the way says; a temporary redirect that says nothing
    // is not reused (RFC 9111, 3).
    for (redirect, seconds) in [
        ("via-302--minute", 0),
        ("via-302-max-age=30-minute", 30),
        ("via-302-max-age=90-minute", 60),
        ("via-302-no-store-minute", 0),
        ("via-303--minute", 0),
        ("via-307-max-age=5-minute", 5),
        ("via-301--minute", 60),
        ("via-308--minute", 60),
        ("via-308-max-age=7-minute", 7),
        ("via-308-no-store-value", 0),
        ("via-302-max-age=7-value", 7),
        // By way of another.
        ("via-308--via-302-max-age=9-minute", 9),
        ("via-302-max-age=9-via-302-max-age=3-minute", 3),
    ] {
        let expected = Loaded::found("value").ttl(Duration::from_secs(seconds));
        assert_eq!(load(redirect.to_owned()).await.unwrap(), expected, "{redirect}");
        let last = asked.lock().unwrap().last().unwrap().clone();
        assert!(last.1 && last.0.starts_with("/elsewhere/"), "{last:?}");
    }
    assert_eq!(load("via-301--value".to_owned()).await.unwrap(), Loaded::found("value"));
    let missing = load("via-302-max-age=9-missing".to_owned()).await.unwrap();
    assert_eq!(missing, Loaded::not_found().ttl(Duration::from_secs(9)));
    let error = load("circle".to_owned()).await.unwrap_err();
    assert!(error.to_string().contains("too often"), "{error}");
    let port = addr.port();
    for (to, named) in [
        (format!("http://{other}/x"), format!("http://{other}")),
        (format!("//{other}/x"), format!("http://{other}")),
        (format!("http://me:secret@{other}/"), format!("http://{other}")),
        (format!("https://{addr}/"), format!("https://{addr}")),
        (format!("http://localhost:{port}/"), format!("http://localhost:{port}")),
        ("http://169.254.169.254/latest/meta-data".to_owned(), "http://169.254.169.254".to_owned()),
        // By way of itself.
        (format!("/g/to-http%3A%2F%2F{other}%2F"), format!("http://{other}")),
    ] {
        let error = load(format!("to-{to}")).await.unwrap_err();
        assert!(error.to_string().contains(&named) && error.is_of_key(), "{to}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert!(strangers.lock().unwrap().is_empty(), "nobody else has heard of it");
}

#[tokio::test]
async fn a_silent_or_absent_origin_is_an_error() {
    let (addr, _) = origin().await;
    let loader = HttpLoader::new(&format!("http://{addr}/{{key}}"), Duration::from_millis(200)).unwrap();
    assert!(asked::one(&loader, b"slow").await.unwrap_err().to_string().contains("timed out"));

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(asked::one(&loader_of(closed), b"k").await.unwrap_err().to_string().contains("refused"));
}

/// A port before another, with connections that swallow what is sent on them from the moment on that this is
/// sent.
async fn passage(to: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, silenced) = (listener.local_addr().unwrap(), tokio::sync::watch::Sender::new(0));
    let before = silenced.clone();
    tokio::spawn(async move {
        for number in 1.. {
            let (mut inbound, _) = listener.accept().await.unwrap();
            let mut silenced = before.subscribe();
            tokio::spawn(async move {
                let mut outbound = tokio::net::TcpStream::connect(to).await.unwrap();
                let is_silenced = tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut inbound, &mut outbound) => false,
                    _ = silenced.wait_for(|before| number <= *before) => true,
                };
                if is_silenced {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (addr, silenced)
}

#[tokio::test]
async fn over_http2_a_silent_connection_is_noticed_by_pings_and_costs_no_load() {
    let (addr, _) = origin().await;
    let (addr, silenced) = passage(addr).await;
    let builder = || Client::builder().http2_prior_knowledge();
    let loader =
        HttpLoader::with(&format!("http://{addr}/{{key}}"), Duration::from_secs(3), builder).unwrap();
    for round in 1..4 {
        let _ = asked::one(&loader, b"k").await.unwrap();
        silenced.send_replace(round);
    }
    let _ = asked::one(&loader, b"k").await.unwrap();
}

#[tokio::test]
async fn after_a_load_that_had_no_answer_in_time_others_have_new_connections() {
    let (addr, _) = origin().await;
    let (addr, silenced) = passage(addr).await;
    let loader = HttpLoader::new(&format!("http://{addr}/{{key}}"), Duration::from_secs(1)).unwrap();
    // Four connections.
    let together = async || {
        let loads = (0..4).map(|_| asked::one(&loader, b"k"));
        futures_util::future::join_all(loads).await.into_iter().for_each(|loaded| drop(loaded.unwrap()));
    };
    together().await;
    silenced.send_replace(1000);
    assert!(asked::one(&loader, b"k").await.unwrap_err().to_string().contains("timed out"));
    silenced.send_replace(4);
    together().await;
}

#[test]
fn settings_are_checked_and_named() {
    for (url, timeout, names) in [
        ("http://h/", 1, "{key}"),
        ("ftp://h/{key}", 1, "neither http"),
        ("http//{key}", 1, "`url`"),
        ("http://h/{key}", 0, "`timeout`"),
    ] {
        let error = HttpLoader::new(url, Duration::from_secs(timeout)).unwrap_err().to_string();
        assert!(error.contains(names) && !error.contains("//"), "there may be secrets in it: {error}");
    }
}
