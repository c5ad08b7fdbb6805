//! Clients that write through a pooler all the time, and remember every failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio_postgres::NoTls;

/// Clients that go on until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<Result<(), String>>>,
}

impl Load {
    /// So many clients for each alias; a quarter of them uses a transaction of several statements.
    pub fn start(port: u16, aliases: &[&str], each: usize) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for (number, alias) in aliases.iter().cycle().take(aliases.len() * each).enumerate() {
            let (stop, done, alias) = (stop.clone(), done.clone(), (*alias).to_owned());
            clients.push(tokio::spawn(async move {
                let failed = |error: tokio_postgres::Error| format!("{alias}: {error:?}");
                let (client, connection) = connect(port, &alias).await.map_err(failed)?;
                tokio::spawn(connection);
                let statement = match number % 4 {
                    0 => "BEGIN; SELECT count(*) FROM t WHERE false; INSERT INTO t DEFAULT VALUES; COMMIT",
                    _ => "INSERT INTO t DEFAULT VALUES",
                };
                while !stop.load(Ordering::SeqCst) {
                    client.simple_query(statement).await.map_err(failed)?;
                    done.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            }));
        }
        Load { stop, done, clients }
    }

    /// Waits until so many more have been acknowledged.
    pub async fn more(&self, count: u64) {
        let wanted = self.done() + count;
        crate::world::eventually("clients make progress", async || self.done() >= wanted || self.failed())
            .await;
    }

    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn failed(&self) -> bool {
        self.clients.iter().any(tokio::task::JoinHandle::is_finished)
    }

    /// Stops them; none may have failed. Returns how many were acknowledged.
    pub async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.unwrap().unwrap();
        }
        self.done.load(Ordering::SeqCst)
    }
}

type Connected = (
    tokio_postgres::Client,
    tokio_postgres::Connection<tokio_postgres::Socket, tokio_postgres::tls::NoTlsStream>,
);

/// A client of the pooler, over TCP.
pub async fn connect(port: u16, alias: &str) -> Result<Connected, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").dbname(alias).connect(NoTls).await
}
