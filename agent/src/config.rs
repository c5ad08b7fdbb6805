//! The agent's own configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// `agent.toml`. Unknown keys are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Name of this host in the fleet file; must equal the name in the agent's certificate.
    pub host: String,
    /// Address and port to serve gRPC on.
    pub listen: SocketAddr,
    /// Where the journal, the jobs and the servers' start logs are kept. Private to the agent's user.
    pub state_dir: PathBuf,
    /// Directory with `ca.crt`, `tls.crt` and `tls.key`.
    pub tls_dir: PathBuf,
    /// Directories below which steps may create, change, read and remove files. Anything else is refused.
    pub roots: Vec<PathBuf>,
}

/// The configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be; the message carries line and column.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What, where, and the cure.
        message: String,
    },
}

impl AgentConfig {
    /// Reads and validates the file.
    ///
    /// # Errors
    /// Names the file, the place and the cure.
    pub fn load(path: &Path) -> Result<AgentConfig, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let invalid = |message: String| ConfigError::Invalid { path: path.to_owned(), message };
        let config: AgentConfig = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        for directory in config.roots.iter().chain([&config.state_dir, &config.tls_dir]) {
            if directory.is_relative() {
                return Err(invalid(format!("\"{}\" must be an absolute path", directory.display())));
            }
        }
        Ok(config)
    }

    /// Whether a step may touch this path: it lies below a root and does not climb out with `..`.
    pub fn allows(&self, path: &Path) -> bool {
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        path.is_absolute() && !climbs && self.roots.iter().any(|root| path.starts_with(root) && path != root)
    }
}
