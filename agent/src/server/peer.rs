//! The service for other agents. Reads only.

use std::sync::Arc;

use pgleap_proto::agent::peer_server::Peer as PeerMethods;
use pgleap_proto::agent::{
    HashRowsReply, HashRowsRequest, LeadershipReply, LeadershipRequest, ManifestEntry, ManifestRequest,
    RsyncFrame, SlotPositionsReply, SlotPositionsRequest, TablesReply, TablesRequest,
};
use pgleap_proto::tls::{Peer, Role};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Host, files, rows};

pub(super) struct PeerService {
    pub(super) host: Arc<Host>,
}

/// Only agents; which, because files are offered to named hosts.
fn agent<T>(request: &Request<T>, action: &str) -> Result<Peer, Status> {
    Peer::of(request)?.require(&[Role::Agent], action)
}

#[tonic::async_trait]
impl PeerMethods for PeerService {
    type RsyncStream = Answers<RsyncFrame>;
    type ManifestStream = Answers<ManifestEntry>;

    async fn rsync(
        &self,
        request: Request<Streaming<RsyncFrame>>,
    ) -> Result<Response<Self::RsyncStream>, Status> {
        let peer = agent(&request, "read files")?;
        files::rsync(&self.host, &peer, request.into_inner()).await.map(Response::new)
    }

    async fn manifest(
        &self,
        request: Request<ManifestRequest>,
    ) -> Result<Response<Self::ManifestStream>, Status> {
        let peer = agent(&request, "list files")?;
        files::manifest(&self.host, &peer, request.into_inner()).await.map(Response::new)
    }

    async fn slot_positions(
        &self,
        request: Request<SlotPositionsRequest>,
    ) -> Result<Response<SlotPositionsReply>, Status> {
        agent(&request, "read slot positions")?;
        rows::slot_positions(request.into_inner()).await.map(Response::new)
    }

    async fn tables(&self, request: Request<TablesRequest>) -> Result<Response<TablesReply>, Status> {
        agent(&request, "list tables")?;
        rows::tables(request.into_inner()).await.map(Response::new)
    }

    async fn hash_rows(&self, request: Request<HashRowsRequest>) -> Result<Response<HashRowsReply>, Status> {
        agent(&request, "hash rows")?;
        rows::hash_rows(request.into_inner()).await.map(Response::new)
    }

    async fn leadership(
        &self,
        request: Request<LeadershipRequest>,
    ) -> Result<Response<LeadershipReply>, Status> {
        agent(&request, "ask who takes writes")?;
        let answer = crate::side::leadership(request.into_inner()).await;
        answer.map(Response::new).map_err(|error| Status::internal(error.message))
    }
}
