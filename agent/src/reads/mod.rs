//! Reads: lag of the nodes of this host over both hops, the health endpoints made from it, and the balancers' weights.
//!
//! ```text
//! step keep_traffic ──▶ traffic/OP/NODE.json ──▶ keeper ─┬▶ leaders: which side takes writes
//!                                                        ├▶ sampler ▶ lag (pure) ▶ sample ▶ judge (pure) ▶ http, agent_check, Observe
//!                                                        ├▶ heartbeat, or idle slots, of a leader
//!                                                        ├▶ guard: a fence for a standby that was promoted
//!                                                        └▶ stale_slots: those that a former leader keeps
//! step stage_balancer, RouteReads ──▶ balancers/OP/NAME.json ──▶ keeper ▶ balancer ▶ weights (pure) ▶ HAProxy
//! ```
//!
//! The agent never decides who takes writes: the fence in the databases, set by the coordinator's calls, says so.

mod agent_check;
pub mod balancer;
mod bounds;
mod clock;
pub(crate) mod guard;
mod haproxy;
pub mod heartbeat;
mod http;
mod judge;
mod keeper;
mod lag;
mod leaders;
pub mod record;
mod sampler;
pub(crate) mod stale_slots;
mod weights;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use pgleap_proto::node::Node;
use pgleap_proto::step::KeepTraffic;
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::{
    self as wire, Fork, ObserveReply, ObserveRequest, RouteReadsReply, RouteReadsRequest,
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::AgentConfig;
use crate::error::{Result, StepError};
use crate::pg::history;
use crate::server::StartError;
use crate::tickets::Admitted;
pub use lag::Side;

use keeper::Keeper;
use leaders::{Leaders, STALE_US};
use sampler::{Sample, Sampler};

/// What this agent keeps going between switchovers.
#[derive(Debug)]
pub struct Reads {
    config: Arc<AgentConfig>,
    keeper: Arc<Keeper>,
    _ended: DropGuard,
}

impl Reads {
    /// Goes on with what the state directory says, and opens the health endpoints; all of it ends when this is dropped.
    ///
    /// # Errors
    /// When a port of the endpoints cannot be had.
    pub fn new(config: Arc<AgentConfig>, tls: TlsIdentity) -> Result<Arc<Reads>, StartError> {
        let ended = CancellationToken::new();
        let keeper = Keeper::new(config.clone(), tls);
        if let Some(address) = config.health_listen {
            tokio::spawn(http::serve(listen(address)?, keeper.clone(), ended.clone()));
        }
        if let Some(address) = config.agent_check_listen {
            tokio::spawn(agent_check::serve(listen(address)?, keeper.clone(), ended.clone()));
        }
        tokio::spawn(keeper.clone().run(ended.clone()));
        Ok(Arc::new(Reads { config, keeper, _ended: ended.drop_guard() }))
    }

    pub(crate) async fn route(
        &self,
        ticket: Admitted,
        request: RouteReadsRequest,
    ) -> Result<RouteReadsReply> {
        let balancer = crate::step::given(&request.balancer, "balancer")?;
        balancer::route(&self.config.state_dir, &ticket.operation, balancer, request.percent).await
    }

    pub(crate) async fn observe(&self, request: ObserveRequest) -> Result<ObserveReply> {
        let node = crate::step::given(&request.node, "node")?;
        let kept = self.keeper.node(&request.operation, &node.name);
        // A closer look, by a cluster's names, is always a new one.
        let newest = kept.as_ref().filter(|_| request.cluster.is_none()).and_then(|kept| kept.sample());
        let why = match (&kept, &newest) {
            (None, _) => "its traffic is not kept by this agent",
            (Some(_), None) => "its lag is not known yet",
            (Some(_), Some(_)) => "its lag was not looked at for a while",
        };
        let fresh = newest.filter(|sample| clock::now_us() - sample.at_us <= STALE_US);
        let sample = match fresh {
            Some(sample) => sample,
            None => {
                // What the server is can be said at once; its lag only by the keeper, who knows both sides.
                let side = request.cluster.as_ref().map_or(Ok(Side::Old), |_| side(request.side))?;
                let record = KeepTraffic {
                    node: Some(node.clone()),
                    cluster: request.cluster.clone(),
                    ..Default::default()
                };
                let look = Sampler::new(record, side).look(&Leaders::nobody()).await;
                Sample {
                    lag: look.server.as_ref().map_or_else(|e| Err(e.clone()), |_| Err(why.into())),
                    ..look
                }
            }
        };
        let mut reply = observed(sample);
        if request.cluster.is_some() {
            reply.forks = forks(node, reply.timeline);
        }
        Ok(reply)
    }
}

fn observed(sample: Sample) -> ObserveReply {
    let (lag_bytes, lag_ms, reason) = match sample.lag {
        Ok(lag) => (signed(lag.bytes), signed(lag.ms), String::new()),
        Err(why) => (-1, -1, why),
    };
    let mut reply = ObserveReply {
        fenced: sample.fenced.unwrap_or_default(),
        lag_bytes,
        lag_ms,
        reason,
        writer: i32::from(match sample.writer {
            Some(Side::Old) => wire::Side::Old,
            Some(Side::New) => wire::Side::New,
            None => wire::Side::Unspecified,
        }),
        ..Default::default()
    };
    if let Ok(server) = sample.server {
        reply.running = true;
        reply.open = sample.fenced == Some(false);
        reply.scheduler = sample.scheduler.map(|found| found.to_string()).unwrap_or_default();
        reply.in_recovery = server.in_recovery;
        reply.timeline = server.timeline;
        reply.system_identifier = server.system_identifier;
        reply.following = server.following;
        (reply.origins, reply.confirmed) = (server.origins, server.confirmed);
        (reply.slots, reply.receiving) = (server.slots, server.receiving);
        reply.lsn = server.lsn.0;
    }
    reply
}

/// How a timeline came about, the oldest first; empty when that is not known (a standby need not have the file). Never kept: a server
/// that was made anew may be on another timeline of the same number.
fn forks(node: &Node, timeline: u32) -> Vec<Fork> {
    if timeline <= 1 {
        return Vec::new();
    }
    let known = history::all(Path::new(&node.data_dir), timeline).unwrap_or_default();
    known.into_iter().map(|fork| Fork { parent: fork.parent, lsn: fork.switch.0 }).collect()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let no_port = |source| StartError::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(no_port)?;
    listener.set_nonblocking(true).map_err(no_port)?;
    TcpListener::from_std(listener).map_err(no_port)
}

/// A side as it crosses the wire.
///
/// # Errors
/// When none is given.
pub fn side(value: i32) -> Result<Side> {
    match wire::Side::try_from(value) {
        Ok(wire::Side::Old) => Ok(Side::Old),
        Ok(wire::Side::New) => Ok(Side::New),
        _ => Err(StepError::new(
            "the request names no side: coordinator and agent are of different versions; install the same on both",
        )),
    }
}
