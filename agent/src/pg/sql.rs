//! SQL over the node's own unix socket, as its superuser. Credentials never leave the host because none are needed.

use std::ops::Deref;
use std::time::Duration;

use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use tokio_postgres::{Client, NoTls, Row};

use crate::error::{Doing, Result, StepError};

/// Longest wait for a connection: the socket is local, so this only bounds a hung server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection; closed when dropped.
pub struct Session {
    client: Client,
    _driver: tokio_util::task::AbortOnDropHandle<()>,
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
    let (client, connection) = config.connect(NoTls).await.doing(doing)?;
    let driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    }));
    client
        .batch_execute(
            "SET search_path = ''; SET statement_timeout = 0; SET lock_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0; SET client_min_messages = warning",
        )
        .await
        .doing(doing)?;
    Ok(Session { client, _driver: driver })
}

/// An identifier as it must stand in a statement.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal as it must stand in a statement, whatever `standard_conforming_strings` says.
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A `pg_lsn` column, which must be selected as text (`lsn::text`); NULL is [`Lsn::INVALID`].
///
/// # Errors
/// When the column is not an LSN.
pub fn lsn(row: &Row, column: &str) -> Result<Lsn> {
    let text: Option<&str> = row.try_get(column).doing(|| format!("column {column}"))?;
    text.map_or(Ok(Lsn::INVALID), |t| t.parse().map_err(|e| StepError::new(format!("column {column}: {e}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(ident(r#"we"ird ☃"#), r#""we""ird ☃""#);
        assert_eq!(literal(r"it's \ here"), r" E'it''s \\ here'");
    }
}
