//! The health endpoints: plain HTTP/1, in the manner of Patroni's REST API. GET, HEAD and OPTIONS only; nothing is changed and
//! nothing queried by a request.
//!
//! `/primary`, `/replica?lag=16MB&age=5s`, `/read-only`, `/health`, `/lag`, and `/` as `/primary`; `/NODE/…` when the agent keeps
//! several nodes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::bounds::Bounds;
use super::clock::now_us;
use super::judge::{Question, Verdict, judge};
use super::keeper::{Keeper, Kept};

/// Connections at the same time; whoever comes then waits.
const CONNECTIONS: usize = 256;
/// Time for the head of a request, the first and each later one of a connection.
const HEAD: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(300);

/// Answers until it is cancelled.
pub async fn serve(listener: TcpListener, keeper: Arc<Keeper>, ended: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ended.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (keeper, ended) = (keeper.clone(), ended.clone());
                tokio::spawn(async move {
                    let _place = place;
                    let answered = tokio::time::timeout(LIFE, connection(stream, keeper));
                    let _ = ended.run_until_cancelled(answered).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the health endpoints cannot be accepted");
                // Out of file descriptors: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, keeper: Arc<Keeper>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&keeper, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the health endpoints ended");
    }
}

fn respond<B>(keeper: &Keeper, request: &Request<B>) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
        return answer(StatusCode::METHOD_NOT_ALLOWED, &json!({"reason": "GET, HEAD or OPTIONS"}));
    }
    let nodes = keeper.nodes();
    let (status, body) = match find(&nodes, request.uri().path()) {
        Ok((kept, question)) => match kept.bounds().with_query(request.uri().query().unwrap_or_default()) {
            Ok(bounds) => {
                let verdict = ask(kept, question, bounds);
                let fine = if verdict.fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                (fine, verdict.body)
            }
            Err(reason) => (StatusCode::BAD_REQUEST, json!({"reason": reason})),
        },
        Err((status, reason)) => (status, json!({"reason": reason})),
    };
    answer(status, &body)
}

/// Judges a kept node now.
pub(super) fn ask(kept: &Kept, question: Question, bounds: Bounds) -> Verdict {
    let sample = kept.sample();
    judge(question, kept.seen(sample.as_ref()), bounds, now_us())
}

fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}

/// The node and the question that a path means.
fn find<'k>(nodes: &'k [Arc<Kept>], path: &str) -> Result<(&'k Kept, Question), (StatusCode, String)> {
    let path = path.trim_start_matches('/');
    let unknown =
        || (StatusCode::NOT_FOUND, "/primary, /replica, /read-only, /health and /lag are known".to_owned());
    let (node, question) = match path.split_once('/') {
        Some((node, question)) => (Some(node), question),
        // A node alone is asked as "/" is.
        None if Question::of(path).is_none() && nodes.iter().any(|kept| kept.name() == path) => {
            (Some(path), "")
        }
        None => (None, path),
    };
    let question = Question::of(question).ok_or_else(unknown)?;
    match (node, nodes) {
        (Some(node), _) => match nodes.iter().find(|kept| kept.name() == node) {
            Some(kept) => Ok((kept, question)),
            None => Err((StatusCode::NOT_FOUND, format!("this agent keeps no node \"{node}\""))),
        },
        (None, [kept]) => Ok((kept, question)),
        (None, []) => Err((StatusCode::SERVICE_UNAVAILABLE, "this agent keeps no node".to_owned())),
        (None, several) => {
            let names = several.iter().map(|kept| kept.name()).collect::<Vec<_>>().join(", ");
            Err((
                StatusCode::NOT_FOUND,
                format!("several nodes are kept, say which: /NODE/replica with one of {names}"),
            ))
        }
    }
}
