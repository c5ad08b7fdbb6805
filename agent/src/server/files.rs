//! Where `Rsync` and `Manifest` are handed to [`crate::relink`]'s serving side.

use pgleap_proto::agent::{ManifestEntry, ManifestRequest, RsyncFrame};
use pgleap_proto::tls::Peer;
use tonic::{Status, Streaming};

use super::{Answers, Host};
use crate::relink;

/// Input and output of a read-only rsync sender confined to what was offered to this peer.
pub(super) async fn rsync(
    host: &Host,
    peer: &Peer,
    input: Streaming<RsyncFrame>,
) -> Result<Answers<RsyncFrame>, Status> {
    relink::serve_rsync(&host.config, peer, input).await
}

/// Every file of what was offered to this peer.
pub(super) async fn manifest(
    host: &Host,
    peer: &Peer,
    request: ManifestRequest,
) -> Result<Answers<ManifestEntry>, Status> {
    relink::serve_manifest(&host.config, peer, request).await
}
