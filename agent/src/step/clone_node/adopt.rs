//! Whether what lies in a node's data directory already is the standby that is wanted: then nothing is cloned.

use std::path::Path;

use pgleap_proto::node::{Conninfo, Node};

use crate::context::Context;
use crate::error::{Result, StepError};
use crate::pg::ctl::{self, ServerState};
use crate::pg::{control, marker, sql, standby, upstream};

/// Passes when the directory holds a running standby that streams, or a stopped one, of the same cluster.
///
/// # Errors
/// What it is instead, and what to do.
pub(super) async fn check(
    cx: &Context,
    node: &Node,
    upstream: &Conninfo,
    system_identifier: u64,
) -> Result<()> {
    let data_dir = Path::new(&node.data_dir);
    let refuse = |what: String| {
        StepError::new(format!(
            "{} on host {} is not empty and not a standby that could be adopted as node {}: {what}; empty the \
             directory to have it cloned and retry, or cancel, give another one in the fleet file and apply it, start again",
            node.data_dir, cx.config.host, node.name
        ))
    };
    if !data_dir.join("PG_VERSION").exists() {
        return Err(refuse("it is no data directory of PostgreSQL".to_owned()));
    }
    let version = std::fs::read_to_string(data_dir.join("PG_VERSION")).unwrap_or_default();
    if version.trim() != node.major.to_string() {
        return Err(refuse(format!("it is of PostgreSQL {}, not {}", version.trim(), node.major)));
    }
    let control = control::read(node, data_dir).await.map_err(|error| refuse(error.message))?;
    let wanted = match system_identifier {
        0 => upstream::identify(node, upstream).await?.system_identifier,
        wanted => wanted,
    };
    if control.system_identifier != wanted {
        return Err(refuse(format!(
            "its system identifier is {}, that of the old cluster {wanted}",
            control.system_identifier
        )));
    }
    if ctl::manager(cx, node).state().await? == ServerState::Stopped {
        let is_standby = data_dir.join("standby.signal").exists();
        if is_standby && matches!(control.state.as_str(), "shut down in recovery" | "in archive recovery") {
            cx.report.log("pgleap", format!("adopted: a stopped standby in {}", node.data_dir));
            return Ok(());
        }
        return Err(refuse(format!(
            "it is stopped, {} standby.signal and is \"{}\"",
            if is_standby { "has" } else { "has no" },
            control.state
        )));
    }
    let session = sql::connect_any(node).await?;
    if !sql::in_recovery(&session).await? {
        return Err(refuse("it accepts writes".to_owned()));
    }
    if marker::made_by_operation(cx, data_dir)? {
        // By a Patroni. Its leader may just have been started anew; that it streams is for the next step to see.
        cx.report.log("pgleap", format!("taken as it was made: the standby in {}", node.data_dir));
        return Ok(());
    }
    let receiver = standby::receiver(&session).await?;
    if !receiver.is_streaming() {
        return Err(refuse("it does not stream from the old cluster".to_owned()));
    }
    let from = format!("{} port {}", receiver.host, receiver.port);
    cx.report.log("pgleap", format!("adopted: a standby that streams from {from}"));
    Ok(())
}
