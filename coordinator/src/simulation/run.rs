//! One seed from beginning to end: a safety phase under faults, then a phase in which everything heals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{sleep, timeout};

use super::chaos;
use super::invariants::heals;
use super::members;
use super::operators::Operator;
use super::sim::{Shared, Sim};
use crate::state::Side;

/// Simulated time in which everything has to heal.
const HEALS_WITHIN: Duration = Duration::from_secs(1_200);

/// Simulated time in which a group that changes has everybody as voter.
const LONGEST: Duration = Duration::from_secs(1_500);

/// What came of a seed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    pub(super) seed: u64,
    /// Of everything that happened.
    pub(super) hash: u64,
    pub(super) simulated: Duration,
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// The invariant that was broken, and how.
    pub(super) broken: Option<String>,
}

/// Runs one seed.
pub(super) fn seed(seed: u64, shown: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads");
    runtime.block_on(async {
        let sim = Arc::new(Sim::new(seed, shown));
        sim.note(format_args!("{:?}", sim.temper));
        tokio::select! {
            biased;
            () = alarm(&sim) => {}
            () = live(&sim) => {}
        }
        let report = Report {
            seed,
            hash: sim.trace.hash(),
            simulated: sim.elapsed(),
            counts: sim.trace.counts(),
            broken: sim.broken(),
        };
        // They hold each other otherwise.
        sim.coordinators.iter().for_each(|coordinator| {
            coordinator.crash(&sim);
        });
        sim.hosts.values().for_each(|host| {
            host.crash(&sim);
        });
        report
    })
}

async fn alarm(sim: &Shared) {
    loop {
        let told = sim.alarm.notified();
        if sim.broken().is_some() {
            return;
        }
        told.await;
    }
}

async fn live(sim: &Shared) {
    chaos::repair(sim);
    tokio::spawn(clients(sim.clone()));
    tokio::spawn(chaos::rage(sim.clone()));
    let operators = async {
        let working = Operator::roll_out(sim).await.into_iter().map(|mut operator| async move {
            operator.work().await;
            operator
        });
        join_all(working).await
    };
    let ends = async {
        sleep(sim.temper.safety).await;
        sim.note(format_args!("faults end"));
        sim.heal();
        chaos::repair(sim);
        // What was to come back later comes back by then.
        sleep(Duration::from_secs(61)).await;
        chaos::repair(sim);
    };
    let (operators, (), members) = tokio::join!(operators, ends, timeout(LONGEST, members::work(sim)));
    if members.is_err() {
        return sim.check("everything heals", Err("the group did not come to its end".to_owned()));
    }
    let concluded =
        join_all(operators.into_iter().map(|mut operator| async move { operator.conclude().await }));
    match timeout(HEALS_WITHIN, concluded).await {
        Ok(concluded) if concluded.iter().all(|rests| *rests) => {}
        _ => return sim.check("everything heals", Err(standing(sim))),
    }
    sleep(Duration::from_secs(30)).await;
    rest(sim);
}

/// How the operations stand that should have ended.
fn standing(sim: &Shared) -> String {
    let ledger = sim.ledger.lock().unwrap();
    let operations = ledger.state.operations.values().filter(|operation| operation.is_active());
    let told = operations.map(|operation| {
        let last: Vec<String> = operation
            .events
            .iter()
            .rev()
            .take(3)
            .map(|e| format!("{} {} {}", e.step, e.kind, e.message))
            .collect();
        format!(
            "{} is {:?}, traffic {:?}, lately {last:?}",
            operation.id, operation.status, operation.traffic
        )
    });
    format!("after {HEALS_WITHIN:?} without faults: {}", told.collect::<Vec<_>>().join("; "))
}

/// What must hold when nothing moves any more.
fn rest(sim: &Shared) {
    let mut ledger = sim.ledger.lock().unwrap();
    for coordinator in &sim.coordinators {
        let state = coordinator.raft().map(|raft| raft.latest().state);
        sim.check("everything heals", heals::everybody(coordinator.id, state.as_deref(), &ledger.state));
        if let Some(state) = state {
            ledger.compare(sim, coordinator.id, &state, true);
        }
    }
    let world = sim.world.lock().unwrap();
    for (name, cluster) in &world.clusters {
        let writer = ledger.register(name);
        sim.check("everything heals", heals::cluster(name, cluster, writer));
    }
    let gates = ledger.state.active().count() as u64;
    (0..gates).for_each(|_| sim.trace.count("at the gate"));
}

/// Clients write all the time: through poolers, and past them to any side that lets them in.
async fn clients(sim: Shared) {
    loop {
        sleep(sim.between(20, 200)).await;
        let mut world = sim.world.lock().unwrap();
        for cluster in world.clusters.values_mut() {
            let running: Vec<Side> =
                cluster.poolers.values().filter(|pooler| !pooler.paused).map(|pooler| pooler.to).collect();
            for side in running.into_iter().chain([Side::Old, Side::New]) {
                cluster.write(&sim, side);
            }
            cluster.replicate();
        }
    }
}
