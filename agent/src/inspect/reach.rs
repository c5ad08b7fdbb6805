//! Whether another node's PostgreSQL can be reached from here, the way standbys and subscriptions will reach it:
//! by libpq, with its password file and TLS mode.

use pgleap_proto::agent::ReachFacts;
use pgleap_proto::node::{Conninfo, Node};

use crate::pg;

pub(super) async fn facts(node: &Node, target: &Conninfo) -> ReachFacts {
    let sql = format!("{} connect_timeout=10", pg::conninfo(target, Some("postgres"), "pgleap"));
    let replication = format!("{} replication=true connect_timeout=10", pg::conninfo(target, None, "pgleap"));
    let (sql, replication) =
        tokio::join!(ask(node, &sql, "SELECT 1"), ask(node, &replication, "IDENTIFY_SYSTEM"));
    ReachFacts { target: Some(target.clone()), sql_error: sql, replication_error: replication }
}

/// The error of the statement; empty when it works.
async fn ask(node: &Node, conninfo: &str, statement: &str) -> String {
    let psql =
        pg::program(node, "psql").args(["-X", "-A", "-t", "-q", "-w", "-d", conninfo, "-c", statement]);
    match psql.run().await {
        Ok(_) => String::new(),
        Err(error) => error.message,
    }
}
