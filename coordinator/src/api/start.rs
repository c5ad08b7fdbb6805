//! `plan` and `start`: facts, check, plan; and only then a proposal.

use std::sync::Arc;

use pgleap_proto::fleet::finding::Severity;
use pgleap_proto::fleet::{Finding, PlanReply, PlanRequest, StartReply, StartRequest};
use pgleap_proto::tls::Peer;
use tonic::Status;

use super::Api;
use super::error::{cluster, given, operation_of, refused, spec};
use crate::check;
use crate::plan::{PlanError, build, present};
use crate::state::{Command, Rejection};

impl Api {
    pub(super) async fn show_plan(&self, request: PlanRequest) -> Result<PlanReply, Status> {
        let state = self.raft.read().await.map_err(refused)?.state;
        let fleet = spec(&state)?;
        let cluster = cluster(&fleet, &request.cluster)?;
        let facts = self.facts(cluster).await;
        let id = new_id(&request.cluster);
        let plan = build(cluster, &facts, &id, &new_tag()).map_err(no_plan)?;
        Ok(present(&plan))
    }

    pub(super) async fn start_operation(
        &self,
        peer: &Peer,
        request: StartRequest,
    ) -> Result<StartReply, Status> {
        let StartRequest { cluster: name, request_id, accept_warnings } = request;
        let state = self.raft.read().await.map_err(refused)?.state;
        // Repeated after it succeeded: the same answer, without asking the agents again.
        if let Some(reply) = state.requests.get(&request_id) {
            return Ok(StartReply { operation: operation_of(reply.clone(), &request_id)? });
        }
        if let Some(busy) = state.active().find(|operation| operation.plan.cluster == name) {
            let busy = Rejection::ClusterBusy { cluster: name, operation: busy.id.clone() };
            return Err(Status::failed_precondition(busy.to_string()));
        }
        let fleet = spec(&state)?;
        let cluster = cluster(&fleet, &name)?;
        let facts = self.facts(cluster).await;
        judge(&name, &check::run(cluster, &facts), accept_warnings)?;
        let id = new_id(&name);
        let plan = Arc::new(build(cluster, &facts, &id, &new_tag()).map_err(no_plan)?);
        let command = Command::StartOperation { id, plan, generation: state.generation() };
        let reply = self.raft.propose(&peer.to_string(), given(&request_id), command).await;
        Ok(StartReply { operation: operation_of(reply.map_err(refused)?, &request_id)? })
    }
}

/// Errors refuse; warnings refuse unless they were accepted.
fn judge(cluster: &str, findings: &[Finding], accept_warnings: bool) -> Result<(), Status> {
    let of = |severity: Severity| -> Vec<String> {
        findings.iter().filter(|finding| finding.severity() == severity).map(line).collect()
    };
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    if !errors.is_empty() {
        return Err(Status::failed_precondition(format!(
            "cluster {cluster} is not ready ({}):\n{}\nNothing was changed. `pgleap check {cluster}` tells why each matters.",
            counted(errors.len(), "error"),
            errors.join("\n")
        )));
    }
    if !warnings.is_empty() && !accept_warnings {
        return Err(Status::failed_precondition(format!(
            "the check of cluster {cluster} warns ({}):\n{}\nNothing was changed. Cure them, or start with --accept-warnings.",
            counted(warnings.len(), "warning"),
            warnings.join("\n")
        )));
    }
    Ok(())
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn line(finding: &Finding) -> String {
    let Finding { check, subject, message, cure, .. } = finding;
    let cure = if cure.is_empty() { String::new() } else { format!("; {cure}") };
    format!("  {check}: {subject}: {message}{cure}")
}

fn no_plan(error: PlanError) -> Status {
    Status::failed_precondition(error.to_string())
}

fn new_id(cluster: &str) -> String {
    format!("{cluster}-{}", random_hex())
}

fn new_tag() -> String {
    format!("pgleap_{}", random_hex())
}

fn random_hex() -> String {
    let [a, b, c]: [u8; 3] = rand::random();
    format!("{a:02x}{b:02x}{c:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding {
            check: "slots".into(),
            severity: severity.into(),
            subject: "node o1".into(),
            message: "no free slot".into(),
            why: String::new(),
            cure: "raise max_replication_slots".into(),
        }
    }

    #[test]
    fn errors_always_refuse_and_warnings_until_accepted() {
        let [note, warning, error] = [Severity::Note, Severity::Warning, Severity::Error].map(finding);
        assert!(judge("c", std::slice::from_ref(&note), false).is_ok());
        assert!(judge("c", &[note, warning.clone()], true).is_ok());
        let refused = judge("c", std::slice::from_ref(&warning), false).unwrap_err();
        assert!(refused.message().contains("--accept-warnings"), "{refused}");
        let refused = judge("c", &[warning, error], true).unwrap_err();
        assert!(refused.message().contains("raise max_replication_slots"), "{refused}");
    }
}
