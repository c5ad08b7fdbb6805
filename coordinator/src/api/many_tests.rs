//! Many operations over mutual TLS: three small clusters on four hosts, with agents that act out a script.

use pgleap_proto::agent::Verb as Asked;
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::fleet::*;
use pgleap_proto::tls::Role;
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::Channel;

use super::tests::{Fixture, events_until, named};
use crate::check::testing::of;
use crate::testing::Behaviour;

/// canary is on db1 and db2, ledger on db3 and db4, and shop shares a host with either.
fn fleet(more: &str) -> String {
    let mut toml = "[fleet]\nname = \"production\"\n".to_owned();
    for n in 1..=4 {
        toml += &format!("[[host]]\nname = \"db{n}\"\nagent = \"10.0.0.{n}:7432\"\nrack = \"r{}\"\n", n % 2);
    }
    toml += more;
    for (n, (name, old, new)) in [("canary", 1, 2), ("shop", 1, 4), ("ledger", 3, 4)].into_iter().enumerate()
    {
        let port = 5432 + n;
        toml += &format!(
            r#"
[[cluster]]
name = "{name}"
[cluster.old]
version = 15
bin_dir = "/usr/lib/postgresql/15/bin"
replication = {{ user = "replicator", passfile = "/var/lib/postgresql/.pgpass" }}
[[cluster.old.node]]
name = "{name}-1"
host = "db{old}"
port = {port}
data_dir = "/var/lib/postgresql/15/{name}"
[cluster.new]
version = 18
bin_dir = "/usr/lib/postgresql/18/bin"
[[cluster.new.node]]
name = "{name}-2"
host = "db{new}"
port = {port}
seed_dir = "/var/lib/postgresql/15/{name}"
data_dir = "/var/lib/postgresql/18/{name}"
"#
        );
    }
    toml
}

pub(crate) const WAVES: &str = "[[wave]]\nclusters = [\"canary\"]\n[[wave]]\nrest = true\n";

pub(crate) async fn fixture(more: &str) -> Fixture {
    let fixture = Fixture::of(fleet(more)).await;
    for agent in &fixture.agents {
        agent.inspected(Default::default());
    }
    let spec = crate::fleet::parse(&fixture.toml, "test").unwrap();
    for cluster in spec.clusters {
        for (host, reply) in of(cluster).facts.replies {
            fixture.agents[host[2..].parse::<usize>().unwrap() - 1].also_inspected(reply);
        }
    }
    fixture
}

async fn status(client: &mut FleetClient<Channel>, name: &str) -> StatusReply {
    client.status(named(name)).await.unwrap().into_inner()
}

fn one<'s>(status: &'s StatusReply, cluster: &str) -> &'s OperationStatus {
    status.operations.iter().find(|operation| operation.cluster == cluster).unwrap()
}

fn all(request_id: &str) -> StartRolloutRequest {
    StartRolloutRequest {
        all: true,
        request_id: request_id.into(),
        accept_warnings: true,
        ..StartRolloutRequest::default()
    }
}

fn start(cluster: &str) -> StartRequest {
    StartRequest { cluster: cluster.into(), request_id: format!("s-{cluster}"), accept_warnings: true }
}

fn proceed(name: &str) -> ProceedRequest {
    ProceedRequest { name: name.into(), request_id: format!("p-{name}") }
}

fn hold(name: &str, at: &str) -> HoldRequest {
    HoldRequest { name: name.into(), at: at.into(), request_id: String::new() }
}

fn cancel(name: &str) -> CancelRequest {
    CancelRequest { name: name.into(), request_id: format!("c-{name}") }
}

/// The rehearsal of an agent that holds the first step back, until told.
pub(crate) fn held_up(fixture: &Fixture, host: usize, step: &str) -> watch::Sender<bool> {
    let (go, wait) = watch::channel(false);
    fixture.agents[host - 1].script(step, [Behaviour::Hold(wait)]);
    go
}

#[tokio::test]
async fn a_rollout_goes_in_waves_and_waits_for_hosts() {
    let fixture = fixture(WAVES).await;
    let go = held_up(&fixture, 2, "upgrade.upgrade");
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    let started = client.start_rollout(all("r-1")).await.unwrap().into_inner();
    let waves: Vec<(&str, u32)> =
        started.operations.iter().map(|operation| (operation.cluster.as_str(), operation.wave)).collect();
    assert_eq!(waves, [("canary", 1), ("shop", 2), ("ledger", 2)]);
    let again = client.start_rollout(all("r-1")).await.unwrap().into_inner();
    assert_eq!(again, started);
    let refused = client.start_rollout(all("r-2")).await.unwrap_err();
    assert!(refused.message().contains("every cluster of the fleet file is in an operation"), "{refused}");

    let rollout = started.rollout.as_str();
    events_until(&mut client, "canary", "admitted").await;
    let seen = status(&mut client, rollout).await;
    let (canary, shop) = (one(&seen, "canary"), one(&seen, "shop"));
    assert_eq!((canary.state.as_str(), canary.wave, canary.idle), ("running", 1, false));
    assert_eq!((shop.state.as_str(), shop.wave, shop.idle), ("queued", 2, false));
    assert!(
        shop.reason.contains("wave 1 of 2") && shop.reason.contains("on its way to the gate"),
        "{}",
        shop.reason
    );
    let summary = seen.summary.unwrap();
    let counts: Vec<(&str, u32)> = summary.states.iter().map(|one| (one.state.as_str(), one.count)).collect();
    assert_eq!(counts, [("queued", 2), ("running", 1)]);
    assert_eq!((summary.working, summary.limit), (1, 20));
    assert_eq!((summary.waiting[0].count, summary.waiting[0].clusters.len()), (2, 2));
    let states: Vec<&str> = summary.rollouts[0].waves.iter().map(|wave| wave.state.as_str()).collect();
    assert_eq!(states, ["open", "waiting"]);

    go.send(true).unwrap();
    events_until(&mut client, "ledger", "waiting").await;
    let seen = status(&mut client, "").await;
    let shop = one(&seen, "shop");
    assert!(shop.reason.contains("host db1 belongs to operation canary-"), "{}", shop.reason);
    // A canary that is taken back stops what has not begun, until somebody says otherwise.
    client.cancel(cancel("canary")).await.unwrap();
    events_until(&mut client, "canary", "cancelled").await;
    let seen = status(&mut client, rollout).await;
    let told = &seen.summary.as_ref().unwrap().rollouts[0];
    assert_eq!(told.state, "stopped");
    assert!(told.next.starts_with("pgleap start canary"), "{}", told.next);
    assert!(one(&seen, "shop").idle && one(&seen, "shop").reason.contains("pgleap proceed"));
    client.proceed(proceed(rollout)).await.unwrap();
    client.cancel(cancel("ledger")).await.unwrap();
    events_until(&mut client, "shop", "waiting").await;
    let seen = status(&mut client, rollout).await;
    assert_eq!(seen.summary.unwrap().rollouts[0].state, "done");
    serving.stop().await;
}

#[tokio::test]
async fn a_single_start_on_a_busy_host_is_queued_and_begins_by_itself() {
    let fixture = fixture("").await;
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    let canary = client.start(start("canary")).await.unwrap().into_inner();
    assert_eq!(canary.waits_for, "");
    let shop = client.start(start("shop")).await.unwrap().into_inner();
    assert!(
        shop.waits_for.contains(&format!("host db1 belongs to operation {}", canary.operation)),
        "{shop:?}"
    );
    assert_eq!(client.start(start("shop")).await.unwrap().into_inner(), shop);
    events_until(&mut client, "canary", "waiting").await;
    assert_eq!(one(&status(&mut client, "shop").await, "shop").state, "queued");
    client.cancel(cancel("canary")).await.unwrap();
    let events = events_until(&mut client, "shop", "waiting").await;
    let kinds: Vec<&str> =
        events.iter().map(|event| event.kind.as_str()).filter(|kind| *kind != "log").collect();
    assert_eq!(kinds[..3], ["queued", "admitted", "started"]);
    let shop = &status(&mut client, "shop").await.operations[0];
    assert_eq!((shop.state.as_str(), shop.steps_done), ("waiting", shop.steps_total));
    serving.stop().await;
}

#[tokio::test]
async fn what_is_not_ready_when_its_turn_comes_stops_and_can_be_retried() {
    let fixture = fixture("").await;
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    client.start(start("canary")).await.unwrap();
    client.start(start("shop")).await.unwrap();
    // Meanwhile somebody changes a setting.
    let spec = crate::fleet::parse(&fixture.toml, "test").unwrap();
    let healthy = of(spec.cluster("shop").unwrap().clone()).facts.replies["db1"].clone();
    let mut spoilt = healthy.clone();
    spoilt.nodes[0].server.as_mut().unwrap().settings.insert("wal_level".into(), "replica".into());
    fixture.agents[0].inspected(spoilt);
    events_until(&mut client, "canary", "waiting").await;
    client.cancel(cancel("canary")).await.unwrap();
    events_until(&mut client, "shop", "not-ready").await;
    let shop = status(&mut client, "shop").await.operations.remove(0);
    assert_eq!((shop.state.as_str(), shop.steps_total), ("stopped", 0));
    assert!(shop.evidence.iter().any(|line| line.contains("wal_level")), "{:?}", shop.evidence);
    assert!(shop.reason.contains("`pgleap retry shop`"), "{}", shop.reason);
    fixture.agents[0].inspected(healthy);
    client.retry(RetryRequest { name: "shop".into(), request_id: String::new() }).await.unwrap();
    events_until(&mut client, "shop", "waiting").await;
    serving.stop().await;
}

#[tokio::test]
async fn hold_and_proceed_at_a_step_and_before_a_phase() {
    let fixture = fixture("").await;
    let go = held_up(&fixture, 2, "seed.start_standby:canary-2");
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    client.start(start("canary")).await.unwrap();
    let refused = client.hold(hold("canary", "lunch")).await.unwrap_err();
    assert!(
        refused.code() == Code::InvalidArgument && refused.message().contains("seed, convert"),
        "{refused}"
    );
    client.hold(hold("canary", "upgrade")).await.unwrap();
    go.send(true).unwrap();
    let quiet = |status: &StatusReply| status.operations[0].idle;
    let held = until(&mut client, "canary", quiet).await.operations.remove(0);
    assert_eq!((held.state.as_str(), held.phase.as_str()), ("running", "upgrade"));
    assert!(held.reason.contains("before the phase upgrade by operator alice"), "{}", held.reason);
    // The slots exist by now, and nothing consumes them.
    assert!(held.reason.contains("keep WAL on the old leader"), "{}", held.reason);
    assert!(held.next.starts_with("pgleap proceed canary"), "{}", held.next);
    let begun =
        |agent: usize| fixture.agents[agent].acts(Asked::Do).iter().any(|step| step.starts_with("upgrade."));
    assert!(!begun(0) && !begun(1));
    client.proceed(proceed("canary")).await.unwrap();
    events_until(&mut client, "canary", "waiting").await;
    let notes = client.hold(hold("canary", "")).await.unwrap().into_inner().notes;
    assert_eq!(notes, Vec::<String>::new());
    let finish = FinishRequest { name: "canary".into(), ..FinishRequest::default() };
    let refused = client.finish(finish).await.unwrap_err();
    assert!(refused.message().contains("`pgleap proceed canary` first"), "{refused}");

    let mut viewer = fixture.client(&serving, Role::Viewer).await;
    for refused in [
        viewer.hold(hold("canary", "")).await.map(|_| ()).unwrap_err(),
        viewer.proceed(proceed("canary")).await.map(|_| ()).unwrap_err(),
        viewer.start_rollout(all("r")).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    serving.stop().await;
}

/// Asks until the status is as wanted.
async fn until(
    client: &mut FleetClient<Channel>,
    name: &str,
    condition: impl Fn(&StatusReply) -> bool,
) -> StatusReply {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let seen = status(client, name).await;
        if condition(&seen) {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "never came about; the status is {seen:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn unready_clusters_are_told_and_can_be_left_out() {
    let fixture = fixture("").await;
    let spec = crate::fleet::parse(&fixture.toml, "test").unwrap();
    let mut spoilt = of(spec.cluster("ledger").unwrap().clone()).facts.replies["db3"].clone();
    spoilt.nodes[0].server.as_mut().unwrap().settings.insert("wal_level".into(), "replica".into());
    fixture.agents[2].inspected(spoilt);
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    let refused = client.start_rollout(all("r-1")).await.unwrap_err();
    assert!(refused.message().contains("1 of the clusters are not ready:\n  ledger: "), "{refused}");
    assert_eq!(status(&mut client, "").await.operations.len(), 0);
    let some = StartRolloutRequest { ready_only: true, ..all("r-2") };
    let started = client.start_rollout(some).await.unwrap().into_inner();
    let clusters: Vec<&str> = started.operations.iter().map(|one| one.cluster.as_str()).collect();
    assert_eq!((clusters, started.unready[0].cluster.as_str()), (vec!["canary", "shop"], "ledger"));
    serving.stop().await;
}

#[tokio::test]
async fn outside_its_window_an_operation_is_queued_with_the_time() {
    // Open for a minute once a week, on the day after tomorrow.
    let day =
        (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(48)).to_zoned(jiff::tz::TimeZone::UTC);
    let day = day.strftime("%a").to_string().to_lowercase();
    let window =
        format!("[[window]]\ndays = [\"{day}\"]\nfrom = \"12:00\"\nto = \"12:01\"\nzone = \"UTC\"\n");
    let fixture = fixture(&window).await;
    let serving = fixture.serve().await;
    let mut client = fixture.client(&serving, Role::Operator).await;
    client.apply_fleet(fixture.apply()).await.unwrap();
    let started = client.start(start("canary")).await.unwrap().into_inner();
    assert!(started.waits_for.contains("outside the maintenance window, which opens"), "{started:?}");
    assert!(started.waits_for.ends_with("12:00 UTC"), "{started:?}");
    // Without the window it begins by itself.
    let toml = fixture.toml.replace(&window, "");
    let apply = ApplyFleetRequest { toml, request_id: "a-2".into(), ..fixture.apply() };
    let changes = client.apply_fleet(apply).await.unwrap().into_inner().changes;
    assert_eq!(changes, ["fleet: windows: changed"]);
    events_until(&mut client, "canary", "waiting").await;
    serving.stop().await;
}
