//! `pgleap serve`: one coordinator, from its data directory to its listening socket, and down again in order; alone, or as a
//! member of a group.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgleap_proto::bounds::{self, MAX_MESSAGE_BYTES};
use pgleap_proto::fleet::fleet_server::FleetServer;
use pgleap_proto::raft::members_server::MembersServer;
use pgleap_proto::raft::raft_server::RaftServer;
use pgleap_proto::service;
use pgleap_proto::tls::{Peer, Role, TlsError, TlsFiles, TlsIdentity};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::api::{Api, MembersApi};
use crate::audit::Auditor;
use crate::driver::{Agents, Driver, Live, explain};
use crate::raft::{FILE_NAME, Member, Peers, Raft, RaftError, RaftService, RaftThread, join};

/// Dead clients are noticed within the sum of these.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for requests under way when it is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// What a coordinator is told.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Directory of its state; made when absent, private to its owner.
    pub data_dir: PathBuf,
    /// Where operators reach it. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Directory with `ca.crt`, `tls.crt` and `tls.key` of a coordinator.
    pub tls_dir: PathBuf,
    /// Its number in the Raft group, from 1.
    pub member: u64,
    /// Where other members and the command line reach it, host:port; the address it listens on when left out.
    pub advertise: Option<String>,
    /// Begin a new group when there is no data: said once for each group, because a member that lost its disk would begin a second one.
    pub begin: bool,
    /// Members of a group that shall take it in. Used only as long as its data directory is empty.
    pub join: Vec<String>,
}

/// Why a coordinator does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It is a certificate for something else.
    #[error(
        "{dir} holds a certificate of {peer}, and a coordinator's is needed; issue one with \
         `pgleap pki issue --role coordinator`"
    )]
    Role {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        peer: Peer,
    },
    /// Members are numbered from 1.
    #[error("a member's number is 1 or more; leave --member away for a coordinator without others")]
    Member,
    /// Nobody begins a group unasked, and only its member 1 does.
    #[error(
        "member {member} has no data in {dir}. To let it into a group: `pgleap members add --member {member} --address HOST:PORT` there \
         (if it lost its disk, `pgleap members remove --member {member}` first), then start it with --join HOST:PORT of a member. Only \
         the very first coordinator of all, member 1, is started with --begin instead, once"
    )]
    NoGroup {
        /// Its number.
        member: u64,
        /// Its data directory.
        dir: PathBuf,
    },
    /// The group does not let it in.
    #[error("the group does not let member {member} in: {why}")]
    Join {
        /// Its number.
        member: u64,
        /// Why.
        why: String,
    },
    /// The log cannot be used.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The address cannot be had.
    #[error("cannot listen on {listen}: {source}; stop what uses it, or name another with --listen")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The server broke.
    #[error("serving {listen}: {cause}")]
    Serve {
        /// The address.
        listen: SocketAddr,
        /// Why.
        cause: String,
    },
}

/// A coordinator that has its log and its socket, and does not serve yet.
#[derive(Debug)]
pub struct Coordinator {
    listener: TcpListener,
    address: SocketAddr,
    identity: TlsIdentity,
    name: String,
    raft: Raft,
    thread: RaftThread,
    advertise: String,
    join: Vec<String>,
}

impl Coordinator {
    /// Checks the certificate, takes the address, opens the log: everything that can fail before it serves.
    ///
    /// # Errors
    /// What, where, why and what to do.
    pub async fn open(config: ServeConfig) -> Result<Coordinator, ServeError> {
        let ServeConfig { data_dir, listen, tls_dir, member, advertise, begin, join } = config;
        if member == 0 {
            return Err(ServeError::Member);
        }
        let identity = TlsFiles::in_directory(&tls_dir).load()?;
        let peer = identity.peer();
        if peer.role != Role::Coordinator {
            return Err(ServeError::Role { dir: tls_dir, peer });
        }
        let cannot = |source| ServeError::Listen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let advertise = advertise.unwrap_or_else(|| address.to_string());
        let nothing = || ServeError::NoGroup { member, dir: data_dir.clone() };
        let begins = begin && member == 1 && join.is_empty();
        if join.is_empty() && !begins && !data_dir.join(FILE_NAME).exists() {
            return Err(nothing());
        }
        // Looked at only where there is no data.
        let first =
            if begins { Member::first(member, &advertise) } else { Member::joining(member, &advertise) };
        let peers = Peers::new(member, &advertise, identity.clone());
        let dir = data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Raft::open(&dir, &first, peers)).await;
        let (raft, thread) = opened.map_err(|e| RaftError::Thread(e.to_string()))??;
        if join.is_empty() && raft.latest().group.id.is_empty() {
            raft.stop();
            return Err(nothing());
        }
        Ok(Coordinator { listener, address, identity, name: peer.name, raft, thread, advertise, join })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves and drives until `shutdown`, or until its log fails. Steps that run on agents go on without it.
    ///
    /// # Errors
    /// When the log or the server fails.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Coordinator { listener, address, identity, name, raft, mut thread, advertise, join: via } = self;
        let broken = |cause: String| ServeError::Serve { listen: address, cause };
        let stop = CancellationToken::new();
        let agents = Arc::new(Agents::new(identity.clone(), raft.clone()));
        let live = Arc::new(Live::default());
        let audit = Auditor::new(raft.clone());
        let api = Api::new(raft.clone(), audit.clone(), agents.clone(), live.clone(), stop.clone());
        let service = FleetServer::new(api)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        // Only the leader decides and knows; any other member says who leads, whatever it was asked.
        let view = raft.watch();
        let service = InterceptedService::new(service, move |request| {
            let not_leading = view.borrow().not_leading();
            not_leading.map_or(Ok(request), |error| Err(error.into()))
        });
        let members = MembersServer::new(MembersApi::new(raft.clone(), audit.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let others = RaftServer::new(RaftService::new(raft.clone(), audit.clone(), stop.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let router = bounds::server()
            .timeout(bounds::OPERATOR_REQUEST)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
            .add_service(service)
            .add_service(members)
            .add_service(others);
        identity.watch();
        let serving =
            router.serve_with_incoming_shutdown(identity.incoming(listener), stop.clone().cancelled_owned());
        let mut serving = tokio::spawn(serving);
        let mut driving = tokio::spawn(Driver::new(raft.clone(), agents, live, &name).run(stop.clone()));
        let auditing = tokio::spawn(audit.run(stop.clone()));
        let member = raft.latest().member;
        let joining = async {
            let alone = raft.latest().group.id.is_empty();
            if alone && let Err(why) = join(&raft, &identity, member, &advertise, &via).await {
                return why;
            }
            std::future::pending().await
        };
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "the coordinator serves");
        service::ready(&format!("member {member} serves {address}"));
        // The thread of the log is what nothing goes on without.
        let alive = service::keep_alive(|| async { raft.members().await.is_ok() });

        let end = tokio::select! {
            () = shutdown => End::Told,
            result = thread.ended() => End::Log(result),
            why = joining => End::Refused(why),
            served = &mut serving => End::Server(match served {
                Ok(Ok(())) => "it ended by itself".to_owned(),
                Ok(Err(error)) => explain(&error),
                Err(error) => error.to_string(),
            }),
            // It ends when told only: a leader without it would lead and start nothing.
            driven = &mut driving => End::Server(match driven {
                Ok(()) => "the driver ended by itself".to_owned(),
                Err(error) => format!("the driver: {error}"),
            }),
            never = alive => match never {},
        };
        service::stopping();
        // First nothing new comes in and nothing new is started, then the log is closed.
        stop.cancel();
        if matches!(end, End::Told) && tokio::time::timeout(GRACE, &mut serving).await.is_err() {
            tracing::warn!("requests were still under way and are cut off");
        }
        serving.abort();
        // The driver was told to end, too; how it ended does not matter any more.
        if !driving.is_finished() {
            let _ = driving.await;
        }
        let _ = auditing.await;
        if let End::Log(result) = end {
            return Ok(result?);
        }
        raft.stop();
        thread.ended().await?;
        match end {
            End::Server(cause) => Err(broken(cause)),
            End::Refused(why) => Err(ServeError::Join { member, why }),
            End::Told | End::Log(_) => Ok(()),
        }
    }
}

/// Why a coordinator ends.
enum End {
    Told,
    Log(Result<(), RaftError>),
    Server(String),
    Refused(String),
}

/// Opens and runs a coordinator until `shutdown`.
///
/// # Errors
/// As [`Coordinator::open`] and [`Coordinator::run`].
pub async fn serve(config: ServeConfig, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    Coordinator::open(config).await?.run(shutdown).await
}

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod tests;
