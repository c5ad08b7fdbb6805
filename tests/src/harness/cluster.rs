//! An old cluster: a primary and its streaming replicas, set up as a careful DBA would.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::base::Base;
use super::patroni::{Patroni, PatroniOptions, hba};
use super::ports::Port;
use super::postgres::{APP, PASSWORD, REPLICATOR, SUPERUSER, Server, ident, literal};

/// What the cluster is like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// As [`super::Binaries::postgres`] takes it.
    pub version: String,
    /// Name of each node; the first is the primary. Each is also the name of its host.
    pub nodes: Vec<String>,
    /// `initdb --data-checksums`.
    pub checksums: bool,
    /// Durable writes. Off where crash safety of the operating system is not what is tested.
    pub fsync: bool,
    /// More arguments for initdb.
    pub initdb: Vec<String>,
    /// More lines of postgresql.conf.
    pub settings: Vec<(String, String)>,
    /// Tablespaces to make.
    pub tablespaces: Vec<String>,
    /// Whether Patroni runs it; else nobody does, and `pg_ctl` has started it.
    pub patroni: Option<PatroniOptions>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            version: "15".into(),
            nodes: vec!["o1".into(), "o2".into()],
            checksums: true,
            fsync: false,
            initdb: Vec::new(),
            settings: Vec::new(),
            tablespaces: Vec::new(),
            patroni: None,
        }
    }
}

/// It runs from the moment it is made.
#[derive(Debug)]
pub struct Cluster {
    /// The primary first.
    pub nodes: Vec<Server>,
    /// As it was made.
    pub options: ClusterOptions,
    /// Password file for the replication role, readable for the fleet's user only.
    pub passfile: PathBuf,
    /// Who runs it.
    pub patroni: Option<Patroni>,
    _ports: Vec<Port>,
}

impl Cluster {
    /// Makes and starts it.
    ///
    /// # Errors
    /// When a program fails; with what it said.
    pub async fn make(base: &Base, options: ClusterOptions) -> Result<Cluster> {
        let bin_dir = base.binaries.postgres(&options.version)?;
        let mut nodes = Vec::new();
        let mut ports = Vec::new();
        for name in &options.nodes {
            let port = Port::reserve()?;
            nodes.push(Server {
                name: name.clone(),
                bin_dir: bin_dir.clone(),
                data_dir: base.make_dir(format!("{name}/old"))?.join("data"),
                socket_dir: base.make_dir(format!("{name}/run"))?,
                address: base.network.address(name),
                port: port.number,
            });
            ports.push(port);
            for space in &options.tablespaces {
                base.user.make_dir(&tablespace_dir(base, name, space), 0o700)?;
            }
        }
        let passfile = base.join("home/pgpass");
        let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
        base.user.write(&passfile, &format!("*:*:*:{REPLICATOR}:{escaped}\n"), 0o600)?;
        let mut cluster = Cluster { nodes, options, passfile, patroni: None, _ports: ports };
        if let Some(options) = cluster.options.patroni.clone() {
            cluster.make_by_patroni(base, options).await?;
            return Ok(cluster);
        }
        cluster.make_primary(base).await?;
        for replica in &cluster.nodes[1..] {
            cluster.make_replica(base, replica).await?;
        }
        Ok(cluster)
    }

    /// The node that takes writes.
    pub fn primary(&self) -> &Server {
        &self.nodes[0]
    }

    async fn make_primary(&self, base: &Base) -> Result<()> {
        let primary = self.primary();
        let data_dir = primary.data_dir.to_string_lossy();
        let mut arguments = vec!["-D", data_dir.as_ref(), "-U", SUPERUSER, "--encoding=UTF8"];
        arguments.extend(["--locale=C.UTF-8", "--auth=trust", "--no-sync"]);
        if self.options.checksums {
            arguments.push("--data-checksums");
        }
        arguments.extend(self.options.initdb.iter().map(String::as_str));
        base.run(primary.bin_dir.join("initdb"), &arguments).await?;

        base.user.write(&primary.data_dir.join("pg_hba.conf"), &hba(&base.network.range()), 0o600)?;
        let mut conf = std::fs::read_to_string(primary.data_dir.join("postgresql.conf"))?;
        conf.push_str("\n# by the test harness\n");
        for (name, value) in self.settings(base, primary) {
            conf.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        base.user.write(&primary.data_dir.join("postgresql.conf"), &conf, 0o600)?;
        primary.start(base).await?;

        // The replication role can stream, publish to subscriptions and dump schemas, and no more.
        let replicator = format!("CREATE ROLE {REPLICATOR} LOGIN REPLICATION PASSWORD {}", literal(PASSWORD));
        primary.execute("postgres", &replicator).await?;
        self.make_roles().await?;
        for space in &self.options.tablespaces {
            let location = tablespace_dir(base, &primary.name, space);
            let sql = format!(
                "CREATE TABLESPACE {} OWNER {APP} LOCATION {}",
                ident(space),
                literal(&location.to_string_lossy())
            );
            primary.execute("postgres", &sql).await?;
        }
        Ok(())
    }

    async fn make_roles(&self) -> Result<()> {
        // Before 14 there is no role that reads everything.
        let reads = match self.options.version.as_str() {
            "13" => format!("ALTER ROLE {REPLICATOR} SUPERUSER"),
            _ => format!("GRANT pg_read_all_data TO {REPLICATOR}"),
        };
        let roles = format!("{reads}; CREATE ROLE {APP} LOGIN PASSWORD {}", literal(PASSWORD));
        self.primary().execute("postgres", &roles).await
    }

    /// Patroni makes the replication role itself, and has its own ways of setting ports and sockets.
    async fn make_by_patroni(&mut self, base: &Base, options: PatroniOptions) -> Result<()> {
        ensure!(self.options.tablespaces.is_empty(), "members on one machine cannot share tablespaces");
        let settings = self.shared_settings(base);
        let mut initdb = self.options.initdb.clone();
        if self.options.checksums {
            initdb.push("--data-checksums".into());
        }
        self.patroni = Some(Patroni::make(base, options, &self.nodes, &settings, &initdb).await?);
        self.make_roles().await?;
        for replica in &self.nodes[1..] {
            replica.catch_up(self.primary()).await?;
        }
        Ok(())
    }

    /// Settings that all nodes have in common, as a dynamic configuration of Patroni has them.
    pub fn shared_settings(&self, base: &Base) -> Vec<(String, String)> {
        let own = ["listen_addresses", "port", "unix_socket_directories"];
        let mut settings = self.settings(base, self.primary());
        settings.retain(|(name, _)| !own.contains(&name.as_str()));
        settings
    }

    fn settings(&self, base: &Base, node: &Server) -> Vec<(String, String)> {
        let fixed = [
            ("listen_addresses", base.network.listen()),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_worker_processes", "24"),
            ("max_logical_replication_workers", "12"),
            ("max_connections", "80"),
            ("shared_buffers", "32MB"),
            ("max_wal_size", "512MB"),
            ("wal_keep_size", "128MB"),
            ("password_encryption", "scram-sha-256"),
            ("log_line_prefix", "%m [%p] %q%a@%d "),
            ("timezone", "UTC"),
        ];
        let mut settings: Vec<(String, String)> =
            fixed.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        settings.push(("port".into(), node.port.to_string()));
        settings.push(("unix_socket_directories".into(), node.socket_dir.to_string_lossy().into_owned()));
        settings.push(("fsync".into(), if self.options.fsync { "on" } else { "off" }.into()));
        settings.extend(self.options.settings.iter().cloned());
        settings
    }

    /// Clones a node from the primary and lets it stream from there, by a slot of its own.
    ///
    /// # Errors
    /// When a program fails; with what it said.
    pub async fn make_replica(&self, base: &Base, replica: &Server) -> Result<()> {
        let primary = self.primary();
        let slot = format!("standby_{}", replica.name);
        let upstream = format!(
            "host={} port={} user={REPLICATOR} passfile={} application_name={}",
            primary.address,
            primary.port,
            self.passfile.display(),
            replica.name
        );
        let mut arguments = vec![
            "-d".to_owned(),
            upstream,
            "-D".to_owned(),
            replica.data_dir.to_string_lossy().into_owned(),
            format!("--slot={slot}"),
        ];
        arguments.extend(["-C", "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"].map(str::to_owned));
        for space in &self.options.tablespaces {
            let (from, to) =
                (tablespace_dir(base, &primary.name, space), tablespace_dir(base, &replica.name, space));
            arguments.push(format!("-T{}={}", from.display(), to.display()));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        base.run(replica.bin_dir.join("pg_basebackup"), &arguments).await?;
        let conf = replica.data_dir.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&conf)?;
        text.push_str(&format!(
            "\n# replica {}\nport = '{}'\nunix_socket_directories = '{}'\n",
            replica.name,
            replica.port,
            replica.socket_dir.display()
        ));
        base.user.write(&conf, &text, 0o600)?;
        replica.start(base).await?;
        replica.catch_up(primary).await
    }
}

/// Where a tablespace lies on a host.
pub fn tablespace_dir(base: &Base, host: &str, space: &str) -> PathBuf {
    base.join(format!("{host}/space/{space}"))
}
