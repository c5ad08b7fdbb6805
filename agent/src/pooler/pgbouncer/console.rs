//! PgBouncer's admin console over a process's own unix socket: simple protocol only, columns by name, because they
//! differ between versions.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use pgleap_proto::traffic::PgBouncer;
use tokio::net::UnixStream;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{Doing, Result, StepError};

/// Longest wait for a connection to a local process.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the answer to anything but PAUSE.
const ANSWER: Duration = Duration::from_secs(5);

/// One connection; cut off when dropped, whatever it waits for.
pub struct Console {
    client: Client,
    socket: String,
    _closed: DropGuard,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Console({})", self.socket)
    }
}

fn socket(pgbouncer: &PgBouncer) -> String {
    format!("{}/.s.PGSQL.{}", pgbouncer.socket_dir, pgbouncer.port)
}

/// Whether nobody listens on the process's socket: it does not run.
pub async fn is_down(pgbouncer: &PgBouncer) -> bool {
    let connected = UnixStream::connect(Path::new(&socket(pgbouncer))).await;
    connected.is_err_and(|e| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}

impl Console {
    /// Connects.
    ///
    /// # Errors
    /// Names socket, user, reason and cure.
    pub async fn open(pgbouncer: &PgBouncer) -> Result<Console> {
        let socket = socket(pgbouncer);
        let doing = || {
            format!(
                "connecting to the admin console of PgBouncer at {socket} as user \"{user}\" (is it running, are \
                 unix_socket_dir and listen_port those of the fleet file, is \"{user}\" one of its admin_users and let in \
                 without a password? user = \"pgbouncer\" is, for the operating system user that PgBouncer runs as)",
                user = pgbouncer.user
            )
        };
        let port = u16::try_from(pgbouncer.port).doing(doing)?;
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&pgbouncer.socket_dir)
            .port(port)
            .user(&pgbouncer.user)
            .dbname("pgbouncer")
            .application_name("pgleap")
            .connect_timeout(CONNECT);
        let connected = tokio::time::timeout(CONNECT, config.connect(NoTls)).await;
        let (client, connection) = connected.doing(doing)?.doing(doing)?;
        let closed = CancellationToken::new();
        let cut = closed.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = connection => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(Console { client, socket, _closed: closed.drop_guard() })
    }

    /// Whether the process has gone, or has ended the connection.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// A command that waits for others; its time is the caller's.
    ///
    /// # Errors
    /// With PgBouncer's words.
    pub async fn wait_for(&self, command: &str) -> Result<Vec<SimpleQueryRow>> {
        let answer = self.client.simple_query(command).await;
        let messages = answer.doing(|| format!("{command} on PgBouncer at {}", self.socket))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// A command that answers at once.
    ///
    /// # Errors
    /// With PgBouncer's words, or when it does not answer.
    pub async fn ask(&self, command: &str) -> Result<Vec<SimpleQueryRow>> {
        let answer = tokio::time::timeout(ANSWER, self.wait_for(command)).await;
        answer.map_err(|_| {
            StepError::new(format!(
                "PgBouncer at {} did not answer {command} within {} seconds",
                self.socket,
                ANSWER.as_secs()
            ))
        })?
    }
}

/// A column's text; none when the version has no such column, or it is NULL.
pub fn column<'r>(row: &'r SimpleQueryRow, name: &str) -> Option<&'r str> {
    row.try_get(name).ok().flatten()
}

/// A database's name as it must stand in a command.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
