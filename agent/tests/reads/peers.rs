//! Agents of the leaders' hosts that say what the test tells them to.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::stream::Empty;
use pgleap_proto::agent::peer_server::{Peer, PeerServer};
use pgleap_proto::agent::{
    HashRowsReply, HashRowsRequest, LeadershipReply, LeadershipRequest, ManifestEntry, ManifestRequest,
    RsyncFrame, SlotPositionsReply, SlotPositionsRequest, TablesReply, TablesRequest,
};
use pgleap_proto::node::Node;
use pgleap_proto::tls::{Role, TlsIdentity};
use pgleap_proto::traffic::Leader;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

/// An agent that answers nothing but who takes writes.
pub struct FakeLeader {
    pub leader: Leader,
    reply: Arc<Mutex<LeadershipReply>>,
    served: JoinHandle<()>,
}

impl FakeLeader {
    pub async fn start(host: &str, identity: &TlsIdentity) -> FakeLeader {
        assert_eq!(identity.peer().role, Role::Agent);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reply =
            Arc::new(Mutex::new(LeadershipReply { running: true, fenced: true, ..Default::default() }));
        let served = tonic::transport::Server::builder()
            .add_service(PeerServer::new(Scripted(reply.clone())))
            .serve_with_incoming(identity.incoming(listener));
        let served = tokio::spawn(async { served.await.unwrap() });
        let node = Node { name: format!("{host}-node"), host: host.into(), ..Default::default() };
        FakeLeader { leader: Leader { node: Some(node), agent: address.to_string() }, reply, served }
    }

    pub fn say(&self, change: impl FnOnce(&mut LeadershipReply)) {
        change(&mut self.reply.lock().unwrap());
    }
}

impl Drop for FakeLeader {
    fn drop(&mut self) {
        self.served.abort();
    }
}

struct Scripted(Arc<Mutex<LeadershipReply>>);

#[tonic::async_trait]
impl Peer for Scripted {
    type RsyncStream = Empty<Result<RsyncFrame, Status>>;
    type ManifestStream = Empty<Result<ManifestEntry, Status>>;

    async fn rsync(&self, _: Request<Streaming<RsyncFrame>>) -> Result<Response<Self::RsyncStream>, Status> {
        Err(Status::unimplemented("a fake"))
    }
    async fn manifest(&self, _: Request<ManifestRequest>) -> Result<Response<Self::ManifestStream>, Status> {
        Err(Status::unimplemented("a fake"))
    }
    async fn slot_positions(
        &self,
        _: Request<SlotPositionsRequest>,
    ) -> Result<Response<SlotPositionsReply>, Status> {
        Err(Status::unimplemented("a fake"))
    }
    async fn tables(&self, _: Request<TablesRequest>) -> Result<Response<TablesReply>, Status> {
        Err(Status::unimplemented("a fake"))
    }
    async fn hash_rows(&self, _: Request<HashRowsRequest>) -> Result<Response<HashRowsReply>, Status> {
        Err(Status::unimplemented("a fake"))
    }
    async fn leadership(&self, _: Request<LeadershipRequest>) -> Result<Response<LeadershipReply>, Status> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mut reply = *self.0.lock().unwrap();
        // The test scripts how far the clock is off.
        reply.now_us += i64::try_from(now.as_micros()).unwrap();
        Ok(Response::new(reply))
    }
}
