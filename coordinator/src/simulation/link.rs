//! From a coordinator to agents: real clients and real services, with a made-up connection between them. A request goes on its way
//! whether its caller waits or not, and may arrive long after; its answer may be lost, and a stream may be cut in the middle.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use pgleap_proto::agent::agent_server::AgentServer;
use pgleap_proto::traffic::traffic_server::TrafficServer;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service;

use super::agent::AgentModel;
use super::network::trip;
use super::sim::Shared;
use crate::driver::{Connect, Link};

/// Until a connection whose other end is silent is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// Until a connection that cannot be made is given up.
const CONNECT: Duration = Duration::from_secs(3);
/// How often a quiet stream is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The connections of one life of a coordinator.
pub(super) struct Network {
    sim: Shared,
    from: String,
    life: u64,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the simulated network")
    }
}

impl Network {
    pub(super) fn new(sim: Shared, from: &str, life: u64) -> Network {
        Network { sim, from: from.to_owned(), life }
    }
}

#[tonic::async_trait]
impl Connect for Network {
    async fn connect(&self, host: &str, _address: &str) -> Result<Link, String> {
        let (sim, from) = (&self.sim, &self.from);
        if !trip(sim, from, host).await {
            tokio::time::sleep(CONNECT).await;
            return Err("timed out".to_owned());
        }
        if sim.hosts[host].life().is_none() {
            return Err("connection refused".to_owned());
        }
        let wire = Wire { sim: sim.clone(), from: from.clone(), to: host.to_owned(), life: self.life };
        Ok(Link::new(wire))
    }
}

/// One connection.
#[derive(Clone)]
struct Wire {
    sim: Shared,
    from: String,
    to: String,
    life: u64,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

impl Service<Request<Body>> for Wire {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let (send, receive) = oneshot::channel();
        let wire = self.clone();
        tokio::spawn(async move {
            // Who asked may be gone by then.
            let _ = send.send(wire.carry(request).await);
        });
        Box::pin(async move { receive.await.unwrap_or_else(|_| Err(broken("the connection is gone"))) })
    }
}

impl Wire {
    async fn carry(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let Wire { sim, from, to, life } = &self;
        let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if !trip(sim, from, to).await {
            tokio::time::sleep(SILENCE).await;
            return Err(broken("no answer to keepalive"));
        }
        let Some(agent) = AgentModel::at(sim, to) else { return Err(broken("connection refused")) };
        if call != "Observe" && call != "RouteReads" && call != "Hello" {
            sim.note(format_args!("{from} (life {life}) -> {to}: {call}"));
        }
        let path = request.uri().path().to_owned();
        let serving = agent.clone();
        // The process serves it, and takes it with it when it dies.
        let served = agent.spawn(async move {
            if path.starts_with("/pgleap.traffic.") {
                TrafficServer::new(serving).call(request).await
            } else {
                AgentServer::new(serving).call(request).await
            }
        });
        let Some(Ok(response)) = served.await else { return Err(broken("connection reset by peer")) };
        if !trip(sim, to, from).await {
            tokio::time::sleep(SILENCE).await;
            return Err(broken("no answer to keepalive"));
        }
        Ok(if call == "RunStep" { self.cuttable(response, agent) } else { response })
    }

    /// The stream of a run ends when the way is cut or the agent dies.
    fn cuttable(self, response: Response<Body>, agent: AgentModel) -> Response<Body> {
        let (parts, body) = response.into_parts();
        let frames = stream::unfold(Some((self, body, agent)), |open| async move {
            let (wire, mut body, agent) = open?;
            loop {
                let frame = tokio::select! {
                    biased;
                    () = agent.died() => return Some((Err(reset()), None)),
                    frame = body.frame() => frame,
                    () = tokio::time::sleep(LOOK) => {
                        if wire.is_cut() {
                            return Some((Err(reset()), None));
                        }
                        continue;
                    }
                };
                if wire.is_cut() || wire.sim.fault(wire.sim.temper.loss) {
                    wire.sim.trace.count("streams cut");
                    tokio::time::sleep(SILENCE).await;
                    return Some((Err(reset()), None));
                }
                wire.sim.awake(&wire.from).await;
                return match frame? {
                    Ok(frame) => Some((Ok(frame), Some((wire, body, agent)))),
                    Err(status) => Some((Err(status), None)),
                };
            }
        });
        Response::from_parts(parts, Body::new(StreamBody::new(Box::pin(frames))))
    }

    fn is_cut(&self) -> bool {
        let network = &self.sim.network;
        !network.passes(&self.to, &self.from) || !network.passes(&self.from, &self.to)
    }
}

/// What the transport says of a connection that broke.
fn broken(why: &str) -> Status {
    Status::unavailable(why.to_owned())
}

fn reset() -> Status {
    broken("connection reset by peer")
}
