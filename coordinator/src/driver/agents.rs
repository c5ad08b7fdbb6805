//! Connections to agents: mutual TLS, kept open, and one clear sentence when an agent does not answer.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgleap_proto::MAX_MESSAGE_BYTES;
use pgleap_proto::agent::agent_client::AgentClient;
use pgleap_proto::caller::{Caller, Meant};
use pgleap_proto::tls::{self, Role, TlsIdentity};
use pgleap_proto::traffic::traffic_client::TrafficClient;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::interceptor::InterceptedService;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

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

/// A connection to an agent: HTTP/2 over mutual TLS, or in simulations whatever a [`Connect`] makes up.
pub type Link = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// Calls to one agent, each saying who asks.
pub type AgentCalls = AgentClient<InterceptedService<Link, Caller>>;
/// The calls that move traffic.
pub type TrafficCalls = TrafficClient<InterceptedService<Link, Caller>>;

/// Makes connections to agents.
#[tonic::async_trait]
pub trait Connect: fmt::Debug + Send + Sync {
    /// Connects, or says why not.
    async fn connect(&self, host: &str, address: &str) -> Result<Link, String>;
}

/// The connections of one coordinator.
#[derive(Debug)]
pub struct Agents {
    identity: Option<TlsIdentity>,
    connect: Box<dyn Connect>,
    raft: Raft,
    /// Whose turn it is to greet, by host.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    links: Mutex<HashMap<(String, String), Link>>,
}

impl Agents {
    /// Connects as `tls`, for the group that this log belongs to.
    pub fn new(tls: TlsIdentity, raft: Raft) -> Agents {
        Agents { identity: Some(tls.clone()), ..Agents::over(Network(tls), raft) }
    }

    /// Connects so.
    pub fn over(connect: impl Connect + 'static, raft: Raft) -> Agents {
        let connect = Box::new(connect);
        Agents { identity: None, connect, raft, turns: Mutex::default(), links: Mutex::default() }
    }

    /// Who this coordinator is; none in simulations.
    pub fn identity(&self) -> Option<&TlsIdentity> {
        self.identity.as_ref()
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
        let link = self.link(host, address).await?;
        let client = AgentClient::with_interceptor(link, self.caller(meant));
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// For the calls that move traffic, on the same connection. They are meant for the agent that is known now.
    ///
    /// # Errors
    /// When no connection can be made.
    pub async fn traffic(&self, host: &str, address: &str) -> Result<TrafficCalls, Unreachable> {
        let meant = self.raft.latest().state.agents.get(host).map(Meant::from);
        let link = self.link(host, address).await?;
        Ok(TrafficClient::with_interceptor(link, self.caller(meant))
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

    async fn link(&self, host: &str, address: &str) -> Result<Link, Unreachable> {
        let key = (host.to_owned(), address.to_owned());
        if let Some(link) = self.links().get(&key) {
            return Ok(link.clone());
        }
        let connected = self.connect.connect(host, address).await;
        let link = connected.map_err(|cause| Unreachable {
            host: host.to_owned(),
            address: address.to_owned(),
            cause,
        })?;
        self.links().insert(key, link.clone());
        Ok(link)
    }

    /// Drops a connection that failed, so that the next one is made anew and says why when it cannot be.
    pub fn forget(&self, host: &str, address: &str) {
        self.links().remove(&(host.to_owned(), address.to_owned()));
    }

    fn links(&self) -> MutexGuard<'_, HashMap<(String, String), Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The real thing.
#[derive(Debug)]
struct Network(TlsIdentity);

#[tonic::async_trait]
impl Connect for Network {
    async fn connect(&self, host: &str, address: &str) -> Result<Link, String> {
        let endpoint = tls::endpoint(address)
            .map_err(|e| explain(&e))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .keep_alive_while_idle(true);
        let connecting =
            tokio::time::timeout(2 * CONNECT, self.0.connect(&endpoint, Role::Agent, host)).await;
        let channel = connecting.map_err(|_| "timed out".to_owned())?.map_err(|e| explain(&e))?;
        Ok(Link::new(channel.map_err(|error| Status::from_error(error.into()))))
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
pub fn explain_status(status: &Status) -> String {
    match status.source() {
        Some(source) if status.message().is_empty() || status.message() == "transport error" => {
            explain(source)
        }
        _ if status.message().is_empty() => status.code().to_string(),
        _ => status.message().to_owned(),
    }
}
