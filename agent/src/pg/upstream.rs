//! Questions to a server on another host, asked with the node's own `psql`, so that libpq's password file, TLS and
//! authentication are exactly those that replication will use. Reads only.

use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};
use serde::de::DeserializeOwned;

use super::{conninfo, program};
use crate::error::{Doing, Result, StepError};

/// What a server says of itself over the replication protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Same for a primary and all its physical standbys.
    pub system_identifier: u64,
    /// Current timeline.
    pub timeline: u32,
    /// Flushed position on a primary; on a standby, what it received and flushed (`GetStandbyFlushRecPtr`, walsender.c):
    /// what a standby of it will be sent.
    pub lsn: Lsn,
    /// For example 150018.
    pub version_num: u32,
}

/// Asks with `IDENTIFY_SYSTEM` on a physical replication connection: it needs the very right that a standby's WAL
/// receiver needs, and no database.
///
/// # Errors
/// Names the server and gives libpq's words.
pub async fn identify(node: &Node, upstream: &Conninfo) -> Result<Identity> {
    let target = format!("{} replication='true' connect_timeout='10'", conninfo(upstream, None, "pgleap"));
    let psql = program(node, "psql").args(["-XAtqw", "-F", "|", "-d", &target]);
    let psql = psql.args(["-c", "IDENTIFY_SYSTEM", "-c", "SHOW server_version_num"]);
    let printed = psql.run().await.map_err(|e| unreachable(node, upstream, "for replication", e))?;
    parse_identity(&printed.stdout).ok_or_else(|| {
        StepError::new(format!("{} answered IDENTIFY_SYSTEM with something unknown", place(upstream)))
            .with_evidence(printed.stdout.lines())
    })
}

/// What it has for these settings, asked on the same kind of connection; parallel to the names.
///
/// # Errors
/// As [`identify`].
pub async fn settings(node: &Node, upstream: &Conninfo, names: &[&str]) -> Result<Vec<String>> {
    let target = format!("{} replication='true' connect_timeout='10'", conninfo(upstream, None, "pgleap"));
    let show = names.iter().flat_map(|name| ["-c".to_owned(), format!("SHOW {name}")]);
    let psql = program(node, "psql").args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", &target]).args(show);
    let printed = psql.run().await.map_err(|e| unreachable(node, upstream, "for replication", e))?;
    Ok(printed.stdout.lines().map(str::to_owned).collect())
}

fn parse_identity(text: &str) -> Option<Identity> {
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let mut fields = lines.next()?.split('|');
    Some(Identity {
        system_identifier: fields.next()?.parse().ok()?,
        timeline: fields.next()?.parse().ok()?,
        lsn: fields.next()?.parse().ok()?,
        version_num: lines.next()?.trim().parse().ok()?,
    })
}

/// Runs one query that returns a single JSON value in one row, in one database of another server.
///
/// # Errors
/// Names the server and the database and gives libpq's or the server's words.
pub async fn query<T: DeserializeOwned>(
    node: &Node,
    upstream: &Conninfo,
    database: &str,
    sql: &str,
) -> Result<T> {
    let target = format!("{} connect_timeout='10'", conninfo(upstream, Some(database), "pgleap"));
    let psql = program(node, "psql")
        .env("PGCLIENTENCODING", "UTF8")
        .env("PGOPTIONS", "-c search_path= -c statement_timeout=60000")
        .args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", &target, "-c", sql]);
    let printed = psql
        .run()
        .await
        .map_err(|e| unreachable(node, upstream, &format!("in database \"{database}\""), e))?;
    serde_json::from_str(printed.stdout.trim())
        .doing(|| format!("reading the answer of {} in database \"{database}\"", place(upstream)))
}

/// Refuses a publisher that leads no more: its slots would send nothing to a worker that waits for them (`CheckLogicalDecodingRequirements`).
///
/// # Errors
/// As said, and when it cannot be asked.
pub async fn check_leads(node: &Node, upstream: &Conninfo, database: &str) -> Result<()> {
    let standby: bool = query(node, upstream, database, "SELECT to_json(pg_is_in_recovery())").await?;
    if !standby {
        return Ok(());
    }
    Err(StepError::new(format!(
        "{} is a standby now: the old cluster has failed over; retry, which goes on if its new leader has the slots (failover slots, from 17 \
         on) or the former one leads again; else cancel, then start again",
        place(upstream)
    )))
}

fn unreachable(node: &Node, upstream: &Conninfo, how: &str, error: StepError) -> StepError {
    let said = error.evidence.iter().find(|line| !line.trim().is_empty());
    let said = said.map_or(error.message.as_str(), String::as_str);
    let said = said.trim_start_matches("psql: error: ");
    let cure = if said.contains("Connection refused") {
        "its server does not run (start it, then retry), or listens elsewhere (check address and port)"
    } else {
        "check address, pg_hba.conf, user and password file"
    };
    StepError::new(format!("node {} cannot ask {} {how}: {said}; {cure}", node.name, place(upstream)))
        .with_evidence(error.evidence)
}

/// Where a server is, in words.
pub fn place(upstream: &Conninfo) -> String {
    format!("PostgreSQL at {} port {} as user {}", upstream.host, upstream.port, upstream.user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_identify_system_prints() {
        let identity = parse_identity("7710836073827912541|1|0/3000000|\n150018\n").unwrap();
        assert_eq!(identity.system_identifier, 7_710_836_073_827_912_541);
        assert_eq!((identity.timeline, identity.lsn, identity.version_num), (1, Lsn(0x300_0000), 150_018));
        for text in ["", "7|1|0/3\n", "x|1|0/3|\n150018\n"] {
            assert_eq!(parse_identity(text), None, "{text:?}");
        }
    }
}
