//! The HTTP loader against a real origin.

use std::sync::Mutex;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

use super::*;

/// An origin that answers by the last segment of the path and notes what it was asked.
async fn origin() -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answer = |State(asked): State<Arc<Mutex<Vec<String>>>>, request: Request| async move {
        let path = request.uri().path().to_owned();
        asked.lock().unwrap().push(path.clone());
        let control = |directive: &'static str| ([(CACHE_CONTROL, directive)], "value").into_response();
        match path.rsplit('/').next().unwrap() {
            "missing" => StatusCode::NOT_FOUND.into_response(),
            "gone" => StatusCode::GONE.into_response(),
            "broken" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            "minute" => control("public, max-age=60"),
            "shared" => control("max-age=60, s-maxage=30"),
            "private" => control("no-store"),
            "huge" => vec![0u8; MAX_VALUE_BYTES + 1].into_response(),
            "slow" => std::future::pending::<Response>().await,
            _ => "value".into_response(),
        }
    };
    let router = Router::new().fallback(answer).with_state(asked.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/{{group}}/{{key}}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

#[tokio::test]
async fn statuses_and_lifetimes_are_read() {
    let (url, _) = origin().await;
    let loader = HttpLoader::new(&url, Duration::from_secs(30)).unwrap();
    let load = async |key: &str| loader.load("scores", key.as_bytes()).await;
    let for_seconds = |seconds| Loaded::found_for("value", Duration::from_secs(seconds));
    assert_eq!(load("Tom").await.unwrap(), Loaded::found("value"));
    assert_eq!(load("minute").await.unwrap(), for_seconds(60));
    assert_eq!(load("shared").await.unwrap(), for_seconds(30));
    assert_eq!(load("private").await.unwrap(), for_seconds(0));
    assert_eq!(load("missing").await.unwrap(), Loaded::NotFound);
    assert_eq!(load("gone").await.unwrap(), Loaded::NotFound);
    assert!(load("broken").await.unwrap_err().to_string().contains("500"));
    assert!(load("huge").await.unwrap_err().to_string().contains("8388608"));
}

#[tokio::test]
async fn group_and_key_are_percent_encoded() {
    let (url, asked) = origin().await;
    let loader = HttpLoader::new(&url, Duration::from_secs(30)).unwrap();
    loader.load("my group", b"a/b?c=%\xff{group}").await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["/my%20group/a%2Fb%3Fc%3D%25%FF%7Bgroup%7D"]);
}

#[tokio::test]
async fn a_silent_or_absent_origin_is_an_error() {
    let (url, _) = origin().await;
    let loader = HttpLoader::new(&url, Duration::from_millis(200)).unwrap();
    assert!(loader.load("g", b"slow").await.unwrap_err().to_string().contains("timed out"));

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let loader = HttpLoader::new(&format!("http://{closed}/{{key}}"), Duration::from_secs(30)).unwrap();
    assert!(loader.load("g", b"k").await.unwrap_err().to_string().contains("refused"));
}

#[test]
fn urls_are_checked() {
    for (url, names) in
        [("http://h/", "{key}"), ("ftp://h/{key}", "neither http"), ("http//{key}", "the url")]
    {
        let error = HttpLoader::new(url, Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.contains(names) && !error.contains("//"), "there may be secrets in it: {error}");
    }
}
