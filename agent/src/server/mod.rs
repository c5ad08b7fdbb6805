//! The agent's gRPC server: who may ask what, and nothing else. Mutual TLS only.
//!
//! | service | for | methods are in |
//! | --- | --- | --- |
//! | `Agent` | coordinators | `agent.rs`: `Hello`; `RunStep` and `Rehearse` go to [`crate::run`], `Inspect` and `Lag` to `facts.rs` |
//! | `Traffic` | coordinators | `traffic.rs`: to [`crate::pooler`], [`crate::side`] and [`crate::reads`] |
//! | `Peer` | other agents | `peer.rs`: reads only; `files.rs` for relinking, `rows.rs` for validation |
//!
//! Who is refused for its certificate is told of by `refusals.rs`.
//! Whose calls are taken at all is decided in `callers.rs`.
//! It decides nothing about steps and touches neither PostgreSQL nor files.

mod agent;
mod callers;
mod events;
mod facts;
mod files;
mod peer;
mod refusals;
mod rows;
mod startup;
mod traffic;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use pgleap_proto::agent::agent_server::AgentServer;
use pgleap_proto::agent::peer_server::PeerServer;
use pgleap_proto::bounds::{self, MAX_MESSAGE_BYTES};
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::traffic_server::TrafficServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::config::AgentConfig;
use crate::journal::Journal;
use crate::pooler::Poolers;
use crate::reads::Reads;
use crate::run::{Runner, StepTable};
use crate::side::{Memory, Sides};
use crate::tickets::Tickets;

use refusals::RefusalLog;
pub use startup::{Ready, StartError, prepare};

/// A silent connection is asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// No sign of life for this long ends the connection: a coordinator that was cut off finds its next call unhindered.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long streams of others may take to end once the agent ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// Bytes under way on one stream, and on one connection: relinking moves whole files through one stream, and HTTP/2's
/// own 64 KiB would bound it to 64 KiB a round trip.
pub const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// What a method streams back.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What every method may use.
#[derive(Debug)]
struct Host {
    config: Arc<AgentConfig>,
    journal: Arc<Journal>,
}

/// A server that has its port, and does not answer yet.
pub struct Server {
    router: Router<Stack<RefusalLog, Identity>>,
    listener: TcpListener,
    identity: TlsIdentity,
    address: SocketAddr,
    runner: Arc<Runner>,
}

impl Server {
    /// Takes the port and sets up both services; steps come from this table.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn bind(ready: Ready, steps: StepTable) -> Result<Server, StartError> {
        let Ready { config, identity, journal } = ready;
        let runner = Runner::new(config.clone(), identity.clone(), journal.clone(), steps);
        Server::with_runner(config, &identity, journal, runner)
    }

    /// The same with a runner made elsewhere.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn with_runner(
        config: Arc<AgentConfig>,
        identity: &TlsIdentity,
        journal: Arc<Journal>,
        runner: Arc<Runner>,
    ) -> Result<Server, StartError> {
        let listen = config.listen;
        let no_port = |source| StartError::Listen { address: listen, source };
        let listener = std::net::TcpListener::bind(listen).map_err(no_port)?;
        listener.set_nonblocking(true).map_err(no_port)?;
        let listener = TcpListener::from_std(listener).map_err(no_port)?;
        let address = listener.local_addr().map_err(no_port)?;
        // Not before the port is taken: an agent that cannot serve makes no new start.
        journal.begin()?;
        let callers = callers::Callers::new(journal.clone(), &config.host);
        let memory = Memory::of_machine(&journal.identity().journal, &config.state_dir);
        let traffic = TrafficServer::new(traffic::TrafficService {
            callers: callers.clone(),
            tickets: Tickets::new(journal.clone()),
            poolers: Poolers::new(config.clone(), identity.clone()),
            sides: Sides::new(config.clone(), identity.clone(), memory),
            reads: Reads::new(config.clone(), identity.clone())?,
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let host = Arc::new(Host { config, journal });
        let service = agent::AgentService { host: host.clone(), runner: runner.clone(), callers };
        let agent = AgentServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let peer = PeerServer::new(peer::PeerService { host })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let router = bounds::server()
            .layer(RefusalLog::default())
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_service(agent)
            .add_service(traffic)
            .add_service(peer);
        Ok(Server { router, listener, identity: identity.clone(), address, runner })
    }

    /// Where it listens; the port is a real one even when the configuration says 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What runs its steps.
    pub fn runner(&self) -> Arc<Runner> {
        self.runner.clone()
    }

    /// Answers until `shutdown` resolves. Then streams end, short programs may end, and jobs are left to be joined.
    ///
    /// # Errors
    /// When connections cannot be accepted any more.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
        let stop = CancellationToken::new();
        self.identity.watch();
        let incoming = self.identity.incoming(self.listener);
        let serving = self.router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended.map_err(StartError::Serve),
            () = shutdown => {}
        }
        tracing::info!("shutting down: jobs under way go on and are joined by the next start");
        stop.cancel();
        // Streams of running steps end with this, so it comes before waiting for the streams.
        let ((), _) = tokio::join!(self.runner.shut_down(), tokio::time::timeout(FAREWELL, serving));
        Ok(())
    }
}
