//! `hold` and `proceed`.

use pgleap_proto::fleet::{HoldReply, HoldRequest, ProceedReply, ProceedRequest};
use pgleap_proto::tls::Peer;
use tonic::Status;

use super::Api;
use super::error::{find, given, refused, reused};
use crate::plan::Phase;
use crate::state::{Command, Operation, Reply, State, Status as Stands};

impl Api {
    pub(super) async fn hold_operation(
        &self,
        peer: &Peer,
        request: HoldRequest,
    ) -> Result<HoldReply, Status> {
        let HoldRequest { name, at, request_id } = request;
        let at = match at.as_str() {
            "" => None,
            text => Some(phase(text)?),
        };
        let id = self.told(peer, &name, &request_id, |name| Command::Hold { name, at }).await?;
        let state = self.raft.latest().state;
        let notes = state.operations.get(&id).map(|operation| notes(operation)).unwrap_or_default();
        Ok(HoldReply { name: id, notes })
    }

    pub(super) async fn let_proceed(
        &self,
        peer: &Peer,
        request: ProceedRequest,
    ) -> Result<ProceedReply, Status> {
        let ProceedRequest { name, request_id } = request;
        let name = self.told(peer, &name, &request_id, |name| Command::Proceed { name }).await?;
        Ok(ProceedReply { name })
    }

    /// Proposes something about an operation or a rollout; its id.
    pub(super) async fn told(
        &self,
        peer: &Peer,
        name: &str,
        request_id: &str,
        command: impl FnOnce(String) -> Command,
    ) -> Result<String, Status> {
        let state = self.raft.read().await.map_err(refused)?.state;
        let id = id_of(&state, name)?;
        let reply = self.raft.propose(&peer.to_string(), given(request_id), command(id)).await;
        match reply.map_err(refused)? {
            Reply::Operation { id } | Reply::Rollout { id } => Ok(id),
            _ => Err(reused(request_id)),
        }
    }
}

/// A rollout's own name, or the id of the operation meant.
pub(super) fn id_of(state: &State, name: &str) -> Result<String, Status> {
    match state.rollouts.get(name) {
        Some(rollout) => Ok(rollout.id.clone()),
        None => find(state, name).map(|operation| operation.id.clone()),
    }
}

fn phase(text: &str) -> Result<Phase, Status> {
    let phases = [Phase::Check, Phase::Seed, Phase::Convert, Phase::Upgrade, Phase::Replicate, Phase::Route];
    phases.into_iter().find(|phase| phase.to_string() == text).ok_or_else(|| {
        let known: Vec<String> = phases.iter().map(Phase::to_string).collect();
        Status::invalid_argument(format!(
            "there is no phase \"{text}\" to hold before; use {}",
            known.join(", ")
        ))
    })
}

/// What whoever holds an operation should know.
fn notes(operation: &Operation) -> Vec<String> {
    let mut notes = Vec::new();
    let hold = operation.place.hold.as_ref();
    if operation.status == Stands::Running && hold.is_some_and(|hold| hold.at.is_none()) {
        notes.push("steps that are under way go on to their end".to_owned());
    }
    if operation.status == Stands::Switching {
        notes.push(
            "the try that is under way ends as it ends, and no other follows: clients are never left waiting"
                .to_owned(),
        );
    }
    if hold.is_some_and(|hold| matches!(hold.at, Some(Phase::Upgrade | Phase::Replicate))) {
        let note = "from convert on its slots keep WAL on the old leader, and before replicate nothing consumes it: to let it \
                    stand for long, hold before convert";
        notes.push(note.to_owned());
    }
    notes.extend(operation.retains().map(str::to_owned));
    notes
}
