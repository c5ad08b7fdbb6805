//! Reads: lag of the nodes of this host over both hops, the health endpoints made from it, and the balancers' weights.

use std::sync::Arc;

use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::{ObserveReply, ObserveRequest, RouteReadsReply, RouteReadsRequest};

use crate::config::AgentConfig;
use crate::error::{Result, StepError};
use crate::tickets::Admitted;

/// What this agent keeps going between switchovers.
#[derive(Debug)]
pub struct Reads {}

impl Reads {
    /// Goes on with what the state directory says.
    pub fn new(_config: Arc<AgentConfig>, _tls: TlsIdentity) -> Arc<Reads> {
        Arc::new(Reads {})
    }

    pub(crate) async fn route(&self, _ticket: Admitted, _r: RouteReadsRequest) -> Result<RouteReadsReply> {
        Err(StepError::new("reads are not built yet"))
    }

    pub(crate) async fn observe(&self, _request: ObserveRequest) -> Result<ObserveReply> {
        Err(StepError::new("reads are not built yet"))
    }
}
