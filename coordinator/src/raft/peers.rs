//! The transport to other members: one ordered stream to each, over mutual TLS, with a bounded queue before it.
//!
//! Raft's thread only puts messages into queues; a task for each member connects, carries them in order, and reports what
//! did not arrive. What waited for a broken stream is thrown away: Raft says it again, and newer.

use std::collections::HashMap;
use std::time::Duration;

use pgleap_proto::MAX_MESSAGE_BYTES;
use pgleap_proto::raft::raft_client::RaftClient;
use pgleap_proto::raft::{Ack, Group, Member, Packet, ack, packet};
use pgleap_proto::tls::{self, Role, TlsIdentity};
use raft::eraftpb::{Message, MessageType};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::deliver::REMOVED_KEY;
use super::transport::{Transport, Undelivered};
use super::{Reports, group, wire};
use crate::driver::{explain, explain_status};

/// Messages that may wait for one member; more are dropped.
const QUEUE: usize = 128;
/// Bytes of a snapshot in one packet.
const CHUNK_BYTES: usize = 1 << 20;
/// Longest wait for a connection and its welcome.
const CONNECT: Duration = Duration::from_secs(2);
/// A silent connection is given up within the sum of these.
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(200);

/// Streams to the other members.
#[derive(Debug)]
pub struct Peers {
    me: Me,
    runtime: Handle,
    reports: Option<Reports>,
    /// As it is now, for streams that begin later.
    group: watch::Sender<Group>,
    queues: HashMap<u64, Queue>,
}

/// Who this member is, for the others.
#[derive(Debug, Clone)]
struct Me {
    member: u64,
    address: String,
    identity: String,
    tls: TlsIdentity,
}

/// The way to one member; its end is the end of the stream.
#[derive(Debug)]
struct Queue {
    group: String,
    to: Member,
    messages: mpsc::Sender<Message>,
    task: AbortHandle,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peers {
    /// For this member, which others reach at `address`. To be made inside the runtime that shall carry the streams.
    pub fn new(member: u64, address: &str, tls: TlsIdentity) -> Peers {
        let me = Me { member, address: address.to_owned(), identity: String::new(), tls };
        let (group, _) = watch::channel(Group::default());
        Peers { me, runtime: Handle::current(), reports: None, group, queues: HashMap::new() }
    }
}

impl Transport for Peers {
    fn attach(&mut self, identity: &str, reports: Reports) {
        self.me.identity = identity.to_owned();
        self.reports = Some(reports);
    }

    fn members(&mut self, group: &Group) {
        self.group.send_replace(group.clone());
        let wanted: Vec<&Member> = group::others(group, self.me.member).collect();
        self.queues.retain(|_, queue| {
            queue.group == group.id
                && wanted.iter().any(|m| {
                    (m.id, &m.address, &m.identity) == (queue.to.id, &queue.to.address, &queue.to.identity)
                })
        });
        for to in wanted {
            let (Some(reports), false) = (&self.reports, self.queues.contains_key(&to.id)) else { continue };
            let (messages, queue) = mpsc::channel(QUEUE);
            let stream = Stream {
                me: self.me.clone(),
                group: self.group.subscribe(),
                to: to.clone(),
                reports: reports.clone(),
            };
            let task = self.runtime.spawn(stream.run(queue)).abort_handle();
            self.queues.insert(to.id, Queue { group: group.id.clone(), to: to.clone(), messages, task });
        }
    }

    fn send(&mut self, messages: Vec<Message>) -> Vec<Undelivered> {
        let mut lost = Vec::new();
        for message in messages {
            let undelivered = Undelivered { to: message.to, snapshot: is_snapshot(&message) };
            let sent =
                self.queues.get(&message.to).is_some_and(|queue| queue.messages.try_send(message).is_ok());
            if !sent {
                lost.push(undelivered);
            }
        }
        lost
    }
}

fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}

/// The stream to one member, made again whenever it breaks.
struct Stream {
    me: Me,
    group: watch::Receiver<Group>,
    /// As it was known when the messages were made: what is meant for one data directory goes to no other.
    to: Member,
    reports: Reports,
}

impl Stream {
    async fn run(self, mut queue: mpsc::Receiver<Message>) {
        // Without a message there is no need for a connection.
        while let Some(first) = queue.recv().await {
            let mut snapshots = 0;
            let why = match self.carry(first, &mut queue, &mut snapshots).await {
                Ok(()) => return,
                Err(why) => why,
            };
            tracing::debug!(
                member = self.to.id,
                address = self.to.address,
                why,
                "the stream to a member broke"
            );
            self.reports.unreachable(self.to.id, &why);
            while let Ok(message) = queue.try_recv() {
                snapshots += u32::from(is_snapshot(&message));
            }
            if snapshots > 0 {
                self.reports.snapshot_ended(self.to.id, false).await;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Ends well only when nobody will ever send again. `snapshots` counts those on the way.
    async fn carry(
        &self,
        first: Message,
        queue: &mut mpsc::Receiver<Message>,
        snapshots: &mut u32,
    ) -> Result<(), String> {
        *snapshots += u32::from(is_snapshot(&first));
        let connecting = timeout(CONNECT, self.connect()).await;
        let silent = || format!("{} does not answer within {} s", self.to.address, CONNECT.as_secs());
        let (packets, mut acks) = connecting.map_err(|_| silent())??;
        tracing::debug!(member = self.to.id, address = self.to.address, "a stream to a member");
        self.put(&packets, first).await?;
        loop {
            tokio::select! {
                message = queue.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    *snapshots += u32::from(is_snapshot(&message));
                    self.put(&packets, message).await?;
                }
                ack = acks.message() => match ack.map_err(|status| self.refused(&status))? {
                    Some(Ack { kind: Some(ack::Kind::SnapshotReceived(_)) }) => {
                        *snapshots = 0;
                        self.reports.snapshot_ended(self.to.id, true).await;
                    }
                    Some(_) => {}
                    None => return Err("it ended the stream; it may be restarting".to_owned()),
                }
            }
        }
    }

    async fn connect(&self) -> Result<(mpsc::Sender<Packet>, Streaming<Ack>), String> {
        let mut client = client(&self.to.address, &self.me.tls).await?;
        let Me { member, address, identity, .. } = &self.me;
        let hello = group::hello(&self.group.borrow(), *member, identity, address, &self.to);
        let (packets, outgoing) = mpsc::channel(4);
        let gone = || "it ended the stream".to_owned();
        let hello = Packet { kind: Some(packet::Kind::Hello(hello)) };
        packets.send(hello).await.map_err(|_| gone())?;
        let acks = client.deliver(ReceiverStream::new(outgoing)).await;
        let mut acks = acks.map_err(|status| self.refused(&status))?.into_inner();
        match acks.message().await.map_err(|status| self.refused(&status))? {
            Some(Ack { kind: Some(ack::Kind::Welcome(_)) }) => Ok((packets, acks)),
            _ => Err("it does not speak as a member".to_owned()),
        }
    }

    async fn put(&self, packets: &mpsc::Sender<Packet>, message: Message) -> Result<(), String> {
        let gone = |_| "it ended the stream".to_owned();
        let (message, snapshot) = wire::encode(message).map_err(|error| error.to_string())?;
        wire::follows(&message).map_err(|error| error.to_string())?;
        let packet = |kind| Packet { kind: Some(kind) };
        packets.send(packet(packet::Kind::Message(message))).await.map_err(gone)?;
        for chunk in snapshot.chunks(CHUNK_BYTES) {
            packets.send(packet(packet::Kind::Chunk(chunk.to_vec()))).await.map_err(gone)?;
        }
        Ok(())
    }

    fn refused(&self, status: &Status) -> String {
        if status.metadata().contains_key(REMOVED_KEY) {
            self.reports.removed();
        }
        explain_status(status)
    }
}

/// A connection to the member at this address.
pub(super) async fn client(address: &str, identity: &TlsIdentity) -> Result<RaftClient<Channel>, String> {
    let endpoint = tls::endpoint(address)
        .map_err(|error| format!("\"{address}\" is no host:port: {}", explain(&error)))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER);
    let channel = identity.connect(&endpoint, Role::Coordinator, "").await;
    let channel = channel.map_err(|error| format!("{address}: {}", explain(&error)))?;
    Ok(RaftClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}
