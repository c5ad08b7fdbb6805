//! Traffic moved by the verbs, over mutual TLS, with agents that act out a script.

use pgleap_proto::agent::Verb as Asked;
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::fleet::*;
use pgleap_proto::tls::Role;
use pgleap_proto::traffic::Side;
use tonic::Code;
use tonic::transport::Channel;

use super::tests::{Fixture, events_until, named, start};

async fn status(client: &mut FleetClient<Channel>) -> OperationStatus {
    client.status(named("ledger")).await.unwrap().into_inner().operations.remove(0)
}

fn to(side: Side, request_id: &str, accept: &[&str]) -> SwitchoverRequest {
    SwitchoverRequest {
        name: "ledger".into(),
        to: side.into(),
        accept: accept.iter().map(|name| (*name).to_owned()).collect(),
        request_id: request_id.into(),
    }
}

/// Switches and waits for the end.
async fn switch(client: &mut FleetClient<Channel>, request: SwitchoverRequest) -> OperationStatus {
    client.switchover(request).await.unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let status = status(client).await;
        if status.state != "switching" {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn there_and_back_and_there_for_good() {
    let fixture = Fixture::movable().await;
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    client.start(start("s-1")).await.unwrap();
    events_until(&mut client, "ledger", "waiting").await;

    let reads = SwitchReadsRequest { name: "ledger".into(), percent: 30, request_id: "r-1".into() };
    client.switch_reads(reads.clone()).await.unwrap();
    client.switch_reads(reads).await.unwrap();
    let waiting = status(&mut client).await;
    assert!(waiting.next.starts_with("pgleap switchover ledger"), "{}", waiting.next);
    let traffic = waiting.traffic.unwrap();
    assert_eq!((traffic.writer.as_str(), traffic.reads, traffic.nodes.len()), ("old", 30, 4));
    let too_many = SwitchReadsRequest { name: "ledger".into(), percent: 300, request_id: "r-2".into() };
    assert_eq!(client.switch_reads(too_many).await.unwrap_err().code(), Code::FailedPrecondition);

    // What replication does not carry is refused until it is accepted.
    let mut facts = fixture.facts("db1");
    let server = facts.nodes[0].server.as_mut().unwrap();
    server.databases.iter_mut().find(|database| database.name == "app").unwrap().large_objects = 3;
    fixture.agents[0].inspected(facts.clone());
    let refused = client.switchover(to(Side::New, "w-0", &[])).await.unwrap_err();
    assert!(refused.message().contains("--accept large-objects"), "{refused}");
    let switched = switch(&mut client, to(Side::New, "w-1", &["large-objects"])).await;
    let traffic = switched.traffic.clone().unwrap();
    let last = traffic.last.unwrap();
    assert!(last.decided && last.pause_ms >= 0.0 && last.by == "operator alice", "{last:#?}");
    assert_eq!((traffic.writer.as_str(), traffic.reads, traffic.switchovers), ("new", 100, 1));
    assert!(
        switched.next.contains("pgleap finish ledger") && switched.next.contains("pgleap reverse ledger")
    );
    // The same request again is the same switchover.
    client.switchover(to(Side::New, "w-1", &["large-objects"])).await.unwrap();
    let refused = client.switchover(to(Side::New, "w-2", &[])).await.unwrap_err();
    assert!(refused.message().contains("takes the writes already"), "{refused}");
    let cancel = CancelRequest { name: "ledger".into(), request_id: "c-1".into() };
    let refused = client.cancel(cancel).await.unwrap_err();
    assert!(refused.message().contains("`pgleap reverse` first, or `pgleap finish`"), "{refused}");

    // The new leader runs by now.
    facts.nodes[0].server.as_mut().unwrap().databases.iter_mut().for_each(|db| db.large_objects = 0);
    fixture.agents[2].inspected(facts.clone());
    fixture.agents[0].inspected(facts);
    let back = switch(&mut client, to(Side::Old, "w-3", &[])).await;
    assert_eq!(back.traffic.as_ref().unwrap().writer, "old");
    switch(&mut client, to(Side::New, "w-4", &[])).await;

    let finish = FinishRequest { name: "ledger".into(), decommission: true, request_id: "f-1".into() };
    client.finish(finish.clone()).await.unwrap();
    client.finish(finish).await.unwrap();
    let events = events_until(&mut client, "ledger", "finished").await;
    let decisions = events.iter().filter(|event| event.kind == "decided").count();
    assert_eq!(decisions, 3);
    let over = status(&mut client).await;
    assert_eq!((over.state.as_str(), over.phase.as_str()), ("finished", "retire"));
    let undone = fixture.agents[0].acts(Asked::Undo);
    assert_eq!(undone.last().map(String::as_str), Some("convert.publish"), "{undone:?}");
    assert!(undone.iter().any(|step| step == "convert.create_slots"), "{undone:?}");
    assert!(fixture.agents[2].acts(Asked::Undo).iter().any(|step| step == "upgrade.fence_node"));
    assert!(fixture.agents[0].acts(Asked::Do).iter().any(|step| step == "retire.stop_old:ledger-old-1"));
    assert!(!fixture.agents[2].acts(Asked::Do).iter().any(|step| step.starts_with("retire.")));
    serving.stop().await;
}

#[tokio::test]
async fn viewers_move_nothing() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve().await;
    let mut viewer = fixture.client(&serving, Role::Viewer).await;
    for refused in [
        viewer.switch_reads(SwitchReadsRequest::default()).await.map(|_| ()).unwrap_err(),
        viewer.switchover(SwitchoverRequest::default()).await.map(|_| ()).unwrap_err(),
        viewer.finish(FinishRequest::default()).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    serving.stop().await;
}
