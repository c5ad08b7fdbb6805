//! The whole coordinator over mutual TLS, with agents that act out a script on a healthy cluster of four hosts.

use std::path::PathBuf;

use pgleap_proto::agent::{InspectReply, Verb as Asked};
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::fleet::*;
use pgleap_proto::tls::{self, Role, TlsIdentity};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use crate::check::testing::of;
use crate::fleet::samples::{LEDGER, TRAFFIC};
use crate::serve::{Coordinator, ServeConfig, ServeError};
use crate::testing::{Behaviour, FakeAgent, Pki, poll};

pub(crate) struct Fixture {
    pub(crate) pki: Pki,
    tls_dir: PathBuf,
    data: tempfile::TempDir,
    pub(crate) agents: Vec<FakeAgent>,
    pub(crate) toml: String,
}

pub(crate) struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
    pub(crate) address: String,
}

impl Fixture {
    /// The fleet of the planner's tests, with its agents on loopback addresses.
    pub(super) async fn new() -> Fixture {
        Fixture::of(LEDGER.to_owned()).await
    }

    /// The same with poolers and a balancer.
    pub(crate) async fn movable() -> Fixture {
        Fixture::of(format!("{LEDGER}{TRAFFIC}")).await
    }

    pub(super) async fn of(mut toml: String) -> Fixture {
        let pki = Pki::new();
        let mut agents = Vec::new();
        for n in 1..=4 {
            let (host, agent) = (format!("db{n}"), FakeAgent::new(&format!("db{n}")));
            let listener = TcpListener::bind(format!("127.0.0.{n}:0")).await.unwrap();
            let address = agent.serve(&pki.identity(Role::Agent, &host), listener);
            toml = toml.replace(&format!("10.0.0.{n}:7432"), &address.to_string());
            agents.push(agent);
        }
        let fleet = crate::fleet::parse(&toml, "test").unwrap();
        let case = of(fleet.cluster("ledger").unwrap().clone());
        for (n, agent) in agents.iter().enumerate() {
            if let Some(reply) = case.facts.replies.get(&format!("db{}", n + 1)) {
                agent.inspected(reply.clone());
            }
        }
        let tls_dir = pki.issue(Role::Coordinator, "c1");
        Fixture { pki, tls_dir, data: tempfile::tempdir().unwrap(), agents, toml }
    }

    /// Healthy facts of a host.
    pub(crate) fn facts(&self, host: &str) -> InspectReply {
        let fleet = crate::fleet::parse(&self.toml, "test").unwrap();
        of(fleet.cluster("ledger").unwrap().clone()).facts.replies[host].clone()
    }

    pub(crate) async fn serve(&self) -> Serving {
        let config = ServeConfig {
            data_dir: self.data.path().join("data"),
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_dir: self.tls_dir.clone(),
            member: 1,
            advertise: None,
            begin: true,
            join: vec![],
        };
        let coordinator = Coordinator::open(config).await.unwrap();
        let address = coordinator.address().to_string();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(coordinator.run(async {
            let _ = stopped.await;
        }));
        Serving { stop, task, address }
    }

    pub(super) async fn client(&self, serving: &Serving, role: Role) -> FleetClient<Channel> {
        let identity: TlsIdentity = self.pki.identity(role, "alice");
        let endpoint = tls::endpoint(&serving.address).unwrap();
        FleetClient::new(identity.connect(&endpoint, Role::Coordinator, "").await.unwrap())
    }

    pub(super) fn apply(&self) -> ApplyFleetRequest {
        ApplyFleetRequest { toml: self.toml.clone(), source: "ledger.toml".into(), request_id: "a-1".into() }
    }
}

impl Serving {
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(3), self.task).await;
        ended.expect("it stops without waiting for followers").unwrap().unwrap();
    }
}

pub(super) fn start(request_id: &str) -> StartRequest {
    StartRequest { cluster: "ledger".into(), request_id: request_id.into(), accept_warnings: true }
}

pub(super) fn named(name: &str) -> StatusRequest {
    StatusRequest { name: name.into(), brief: false }
}

/// Events of an operation to its end or to one of this kind.
pub(super) async fn events_until(
    client: &mut FleetClient<Channel>,
    name: &str,
    kind: &str,
) -> Vec<OperationEvent> {
    let request = EventsRequest { name: name.into(), follow: true, logs: true };
    let mut stream = client.events(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    let reading = async {
        while let Some(event) = stream.message().await.unwrap() {
            let last = event.kind == kind;
            events.push(event);
            if last {
                break;
            }
        }
    };
    let done = tokio::time::timeout(std::time::Duration::from_secs(20), reading).await;
    assert!(done.is_ok(), "no {kind}: {events:#?}");
    events
}

#[tokio::test]
async fn an_upgrade_from_fleet_file_to_gate_and_all_the_way_back() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;

    let refused = client.start(start("s-0")).await.unwrap_err();
    assert!(refused.message().contains("pgleap fleet apply"), "{refused}");
    let applied = client.apply_fleet(fixture.apply()).await.unwrap().into_inner();
    assert_eq!((applied.generation, applied.changes.is_empty()), (1, false));
    let again = client.apply_fleet(fixture.apply()).await.unwrap().into_inner();
    assert_eq!((again.generation, again.changes.is_empty()), (1, true));
    let shown = client.show_fleet(ShowFleetRequest {}).await.unwrap().into_inner();
    assert_eq!((shown.applied_by.as_str(), shown.toml), ("operator alice", fixture.toml.clone()));
    assert!(
        shown.agents.len() == 4 && shown.agents.iter().all(|agent| agent.reachable),
        "{:?}",
        shown.agents
    );

    let check = CheckRequest { cluster: "ledger".into(), quick: false };
    let mut stream = client.check(check).await.unwrap().into_inner();
    let (mut log, mut summary) = (Vec::new(), None);
    while let Some(event) = stream.message().await.unwrap() {
        match event.kind.unwrap() {
            check_event::Kind::Log(line) => log.push(line.line),
            check_event::Kind::Summary(found) => summary = Some(found),
            check_event::Kind::Finding(finding) => assert_ne!(finding.severity(), finding::Severity::Error),
        }
    }
    assert_eq!(log, ["rehearsing"]);
    assert!(summary.unwrap().ok > 1);

    let plan = client.plan(PlanRequest { cluster: "ledger".into() }).await.unwrap().into_inner();
    let operation = client.start(start("s-1")).await.unwrap().into_inner().operation;
    let repeated = client.start(start("s-1")).await.unwrap().into_inner().operation;
    assert_eq!(operation, repeated);
    let busy = client.start(start("s-2")).await.unwrap_err();
    assert!(busy.code() == Code::FailedPrecondition && busy.message().contains(&operation), "{busy}");

    let events = events_until(&mut client, "ledger", "waiting").await;
    let done = events.iter().filter(|event| event.kind == "done").count();
    assert_eq!(done, plan.steps.len());
    assert!(events.iter().any(|event| event.kind == "log" && event.message == "fake: one"));
    let status = client.status(named("ledger")).await.unwrap().into_inner();
    let [upgrade] = &status.operations[..] else { panic!("{status:#?}") };
    assert_eq!((upgrade.state.as_str(), upgrade.steps_done), ("waiting", upgrade.steps_total));
    assert!(!upgrade.lag.is_empty() && upgrade.lag.iter().all(|lag| lag.bytes == 100 && lag.active));
    assert!(upgrade.phases.iter().all(|phase| phase.complete));

    let other = fixture.toml.replace("parallel = 4", "parallel = 5");
    let change = ApplyFleetRequest { toml: other, request_id: "a-2".into(), ..fixture.apply() };
    let refused = client.apply_fleet(change).await.unwrap_err();
    assert!(refused.message().contains("cancel the operation first"), "{refused}");

    let cancel = CancelRequest { name: "ledger".into(), request_id: "c-1".into() };
    client.cancel(cancel.clone()).await.unwrap();
    client.cancel(cancel).await.unwrap();
    events_until(&mut client, &operation, "cancelled").await;
    let undone: usize = fixture.agents.iter().map(|agent| agent.acts(Asked::Undo).len()).sum();
    assert_eq!(undone, plan.steps.len());
    serving.stop().await;
}

#[tokio::test]
async fn a_coordinator_stopped_midway_goes_on_where_it_was() {
    let fixture = Fixture::new().await;
    let (go, wait) = watch::channel(false);
    fixture.agents[2].script("upgrade.upgrade", [Behaviour::Hold(wait)]);
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    client.start(start("s-1")).await.unwrap();
    let started = |event: &&OperationEvent| event.kind == "started" && event.step == "upgrade.upgrade";
    let mut stream = client
        .events(EventsRequest { name: "ledger".into(), follow: true, logs: false })
        .await
        .unwrap()
        .into_inner();
    while let Some(event) = stream.message().await.unwrap() {
        if started(&&event) {
            break;
        }
    }
    let called = || fixture.agents[2].acts(Asked::Do).iter().any(|step| step == "upgrade.upgrade");
    poll("the agent acts", called).await;
    // A follower does not keep it from stopping.
    serving.stop().await;
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Viewer).await;
    let joined =
        || fixture.agents[2].calls().iter().any(|call| call.step == "upgrade.upgrade" && call.joined);
    poll("the run is joined", joined).await;
    go.send(true).unwrap();
    events_until(&mut client, "ledger", "waiting").await;
    let acts = fixture.agents[2].acts(Asked::Do);
    assert_eq!(acts.iter().filter(|step| *step == "upgrade.upgrade").count(), 1, "{acts:?}");
    serving.stop().await;
}

#[tokio::test]
async fn roles_are_kept_apart() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve().await;
    let mut viewer = fixture.client(&serving, Role::Viewer).await;
    for refused in [
        viewer.apply_fleet(fixture.apply()).await.unwrap_err(),
        viewer.start(start("s")).await.unwrap_err(),
        viewer.cancel(CancelRequest::default()).await.unwrap_err(),
        viewer.retry(RetryRequest::default()).await.unwrap_err(),
        viewer.check(CheckRequest::default()).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    viewer.status(StatusRequest::default()).await.unwrap();
    for role in [Role::Agent, Role::Coordinator] {
        let mut client = fixture.client(&serving, role).await;
        let refused = client.status(StatusRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    serving.stop().await;
}

#[tokio::test]
async fn an_unready_cluster_is_refused_with_every_error() {
    let fixture = Fixture::new().await;
    let mut facts = of(crate::fleet::parse(&fixture.toml, "").unwrap().clusters[0].clone()).facts;
    let reply = facts.replies.get_mut("db1").unwrap();
    reply.nodes[0].server.as_mut().unwrap().settings.insert("wal_level".into(), "replica".into());
    fixture.agents[0].inspected(reply.clone());
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    let refused = client.start(start("s-1")).await.unwrap_err();
    assert!(
        refused.message().contains("wal_level") && refused.message().contains("Nothing was changed"),
        "{refused}"
    );
    let unknown = client.status(named("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    serving.stop().await;
}
