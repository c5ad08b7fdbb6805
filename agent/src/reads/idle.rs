//! The leader that follows advances its own idle slots, so that WAL is not kept for them and what the other side would be sent
//! begins late.

use pgleap_proto::node::Node;
use pgleap_proto::traffic::Cluster;

use super::lag::Side;
use crate::error::Result;

/// STAND-IN for `crate::side::advance_idle`, which is to take the lock that opening a leader takes: until then idle slots stay
/// where they are, which is safe.
pub(super) async fn advance_idle(_node: &Node, _side: Side, _cluster: &Cluster) -> Result<()> {
    Ok(())
}
