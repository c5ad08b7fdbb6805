//! HAProxy's runtime socket: one command a connection, and its tables read by the names of their columns.

use std::collections::HashMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::error::{Doing, Result, StepError};

/// Longest wait for an answer: the socket is local.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer, in bytes.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Bits of `srv_admin_state` that keep reads away: maintenance (0x01, 0x02, 0x04, 0x20, 0x40) and drain (0x08, 0x10), whoever
/// ordered it (HAProxy's server-t.h, `SRV_ADMF_*`).
const OUT_OF_SERVICE: u32 = 0x7f;
/// `srv_op_state`: running, and starting (slowstart); stopped is 0, stopping (soft-stop, serves no new ones) is 3.
const RUNNING: [u32; 2] = [1, 2];

/// One server of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// User's weight: as configured or set, not scaled by slowstart or agent checks.
    pub weight: u32,
    /// It is sent new sessions, weight permitting.
    pub up: bool,
    /// In HAProxy's words: "UP", "DOWN 1/2", "MAINT", …
    pub check: String,
    /// Sessions now.
    pub sessions: u64,
    /// Sessions since HAProxy started, reloaded or its counters were cleared.
    pub sessions_total: u64,
}

/// A runtime socket.
#[derive(Debug, Clone, Copy)]
pub struct Runtime<'a>(pub &'a str);

impl Runtime<'_> {
    /// Sends one command and returns all that is answered.
    ///
    /// # Errors
    /// When nobody answers on the socket.
    pub async fn ask(&self, command: &str) -> Result<String> {
        let path = self.0;
        let exchange = async {
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(format!("{command}\n").as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(LONGEST).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let cure = "is HAProxy running, and does `stats socket` in its configuration name this path and let the agent's user in?";
        let doing = || format!("asking HAProxy on its runtime socket {path} ({cure})");
        let answer = tokio::time::timeout(TIMEOUT, exchange).await.doing(doing)?.doing(doing)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Whether anybody listens on the socket at all.
    pub async fn is_gone(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        UnixStream::connect(self.0)
            .await
            .is_err_and(|error| matches!(error.kind(), ConnectionRefused | NotFound))
    }

    /// Refuses a socket on which weights cannot be set.
    ///
    /// # Errors
    /// When the level is not admin.
    pub async fn require_admin(&self) -> Result<()> {
        let level = self.ask("show cli level").await?;
        if level.trim() == "admin" {
            return Ok(());
        }
        Err(StepError::new(format!(
            "HAProxy's runtime socket {} has level \"{}\", which may not set weights: give the `stats socket` line `level admin` and \
             reload HAProxy",
            self.0,
            level.trim()
        )))
    }

    /// The servers of a backend, in its order.
    ///
    /// # Errors
    /// When HAProxy does not answer, or the backend is unknown.
    pub async fn servers(&self, backend: &str) -> Result<Vec<ServerStatus>> {
        plain("backend", backend)?;
        let states = self.ask(&format!("show servers state {backend}")).await?;
        let states = table(states.lines().skip_while(|line| !line.starts_with('#')), ' ')
            .ok_or_else(|| self.odd("show servers state", backend, &states))?;
        // Type 4: servers only.
        let figures = self.ask(&format!("show stat {backend} 4 -1")).await?;
        let figures = table(figures.lines(), ',').ok_or_else(|| self.odd("show stat", backend, &figures))?;
        let status = |row: &Row| status(row, &figures);
        states.iter().map(status).collect::<Option<Vec<_>>>().ok_or_else(|| {
            StepError::new(format!(
                "HAProxy on {} lacks columns that this agent reads (srv_name, srv_op_state, srv_admin_state, srv_uweight; status, scur, \
                 stot): its version is not known to work",
                self.0
            ))
        })
    }

    /// Sets a server's weight.
    ///
    /// # Errors
    /// With HAProxy's words when it refuses.
    pub async fn set_weight(&self, backend: &str, server: &str, weight: u32) -> Result<()> {
        plain("backend", backend)?;
        plain("server", server)?;
        let said = self.ask(&format!("set server {backend}/{server} weight {weight}")).await?;
        let said = said.trim();
        if said.is_empty() {
            return Ok(());
        }
        Err(StepError::new(format!(
            "HAProxy on {} refuses to give {backend}/{server} the weight {weight}: {said}",
            self.0
        )))
    }

    fn odd(&self, command: &str, backend: &str, answer: &str) -> StepError {
        StepError::new(format!(
            "HAProxy on {} does not answer `{command} {backend}` with a table: \"{}\"; does it have that backend?",
            self.0,
            answer.trim()
        ))
    }
}

/// A name that cannot end a command or begin another. HAProxy allows no others (cfgparse.c, `invalid_char`).
fn plain(what: &str, name: &str) -> Result<()> {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if !name.is_empty() && name.chars().all(known) {
        return Ok(());
    }
    Err(StepError::new(format!(
        "\"{name}\" cannot be the name of a {what} of HAProxy; cancel, correct the fleet file and apply it, start again"
    )))
}

type Row = HashMap<String, String>;

/// A table whose first line, after "# ", names the columns.
fn table<'t>(mut lines: impl Iterator<Item = &'t str>, separator: char) -> Option<Vec<Row>> {
    let header = lines.next()?.strip_prefix('#')?.trim();
    let names: Vec<&str> = header.split(separator).collect();
    let row = |line: &str| {
        let fields = line.split(separator).map(str::to_owned);
        names.iter().map(|name| (*name).to_owned()).zip(fields).collect()
    };
    Some(lines.filter(|line| !line.trim().is_empty()).map(row).collect())
}

fn status(row: &Row, figures: &[Row]) -> Option<ServerStatus> {
    let name = row.get("srv_name")?;
    let number = |column: &str| row.get(column)?.parse::<u32>().ok();
    let figures = figures.iter().find(|figures| figures.get("svname") == Some(name))?;
    let count = |column: &str| figures.get(column)?.parse().ok();
    let (op, admin) = (number("srv_op_state")?, number("srv_admin_state")?);
    Some(ServerStatus {
        name: name.clone(),
        weight: number("srv_uweight")?,
        up: RUNNING.contains(&op) && admin & OUT_OF_SERVICE == 0,
        check: figures.get("status")?.clone(),
        sessions: count("scur")?,
        sessions_total: count("stot")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight\n\
        3 reads 1 o2 127.0.0.1 2 0 90 1\n3 reads 2 n2 127.0.0.1 0 0 10 1\n3 reads 3 n3 127.0.0.1 2 8 10 1\n\n";
    const FIGURES: &str = "# pxname,svname,scur,stot,status,\nreads,o2,3,40,UP,\nreads,n2,0,2,DOWN 1/2,\nreads,n3,0,0,DRAIN,\n\n";

    #[test]
    fn tables_are_read_by_the_names_of_their_columns() {
        let states = table(STATES.lines().skip_while(|line| !line.starts_with('#')), ' ').unwrap();
        let figures = table(FIGURES.lines(), ',').unwrap();
        let read: Vec<ServerStatus> = states.iter().map(|row| status(row, &figures).unwrap()).collect();
        assert_eq!(
            read[0],
            ServerStatus {
                name: "o2".into(),
                weight: 90,
                up: true,
                check: "UP".into(),
                sessions: 3,
                sessions_total: 40
            }
        );
        assert_eq!((read[1].up, read[1].check.as_str()), (false, "DOWN 1/2"));
        assert!(!read[2].up, "drained by somebody");
        assert!(table("Can't find backend.\n".lines(), ' ').is_none());
        assert!(table("".lines(), ' ').is_none());
        let short = STATES.replace("srv_uweight", "other");
        let short = table(short.lines().skip(1), ' ').unwrap();
        assert_eq!(status(&short[0], &figures), None);
    }

    #[test]
    fn a_name_is_no_command() {
        for name in ["", "a b", "a;shutdown", "a\nb", "a/b"] {
            assert!(plain("server", name).is_err(), "{name:?}");
        }
        plain("server", "pg-1.a_b:5432").unwrap();
    }
}
