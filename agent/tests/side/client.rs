//! Clients over TCP: single ones, and a crowd that writes to whichever side lets it in and keeps account.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgleap_proto::node::Node;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls};

use crate::pair::DATABASES;
use crate::postgres::Cluster;

pub async fn connect_as(node: &Node, user: &str, database: &str) -> Result<Client, Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(u16::try_from(node.port).unwrap()).user(user).dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub async fn connect(node: &Node, database: &str) -> Result<Client, Error> {
    connect_as(node, "client", database).await
}

/// Whether a client is turned away by the rules for clients.
pub async fn is_kept_out(node: &Node) -> bool {
    match connect(node, "app").await {
        Ok(_) => false,
        Err(error) => error.code().is_some_and(|code| code.code() == "28000"),
    }
}

/// What clients tried and what they were told.
#[derive(Default)]
pub struct Account {
    tried: Mutex<BTreeSet<String>>,
    /// Value and the id drawn for it, by database.
    acknowledged: Mutex<BTreeSet<(usize, String, i64)>>,
    count: AtomicU64,
    over: AtomicBool,
}

pub struct Crowd {
    account: Arc<Account>,
    tasks: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Clients that insert all the time, into either leader, whichever lets them in.
    pub fn start(nodes: [&Cluster; 2], size: usize) -> Crowd {
        let account = Arc::new(Account::default());
        let nodes = nodes.map(|cluster| cluster.node.clone());
        let task = |at: usize| tokio::spawn(write(account.clone(), nodes.clone(), at));
        Crowd { tasks: (0..size).map(task).collect(), account }
    }

    pub fn acknowledged(&self) -> usize {
        self.account.acknowledged.lock().unwrap().len()
    }

    /// Until so many more writes were acknowledged.
    pub async fn more(&self, writes: usize) {
        let goal = self.acknowledged() + writes;
        crate::eventually("clients write", async || self.acknowledged() >= goal).await;
    }

    /// Ends them, and holds what a side has against what clients were told.
    pub async fn stop(self) -> Arc<Account> {
        self.account.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.account
    }
}

impl Account {
    /// Everything acknowledged is there with its id, nothing is there that nobody wrote, nothing twice.
    pub fn check(&self, server: &Cluster) {
        for (at, database) in DATABASES.iter().enumerate() {
            let rows = server.sql(database, "SELECT v || '|' || id FROM t ORDER BY id");
            let rows: Vec<(String, i64)> = rows
                .lines()
                .map(|line| line.split_once('|').map(|(v, id)| (v.to_owned(), id.parse().unwrap())).unwrap())
                .collect();
            let values: BTreeSet<&str> = rows.iter().map(|(v, _)| v.as_str()).collect();
            assert_eq!(values.len(), rows.len(), "a write is there twice on {}", server.node.name);
            let tried = self.tried.lock().unwrap();
            assert!(values.iter().all(|v| tried.contains(*v)), "a write that nobody made");
            let found: BTreeSet<(usize, String, i64)> = rows.into_iter().map(|(v, id)| (at, v, id)).collect();
            let acknowledged = self.acknowledged.lock().unwrap();
            let lost: Vec<_> =
                acknowledged.iter().filter(|row| row.0 == at && !found.contains(row)).collect();
            assert!(
                lost.is_empty(),
                "{} acknowledged writes are lost on {}: {:?}",
                lost.len(),
                server.node.name,
                lost.first()
            );
        }
    }
}

async fn write(account: Arc<Account>, nodes: [Node; 2], at: usize) {
    let database = at % DATABASES.len();
    let mut client: Option<Client> = None;
    let mut node = 0;
    while !account.over.load(Ordering::Relaxed) {
        let Some(connected) = client.as_ref().filter(|client| !client.is_closed()) else {
            client = connect(&nodes[node], DATABASES[database]).await.ok();
            if client.is_none() {
                node = 1 - node;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            continue;
        };
        let value = format!("{at}-{}", account.count.fetch_add(1, Ordering::Relaxed));
        account.tried.lock().unwrap().insert(value.clone());
        let insert = connected.query_one("INSERT INTO t (v) VALUES ($1) RETURNING id", &[&value]).await;
        match insert {
            Ok(row) => {
                account.acknowledged.lock().unwrap().insert((database, value, row.get(0)));
            }
            Err(_) => client = None,
        }
    }
}
