//! All agents of a fleet in this process: each with its own certificate, its own address and its own TLS.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use pgleap_proto::agent::agent_server::AgentServer;
use pgleap_proto::tls::Role;
use pgleap_proto::traffic::traffic_server::TrafficServer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Server;

use super::agent::{Shared, SwarmAgent};
use super::arena::Arena;
use super::book::Book;
use super::layout::Layout;
use crate::harness::ports::Port;

/// They answer as long as it lives.
#[derive(Debug)]
pub struct Swarm {
    /// What happened to the hosts.
    pub book: Arc<Book>,
    /// Which hosts there are.
    pub layout: Layout,
    _servers: JoinSet<Result<(), tonic::transport::Error>>,
    _port: Port,
}

impl Swarm {
    /// A fleet of so many agents whose steps take about this long.
    ///
    /// # Errors
    /// When a certificate cannot be issued or an address cannot be had.
    pub fn serve(arena: &Arena, agents: usize, work: Duration) -> Result<Swarm> {
        let port = Port::reserve()?;
        let layout = Layout::new(agents, port.number);
        let book = Arc::new(Book::default());
        let shared = Arc::new(Shared { book: book.clone(), work });
        let mut servers = JoinSet::new();
        for cluster in layout.all() {
            let of = Arc::new(cluster.clone());
            for place in cluster.places() {
                let identity = arena.identity(Role::Agent, &place.name)?;
                let doing = || format!("listening on {} for agent {}", place.agent, place.name);
                let listener = std::net::TcpListener::bind(place.agent).with_context(doing)?;
                listener.set_nonblocking(true).with_context(doing)?;
                let incoming = identity.incoming(TcpListener::from_std(listener).with_context(doing)?);
                let agent = SwarmAgent::new(&place.name, of.clone(), shared.clone());
                let router = Server::builder()
                    .add_service(AgentServer::new(agent.clone()))
                    .add_service(TrafficServer::new(agent));
                servers.spawn(router.serve_with_incoming(incoming));
            }
        }
        Ok(Swarm { book, layout, _servers: servers, _port: port })
    }
}
