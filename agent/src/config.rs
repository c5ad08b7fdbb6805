//! The agent's own configuration file.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

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
    /// Where the health endpoints of the nodes are served over plain HTTP; none without it.
    #[serde(default)]
    pub health_listen: Option<SocketAddr>,
    /// Where HAProxy's `agent-check` is answered; not at all without it.
    #[serde(default)]
    pub agent_check_listen: Option<SocketAddr>,
}

/// The configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error(
        "{path}: {source}; name the file with --config (`pgleap-agent run --help` shows what belongs into it)"
    )]
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
        config.validate().map_err(invalid)?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        // The name becomes part of the DNS name in the certificate.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if self.host.is_empty() || !self.host.chars().all(plain) {
            return Err(format!(
                "host = \"{}\" is not a host name: letters, digits and - . _ only, as in the fleet file",
                self.host
            ));
        }
        let named = [("state_dir", &self.state_dir), ("tls_dir", &self.tls_dir)];
        for (key, directory) in named.into_iter().chain(self.roots.iter().map(|root| ("roots", root))) {
            let climbs = directory.components().any(|part| part == Component::ParentDir);
            if directory.is_relative() || climbs {
                return Err(format!(
                    "{key}: \"{}\" must be an absolute path without ..",
                    directory.display()
                ));
            }
        }
        if self.roots.is_empty() {
            return Err("roots is empty: list the directories below which the data directories lie, or the agent may \
                        touch nothing"
                .to_owned());
        }
        if self.roots.iter().any(|root| root == Path::new("/")) {
            return Err(
                "roots: \"/\" would let steps remove anything; name the directories that hold PostgreSQL's \
                        data instead"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Whether a step may touch this path: it lies below a root and does not climb out with `..`.
    pub fn allows(&self, path: &Path) -> bool {
        let climbs = path.components().any(|part| part == Component::ParentDir);
        path.is_absolute() && !climbs && self.roots.iter().any(|root| path.starts_with(root) && path != root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        host = "db1"
        listen = "127.0.0.1:7420"
        state_dir = "/var/lib/pgleap"
        tls_dir = "/etc/pgleap/tls"
        roots = ["/srv/pg"]
    "#;

    fn load(text: &str) -> Result<AgentConfig, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let result = AgentConfig::load(file.path());
        result.map_err(|e| e.to_string()).inspect_err(|text| {
            assert!(text.contains(&file.path().display().to_string()), "the file is not named: {text}");
        })
    }

    #[test]
    fn what_is_wrong_is_named() {
        load(GOOD).unwrap();
        let wrong = [
            (("\"db1\"", "\"\""), "host"),
            (("\"db1\"", "\"a b\""), "not a host name"),
            (("\"/var/lib/pgleap\"", "\"var\""), "state_dir"),
            (("\"/etc/pgleap/tls\"", "\"/etc/../tls\""), "tls_dir"),
            (("[\"/srv/pg\"]", "[]"), "roots is empty"),
            (("[\"/srv/pg\"]", "[\"/\"]"), "remove anything"),
            (("[\"/srv/pg\"]", "[\"srv\"]"), "roots"),
            (("host", "hots"), "hots"),
            (("7420", "x"), "listen"),
        ];
        for ((old, new), expected) in wrong {
            let error = load(&GOOD.replace(old, new)).unwrap_err();
            assert!(error.contains(expected), "{new}: {error}");
        }
        assert!(AgentConfig::load(Path::new("/nonexistent/agent.toml")).is_err());
    }

    #[test]
    fn only_what_lies_below_a_root_is_allowed() {
        let config = load(GOOD).unwrap();
        for path in ["/srv/pg/15/main", "/srv/pg/x"] {
            assert!(config.allows(Path::new(path)), "{path}");
        }
        for path in ["/srv/pg", "/srv/pgx/a", "/srv/pg/../x", "srv/pg/x", "/", ""] {
            assert!(!config.allows(Path::new(path)), "{path}");
        }
    }
}
