//! The agent's own configuration file.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{Result as StepResult, StepError};

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
    /// How the REST API of a Patroni is reached where it is protected, and how one is started that a new node is handed over to:
    /// `[[patroni]]`.
    #[serde(default)]
    pub patroni: Vec<PatroniConfig>,
    /// Applications of this host that hold connections themselves and take part in a switchover: `[[hook]]`.
    #[serde(default)]
    pub hook: Vec<HookConfig>,
}

/// One `[[hook]]`: a name, and either `exec` or `url`. What is sent to it is described in docs/hooks.md.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookConfig {
    /// As the fleet file names it.
    pub name: String,
    /// An executable by absolute path, and its arguments.
    #[serde(default)]
    pub exec: Vec<String>,
    /// `http://host:port/path`.
    #[serde(default)]
    pub url: Option<String>,
}

/// One `[[patroni]]`: secrets stay on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatroniConfig {
    /// Of this cluster; of every one that has no entry of its own when it is left out.
    #[serde(default)]
    pub scope: Option<String>,
    /// CAs for its certificate (PEM); the system's when it is left out.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Certificate to show to it (PEM).
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// Key of that certificate (PEM).
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// User of `restapi.authentication`.
    #[serde(default)]
    pub user: Option<String>,
    /// File with that user's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The member's own configuration (`patroni.yml`), where a new node is handed over to it.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// What starts it: a program by absolute path, and its arguments. No shell looks at them.
    #[serde(default)]
    pub start: Vec<String>,
    /// What stops it, and is content when it does not run.
    #[serde(default)]
    pub stop: Vec<String>,
    /// The Patroni that makes a new node as a member of a standby cluster.
    #[serde(default)]
    pub seed: Option<SeedConfig>,
}

/// `[patroni.seed]`: reached like the other one, but another daemon, with a configuration that pgleap writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedConfig {
    /// The operator's template (YAML): everything that pgleap does not know. Not needed where a standby cluster is only adopted.
    #[serde(default)]
    pub template: Option<PathBuf>,
    /// Directory that pgleap makes, with the template and its own part. Patroni is started with it in place of a file.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// What starts it: a program by absolute path, and its arguments. No shell looks at them.
    pub start: Vec<String>,
    /// What stops it, and is content when it does not run. PostgreSQL has to go on when Patroni is paused.
    pub stop: Vec<String>,
}

impl SeedConfig {
    fn validate(&self, scope: &str) -> Result<(), String> {
        let wrong = |what: String| Err(format!("patroni {scope}: seed: {what}"));
        for (key, command) in [("start", &self.start), ("stop", &self.stop)] {
            match command.first() {
                Some(program) if Path::new(program).is_absolute() => {}
                Some(program) => {
                    return wrong(format!("{key} must begin with an absolute path, not {program}"));
                }
                None => return wrong(format!("{key} is empty; give the program that does it")),
            }
        }
        let (template, config) = match (&self.template, &self.config) {
            (None, None) => return Ok(()),
            (Some(template), Some(config)) => (template, config),
            _ => return wrong("template and config belong together; give both or none".to_owned()),
        };
        for (key, path) in [("template", template), ("config", config)] {
            let climbs = path.components().any(|part| part == Component::ParentDir);
            if !path.is_absolute() || climbs {
                return wrong(format!("{key} must be an absolute path without .., not {}", path.display()));
            }
        }
        if template.starts_with(config) {
            return wrong(format!(
                "template lies in {}, which pgleap makes and removes; keep it elsewhere",
                config.display()
            ));
        }
        Ok(())
    }
}

impl PatroniConfig {
    fn validate(&self) -> Result<(), String> {
        let scope = self.scope.as_deref().unwrap_or("(any)");
        if self.cert.is_some() != self.key.is_some() {
            return Err(format!("patroni {scope}: cert and key belong together; give both or none"));
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err(format!(
                "patroni {scope}: user and password_file belong together; give both or none"
            ));
        }
        if [self.config.is_some(), !self.start.is_empty(), !self.stop.is_empty()]
            .iter()
            .any(|one| *one != self.config.is_some())
        {
            return Err(format!(
                "patroni {scope}: config, start and stop belong together; give all of them or none"
            ));
        }
        let programs = [("start", &self.start), ("stop", &self.stop)];
        let programs = programs.iter().filter_map(|(key, command)| Some((*key, Path::new(command.first()?))));
        let mut paths = programs.chain(self.config.iter().map(|path| ("config", path.as_path())));
        if let Some((key, path)) = paths.find(|(_, path)| !path.is_absolute()) {
            return Err(format!(
                "patroni {scope}: {key} must begin with an absolute path, not {}",
                path.display()
            ));
        }
        self.seed.as_ref().map_or(Ok(()), |seed| seed.validate(scope))
    }
}

impl HookConfig {
    fn validate(&self) -> Result<(), String> {
        let HookConfig { name, exec, url } = self;
        let wrong = |what: &str| Err(format!("hook \"{name}\": {what}"));
        match (exec.first(), url) {
            _ if name.is_empty() => wrong("name is empty; give it the one that the fleet file uses"),
            (Some(program), None) if Path::new(program).is_absolute() => Ok(()),
            (Some(_), None) => wrong("exec must begin with the absolute path of a program"),
            (None, Some(url)) if url.starts_with("http://") => Ok(()),
            (None, Some(_)) => {
                wrong("url must begin with http://; it is meant for this host or a private network")
            }
            _ => wrong("give it either exec or url"),
        }
    }
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
        for (at, one) in self.patroni.iter().enumerate() {
            one.validate()?;
            if self.patroni.iter().skip(at + 1).any(|other| other.scope == one.scope) {
                let scope = one.scope.as_deref().unwrap_or("(any)");
                return Err(format!("patroni {scope} is there twice; give each scope one [[patroni]]"));
            }
        }
        for (at, hook) in self.hook.iter().enumerate() {
            hook.validate()?;
            if self.hook.iter().skip(at + 1).any(|other| other.name == hook.name) {
                return Err(format!("hook \"{}\" is there twice; names must be unique", hook.name));
            }
        }
        Ok(())
    }

    /// Refuses a path outside the roots.
    ///
    /// # Errors
    /// Names the path, the roots and the cure.
    pub fn confine<'p>(&self, path: &'p str) -> StepResult<&'p Path> {
        let candidate = Path::new(path);
        if self.allows(candidate) {
            return Ok(candidate);
        }
        Err(StepError::new(format!(
            "{path} on host {} lies outside the directories this agent may touch ({}); \
             add its parent to `roots` in agent.toml and restart the agent, then try again; if the path is wrong, cancel, \
             correct the fleet file and apply it, start again",
            self.host,
            self.roots.iter().map(|r| r.display().to_string()).collect::<Vec<_>>().join(", "),
        )))
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
            (("[\"/srv/pg\"]", "[\"/srv/pg\"]\n[[patroni]]\nstart = [\"/bin/true\"]"), "belong together"),
            (
                (
                    "[\"/srv/pg\"]",
                    "[\"/srv/pg\"]\n[[patroni]]\nconfig = \"/p.yml\"\nstart = [\"systemctl\"]\nstop = [\"/bin/true\"]",
                ),
                "start must begin with an absolute path, not systemctl",
            ),
            (
                ("[\"/srv/pg\"]", "[\"/srv/pg\"]\n[[patroni]]\n[patroni.seed]\nstart = [\"/a\"]"),
                "missing field `stop`",
            ),
            (
                (
                    "[\"/srv/pg\"]",
                    "[\"/srv/pg\"]\n[[patroni]]\n[patroni.seed]\nstart = [\"/a\"]\nstop = [\"b\"]",
                ),
                "seed: stop must begin with an absolute path, not b",
            ),
            (
                (
                    "[\"/srv/pg\"]",
                    "[\"/srv/pg\"]\n[[patroni]]\n[patroni.seed]\nstart = [\"/a\"]\nstop = [\"/b\"]\nconfig = \"/c\"",
                ),
                "template and config belong together",
            ),
            (
                (
                    "[\"/srv/pg\"]",
                    "[\"/srv/pg\"]\n[[patroni]]\n[patroni.seed]\nstart = [\"/a\"]\nstop = [\"/b\"]\nconfig = \"/c\"\ntemplate = \"/c/t.yml\"",
                ),
                "template lies in /c",
            ),
            (("[\"/srv/pg\"]", "[\"/srv/pg\"]\n[[hook]]\nname = \"a\""), "either exec or url"),
            (("[\"/srv/pg\"]", "[\"/srv/pg\"]\n[[hook]]\nname = \"a\"\nexec = [\"sh\"]"), "absolute path"),
            (("[\"/srv/pg\"]", "[\"/srv/pg\"]\n[[hook]]\nname = \"a\"\nurl = \"https://x\""), "http://"),
            (("[\"/srv/pg\"]", "[\"/srv/pg\"]\n[[hook]]\nname = \"a\"\nuri = \"http://x\""), "uri"),
        ];
        for ((old, new), expected) in wrong {
            let error = load(&GOOD.replace(old, new)).unwrap_err();
            assert!(error.contains(expected), "{new}: {error}");
        }
        assert!(AgentConfig::load(Path::new("/nonexistent/agent.toml")).is_err());
    }

    #[test]
    fn hooks_are_read() {
        let hooks = "\n[[hook]]\nname = \"shop\"\nexec = [\"/opt/shop/flip\", \"-v\"]\n\n[[hook]]\nname = \"web\"\n\
                     url = \"http://127.0.0.1:8080/db\"\n";
        let config = load(&format!("{GOOD}{hooks}")).unwrap();
        assert_eq!(config.hook.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["shop", "web"]);
        let twice = hooks.replace("web", "shop");
        assert!(load(&format!("{GOOD}{twice}")).unwrap_err().contains("twice"));
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
