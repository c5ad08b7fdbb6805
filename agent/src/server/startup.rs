//! What an agent checks before it takes its port: who it is, and that nobody else can read or share its state.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgleap_proto::tls::{Peer, Role, TlsError, TlsFiles, TlsIdentity};

use crate::config::AgentConfig;
use crate::journal::{Journal, JournalError};

/// Why the agent does not start. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate file cannot be used.
    #[error(transparent)]
    Identity(#[from] TlsError),
    /// The certificate is another's.
    #[error(
        "the certificate in {tls_dir} is that of {found}, but this is the agent of host {host}; issue the right one \
         with `pgleap pki issue --role agent`, or correct `host` in agent.toml"
    )]
    OtherHolder {
        /// Where it lies.
        tls_dir: PathBuf,
        /// Whose it is.
        found: Peer,
        /// Who the agent is by its configuration.
        host: String,
    },
    /// Somebody else could read or change what only the agent may.
    #[error("{path} {problem}; {cure}")]
    NotPrivate {
        /// File or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        cure: String,
    },
    /// A directory cannot be made or looked at.
    #[error("{path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The port cannot be had.
    #[error("listening on {address}: {source}; is another agent running, or is the address not this host's?")]
    Listen {
        /// From `listen` in agent.toml.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Connections cannot be accepted any more.
    #[error("serving: {0:?}")]
    Serve(tonic::transport::Error),
}

/// An agent that may start.
#[derive(Debug)]
pub struct Ready {
    pub(super) config: Arc<AgentConfig>,
    pub(super) identity: TlsIdentity,
    pub(super) journal: Arc<Journal>,
}

/// Checks certificate, state directory and journal, and makes the last two when they are absent.
///
/// # Errors
/// The first of what is wrong.
pub fn prepare(config: AgentConfig) -> Result<Ready, StartError> {
    let files = TlsFiles::in_directory(&config.tls_dir);
    let identity = files.load()?;
    let found = identity.peer();
    if found != (Peer { role: Role::Agent, name: config.host.clone() }) {
        let (tls_dir, host) = (config.tls_dir.clone(), config.host.clone());
        return Err(StartError::OtherHolder { tls_dir, found, host });
    }
    private(&files.key, "chmod 600")?;
    let state_dir = &config.state_dir;
    crate::durable::private_directory(state_dir)
        .map_err(|source| StartError::Directory { path: state_dir.clone(), source })?;
    private(state_dir, "chmod 700")?;
    let journal = Arc::new(Journal::open(state_dir)?);
    Ok(Ready { config: Arc::new(config), identity, journal })
}

/// Refuses what another user owns, or what group or others may read or change.
fn private(path: &Path, chmod: &str) -> Result<(), StartError> {
    let look = |source| StartError::Directory { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(look)?;
    let user = nix::unistd::geteuid();
    let refuse = |problem, cure| Err(StartError::NotPrivate { path: path.to_owned(), problem, cure });
    if metadata.uid() != user.as_raw() {
        let problem = format!("belongs to user {}, and the agent runs as user {user}", metadata.uid());
        return refuse(problem, format!("run the agent as its owner, or `chown {user} {}`", path.display()));
    }
    if metadata.mode() & 0o077 != 0 {
        let problem = format!("has mode {:03o}, so other users can get at it", metadata.mode() & 0o777);
        return refuse(problem, format!("`{chmod} {}`", path.display()));
    }
    Ok(())
}
