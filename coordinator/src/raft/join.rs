//! How a member with an empty data directory finds its group.

use std::time::Duration;

use pgleap_proto::raft::{JoinReply, JoinRequest};
use pgleap_proto::tls::TlsIdentity;
use tonic::{Code, Status};

use super::{LEADER_KEY, Raft, peers};
use crate::driver::explain_status;

/// Between two rounds of asking.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks these coordinators, and the leader they name, until one of them lets this member in.
///
/// # Errors
/// The reason, when the group refuses it for good.
pub async fn join(
    raft: &Raft,
    tls: &TlsIdentity,
    member: u64,
    address: &str,
    via: &[String],
) -> Result<(), String> {
    let request = JoinRequest { member, identity: raft.identity().to_owned(), address: address.to_owned() };
    let mut told = String::new();
    loop {
        let mut candidates = via.to_vec();
        let mut problems = Vec::new();
        while let Some(candidate) = candidates.pop() {
            let status = match ask(&candidate, tls, request.clone()).await {
                Ok(JoinReply { group: Some(group) }) => {
                    tracing::info!(member, via = candidate, "the group takes this member in");
                    let _ = raft.introduce(group);
                    return Ok(());
                }
                Ok(_) => Status::unavailable("an empty answer"),
                Err(status) => status,
            };
            let leader = status.metadata().get(LEADER_KEY).and_then(|value| value.to_str().ok());
            match (status.code(), leader) {
                (_, Some(leader)) if !leader.is_empty() && leader != candidate && problems.len() < 10 => {
                    candidates.push(leader.to_owned());
                }
                (Code::FailedPrecondition | Code::PermissionDenied | Code::InvalidArgument, _) => {
                    return Err(format!("{candidate}: {}", status.message()));
                }
                _ => {}
            }
            problems.push(format!("{candidate}: {}", explain_status(&status)));
        }
        let why = problems.join("; ");
        if why != told {
            tracing::warn!(why, "this member could not join yet; it goes on asking");
            told = why;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask(address: &str, tls: &TlsIdentity, request: JoinRequest) -> Result<JoinReply, Status> {
    let asking = async {
        let mut client = peers::client(address, tls).await.map_err(Status::unavailable)?;
        client.join(request).await.map(tonic::Response::into_inner)
    };
    tokio::time::timeout(ANSWER, asking)
        .await
        .unwrap_or_else(|_| Err(Status::unavailable("no answer in time")))
}
