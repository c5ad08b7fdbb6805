//! `start` of many clusters: all are looked at and checked, then they are queued in one entry of the log, in the waves of the fleet file.

use futures::{StreamExt, stream};
use pgleap_proto::fleet::{QueuedStatus, StartRolloutReply, StartRolloutRequest, UnreadyStatus};
use pgleap_proto::tls::Peer;
use tonic::Status;

use super::Api;
use super::error::{cluster, given, refused, reused, spec};
use super::start::new_operation;
use crate::check::{self, ready};
use crate::fleet::{ClusterSpec, FleetSpec, divide};
use crate::names::new_id;
use crate::state::{Command, NewOperation, NewRollout, Rejection, Reply, State, Status as Stands, Wave};

/// Clusters that are looked at side by side. Each has a few hosts, and inspection is work for them, not for the coordinator.
const SIDE_BY_SIDE: usize = 32;

impl Api {
    pub(super) async fn start_many(
        &self,
        peer: &Peer,
        request: StartRolloutRequest,
    ) -> Result<StartRolloutReply, Status> {
        let StartRolloutRequest { clusters, all, request_id, accept_warnings, ready_only } = request;
        let state = self.raft.read().await.map_err(refused)?.state;
        // Repeated after it succeeded: the same answer, without asking the agents again.
        if let Some(reply) = state.requests.get(&request_id) {
            return answer(&state, reply.clone(), &request_id, Vec::new());
        }
        let fleet = spec(&state)?;
        let chosen = choose(&state, &fleet, &clusters, all)?;
        // Owned by its future: a borrow would have to outlive every caller's.
        let checks = chosen.into_iter().cloned().map(|cluster: ClusterSpec| async move {
            let facts = self.agents.facts(&cluster).await;
            let verdict = ready(&check::run(&cluster, &facts), accept_warnings);
            (cluster, verdict)
        });
        let checked: Vec<_> = stream::iter(checks).buffered(SIDE_BY_SIDE).collect().await;
        let (mut operations, mut unready) = (Vec::new(), Vec::new());
        for (cluster, verdict) in checked {
            match verdict {
                Ok(()) => operations.push(new_operation(&cluster, new_id(&cluster.name))),
                Err(why) => {
                    unready.push(UnreadyStatus { cluster: cluster.name, problems: why.lines });
                }
            }
        }
        if operations.is_empty() || !(unready.is_empty() || ready_only) {
            return Err(Status::failed_precondition(told(&unready)));
        }
        let rollout = in_waves(&fleet, &mut operations);
        let generation = state.generation();
        let command = Command::Queue { operations, rollout: Some(rollout), generation, accept_warnings };
        let reply = self.raft.propose(&peer.to_string(), given(&request_id), command).await;
        answer(&self.raft.latest().state, reply.map_err(refused)?, &request_id, unready)
    }
}

/// The clusters that were named; with `all`, those that have nothing before them. In the order of the file.
fn choose<'f>(
    state: &State,
    fleet: &'f FleetSpec,
    names: &[String],
    all: bool,
) -> Result<Vec<&'f ClusterSpec>, Status> {
    if all != names.is_empty() {
        return Err(Status::invalid_argument("name clusters, or all of them with --all"));
    }
    if !all {
        for name in names {
            cluster(fleet, name)?;
            if let Some(busy) = state.active().find(|operation| operation.plan.cluster == *name) {
                let busy = Rejection::ClusterBusy { cluster: name.clone(), operation: busy.id.clone() };
                return Err(Status::failed_precondition(format!("{busy}. Nothing was changed.")));
            }
        }
        return Ok(fleet.clusters.iter().filter(|cluster| names.contains(&cluster.name)).collect());
    }
    let fresh = |cluster: &&ClusterSpec| {
        let latest = state.find(&cluster.name);
        latest.is_none_or(|latest| latest.plan.cluster != cluster.name || latest.status == Stands::Cancelled)
    };
    let chosen: Vec<&ClusterSpec> = fleet.clusters.iter().filter(fresh).collect();
    if chosen.is_empty() {
        let message =
            "every cluster of the fleet file is in an operation, or was finished; see `pgleap status`";
        return Err(Status::failed_precondition(message));
    }
    Ok(chosen)
}

/// Sorts the operations by wave.
fn in_waves(fleet: &FleetSpec, operations: &mut Vec<NewOperation>) -> NewRollout {
    let clusters: Vec<String> = operations.iter().map(|operation| operation.cluster.clone()).collect();
    let (mut sorted, mut waves) = (Vec::new(), Vec::new());
    for (names, soak_ms) in divide(&fleet.waves, &clusters) {
        let (of_wave, others): (Vec<_>, Vec<_>) =
            operations.drain(..).partition(|operation| names.contains(&operation.cluster));
        waves.push(Wave { operations: of_wave.iter().map(|one| one.id.clone()).collect(), soak_ms });
        sorted.extend(of_wave);
        *operations = others;
    }
    *operations = sorted;
    NewRollout { id: new_id("rollout"), waves }
}

fn told(unready: &[UnreadyStatus]) -> String {
    let lines = unready.iter().map(|UnreadyStatus { cluster, problems }| {
        let (first, more) = (problems.first().map_or("", String::as_str), problems.len().saturating_sub(1));
        let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        format!("  {cluster}: {first}{more}")
    });
    format!(
        "{} of the clusters are not ready:\n{}\nNothing was changed. `pgleap check CLUSTER` tells more; start the others with \
         --ready-only, or accept warnings with --accept-warnings.",
        unready.len(),
        lines.collect::<Vec<_>>().join("\n")
    )
}

fn answer(
    state: &State,
    reply: Reply,
    request_id: &str,
    unready: Vec<UnreadyStatus>,
) -> Result<StartRolloutReply, Status> {
    let Reply::Rollout { id } = reply else { return Err(reused(request_id)) };
    let waves = state.rollouts.get(&id).map(|rollout| rollout.waves.clone()).unwrap_or_default();
    let operations = (1..).zip(&waves).flat_map(|(n, wave)| {
        wave.operations.iter().map(move |operation| QueuedStatus {
            operation: operation.clone(),
            cluster: state
                .operations
                .get(operation)
                .map(|known| known.plan.cluster.clone())
                .unwrap_or_default(),
            wave: n,
        })
    });
    Ok(StartRolloutReply { operations: operations.collect(), rollout: id, unready })
}
