//! `pgleap start`: begins an operation, or a rollout of many.

use clap::Args;
use pgleap_proto::fleet::{StartRequest, StartRolloutReply, StartRolloutRequest};

use super::client::request_id;
use super::output::{Out, Tone};
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Start {
    /// Cluster of the fleet file; several make a rollout, in the waves of the fleet file
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// A rollout of every cluster that is in no operation and was not finished
    #[arg(long)]
    all: bool,
    /// Start although `check` has warnings
    #[arg(long)]
    accept_warnings: bool,
    /// Of many, start those that are ready, and only tell of the others
    #[arg(long)]
    ready_only: bool,
}

impl Start {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        match (&self.clusters[..], self.all) {
            ([only], false) => self.one(connection, out, only).await,
            _ => self.many(connection, out).await,
        }
    }

    async fn one(&self, connection: &Connection, out: &mut Out, cluster: &str) -> Outcome {
        let request = StartRequest {
            cluster: cluster.to_owned(),
            request_id: request_id(),
            accept_warnings: self.accept_warnings,
        };
        let reply = connection.open().await?.start(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.operation)?;
        if reply.waits_for.is_empty() {
            out.talk(&format!(
                "started; next: pgleap watch {cluster}   (take it back: pgleap cancel {cluster})"
            ));
        } else {
            out.talk(&format!(
                "queued: {}; it begins by itself; next: pgleap watch {cluster}   (give it up: pgleap cancel {cluster})",
                reply.waits_for
            ));
        }
        Ok(())
    }

    async fn many(&self, connection: &Connection, out: &mut Out) -> Outcome {
        let request = StartRolloutRequest {
            clusters: self.clusters.clone(),
            all: self.all,
            request_id: request_id(),
            accept_warnings: self.accept_warnings,
            ready_only: self.ready_only,
        };
        let reply = connection.open().await?.start_rollout(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        let StartRolloutReply { rollout, operations, unready } = reply;
        out.line(&rollout)?;
        let waves = operations.iter().map(|operation| operation.wave).max().unwrap_or_default();
        for wave in 1..=waves {
            let clusters: Vec<&str> =
                operations.iter().filter(|one| one.wave == wave).map(|one| one.cluster.as_str()).collect();
            out.talk(&format!("  wave {wave}: {}: {}", clusters.len(), clusters.join(" ")));
        }
        for left_out in &unready {
            let first = left_out.problems.first().map_or("", String::as_str);
            out.talk(&out.paint(Tone::Warn, &format!("  left out: {}: {first}", left_out.cluster)));
        }
        out.talk(&format!(
            "{} operations are queued and begin by themselves; next: pgleap status {rollout}   (stop it: pgleap hold {rollout})",
            operations.len()
        ));
        Ok(())
    }
}
