//! Connections to agents: mutual TLS, kept open, and one clear sentence when an agent does not answer.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgleap_proto::MAX_MESSAGE_BYTES;
use pgleap_proto::agent::agent_client::AgentClient;
use pgleap_proto::caller::{Caller, Meant};
use pgleap_proto::tls::{Role, TlsIdentity};
use pgleap_proto::traffic::traffic_client::TrafficClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::raft::Raft;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// How often a silent connection is probed, and how long the answer may take: a dead host is noticed within their sum.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);

/// An agent could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("agent of host {host} at {address} does not answer: {cause}")]
pub struct Unreachable {
    /// Host name.
    pub host: String,
    /// `host:port`
    pub address: String,
    /// What the network or TLS said.
    pub cause: String,
}

/// Calls to one agent, each saying who asks.
pub type AgentCalls = AgentClient<InterceptedService<Channel, Caller>>;
/// The calls that move traffic.
pub type TrafficCalls = TrafficClient<InterceptedService<Channel, Caller>>;

/// The connections of one coordinator.
#[derive(Debug)]
pub struct Agents {
    tls: TlsIdentity,
    raft: Raft,
    /// Whose turn it is to greet, by host.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    channels: Mutex<HashMap<(String, String), Channel>>,
}

impl Agents {
    /// Connects as `tls`, for the group that this log belongs to.
    pub fn new(tls: TlsIdentity, raft: Raft) -> Agents {
        Agents { tls, raft, turns: Mutex::default(), channels: Mutex::default() }
    }

    /// A client of the agent of `host`, proven by its certificate to be that host's: for greeting and reading.
    ///
    /// # Errors
    /// When no connection can be made.
    pub async fn client(&self, host: &str, address: &str) -> Result<AgentCalls, Unreachable> {
        self.calls(host, address, None).await
    }

    /// The same for calls that act: any other agent than the one meant refuses them.
    ///
    /// # Errors
    /// When no connection can be made.
    pub async fn client_meaning(
        &self,
        host: &str,
        address: &str,
        meant: &Meant,
    ) -> Result<AgentCalls, Unreachable> {
        self.calls(host, address, Some(meant.clone())).await
    }

    async fn calls(
        &self,
        host: &str,
        address: &str,
        meant: Option<Meant>,
    ) -> Result<AgentCalls, Unreachable> {
        let channel = self.channel(host, address).await?;
        let client = AgentClient::with_interceptor(channel, self.caller(meant));
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// For the calls that move traffic, on the same connection. They are meant for the agent that is known now.
    ///
    /// # Errors
    /// When no connection can be made.
    pub async fn traffic(&self, host: &str, address: &str) -> Result<TrafficCalls, Unreachable> {
        let meant = self.raft.latest().state.agents.get(host).map(Meant::from);
        let channel = self.channel(host, address).await?;
        Ok(TrafficClient::with_interceptor(channel, self.caller(meant))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn caller(&self, meant: Option<Meant>) -> Caller {
        Caller { group: self.raft.latest().group.id.clone(), meant }
    }

    /// Held while an agent is greeted and its answer brought into the log.
    pub(super) fn turn(&self, host: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(host.to_owned()).or_default().clone()
    }

    async fn channel(&self, host: &str, address: &str) -> Result<Channel, Unreachable> {
        match self.known(host, address) {
            Some(channel) => Ok(channel),
            None => self.connect(host, address).await.map_err(|cause| Unreachable {
                host: host.to_owned(),
                address: address.to_owned(),
                cause,
            }),
        }
    }

    /// Drops a connection that failed, so that the next one is made anew and says why when it cannot be.
    pub fn forget(&self, host: &str, address: &str) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.remove(&(host.to_owned(), address.to_owned()));
    }

    fn known(&self, host: &str, address: &str) -> Option<Channel> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.get(&(host.to_owned(), address.to_owned())).cloned()
    }

    async fn connect(&self, host: &str, address: &str) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(self.tls.client_config(Role::Agent, host)))
            .map_err(|e| explain(&e))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .keep_alive_while_idle(true);
        // The connect timeout covers TCP only.
        let connecting = tokio::time::timeout(2 * CONNECT, endpoint.connect()).await;
        let channel = connecting.map_err(|_| "timed out".to_owned())?.map_err(|e| explain(&e))?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.insert((host.to_owned(), address.to_owned()), channel.clone());
        Ok(channel)
    }
}

/// An error with its causes, each said once: tonic's own text is just "transport error".
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = if text == "transport error" { cause_text } else { format!("{text}: {cause_text}") };
        }
        source = cause.source();
    }
    text
}

/// A status with the causes behind it.
pub fn explain_status(status: &tonic::Status) -> String {
    match status.source() {
        Some(source) if status.message().is_empty() || status.message() == "transport error" => {
            explain(source)
        }
        _ if status.message().is_empty() => status.code().to_string(),
        _ => status.message().to_owned(),
    }
}
