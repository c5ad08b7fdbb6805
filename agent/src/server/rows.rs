//! Where `HashRows` and `SlotPositions` are handed to the parts that read PostgreSQL for validation.

use pgleap_proto::agent::{HashRowsReply, HashRowsRequest, SlotPositionsReply, SlotPositionsRequest};
use tonic::Status;

use super::Host;

/// WAL position of a node here, and of its logical slots.
pub(super) async fn slot_positions(
    host: &Host,
    request: SlotPositionsRequest,
) -> Result<SlotPositionsReply, Status> {
    let _ = (&host.config, request);
    Err(Status::unimplemented("this agent cannot read slot positions yet"))
}

/// Hashes of a part of one table.
pub(super) async fn hash_rows(host: &Host, request: HashRowsRequest) -> Result<HashRowsReply, Status> {
    let _ = (&host.config, request);
    Err(Status::unimplemented("this agent cannot hash rows yet"))
}
