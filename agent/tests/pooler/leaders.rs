//! The agents of both leaders, of which only one question is asked: who takes writes?

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use pgleap_proto::agent::peer_server::{Peer, PeerServer};
use pgleap_proto::agent::{
    HashRowsReply, HashRowsRequest, LeadershipReply, LeadershipRequest, ManifestEntry, ManifestRequest,
    RsyncFrame, SlotPositionsReply, SlotPositionsRequest, TablesReply, TablesRequest,
};
use pgleap_proto::tls::TlsIdentity;
use tonic::{Request, Response, Status, Streaming};

/// What a leader says. A node that is not listed cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Open,
    Fenced,
    Standby,
    Stopped,
}

#[derive(Debug, Clone, Default)]
pub struct Leaders {
    says: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<HashMap<String, u32>>>,
}

impl Leaders {
    /// Serves; returns the address.
    pub async fn serve(&self, tls: &TlsIdentity) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tls.incoming(listener);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(PeerServer::new(self.clone()))
                .serve_with_incoming(incoming),
        );
        address
    }

    pub fn say(&self, node: &str, says: Says) {
        self.says.lock().unwrap().insert(node.to_owned(), says);
    }

    /// How often a node was asked about.
    pub fn asked(&self, node: &str) -> u32 {
        self.asked.lock().unwrap().get(node).copied().unwrap_or(0)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Leaders {
    type RsyncStream = Answers<RsyncFrame>;
    type ManifestStream = Answers<ManifestEntry>;

    async fn rsync(&self, _: Request<Streaming<RsyncFrame>>) -> Result<Response<Self::RsyncStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn manifest(&self, _: Request<ManifestRequest>) -> Result<Response<Self::ManifestStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn slot_positions(
        &self,
        _: Request<SlotPositionsRequest>,
    ) -> Result<Response<SlotPositionsReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn tables(&self, _: Request<TablesRequest>) -> Result<Response<TablesReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hash_rows(&self, _: Request<HashRowsRequest>) -> Result<Response<HashRowsReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn leadership(
        &self,
        request: Request<LeadershipRequest>,
    ) -> Result<Response<LeadershipReply>, Status> {
        let node = request.into_inner().node.unwrap().name;
        *self.asked.lock().unwrap().entry(node.clone()).or_default() += 1;
        let says = self.says.lock().unwrap().get(&node).copied();
        let says = says.ok_or_else(|| Status::unavailable("nobody knows"))?;
        Ok(Response::new(LeadershipReply {
            running: says != Says::Stopped,
            in_recovery: says == Says::Standby,
            fenced: says == Says::Fenced,
            ..LeadershipReply::default()
        }))
    }
}
