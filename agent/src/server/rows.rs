//! Where `Tables`, `HashRows` and `SlotPositions` are handed to the parts that read PostgreSQL for validation.

use pgleap_proto::agent::{
    HashRowsReply, HashRowsRequest, SlotPositionsReply, SlotPositionsRequest, TablesReply, TablesRequest,
};
use tonic::Status;

use crate::error::StepError;

/// The tables of one database that validation compares.
pub(super) async fn tables(request: TablesRequest) -> Result<TablesReply, Status> {
    crate::validate::tables::tables(request).await.map_err(refuse)
}

/// WAL position of a node here, and of its logical slots.
pub(super) async fn slot_positions(request: SlotPositionsRequest) -> Result<SlotPositionsReply, Status> {
    crate::positions::slot_positions(request).await.map_err(refuse)
}

/// Hashes of a part of one table.
pub(super) async fn hash_rows(request: HashRowsRequest) -> Result<HashRowsReply, Status> {
    crate::validate::hash::hash_rows(request).await.map_err(refuse)
}

/// The message says what PostgreSQL said; the asker decides whether asking again may help.
fn refuse(error: StepError) -> Status {
    Status::failed_precondition(error.message)
}
