//! The audit log over mutual TLS: what was asked for and what was refused, with who, when and what.

use pgleap_proto::fleet::*;
use pgleap_proto::tls::Role;
use tonic::Code;

use super::tests::{Fixture, events_until, start};

async fn audit(fixture: &Fixture, serving: &super::tests::Serving, request: AuditRequest) -> Vec<AuditEntry> {
    let mut client = fixture.client(serving, Role::Viewer).await;
    client.audit(request).await.unwrap().into_inner().entries
}

/// Result, who, verb, subject, how often.
fn told(entries: &[AuditEntry]) -> Vec<(&str, &str, &str, &str, u64)> {
    entries
        .iter()
        .map(|e| (e.result.as_str(), e.by.as_str(), e.verb.as_str(), e.subject.as_str(), e.count))
        .collect()
}

#[tokio::test]
async fn actions_and_refusals_are_noted_and_survive_a_restart() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve().await;
    let mut operator = fixture.client(&serving, Role::Operator).await;
    let mut viewer = fixture.client(&serving, Role::Viewer).await;

    operator.apply_fleet(fixture.apply()).await.unwrap();
    operator.apply_fleet(fixture.apply()).await.unwrap();
    for _ in 0..3 {
        let cancel = CancelRequest { name: "ledger".into(), request_id: "c-0".into() };
        assert_eq!(viewer.cancel(cancel).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let agent = fixture.client(&serving, Role::Agent).await.status(StatusRequest::default()).await;
    assert_eq!(agent.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        operator.start(StartRequest { cluster: "nobody".into(), ..start("s-0") }).await.unwrap_err().code(),
        Code::NotFound
    );
    let operation = operator.start(start("s-1")).await.unwrap().into_inner().operation;
    operator.start(start("s-1")).await.unwrap();
    events_until(&mut operator, "ledger", "waiting").await;
    // The state refuses this one itself.
    let reads = SwitchReadsRequest { name: "ledger".into(), percent: 10, request_id: "r-1".into() };
    assert_eq!(operator.switch_reads(reads).await.unwrap_err().code(), Code::FailedPrecondition);
    let cancel = CancelRequest { name: "ledger".into(), request_id: "c-1".into() };
    operator.cancel(cancel).await.unwrap();

    let all = audit(&fixture, &serving, AuditRequest::default()).await;
    let expected = [
        ("accepted", "operator alice", "fleet apply", "fleet file", 1),
        ("refused", "viewer alice", "cancel", "ledger", 1),
        ("refused", "agent alice", "status", "", 1),
        ("refused", "operator alice", "start", "nobody", 1),
        ("accepted", "operator alice", "start", operation.as_str(), 1),
        ("refused", "operator alice", "switch-reads", operation.as_str(), 1),
        ("accepted", "operator alice", "cancel", operation.as_str(), 1),
    ];
    assert_eq!(told(&all), expected);
    assert!(
        all[1].detail.contains("127.0.0.1") && all[1].reason.contains("operator is needed"),
        "{:?}",
        all[1]
    );
    assert_eq!((all[4].request_id.as_str(), all[4].cluster.as_str()), ("s-1", "ledger"));
    assert_eq!((all[0].request_id.as_str(), all[0].detail.as_str()), ("a-1", "generation 1"));
    assert!(all[5].reason.contains(&operation), "{:?}", all[5]);

    let of = AuditRequest { name: "ledger".into(), ..AuditRequest::default() };
    assert_eq!(audit(&fixture, &serving, of).await.len(), 4);
    let later = AuditRequest { since: all[5].last.clone(), ..AuditRequest::default() };
    assert_eq!(audit(&fixture, &serving, later).await.len(), 2);
    let never = AuditRequest { since: "yesterday".into(), ..AuditRequest::default() };
    assert_eq!(operator.audit(never).await.unwrap_err().code(), Code::InvalidArgument);

    // What was only counted is noted when it stops.
    serving.stop().await;
    let serving = fixture.serve().await;
    let again = audit(&fixture, &serving, AuditRequest::default()).await;
    assert_eq!(again[1].count, 3, "{:?}", again[1]);
    assert_eq!(again.len(), all.len());
    serving.stop().await;
}
