//! The operations: all started at once, and followed to their gate.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use jiff::Timestamp;
use pgleap_proto::fleet::{ApplyFleetRequest, OperationStatus, PlanReply, PlanRequest, StartRequest};

use super::layout::{ClusterAt, Layout, PROBE};
use super::operator::{Operator, request_id};
use super::serve::Swarm;
use crate::harness::eventually;

/// What was planned and started.
#[derive(Debug)]
pub struct Load {
    /// The steps of each cluster up to its gate, the probe's included.
    pub plans: BTreeMap<String, PlanReply>,
    /// Operation of each cluster.
    pub operations: BTreeMap<String, String>,
    /// When the first one was asked for.
    pub began: Timestamp,
    /// Until the last one was accepted, in seconds.
    pub start_seconds: f64,
    /// Acts that the probe needed before.
    before: u64,
}

/// Tells the coordinators of the fleet, and brings the probe to its gate.
///
/// # Errors
/// When that is refused or does not come about.
pub async fn prepare(operator: &Operator, layout: &Layout) -> Result<()> {
    let id = request_id();
    let request = ApplyFleetRequest { toml: layout.toml(), source: "swarm.toml".into(), request_id: id };
    operator
        .ask("fleet apply", |mut client| {
            let request = request.clone();
            async move { client.apply_fleet(request).await }
        })
        .await?;
    start(operator, PROBE).await?;
    eventually("the probe at its gate", Duration::from_secs(60), || async {
        at_gate(&operator.operation(PROBE).await?)
    })
    .await
    .context("preparing")
}

async fn start(operator: &Operator, cluster: &str) -> Result<String> {
    let (cluster, request_id) = (cluster.to_owned(), request_id());
    // Warnings are not accepted: the simulated hosts are healthy ones.
    let request = StartRequest { cluster, request_id, accept_warnings: false };
    let reply = operator
        .ask("start", |mut client| {
            let request = request.clone();
            async move { client.start(request).await }
        })
        .await?;
    Ok(reply.operation)
}

async fn plan(operator: &Operator, cluster: &str) -> Result<PlanReply> {
    operator
        .ask("plan", |mut client| {
            let request = PlanRequest { cluster: cluster.to_owned() };
            async move { client.plan(request).await }
        })
        .await
}

/// Some when it is there; an error when it never will be.
fn at_gate(status: &OperationStatus) -> Result<Option<()>> {
    if status.state == "stopped" {
        bail!("{} stopped: {} {:?}", status.operation, status.reason, status.evidence);
    }
    Ok((status.state == "waiting").then_some(()))
}

/// The plan of every cluster. Clusters with as many nodes have the same one but for names, so each shape is asked for once:
/// the leader is not to know its agents before the load begins.
async fn plans(operator: &Operator, layout: &Layout) -> Result<BTreeMap<String, PlanReply>> {
    let mut shapes: BTreeMap<(usize, usize), PlanReply> = BTreeMap::new();
    let mut plans = BTreeMap::new();
    for cluster in layout.all() {
        let shape = (cluster.old.len(), cluster.new.len());
        if let std::collections::btree_map::Entry::Vacant(vacant) = shapes.entry(shape) {
            vacant.insert(plan(operator, &cluster.name).await?);
        }
        plans.extend(shapes.get(&shape).map(|plan| (cluster.name.clone(), renamed(plan, &cluster.name))));
    }
    Ok(plans)
}

fn renamed(plan: &PlanReply, cluster: &str) -> PlanReply {
    let mut plan = plan.clone();
    let (from, to) = (format!("/{}-", plan.cluster), format!("/{cluster}-"));
    for step in &mut plan.steps {
        step.id = step.id.replace(&from, &to);
        step.after.iter_mut().for_each(|after| *after = after.replace(&from, &to));
    }
    plan.cluster = cluster.to_owned();
    plan
}

impl Load {
    /// Starts every cluster but the probe, all at once.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn begin(operator: &Operator, swarm: &Swarm) -> Result<Load> {
        let plans = plans(operator, &swarm.layout).await?;
        let before = swarm.book.acts_ended();
        let began = Timestamp::now();
        let clusters: Vec<&ClusterAt> = swarm.layout.clusters.iter().collect();
        let started = clusters.iter().map(|cluster| async {
            let operation = start(operator, &cluster.name).await?;
            anyhow::Ok((cluster.name.clone(), operation))
        });
        let mut operations: BTreeMap<String, String> = try_join_all(started).await?.into_iter().collect();
        let start_seconds = Timestamp::now().duration_since(began).as_secs_f64();
        operations.insert(PROBE.to_owned(), operator.operation(PROBE).await?.operation);
        Ok(Load { plans, operations, began, start_seconds, before })
    }

    /// Steps of all operations that were started, the probe's left out.
    pub fn steps(&self) -> u64 {
        let plans = self.plans.iter().filter(|(cluster, _)| *cluster != PROBE);
        plans.map(|(_, plan)| plan.steps.len() as u64).sum()
    }

    /// Acts of this load that have ended.
    pub fn acts_ended(&self, swarm: &Swarm) -> u64 {
        swarm.book.acts_ended().saturating_sub(self.before)
    }

    /// Waits until so many of its acts have ended. Fails when an operation stops meanwhile.
    ///
    /// # Errors
    /// As said, or when `limit` has passed.
    pub async fn wait_acts(
        &self,
        operator: &Operator,
        swarm: &Swarm,
        acts: u64,
        limit: Duration,
    ) -> Result<()> {
        let (mut seen, mut still) = (0, 0_u32);
        let what = format!("{acts} steps");
        let waited = eventually(&what, limit, || {
            let now = self.acts_ended(swarm);
            still = if now == seen { still + 1 } else { 0 };
            seen = now;
            // Asked only when nothing moves: a status of everything is no small request.
            let suspicious = still > 0 && still.is_multiple_of(100);
            async move {
                let stopped = if suspicious { stopped(operator).await? } else { None };
                Ok(stopped.map(Err).or((now >= acts).then_some(Ok(()))))
            }
        });
        waited.await.with_context(|| format!("{} steps were done", self.acts_ended(swarm)))?
    }

    /// Waits until every operation is at its gate.
    ///
    /// # Errors
    /// When one stops, or `limit` has passed.
    pub async fn wait_gates(
        &self,
        operator: &Operator,
        swarm: &Swarm,
        limit: Duration,
    ) -> Result<Vec<OperationStatus>> {
        self.wait_acts(operator, swarm, self.steps(), limit).await?;
        let statuses = eventually("all operations at their gates", limit, || async {
            let operations = operator.status("").await?.operations;
            let open = operations.iter().filter(|status| status.state == "running").count();
            Ok((open == 0).then_some(operations))
        })
        .await?;
        for status in &statuses {
            let state = &status.state;
            ensure!(at_gate(status)?.is_some(), "{} is {state}: {}", status.operation, status.reason);
        }
        ensure!(statuses.len() == self.operations.len(), "{} operations are known", statuses.len());
        Ok(statuses)
    }
}

/// An operation that stopped, as an error.
async fn stopped(operator: &Operator) -> Result<Option<anyhow::Error>> {
    let operations = operator.status("").await?.operations;
    let stopped = operations.into_iter().find(|status| status.state == "stopped");
    Ok(stopped.map(|status| {
        anyhow::anyhow!("{} stopped: {} {:?}", status.operation, status.reason, status.evidence)
    }))
}
