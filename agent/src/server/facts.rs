//! Where `Inspect` and `Lag` are handed to the parts that read facts.

use pgleap_proto::agent::{InspectReply, InspectRequest, LagReply, LagRequest};
use tonic::Status;

use super::Host;

/// Facts about this host and the nodes on it.
pub(super) async fn inspect(host: &Host, request: InspectRequest) -> Result<InspectReply, Status> {
    Ok(crate::inspect::inspect(&host.config, &request).await)
}

/// Replication figures of one node.
pub(super) async fn lag(request: LagRequest) -> Result<LagReply, Status> {
    crate::lag::lag(&request).await.map_err(|error| Status::internal(error.message))
}
