//! A queued operation whose turn has come: its cluster is looked at, checked and planned as it is now, for it may have waited for days.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::agents::Agents;
use super::backoff::Backoff;
use super::live::Live;
use crate::check::{self, ready};
use crate::fleet;
use crate::names::new_tag;
use crate::plan::build;
use crate::raft::{ProposeError, Raft, View};
use crate::state::{Command, Status};

/// An agent that does not answer is asked again after so long, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const BUSY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

pub(super) struct AdmitRun {
    pub(super) raft: Raft,
    pub(super) agents: Arc<Agents>,
    pub(super) live: Arc<Live>,
    /// Who proposes: `coordinator NAME`.
    pub(super) by: String,
    pub(super) operation: String,
    pub(super) term: u64,
}

impl AdmitRun {
    /// Until it is admitted, has turned out not to be ready, or it is not its turn any more.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
        while let Some(command) = self.prepare().await {
            match command {
                Ok(command) => {
                    self.live.left(&self.operation, "");
                    return self.propose(command).await;
                }
                Err(away) => {
                    self.live.waits(&self.operation, "", |since: Timestamp| {
                        format!("it is its turn, but {away}, since {since:.0}; it begins by itself when that is over")
                    });
                }
            }
            backoff.wait().await;
        }
    }

    /// What is to be proposed, or which agent is away; none when this is no longer its business.
    async fn prepare(&self) -> Option<Result<Command, String>> {
        let View { state, leading, .. } = self.raft.latest();
        let operation = state.operations.get(&self.operation)?.clone();
        let queue = operation.place.queue.as_ref().filter(|_| operation.status == Status::Queued)?;
        if leading != Some(self.term) {
            return None;
        }
        let (id, name) = (self.operation.clone(), &operation.plan.cluster);
        let not_ready = |reason: String, evidence: Vec<String>| {
            Some(Ok(Command::NotReady { operation: id.clone(), reason, evidence }))
        };
        let again = format!("then `pgleap retry {name}`, or give it up with `pgleap cancel {name}`");
        // The file cannot lose the cluster meanwhile; a newer pgleap may read it otherwise.
        let spec = state.fleet.as_ref().map(|file| fleet::parse(&file.toml, "the fleet file in force"));
        let cluster = match &spec {
            Some(Ok(spec)) => spec.cluster(name),
            Some(Err(error)) => {
                return not_ready(
                    format!("the fleet file cannot be used: correct and apply it, {again}"),
                    vec![error.to_string()],
                );
            }
            None => None,
        };
        let Some(cluster) = cluster else {
            return not_ready(
                format!("the fleet file does not have cluster {name}: add it, {again}"),
                Vec::new(),
            );
        };
        let facts = self.agents.facts(cluster).await;
        if let Some((host, why)) = facts.unreachable.first_key_value() {
            return Some(Err(format!("the agent of host {host} does not answer ({why})")));
        }
        if let Err(unready) = ready(&check::run(cluster, &facts), queue.accept_warnings) {
            let what = unready.what;
            return not_ready(
                format!("its turn came, and the check found {what}: do what each line says, {again}"),
                unready.lines,
            );
        }
        match build(cluster, &facts, &self.operation, &new_tag()) {
            Err(error) => {
                not_ready(format!("its turn came, and {error}; remove the cause, {again}"), Vec::new())
            }
            Ok(plan) => {
                let (operation, plan) = (self.operation.clone(), Arc::new(plan));
                Some(Ok(Command::Admit { operation, plan, generation: state.generation() }))
            }
        }
    }

    /// A refusal means that somebody else was first, or that the world has changed: the driver starts it again when it is its turn.
    async fn propose(&self, command: Command) {
        let mut backoff = Backoff::new(BUSY.0, BUSY.1);
        while let Err(error) = self.raft.propose(&self.by, None, command.clone()).await {
            if !matches!(error, ProposeError::Busy) {
                tracing::info!(operation = self.operation, %error, "it is not admitted");
                return;
            }
            backoff.wait().await;
        }
    }
}
