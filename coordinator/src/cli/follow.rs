//! A connection that follows the leader: a request that another member answers with "ask the leader" goes there, and one
//! that met a dying coordinator goes to the next. Requests carry ids, so one that was executed is not executed again.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use pgleap_proto::tls::{self, Role, TlsIdentity};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Channel;

use super::Failure;
use crate::driver::explain;
use crate::raft::LEADER_KEY;

/// Longest wait for one coordinator to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a request looks for a leader; an election takes about a second.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two rounds of looking.
const AGAIN: Duration = Duration::from_millis(200);
/// A coordinator that is silent for the sum of these is given up.
const KEEPALIVE: Duration = Duration::from_secs(3);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);

/// Where requests go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leading(Arc<Group>);

#[derive(Debug)]
struct Group {
    addresses: Vec<String>,
    identity: TlsIdentity,
    /// The coordinator that was right last.
    current: Mutex<Option<(String, Channel)>>,
}

impl Leading {
    /// Connects to the first coordinator that answers.
    pub(crate) async fn open(addresses: Vec<String>, identity: TlsIdentity) -> Result<Leading, Failure> {
        let group = Group { addresses, identity, current: Mutex::default() };
        let mut tried = Vec::new();
        for address in &group.addresses {
            match group.connect(address).await {
                Ok(channel) => {
                    group.stay(Some((address.clone(), channel)));
                    return Ok(Leading(Arc::new(group)));
                }
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        Err(Failure::Unreachable(format!(
            "no coordinator answers ({}); is `pgleap serve` running there, and does --coordinator name it?",
            tried.join("; ")
        )))
    }
}

impl Group {
    async fn connect(&self, address: &str) -> Result<Channel, String> {
        let endpoint = tls::endpoint(address)
            .map_err(|e| format!("this is no host:port ({})", explain(&e)))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER);
        // The handshake, too, may hang.
        let late = |_| format!("no answer within {} s", CONNECT.as_secs());
        let connecting = self.identity.connect(&endpoint, Role::Coordinator, "");
        timeout(CONNECT, connecting).await.map_err(late)?.map_err(|e| explain(&e))
    }

    fn stay(&self, with: Option<(String, Channel)>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = with;
    }

    fn current(&self) -> Option<(String, Channel)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends until somebody answers who may, or patience ends.
    async fn send(&self, parts: http::request::Parts, body: Bytes) -> Result<http::Response<Body>, Status> {
        let deadline = Instant::now() + PATIENCE;
        let (mut turn, mut hops) = (0, 0);
        let mut hint: Option<String> = None;
        loop {
            let next = match (hint.take(), self.current()) {
                (None, Some((address, channel))) => Ok((address, channel)),
                (hint, _) => {
                    // Those named on the command line in turn, unless somebody knows better.
                    let turns = self.addresses.get(turn % self.addresses.len().max(1)).cloned();
                    turn += 1;
                    let address = hint.or(turns).unwrap_or_default();
                    let connected = self.connect(&address).await;
                    connected.map(|channel| (address.clone(), channel)).map_err(|e| format!("{address}: {e}"))
                }
            };
            let why = match next {
                Err(why) => why,
                Ok((address, mut channel)) => {
                    self.stay(Some((address.clone(), channel.clone())));
                    let request =
                        http::Request::from_parts(parts.clone(), Body::new(Full::new(body.clone())));
                    let sent = async {
                        std::future::poll_fn(|context| channel.poll_ready(context)).await?;
                        channel.call(request).await
                    };
                    match sent.await {
                        Err(error) => format!("{address}: {}", explain(&error)),
                        Ok(response) => match response.headers().get(LEADER_KEY) {
                            None => return Ok(response),
                            Some(_) if Instant::now() >= deadline => return Ok(response),
                            Some(leader) => {
                                let leader = leader.to_str().unwrap_or_default();
                                hint = (!leader.is_empty()).then(|| leader.to_owned());
                                hops += 1;
                                // Once at once; two that name each other are given time.
                                if hint.is_some() && hops % 2 == 1 {
                                    continue;
                                }
                                String::new()
                            }
                        },
                    }
                }
            };
            self.stay(None);
            if Instant::now() >= deadline {
                return Err(Status::unavailable(format!("{why}; no other coordinator answers")));
            }
            sleep(AGAIN).await;
        }
    }
}

impl Service<http::Request<Body>> for Leading {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let group = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            group.send(parts, body).await
        })
    }
}
