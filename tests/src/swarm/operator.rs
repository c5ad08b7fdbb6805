//! The operator as a program: many requests at once over one connection to each coordinator, each sent again, under the same
//! request id, until the leader has answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pgleap_proto::MAX_MESSAGE_BYTES;
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::fleet::{OperationEvent, OperationStatus, StatusReply, StatusRequest};
use pgleap_proto::raft::members_client::MembersClient;
use pgleap_proto::tls::{self, Role, TlsIdentity};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Longest wait for one member to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Between two tries of a request.
const AGAIN: Duration = Duration::from_millis(5);
/// How long a request looks for a leader.
const PATIENCE: Duration = Duration::from_secs(60);
/// Metadata in which another member names the leader.
const LEADER_KEY: &str = "pgleap-leader";
/// A member that is silent for the sum of these is given up.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Connections to the members of one group. A status of a whole fleet is larger than other messages.
#[derive(Debug)]
pub struct Operator {
    addresses: Vec<String>,
    channels: Vec<Channel>,
    /// Index of the member that was right last.
    current: AtomicUsize,
}

impl Operator {
    /// To members at these addresses; connects when something is asked.
    ///
    /// # Errors
    /// When an address or the identity cannot be used.
    pub fn new(identity: &TlsIdentity, addresses: &[String]) -> Result<Operator> {
        let channel = |address: &String| -> Result<Channel> {
            let endpoint = tls::endpoint(address)?
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE);
            Ok(identity.connect_lazy(&endpoint, Role::Coordinator, ""))
        };
        let channels = addresses.iter().map(channel).collect::<Result<_>>()?;
        Ok(Operator { addresses: addresses.to_vec(), channels, current: AtomicUsize::new(0) })
    }

    /// A client of one member, by its index.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn at(&self, index: usize) -> Result<FleetClient<Channel>> {
        let channel = self.channels.get(index).context("no such member")?.clone();
        Ok(FleetClient::new(channel).max_decoding_message_size(4 * MAX_MESSAGE_BYTES))
    }

    /// A client for questions about the group itself.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn members_at(&self, index: usize) -> Result<MembersClient<Channel>> {
        Ok(MembersClient::new(self.channels.get(index).context("no such member")?.clone()))
    }

    /// Asks the leader until there is an answer.
    ///
    /// # Errors
    /// When it refuses, or none leads for a minute.
    pub async fn ask<T, F, Fut>(&self, what: &str, ask: F) -> Result<T>
    where
        F: Fn(FleetClient<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let status = match ask(self.at(index)?).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => status,
            };
            if !worth_repeating(&status) || Instant::now() > deadline {
                bail!("{what}: {:?}: {}", status.code(), status.message());
            }
            let named = status.metadata().get(LEADER_KEY).and_then(|value| value.to_str().ok());
            let named = named.and_then(|named| self.addresses.iter().position(|address| address == named));
            let next = named.unwrap_or((index + 1) % self.channels.len().max(1));
            // Another request may have found the leader meanwhile.
            let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The status of a cluster or an operation, or of all.
    ///
    /// # Errors
    /// As [`Operator::ask`].
    pub async fn status(&self, name: &str) -> Result<StatusReply> {
        self.ask("status", |mut client| {
            let request = StatusRequest { name: name.to_owned(), ..StatusRequest::default() };
            async move { client.status(request).await }
        })
        .await
    }

    /// The status of one cluster's operation.
    ///
    /// # Errors
    /// As [`Operator::ask`], or when it has none.
    pub async fn operation(&self, cluster: &str) -> Result<OperationStatus> {
        let reply = self.status(cluster).await?;
        reply.operations.into_iter().next().with_context(|| format!("cluster {cluster} has no operation"))
    }

    /// Everything that happened so far, in all operations.
    ///
    /// # Errors
    /// As [`Operator::ask`], or when the stream breaks.
    pub async fn events(&self) -> Result<Vec<OperationEvent>> {
        let mut stream = self
            .ask("events", |mut client| async move {
                client.events(pgleap_proto::fleet::EventsRequest::default()).await
            })
            .await?;
        let mut events = Vec::new();
        while let Some(event) = stream.message().await? {
            events.push(event);
        }
        Ok(events)
    }
}

/// Whether the same request may find another answer: it met a member that does not lead, or one that died.
fn worth_repeating(status: &Status) -> bool {
    let broken = [Code::Unavailable, Code::Aborted, Code::Cancelled, Code::Unknown, Code::DeadlineExceeded];
    broken.contains(&status.code())
}

/// A name for a request, so that repeating it is the same request.
pub fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
