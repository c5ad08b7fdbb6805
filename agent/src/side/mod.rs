//! The leaders of both sides in a switchover: fence, last LSN, sequences, and who follows whom.

use std::sync::Arc;

use pgleap_proto::agent::{LeadershipReply, LeadershipRequest};
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::{
    AbortReply, AbortRequest, ArmSourceReply, ArmSourceRequest, ArmTargetReply, ArmTargetRequest,
    BlockersReply, BlockersRequest, FenceReply, FenceRequest, FollowReply, FollowRequest, LeadReply,
    LeadRequest, SealReply, SealRequest, SettleReply, SettleRequest,
};

use crate::config::AgentConfig;
use crate::error::{Result, StepError};
use crate::tickets::Admitted;

/// What this agent holds of leaders on its host while a switchover is under way.
#[derive(Debug)]
pub struct Sides {}

impl Sides {
    /// Nothing armed yet.
    pub fn new(_config: Arc<AgentConfig>, _tls: TlsIdentity) -> Arc<Sides> {
        Arc::new(Sides {})
    }

    pub(crate) async fn arm_source(&self, _ticket: Admitted, _r: ArmSourceRequest) -> Result<ArmSourceReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn arm_target(&self, _ticket: Admitted, _r: ArmTargetRequest) -> Result<ArmTargetReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn fence(&self, _ticket: Admitted, _r: FenceRequest) -> Result<FenceReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn settle(&self, _ticket: Admitted, _r: SettleRequest) -> Result<SettleReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn seal(&self, _ticket: Admitted, _r: SealRequest) -> Result<SealReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn lead(&self, _ticket: Admitted, _r: LeadRequest) -> Result<LeadReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn follow(&self, _ticket: Admitted, _r: FollowRequest) -> Result<FollowReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn abort(&self, _ticket: Admitted, _r: AbortRequest) -> Result<AbortReply> {
        Err(StepError::new("sides are not built yet"))
    }

    pub(crate) async fn blockers(&self, _ticket: Admitted, _r: BlockersRequest) -> Result<BlockersReply> {
        Err(StepError::new("sides are not built yet"))
    }
}

/// Whether a leader of this host takes writes. Reads only.
pub(crate) async fn leadership(_request: LeadershipRequest) -> Result<LeadershipReply> {
    Err(StepError::new("sides are not built yet"))
}
