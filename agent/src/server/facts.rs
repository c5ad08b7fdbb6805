//! Where `Inspect` and `Lag` are handed to the parts that read facts.

use pgleap_proto::agent::{InspectReply, InspectRequest, LagReply, LagRequest};
use tonic::Status;

use super::Host;

/// Facts about this host and the nodes on it.
pub(super) async fn inspect(host: &Host, request: InspectRequest) -> Result<InspectReply, Status> {
    let _ = (&host.config, request);
    Err(Status::unimplemented("this agent cannot inspect yet"))
}

/// Replication figures of one node.
pub(super) async fn lag(host: &Host, request: LagRequest) -> Result<LagReply, Status> {
    let _ = (&host.config, request);
    Err(Status::unimplemented("this agent cannot read replication figures yet"))
}
