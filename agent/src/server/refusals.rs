//! Warns of callers that were refused for who they are, whatever method they called: with name and address, at most once a minute
//! for each caller and method. Refuses nobody itself.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pgleap_proto::tls::Peer;
use tonic::codegen::{Service, http};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Status};
use tower::Layer;

/// Between two warnings of the same.
const TELL: Duration = Duration::from_secs(60);
/// Callers and methods told apart; more are forgotten, and told again.
const TOLD_APART: usize = 256;

/// Puts the warnings around a server's methods.
#[derive(Debug, Clone, Default)]
pub(super) struct RefusalLog(Arc<Mutex<HashMap<Refused, Told>>>);

/// Caller and method.
type Refused = (String, String);
/// When it was told, and how often it happened since.
type Told = (Instant, u64);

impl RefusalLog {
    fn tell(&self, who: &str, method: &str, status: &Status) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (who.to_owned(), method.to_owned());
        let refused = match told.get_mut(&key) {
            Some((at, count)) if at.elapsed() < TELL => {
                *count += 1;
                return;
            }
            known => 1 + known.map_or(0, |(_, count)| *count),
        };
        if told.len() >= TOLD_APART {
            told.clear();
        }
        told.insert(key, (Instant::now(), 0));
        tracing::warn!(who, method, refused, why = status.message(), "a caller was refused");
    }
}

impl<S> Layer<S> for RefusalLog {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, log: self.clone() }
    }
}

/// A service whose refusals are told.
#[derive(Debug, Clone)]
pub(super) struct Watched<S> {
    inner: S,
    log: RefusalLog,
}

/// Name and address of a caller.
fn who<B>(request: &http::Request<B>) -> String {
    let Some(info) = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>() else {
        return "somebody".to_owned();
    };
    let certificates = info.peer_certs();
    let certificate = certificates.as_ref().and_then(|list| list.first());
    let name = match certificate.map(|der| Peer::from_der(der)) {
        Some(Ok(peer)) => peer.to_string(),
        Some(Err(_)) => "a certificate without a role".to_owned(),
        None => "nobody".to_owned(),
    };
    let address = info.get_ref().remote_addr().map(|address| address.ip().to_string());
    format!("{name} at {}", address.unwrap_or_default())
}

impl<S, B, R> Service<http::Request<B>> for Watched<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (who, method, log) = (who(&request), request.uri().path().to_owned(), self.log.clone());
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            // A call that was refused before it began to stream says so in its headers.
            if let Some(status) = Status::from_header_map(answer.headers())
                && matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
            {
                log.tell(&who, &method, &status);
            }
            Ok(answer)
        })
    }
}
