//! Two PostgreSQL servers that stand for the two leaders, PgBouncers, the agent as a process of its own, and a coordinator's
//! client.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgleap_proto::node::Node;
use pgleap_proto::tls::{self, Role, TlsFiles, TlsIdentity};
use pgleap_proto::traffic::traffic_client::TrafficClient;
use pgleap_proto::traffic::{
    ArmPoolerReply, ArmPoolerRequest, InUseRequest, Leader, PauseReply, PauseRequest, PgBouncer, Pooler,
    ResumeReply, ResumeRequest, Side, Ticket, pooler,
};
use tonic::Status;
use tonic::transport::Channel;

use crate::caller::{self, Greeted};
use crate::certificates::Authority;
use crate::leaders::Leaders;
use crate::servers::Servers;

/// Debian's.
pub const PGBOUNCER: &str = "/usr/sbin/pgbouncer";
const AGENT: &str = env!("CARGO_BIN_EXE_pgleap-agent");
pub const OPERATION: &str = "app-abc123";

pub struct World {
    pub servers: Servers,
    pub old: Node,
    pub new: Node,
    pub leaders: Leaders,
    pub leaders_at: String,
    coordinator: TlsIdentity,
    listen: u16,
    pub agent_toml: PathBuf,
    agent: Option<Child>,
    client: Option<TrafficClient<Greeted>>,
    attempt: u64,
}

/// Polls until it is so; a minute at most.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(done.is_ok(), "never happened: {what}");
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl World {
    /// Both servers with the databases `app` and `shop`, each with a table `t`, and an agent that runs.
    pub async fn new() -> World {
        let authority = Authority::new();
        let servers = Servers::new(|tls| authority.issue(tls, Role::Agent, "here"));
        let coordinator = authority.issue(&servers.path("tls-c"), Role::Coordinator, "c1");
        let leaders = Leaders::default();
        let leaders_at = leaders.serve(&authority.issue(&servers.path("tls-l"), Role::Agent, "there")).await;
        let (old, new) = (servers.old_leader("old"), servers.old_leader("new"));
        for node in [&old, &new] {
            for database in ["app", "shop"] {
                servers.sql(node, "postgres", &format!("CREATE DATABASE {database}")).await;
                servers.sql(node, database, "CREATE TABLE public.t (id bigserial)").await;
            }
        }
        let there = |node: Node| Node { host: "there".into(), ..node };
        let listen = free_port();
        let agent_toml = servers.path("agent.toml");
        let root = agent_toml.parent().unwrap().display().to_string();
        let text = format!(
            "host = \"here\"\nlisten = \"127.0.0.1:{listen}\"\nstate_dir = \"{root}/state\"\ntls_dir = \"{root}/tls\"\n\
             roots = [\"{root}\"]\n"
        );
        std::fs::write(&agent_toml, text).unwrap();
        let mut world = World {
            old: there(old),
            new: there(new),
            servers,
            leaders,
            leaders_at,
            coordinator,
            listen,
            agent_toml,
            agent: None,
            client: None,
            attempt: 0,
        };
        world.start_agent().await;
        world
    }

    pub async fn start_agent(&mut self) {
        std::fs::create_dir_all(self.servers.path("fp")).unwrap();
        let log =
            std::fs::File::options().create(true).append(true).open(self.servers.path("agent.log")).unwrap();
        // With the widest umask: what is private is made so.
        let child = Command::new("/bin/sh")
            .args(["-c", "umask 000; exec \"$0\" \"$@\"", AGENT, "run", "--config"])
            .arg(&self.agent_toml)
            .env("PGLEAP_FAILPOINTS", self.servers.path("fp"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
        let endpoint = tls::endpoint(&format!("127.0.0.1:{}", self.listen)).unwrap();
        let mut connected = None;
        eventually("the agent serves", async || {
            connected = self.coordinator.connect(&endpoint, Role::Agent, "here").await.ok();
            connected.is_some()
        })
        .await;
        self.client = Some(TrafficClient::new(caller::greet(connected.unwrap()).await));
    }

    /// A connection to the agent as the other agent, which may not give orders.
    pub async fn wrong_role(&self) -> TrafficClient<Channel> {
        let identity = TlsFiles::in_directory(&self.servers.path("tls-l")).load().unwrap();
        let endpoint = tls::endpoint(&format!("127.0.0.1:{}", self.listen)).unwrap();
        TrafficClient::new(identity.connect(&endpoint, Role::Agent, "here").await.unwrap())
    }

    /// As by SIGKILL.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Asks the agent to do something at a failpoint.
    pub fn failpoint(&self, name: &str, kind: &str) {
        std::fs::write(self.servers.path("fp").join(format!("{name}.{kind}")), "").unwrap();
    }

    pub fn leader(&self, node: &Node) -> Option<Leader> {
        Some(Leader { node: Some(node.clone()), agent: self.leaders_at.clone() })
    }

    fn traffic(&self) -> TrafficClient<Greeted> {
        self.client.clone().unwrap()
    }

    fn ticket(&self) -> Option<Ticket> {
        Some(Ticket { operation: OPERATION.into(), term: 1, attempt: self.attempt })
    }

    /// Under a new ticket.
    pub async fn arm(&mut self, pooler: &Pooler, to: Side) -> Result<ArmPoolerReply, Status> {
        self.attempt += 1;
        self.arm_again(pooler, to).await
    }

    /// Under the same ticket as the last one: a second pooler of the same try.
    pub async fn arm_again(&mut self, pooler: &Pooler, to: Side) -> Result<ArmPoolerReply, Status> {
        let (source, target) = if to == Side::New { (&self.old, &self.new) } else { (&self.new, &self.old) };
        let request = ArmPoolerRequest {
            ticket: self.ticket(),
            pooler: Some(pooler.clone()),
            source: self.leader(source),
            target: self.leader(target),
            refuse_session_pools: true,
        };
        self.traffic().arm_pooler(request).await.map(tonic::Response::into_inner)
    }

    pub async fn pause(&self, pooler: &Pooler, acquire_ms: u64, hold_ms: u64) -> Result<PauseReply, Status> {
        let (ticket, pooler) = (self.ticket(), pooler.name.clone());
        let request = PauseRequest { ticket, pooler, acquire_ms, hold_ms };
        self.traffic().pause(request).await.map(tonic::Response::into_inner)
    }

    /// Server processes that would hold up a pause.
    pub async fn in_use(&self, pooler: &Pooler) -> Result<Vec<i32>, Status> {
        let request = InUseRequest { ticket: self.ticket(), pooler: pooler.name.clone() };
        Ok(self.traffic().in_use(request).await?.into_inner().pids)
    }

    pub async fn resume(&self, pooler: &Pooler, to: Side) -> Result<ResumeReply, Status> {
        let request = ResumeRequest {
            ticket: self.ticket(),
            pooler: pooler.name.clone(),
            to: to.into(),
            definition: Some(pooler.clone()),
            old_leader: self.leader(&self.old),
            new_leader: self.leader(&self.new),
        };
        self.traffic().resume(request).await.map(tonic::Response::into_inner)
    }

    /// Rows of both databases on a server.
    pub async fn rows(&self, node: &Node) -> u64 {
        let mut rows = 0;
        for database in ["app", "shop"] {
            let count = self.servers.ask(node, database, "SELECT count(*) FROM public.t").await;
            rows += count.parse::<u64>().unwrap();
        }
        rows
    }

    /// A PgBouncer with these entries; more of `[pgbouncer]` behind them.
    pub async fn bouncer(&self, name: &str, port: u16, databases: &str, settings: &str) -> Bouncer {
        let dir = self.servers.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        let users = dir.join("users");
        std::fs::write(&users, "\"adm\" \"\"\n\"eye\" \"\"\n\"postgres\" \"\"\n").unwrap();
        let config = dir.join("pgbouncer.ini");
        let text = format!(
            "; made for {name}\n[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir = {dir}\nauth_type = trust\nauth_file = {users}\nadmin_users = adm\nstats_users = eye\n\
             pool_mode = transaction\nmax_client_conn = 200\nlogfile = {dir}/log\n{settings}",
            dir = dir.display(),
            users = users.display(),
        );
        std::fs::write(&config, text).unwrap();
        let mut bouncer = Bouncer { dir, config, port, child: None };
        bouncer.start().await;
        bouncer
    }

    /// `host=… port=…` of a node.
    pub fn reach(node: &Node) -> String {
        format!("host={} port={}", node.address, node.port)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if std::thread::panicking() {
            println!(
                "--- agent\n{}",
                std::fs::read_to_string(self.servers.path("agent.log")).unwrap_or_default()
            );
        }
    }
}

/// A PgBouncer that is ended with the test.
pub struct Bouncer {
    dir: PathBuf,
    pub config: PathBuf,
    pub port: u16,
    child: Option<Child>,
}

impl Bouncer {
    pub async fn start(&mut self) {
        let child = Command::new(PGBOUNCER)
            .arg(&self.config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("PgBouncer listens", async || self.try_ask("SHOW VERSION").await.is_ok()).await;
    }

    /// As by SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn pooler(&self, name: &str) -> Pooler {
        self.pooler_as(name, "adm")
    }

    pub fn pooler_as(&self, name: &str, user: &str) -> Pooler {
        let definition = PgBouncer {
            config: self.config.display().to_string(),
            socket_dir: self.dir.display().to_string(),
            port: self.port.into(),
            user: user.into(),
        };
        Pooler { name: name.into(), kind: Some(pooler::Kind::Pgbouncer(definition)) }
    }

    async fn try_ask(&self, command: &str) -> Result<Vec<Vec<(String, String)>>, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.dir).port(self.port).user("adm").dbname("pgbouncer");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let messages = client.simple_query(command).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let text = |row: tokio_postgres::SimpleQueryRow| {
            let columns = row.columns().iter().map(|column| column.name().to_owned()).enumerate();
            columns.map(|(at, name)| (name, row.get(at).unwrap_or_default().to_owned())).collect()
        };
        Ok(rows.map(text).collect())
    }

    /// `name -> port, paused` of its databases, in order.
    pub async fn databases(&self) -> Vec<(String, u32, bool)> {
        let rows = self.try_ask("SHOW DATABASES").await.unwrap();
        let found = rows.into_iter().map(|row| {
            let get = |name: &str| row.iter().find(|(column, _)| column == name).unwrap().1.clone();
            (get("name"), get("port").parse().unwrap(), get("paused") == "1")
        });
        found.filter(|(name, ..)| name != "pgbouncer").collect()
    }

    /// Whether every one of these reaches the node, unpaused.
    pub async fn serves(&self, aliases: &[&str], node: &Node) -> bool {
        let databases = self.databases().await;
        aliases.iter().all(|alias| databases.contains(&((*alias).to_owned(), node.port, false)))
    }

    pub async fn ask(&self, command: &str) {
        self.try_ask(command).await.unwrap();
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.config).unwrap()
    }

    /// Files in its directory that pgleap made.
    pub fn left_over(&self) -> Vec<String> {
        left_over(&self.dir)
    }
}

pub fn left_over(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("pgleap")).collect()
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
