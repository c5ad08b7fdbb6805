//! SQL over the node's own unix socket, as its superuser. Credentials never leave the host because none are needed.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
pub use pgleap_proto::quote::{ident, literal};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{Doing, Result, StepError};
use crate::wait::Wait;

/// Longest wait for a connection: the socket is local, so this only bounds a hung server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may take from its start until it lets somebody in, after which an error says what it says.
const STARTING: Duration = Duration::from_secs(60);

/// How long a connection may take to say goodbye after it was dropped; one that waits for an answer is then cut off.
const GOODBYE: Duration = Duration::from_secs(5);

/// Ends these processes. To be prepared: see [`Session::fetch`].
pub const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS t(pid)";

/// A connection; closed when dropped, with a goodbye, so that the server's log does not speak of a lost client.
pub struct Session {
    // Dropped in this order: without its client the driver ends by itself, and only then is it given a limit.
    client: Client,
    _closed: DropGuard,
    prepared: Mutex<HashMap<&'static str, Statement>>,
}

impl Session {
    /// Prepares a statement, once in this session.
    ///
    /// # Errors
    /// With the server's words.
    pub async fn ready(&self, sql: &'static str) -> std::result::Result<Statement, tokio_postgres::Error> {
        let known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(sql, statement.clone());
        Ok(statement)
    }

    /// As `query`, of a statement that is prepared once in this session: for what is asked again and again, or while clients
    /// wait. Catalogs only: a plan outlives changes of a user's table.
    ///
    /// # Errors
    /// With the server's words.
    pub async fn fetch(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> std::result::Result<Vec<Row>, tokio_postgres::Error> {
        self.client.query(&self.ready(sql).await?, parameters).await
    }

    /// As [`Session::fetch`], of exactly one row.
    ///
    /// # Errors
    /// With the server's words, or when it is not one row.
    pub async fn fetch_one(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> std::result::Result<Row, tokio_postgres::Error> {
        self.client.query_one(&self.ready(sql).await?, parameters).await
    }
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Connects to one database of the node. `search_path` is emptied, so that nothing in a user's schema can stand in
/// for a catalog function; names in statements must be qualified or come from `pg_catalog`.
///
/// # Errors
/// Names node, database, socket and the server's own words.
pub async fn connect(node: &Node, database: &str) -> Result<Session> {
    let doing = || {
        format!(
            "connecting to database \"{database}\" of node {} (port {}, socket directory {})",
            node.name, node.port, node.socket_dir
        )
    };
    let port = u16::try_from(node.port).doing(doing)?;
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(&node.socket_dir)
        .port(port)
        .user(&node.superuser)
        .dbname(database)
        .application_name("pgleap")
        .connect_timeout(CONNECT_TIMEOUT);
    let connected = config.connect(NoTls).await;
    let absent = connected.as_ref().err().is_some_and(is_absent);
    let mut connected = connected.doing(doing);
    if absent && let Err(error) = &mut connected {
        error.message.push_str("; its server does not run: start it, then retry");
    }
    let (client, connection) = connected?;
    let closed = CancellationToken::new();
    tokio::spawn(drive(connection, closed.clone()));
    let _closed = closed.drop_guard();
    client
        .batch_execute(
            // What a role's or a database's defaults could otherwise bring along; the last two do not exist everywhere.
            "SET search_path = ''; SET statement_timeout = 0; SET lock_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0; SET client_min_messages = warning; \
             SET default_transaction_read_only = off; SET default_transaction_isolation = 'read committed'; \
             SELECT set_config(name, '0', false) FROM pg_settings \
             WHERE name IN ('transaction_timeout', 'idle_session_timeout')",
        )
        .await
        .doing(doing)?;
    Ok(Session { client, _closed, prepared: Mutex::default() })
}

/// Nobody listens at the socket, or there is none.
fn is_absent(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

/// Moves the connection's messages until it ends, or for a moment after it was dropped.
async fn drive<C: Future<Output = std::result::Result<(), tokio_postgres::Error>>>(
    connection: C,
    closed: CancellationToken,
) {
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = closed.cancelled() => tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(())),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Connects to a database that is there on nearly every server: `postgres`, or else `template1`.
///
/// # Errors
/// As [`connect`], for `postgres`.
pub async fn connect_any(node: &Node) -> Result<Session> {
    match connect(node, "postgres").await {
        Ok(session) => Ok(session),
        Err(error) => connect(node, "template1").await.map_err(|_| error),
    }
}

/// As [`connect_any`], to a server whose postmaster runs but which may not let anybody in yet: an agent that was
/// killed while it started one finds it so.
///
/// # Errors
/// The last refusal, after a minute.
pub async fn connect_running(node: &Node) -> Result<Session> {
    let wait = Wait::of(STARTING);
    loop {
        match connect_any(node).await {
            Err(_) if wait.again().await => {}
            other => return other,
        }
    }
}

/// Whether the server is in recovery: a standby, or not promoted yet.
///
/// # Errors
/// When it cannot be asked.
pub async fn in_recovery(session: &Session) -> Result<bool> {
    let row = session.query_one("SELECT pg_is_in_recovery()", &[]).await;
    Ok(row.doing(|| "asking whether the server is in recovery")?.get(0))
}

/// Which of these databases exist and accept connections, in the given order.
///
/// # Errors
/// When the server cannot be asked.
pub async fn existing(node: &Node, databases: &[String]) -> Result<Vec<String>> {
    let session = connect_any(node).await?;
    let sql = "SELECT datname::text FROM pg_database WHERE datallowconn AND datname::text = ANY ($1)";
    let rows = session.query(sql, &[&databases]).await.doing(|| "listing databases")?;
    let found: std::collections::HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(databases.iter().filter(|name| found.contains(*name)).cloned().collect())
}

/// A `pg_lsn` column, which must be selected as text (`lsn::text`); NULL is [`Lsn::INVALID`].
///
/// # Errors
/// When the column is not an LSN.
pub fn lsn(row: &Row, column: &str) -> Result<Lsn> {
    let text: Option<&str> = row.try_get(column).doing(|| format!("column {column}"))?;
    text.map_or(Ok(Lsn::INVALID), |t| t.parse().map_err(|e| StepError::new(format!("column {column}: {e}"))))
}
