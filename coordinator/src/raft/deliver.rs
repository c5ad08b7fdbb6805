//! What other members ask of this one: to take their streams of Raft messages, and to let new members in.
//!
//! Only coordinators are heard, and of those only members of this group with the data directory that the group knows.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgleap_proto::raft::raft_server;
use pgleap_proto::raft::{
    Ack, Hello, JoinReply, JoinRequest, Packet, SnapshotReceived, Welcome, ack, packet,
};
use pgleap_proto::raft::{Message as WireMessage, Packet as WirePacket};
use pgleap_proto::tls::Role;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::group::{self, Stranger};
use super::{MembershipError, ProposeError, Raft, Wish, wire};
use crate::audit::Auditor;
use crate::state::audit::Note;

/// Key of the metadata with which a member is told that it was removed.
pub(super) const REMOVED_KEY: &str = "pgleap-removed";
/// Longest wait for the first packet of a stream.
const HELLO: Duration = Duration::from_secs(5);
/// Longest address or identity that is taken.
const NAME_BYTES: usize = 300;

/// The service of one member.
#[derive(Debug, Clone)]
pub struct RaftService {
    raft: Raft,
    audit: Auditor,
    /// The newest stream of each member, by its number; an older one is ended, so that messages keep their order.
    streams: Arc<Mutex<HashMap<u64, CancellationToken>>>,
    stop: CancellationToken,
}

impl RaftService {
    /// The service over this member; its streams end with `stop`.
    pub fn new(raft: Raft, audit: Auditor, stop: CancellationToken) -> RaftService {
        RaftService { raft, audit, streams: Arc::default(), stop }
    }

    fn admit(&self, hello: &Hello) -> Result<Option<Stranger>, Status> {
        let view = self.raft.view.borrow();
        group::admit(&view.group, view.member, self.raft.identity(), hello).map_err(|error| {
            let removed = matches!(error, MembershipError::Removed(_));
            let mut status = Status::failed_precondition(error.to_string());
            if removed {
                status.metadata_mut().insert(REMOVED_KEY, tonic::metadata::MetadataValue::from_static("1"));
            }
            status
        })
    }

    /// Ends the member's earlier stream and gives the end of this one.
    fn replace(&self, from: u64) -> CancellationToken {
        let token = self.stop.child_token();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|_, token| !token.is_cancelled());
        if let Some(older) = streams.insert(from, token.clone()) {
            older.cancel();
        }
        token
    }

    /// The leader notes where a member is reached now.
    fn note_address(&self, hello: &Hello) {
        let moved = {
            let view = self.raft.view.borrow();
            let known = group::find(&view.group, hello.from);
            view.leading.is_some()
                && !hello.address.is_empty()
                && known.is_some_and(|known| known.address != hello.address)
        };
        if moved {
            let (raft, hello) = (self.raft.clone(), hello.clone());
            tokio::spawn(async move {
                let wish = Wish::Moved { member: hello.from, address: hello.address };
                if let Err(error) = raft.change("the member itself", "", wish).await {
                    tracing::warn!(member = hello.from, %error, "its new address could not be noted");
                }
            });
        }
    }
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    type DeliverStream = Pin<Box<dyn futures::Stream<Item = Result<Ack, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let note = Note::new("members speak", "", "members", "");
        self.audit.require(&request, &[Role::Coordinator], "speak as a member of the group", note).await?;
        let mut packets = request.into_inner();
        let first = tokio::time::timeout(HELLO, packets.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(WirePacket { kind: Some(packet::Kind::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("a stream begins with a hello"));
        };
        if hello.address.len() > NAME_BYTES {
            return Err(Status::invalid_argument("the address is too long"));
        }
        if let Some(stranger) = self.admit(&hello)? {
            self.raft.meet(stranger)?;
        }
        self.note_address(&hello);
        let end = self.replace(hello.from);
        let (acks, answers) = mpsc::channel(8);
        let reader = Reader { service: self.clone(), hello, acks, snapshot: None };
        tokio::spawn(reader.run(packets, end));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let note = Note::new("members join", "", &format!("member {}", request.get_ref().member), "");
        let by =
            self.audit.require(&request, &[Role::Coordinator], "join the group", note).await?.to_string();
        let JoinRequest { member, identity, address } = request.into_inner();
        if identity.is_empty() || [&identity, &address].iter().any(|text| text.len() > NAME_BYTES) {
            return Err(Status::invalid_argument("identity and address must be given, and short"));
        }
        self.raft.change(&by, "", Wish::Join { member, identity, address }).await?;
        Ok(Response::new(JoinReply { group: Some(self.raft.latest().group.as_ref().clone()) }))
    }
}

/// Reads one stream to its end.
struct Reader {
    service: RaftService,
    hello: Hello,
    acks: mpsc::Sender<Result<Ack, Status>>,
    /// A message whose snapshot is still coming.
    snapshot: Option<(WireMessage, u64, Vec<u8>)>,
}

impl Reader {
    async fn run(mut self, packets: Streaming<Packet>, end: CancellationToken) {
        self.acknowledge(ack::Kind::Welcome(Welcome {})).await;
        let read = tokio::select! {
            () = end.cancelled() => Err(Status::aborted("the stream was replaced by a newer one, or the member stops")),
            read = self.read(packets) => read,
        };
        end.cancel();
        if let Err(status) = read {
            tracing::debug!(member = self.hello.from, why = status.message(), "a member's stream ends");
            let _ = self.acks.send(Err(status)).await;
        }
    }

    async fn read(&mut self, mut packets: Streaming<Packet>) -> Result<(), Status> {
        while let Some(packet) = packets.message().await? {
            match packet.kind {
                Some(packet::Kind::Message(message)) => self.message(message)?,
                Some(packet::Kind::Chunk(bytes)) => {
                    if self.chunk(&bytes)? {
                        self.acknowledge(ack::Kind::SnapshotReceived(SnapshotReceived {})).await;
                    }
                }
                Some(packet::Kind::Hello(_)) | None => return Err(wrong("a second hello, or nothing")),
            }
        }
        Ok(())
    }

    fn message(&mut self, message: WireMessage) -> Result<(), Status> {
        if self.snapshot.is_some() {
            return Err(wrong("a message in the middle of a snapshot"));
        }
        if (message.from, message.to) != (self.hello.from, self.hello.to) {
            return Err(wrong("a message from or for another member"));
        }
        // The group may have changed since the stream began.
        self.service.admit(&self.hello)?;
        match wire::follows(&message).map_err(wrong)? {
            0 => self.step(message, Vec::new()).or_else(|error| match error {
                // Raft repeats what is lost.
                ProposeError::Busy => Ok(()),
                other => Err(other.into()),
            }),
            size => {
                self.snapshot = Some((message, size, Vec::new()));
                Ok(())
            }
        }
    }

    /// True when the snapshot is whole and was handed over.
    fn chunk(&mut self, bytes: &[u8]) -> Result<bool, Status> {
        let Some((_, size, data)) = &mut self.snapshot else { return Err(wrong("bytes of no snapshot")) };
        data.extend_from_slice(bytes);
        match (data.len() as u64).cmp(size) {
            std::cmp::Ordering::Less => return Ok(false),
            std::cmp::Ordering::Greater => return Err(wrong("more bytes than the snapshot has")),
            std::cmp::Ordering::Equal => {}
        }
        if let Some((message, _, data)) = self.snapshot.take() {
            self.step(message, data)?;
        }
        Ok(true)
    }

    fn step(&self, message: WireMessage, snapshot: Vec<u8>) -> Result<(), ProposeError> {
        match wire::decode(message, snapshot) {
            Ok(message) => self.service.raft.step(message),
            Err(error) => Err(ProposeError::Unwritable(error.to_string())),
        }
    }

    async fn acknowledge(&self, kind: ack::Kind) {
        // A sender that is gone needs no answer.
        let _ = self.acks.send(Ok(Ack { kind: Some(kind) })).await;
    }
}

fn wrong(what: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("the stream holds {what}"))
}
