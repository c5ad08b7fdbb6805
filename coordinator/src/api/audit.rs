//! `audit`: who asked for what; and what the audit log says of each request that a role may be refused for.

use jiff::Timestamp;
use pgleap_proto::fleet::*;
use pgleap_proto::raft::{AddRequest, ListRequest, RemoveRequest, TransferRequest};
use pgleap_proto::traffic::Side;
use tonic::Status;

use super::Api;
use super::error::refused;
use crate::audit::Audited;
use crate::state::audit::{Entry, Note};

impl Api {
    pub(super) async fn show_audit(&self, request: AuditRequest) -> Result<AuditReply, Status> {
        let AuditRequest { since, name } = request;
        let since: Option<Timestamp> = match since.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Status::invalid_argument(format!("\"{text}\" is no time; write it as 2026-11-27T18:00:00Z"))
            })?),
        };
        let state = self.raft.read().await.map_err(refused)?.state;
        let wanted = |entry: &Entry| {
            let Note { cluster, subject, .. } = &entry.note;
            since.is_none_or(|since| entry.last >= since)
                && (name.is_empty() || *cluster == name || *subject == name)
        };
        let entries =
            state.audit.entries().filter(|entry| wanted(entry)).map(|entry| present(entry)).collect();
        Ok(AuditReply { entries, forgotten: state.audit.forgotten })
    }
}

fn present(entry: &Entry) -> AuditEntry {
    let Entry { index, at, last, by, note, request_id } = entry.clone();
    let Note { verb, cluster, subject, detail, refused, count } = note;
    AuditEntry {
        index,
        at: at.to_string(),
        last: last.to_string(),
        by,
        verb,
        cluster,
        subject,
        detail,
        request_id,
        result: if refused.is_some() { "refused" } else { "accepted" }.to_owned(),
        reason: refused.unwrap_or_default(),
        count,
    }
}

/// Verb and subject of each request, and its id where it has one.
macro_rules! audited {
    ($($request:ty: $verb:expr, $subject:expr $(, $detail:expr)? $(, @ $id:ident)?;)*) => {$(
        impl Audited for $request {
            fn note(&self) -> Note {
                let _detail = String::new();
                $(let _detail: String = $detail(self);)?
                Note::new($verb(self), "", &$subject(self), _detail)
            }
            $(fn request_id(&self) -> &str {
                &self.$id
            })?
        }
    )*};
}

audited! {
    ApplyFleetRequest: |_| "fleet apply", |_| "fleet file", |r: &Self| r.source.clone(), @request_id;
    ShowFleetRequest: |_| "fleet show", |_| "fleet file";
    CheckRequest: |_| "check", |r: &Self| r.cluster.clone();
    PlanRequest: |_| "plan", |r: &Self| r.cluster.clone();
    StartRequest: |_| "start", |r: &Self| r.cluster.clone(), @request_id;
    StartRolloutRequest: |_| "start", |r: &Self| if r.all { "all clusters".to_owned() } else { r.clusters.join(" ") }, @request_id;
    HoldRequest: |_| "hold", |r: &Self| r.name.clone(), |r: &Self| r.at.clone(), @request_id;
    ProceedRequest: |_| "proceed", |r: &Self| r.name.clone(), @request_id;
    StatusRequest: |_| "status", |r: &Self| r.name.clone();
    EventsRequest: |_| "events", |r: &Self| r.name.clone();
    CancelRequest: |_| "cancel", |r: &Self| r.name.clone(), @request_id;
    RetryRequest: |_| "retry", |r: &Self| r.name.clone(), @request_id;
    AbandonRequest: |_| "abandon", |r: &Self| r.name.clone(), |r: &Self| format!("host {}", r.host), @request_id;
    SwitchReadsRequest: |_| "switch-reads", |r: &Self| r.name.clone(), |r: &Self| format!("{} %", r.percent), @request_id;
    SwitchoverRequest: |r: &Self| if r.to() == Side::Old { "reverse" } else { "switchover" }, |r: &Self| r.name.clone(), |r: &Self| r.accept.join(", "), @request_id;
    FinishRequest: |_| "finish", |r: &Self| r.name.clone(), @request_id;
    AuditRequest: |_| "audit", |r: &Self| r.name.clone();
    ListRequest: |_| "members list", |_| "members";
    AddRequest: |_| "members add", |r: &Self| format!("member {}", r.member), |r: &Self| r.address.clone(), @request_id;
    RemoveRequest: |_| "members remove", |r: &Self| format!("member {}", r.member), @request_id;
    TransferRequest: |_| "members transfer", |r: &Self| format!("member {}", r.to), @request_id;
}
