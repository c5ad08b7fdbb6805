//! Poolers of this host: paused, repointed and resumed for a switchover.

use std::sync::Arc;

use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::{
    ArmPoolerReply, ArmPoolerRequest, PauseReply, PauseRequest, ResumeReply, ResumeRequest,
};

use crate::config::AgentConfig;
use crate::error::{Result, StepError};
use crate::tickets::Admitted;

/// What this agent holds of its poolers.
#[derive(Debug)]
pub struct Poolers {}

impl Poolers {
    /// None armed yet.
    pub fn new(_config: Arc<AgentConfig>, _tls: TlsIdentity) -> Arc<Poolers> {
        Arc::new(Poolers {})
    }

    pub(crate) async fn arm(&self, _ticket: Admitted, _request: ArmPoolerRequest) -> Result<ArmPoolerReply> {
        Err(StepError::new("poolers are not built yet"))
    }

    pub(crate) async fn pause(&self, _ticket: Admitted, _request: PauseRequest) -> Result<PauseReply> {
        Err(StepError::new("poolers are not built yet"))
    }

    pub(crate) async fn resume(&self, _ticket: Admitted, _request: ResumeRequest) -> Result<ResumeReply> {
        Err(StepError::new("poolers are not built yet"))
    }
}
