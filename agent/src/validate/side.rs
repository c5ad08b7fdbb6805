//! The two sides of the comparison behind one narrow interface: this host's node, or another agent's.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::agent::peer_client::PeerClient;
use pgleap_proto::agent::{
    HashRowsReply, HashRowsRequest, SlotPositionsReply, SlotPositionsRequest, TablesReply, TablesRequest,
};
use pgleap_proto::node::Node;
use pgleap_proto::tls::TlsIdentity;
use tokio::time::{Instant, sleep};
use tonic::Response;
use tonic::transport::Channel;

use super::limit::RateLimit;
use super::{hash, tables};
use crate::error::{Result, StepError};
use crate::peer_client::{self, refused};

/// Where the rows of one side are read.
#[async_trait]
pub trait Source: Send + Sync {
    /// The list of tables.
    async fn tables(&self, request: TablesRequest) -> Result<TablesReply>;
    /// Row hashes.
    async fn hash_rows(&self, request: HashRowsRequest) -> Result<HashRowsReply>;
    /// Positions of slots.
    async fn slot_positions(&self, request: SlotPositionsRequest) -> Result<SlotPositionsReply>;
}

/// A node of this host.
pub struct Local;

#[async_trait]
impl Source for Local {
    async fn tables(&self, request: TablesRequest) -> Result<TablesReply> {
        tables::tables(request).await
    }
    async fn hash_rows(&self, request: HashRowsRequest) -> Result<HashRowsReply> {
        hash::hash_rows(request).await
    }
    async fn slot_positions(&self, request: SlotPositionsRequest) -> Result<SlotPositionsReply> {
        crate::positions::slot_positions(request).await
    }
}

/// A node of another host, read by that host's agent.
pub struct Remote {
    client: PeerClient<Channel>,
    host: String,
}

impl Remote {
    /// Connects to the agent of `host`; a connection that is lost later is made again by itself.
    ///
    /// # Errors
    /// As [`peer_client::connect`].
    pub async fn connect(address: &str, host: &str, tls: &TlsIdentity) -> Result<Remote> {
        Ok(Remote { client: peer_client::connect(address, host, tls).await?, host: host.to_owned() })
    }
}

#[async_trait]
impl Source for Remote {
    async fn tables(&self, request: TablesRequest) -> Result<TablesReply> {
        let reply = self.client.clone().tables(request).await;
        reply.map(Response::into_inner).map_err(|status| refused(&self.host, "listing tables", &status))
    }
    async fn hash_rows(&self, request: HashRowsRequest) -> Result<HashRowsReply> {
        let reply = self.client.clone().hash_rows(request).await;
        reply.map(Response::into_inner).map_err(|status| refused(&self.host, "hashing rows", &status))
    }
    async fn slot_positions(&self, request: SlotPositionsRequest) -> Result<SlotPositionsReply> {
        let reply = self.client.clone().slot_positions(request).await;
        reply
            .map(Response::into_inner)
            .map_err(|status| refused(&self.host, "reading slot positions", &status))
    }
}

/// Waits between attempts at the same request. Reading twice harms nothing, so a lost connection, a restarted agent or
/// a lock that was held for a while is bridged.
const PAUSES: [u64; 6] = [100, 500, 2_000, 5_000, 10_000, 20_000];

/// One side: its node, where it is read, and how fast.
pub struct Side {
    /// The node.
    pub node: Node,
    source: Box<dyn Source>,
    limit: Mutex<RateLimit>,
    start: Instant,
}

impl Side {
    /// A side read at no more than so many rows a second; 0 for no limit.
    pub fn new(node: Node, source: Box<dyn Source>, rows_per_second: u64) -> Side {
        Side { node, source, limit: Mutex::new(RateLimit::new(rows_per_second)), start: Instant::now() }
    }

    /// The list of tables.
    ///
    /// # Errors
    /// After several attempts.
    pub async fn tables(&self, database: &str, publication: &str) -> Result<TablesReply> {
        let request = TablesRequest {
            node: Some(self.node.clone()),
            database: database.to_owned(),
            publication: publication.to_owned(),
        };
        self.again(|| self.source.tables(request.clone())).await
    }

    /// Row hashes, within the rate.
    ///
    /// # Errors
    /// After several attempts.
    pub async fn hash_rows(&self, mut request: HashRowsRequest) -> Result<HashRowsReply> {
        request.node = Some(self.node.clone());
        loop {
            let wait = self.limited(|limit, now| limit.wait(now));
            if wait.is_zero() {
                break;
            }
            sleep(wait).await;
        }
        let reply = self.again(|| self.source.hash_rows(request.clone())).await?;
        // Looked-up keys cost about as much as rows of a range, found or not; a scan reads more than it returns, but the rows
        // it returns are what is known of it.
        let rows = reply.rows.max(request.keys.len() as u64);
        self.limited(|limit, now| limit.charge(now, rows));
        Ok(reply)
    }

    /// Positions of slots.
    ///
    /// # Errors
    /// After several attempts.
    pub async fn slot_positions(&self, slots: Vec<String>, nudge: bool) -> Result<SlotPositionsReply> {
        let request = SlotPositionsRequest { node: Some(self.node.clone()), slots, nudge };
        self.again(|| self.source.slot_positions(request.clone())).await
    }

    fn limited<T>(&self, f: impl FnOnce(&mut RateLimit, Duration) -> T) -> T {
        let mut limit = self.limit.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        f(&mut limit, self.start.elapsed())
    }

    async fn again<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        for pause in PAUSES {
            match call().await {
                Err(error) if may_pass(&error) => {
                    tracing::info!(%error, node = self.node.name, "reading again");
                    sleep(Duration::from_millis(pause)).await;
                }
                outcome => return outcome,
            }
        }
        call().await
    }
}

/// Whether asking again can help. What a table, a server or a request lacks does not come back; classes of states:
/// 0A not supported, 22 data, 42 syntax and names, 54 limits (PostgreSQL manual, appendix A).
pub fn may_pass(error: &StepError) -> bool {
    const LASTING: [&str; 8] = [
        "is not there",
        "has no publication",
        "more than one reply holds",
        "invalid memory alloc",
        "(SQLSTATE 0A",
        "(SQLSTATE 22",
        "(SQLSTATE 42",
        "(SQLSTATE 54",
    ];
    !LASTING.iter().any(|lasting| error.message.contains(lasting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_not_asked_for_again() {
        let passes = |message: &str| may_pass(&StepError::new(message));
        assert!(!passes(
            "reading row hashes: the server refused: db error: ERROR: no such function (SQLSTATE 42883)"
        ));
        assert!(passes(
            "the server refused: db error: ERROR: canceling statement due to lock timeout (SQLSTATE 55P03)"
        ));
        assert!(passes("hashing rows on host db2: transport error; the connection was lost"));
    }
}
