//! A standby that was promoted behind pgleap's back is no way around the fence: client authentication files are not replicated, so
//! the fence of its leader did not come along. While the other side is known to take writes, its own agent fences it.
//!
//! The coordinator is not asked: it may be cut off at that very moment. It lifts only what it set, from a node that is a
//! standby again. A leader's fence is the coordinator's; here it is not touched.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgleap_proto::node::Node;
use pgleap_proto::step::KeepTraffic;

use super::clock::now_us;
use super::keeper::Kept;
use super::lag::Side;
use super::leaders::STALE_US;
use super::record::{self, Guarded};
use super::sampler::Sample;
use crate::config::AgentConfig;
use crate::error::Result;
use crate::fence;
use crate::side::hold;

/// How often the newest sample is judged.
const JUDGE: Duration = Duration::from_millis(250);
/// How long clients may take to leave.
const EVICT: Duration = Duration::from_secs(30);

/// What is to be done to a node that is a standby by its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Fence,
    Lift,
}

/// Pure. What is unknown changes nothing: a fence without need stops a cluster, too.
fn wanted(side: Side, sample: &Sample, now_us: i64) -> Option<Act> {
    let server = sample.server.as_ref().ok().filter(|_| now_us - sample.at_us <= STALE_US)?;
    match (server.in_recovery, sample.fenced?) {
        (false, false) if sample.writer == Some(side.other()) => Some(Act::Fence),
        (true, true) => Some(Act::Lift),
        _ => None,
    }
}

/// Guards one node for as long as it is kept.
pub(super) async fn guard(kept: Arc<Kept>, operation: String, config: Arc<AgentConfig>) {
    let mut told = String::new();
    loop {
        if let Some(act) = kept.sample().and_then(|sample| wanted(kept.side, &sample, now_us())) {
            let done = perform(act, &kept, &operation, &config).await;
            let problem = done.map_or_else(|error| error.message, |()| String::new());
            if problem != told && !problem.is_empty() {
                tracing::error!(
                    node = kept.name(),
                    reason = problem,
                    "a promoted standby cannot be fenced or opened"
                );
            }
            told = problem;
        }
        tokio::time::sleep(JUDGE).await;
    }
}

async fn perform(act: Act, kept: &Kept, operation: &str, config: &AgentConfig) -> Result<()> {
    let node = kept.record.node.clone().unwrap_or_default();
    let _held = hold(&node).await;
    // The undo of the record opens the node under the same lock: nothing may be fenced after it.
    if record::load::<KeepTraffic>(&config.state_dir, operation, &node.name)?.is_none() {
        return Ok(());
    }
    match act {
        Act::Fence => {
            tracing::warn!(
                node = node.name,
                operation,
                "it was a standby and takes writes of its own now, while the other side takes the writes: fenced"
            );
            // First: a fence that nobody remembers would stay.
            record::save(&config.state_dir, operation, &node.name, &Guarded {})?;
            fence::prepare(config, &node, operation, &[]).await?.ensure(EVICT).await.map(drop)
        }
        Act::Lift => open(&config.state_dir, &node, operation).await.map(drop),
    }
}

/// Opens a node if the guard has fenced it, and it is this operation's fence that lies there. Returns what the operator should know.
///
/// # Errors
/// When its file cannot be found or read, or the server does not take it.
pub(crate) async fn open(state_dir: &Path, node: &Node, operation: &str) -> Result<Vec<String>> {
    if record::load::<Guarded>(state_dir, operation, &node.name)?.is_none() {
        return Ok(Vec::new());
    }
    let ours = fence::state(node).await?.operation() == Some(operation);
    let notes = if ours { fence::lift(node, operation).await? } else { Vec::new() };
    record::remove::<Guarded>(state_dir, operation, &node.name)?;
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reads::sampler::Server;
    use pgleap_proto::Lsn;

    fn sample(in_recovery: bool, fenced: Option<bool>, writer: Option<Side>) -> Sample {
        let server = Server {
            in_recovery,
            timeline: 2,
            system_identifier: 7,
            lsn: Lsn(9),
            following: Vec::new(),
            origins: Vec::new(),
            confirmed: Vec::new(),
            slots: Vec::new(),
            receiving: Vec::new(),
        };
        Sample { at_us: 0, server: Ok(server), fenced, scheduler: None, writer, lag: Err("unknown".into()) }
    }

    #[test]
    fn a_promoted_standby_is_fenced_only_while_the_other_side_is_known_to_write() {
        let (open, promoted) = (Some(false), false);
        let wants = |sample: Sample| wanted(Side::Old, &sample, 1);
        assert_eq!(wants(sample(promoted, open, Some(Side::New))), Some(Act::Fence));
        assert_eq!(
            wants(sample(promoted, open, Some(Side::Old))),
            None,
            "the failover of the side that writes"
        );
        assert_eq!(wants(sample(promoted, open, None)), None, "unknown");
        assert_eq!(wants(sample(promoted, None, Some(Side::New))), None, "unknown");
        assert_eq!(wants(sample(promoted, Some(true), Some(Side::New))), None, "done");
        assert_eq!(wants(sample(true, open, Some(Side::New))), None, "a standby");
        assert_eq!(wants(sample(true, Some(true), Some(Side::New))), Some(Act::Lift));
        let old = sample(promoted, open, Some(Side::New));
        assert_eq!(wanted(Side::Old, &old, STALE_US + 1), None, "too long ago");
        let silent = Sample { server: Err("away".into()), ..old };
        assert_eq!(wants(silent), None);
    }
}
