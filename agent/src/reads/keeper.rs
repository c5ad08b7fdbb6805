//! Keeps a task going for each record: the steps write and remove records, and have no other handle to the agent's own work.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pgleap_proto::node::Node;
use pgleap_proto::step::KeepTraffic;
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::Cluster;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::balancer;
use super::bounds::Bounds;
use super::guard::guard;
use super::heartbeat::{Found, Heart};
use super::judge::Seen;
use super::lag::Side;
use super::leaders::Leaders;
use super::record::{self, KeptBalancer};
use super::sampler::{Sample, Sampler};
use super::stale_slots;
use crate::config::AgentConfig;
use crate::error::Result;
use crate::pg::sql;
use crate::pg::subscriptions::{self, Launcher};
use crate::side::hold;

/// How often the records are looked at, and each node.
const SCAN: Duration = Duration::from_millis(500);
const SAMPLE: Duration = Duration::from_millis(500);
/// Longest look at a node; what takes longer makes its sample old.
const LOOK: Duration = Duration::from_secs(2);
/// How often the leader that takes writes says so, and how soon one that did not looks again whether it does.
const BEAT: Duration = Duration::from_secs(1);
const WAKE: Duration = Duration::from_millis(250);
/// How often a leader that follows advances its idle slots, so that WAL is not kept for them, and no switchover waits for it.
const IDLE: Duration = Duration::from_secs(5);

/// A node that is kept.
#[derive(Debug)]
pub struct Kept {
    /// Its record.
    pub record: KeepTraffic,
    /// Of which side it is.
    pub side: Side,
    sample: Mutex<Option<Sample>>,
}

impl Kept {
    /// Its name.
    pub fn name(&self) -> &str {
        self.record.node.as_ref().map_or("", |node| node.name.as_str())
    }

    /// The newest look at it.
    pub fn sample(&self) -> Option<Sample> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bounds of reads, by its record.
    pub fn bounds(&self) -> Bounds {
        let given = |bound: u64| Some(bound).filter(|bound| *bound > 0);
        Bounds { bytes: given(self.record.max_lag_bytes), ms: given(self.record.max_lag_ms) }
    }

    /// As the judge wants it.
    pub fn seen<'a>(&'a self, sample: Option<&'a Sample>) -> Seen<'a> {
        Seen { node: self.name(), side: self.side, sample }
    }
}

/// Operation and name of a record.
type Key = (String, String);

/// Everything that is kept now.
#[derive(Debug)]
pub struct Keeper {
    config: Arc<AgentConfig>,
    tls: TlsIdentity,
    nodes: Mutex<BTreeMap<Key, (Arc<Kept>, DropGuard)>>,
    /// Of each operation, with who they are: another node may lead since a failover. Ends with the last node that uses it.
    leaders: Mutex<HashMap<String, (Cluster, Weak<Leaders>)>>,
}

impl Keeper {
    /// Nothing yet; [`Keeper::run`] looks.
    pub fn new(config: Arc<AgentConfig>, tls: TlsIdentity) -> Arc<Keeper> {
        Arc::new(Keeper { config, tls, nodes: Mutex::default(), leaders: Mutex::default() })
    }

    /// The nodes kept now.
    pub fn nodes(&self) -> Vec<Arc<Kept>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.values().map(|(kept, _)| kept.clone()).collect()
    }

    /// One of them.
    pub fn node(&self, operation: &str, name: &str) -> Option<Arc<Kept>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&(operation.to_owned(), name.to_owned())).map(|(kept, _)| kept.clone())
    }

    /// Follows the records until it is cancelled.
    pub async fn run(self: Arc<Keeper>, ended: CancellationToken) {
        let mut balancers: HashMap<Key, tokio::task::JoinHandle<()>> = HashMap::new();
        let mut unreadable = String::new();
        while !ended.is_cancelled() {
            self.scan_nodes(&ended, &mut unreadable);
            balancers.retain(|_, task| !task.is_finished());
            for key in record::list::<KeptBalancer>(&self.config.state_dir) {
                let config = self.config.clone();
                let (operation, name) = key.clone();
                let ended = ended.clone();
                balancers.entry(key).or_insert_with(|| {
                    tokio::spawn(async move {
                        let keeping = balancer::keep(&config.state_dir, &operation, &name);
                        let _ = ended.run_until_cancelled(keeping).await;
                    })
                });
            }
            let _ = ended.run_until_cancelled(tokio::time::sleep(SCAN)).await;
        }
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn scan_nodes(&self, ended: &CancellationToken, unreadable: &mut String) {
        let mut wanted = BTreeMap::new();
        let mut problem = String::new();
        for (operation, name) in record::list::<KeepTraffic>(&self.config.state_dir) {
            let loaded = record::load::<KeepTraffic>(&self.config.state_dir, &operation, &name);
            match loaded
                .and_then(|found| found.map(|record| Ok((super::side(record.side)?, record))).transpose())
            {
                Ok(Some(found)) => drop(wanted.insert((operation, name), found)),
                Ok(None) => {}
                Err(error) => problem = error.message,
            }
        }
        if problem != *unreadable && !problem.is_empty() {
            tracing::error!(reason = problem, "a record of what to keep cannot be used");
        }
        *unreadable = problem;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|key, (kept, _)| wanted.get(key).is_some_and(|(_, record)| *record == kept.record));
        for (key, (side, record)) in wanted {
            let operation = key.0.clone();
            nodes.entry(key).or_insert_with(|| {
                let kept = Arc::new(Kept { record, side, sample: Mutex::default() });
                let token = ended.child_token();
                self.begin(&operation, &kept, &token);
                (kept, token.drop_guard())
            });
        }
    }

    /// What is known of the leaders of an operation: shared by its nodes on this host.
    fn leaders(&self, operation: &str, kept: &Kept) -> Arc<Leaders> {
        let mut all = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (_, leaders)| leaders.strong_count() > 0);
        let cluster = kept.record.cluster.clone().unwrap_or_default();
        let same = all.get(operation).filter(|(of, _)| *of == cluster);
        if let Some(leaders) = same.and_then(|(_, leaders)| leaders.upgrade()) {
            return leaders;
        }
        let leaders = Arc::new(Leaders::ask(&cluster, &self.config, &self.tls));
        all.insert(operation.to_owned(), (cluster, Arc::downgrade(&leaders)));
        leaders
    }

    fn begin(&self, operation: &str, kept: &Arc<Kept>, token: &CancellationToken) {
        let leaders = self.leaders(operation, kept);
        let (task, ended) = (kept.clone(), token.clone());
        tokio::spawn(async move { ended.run_until_cancelled(watch(task, leaders)).await });
        if kept.record.leader {
            let (task, ended) = (kept.clone(), token.clone());
            tokio::spawn(async move { ended.run_until_cancelled(lead_or_follow(task)).await });
        } else {
            let guarding = guard(kept.clone(), operation.to_owned(), self.config.clone());
            let ended = token.clone();
            tokio::spawn(async move { ended.run_until_cancelled(guarding).await });
        }
        if kept.side == Side::Old && !kept.record.leader {
            let (task, ended) = (kept.clone(), token.clone());
            tokio::spawn(async move { ended.run_until_cancelled(stale_slots::keep_away(task)).await });
        }
    }
}

/// Looks at the node again and again.
async fn watch(kept: Arc<Kept>, leaders: Arc<Leaders>) {
    let mut sampler = Sampler::new(kept.record.clone(), kept.side);
    let mut ticks = interval(SAMPLE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = tokio::time::timeout(LOOK, sampler.look(&leaders)).await;
        match look {
            Ok(sample) => {
                *kept.sample.lock().unwrap_or_else(PoisonError::into_inner) = Some(sample);
            }
            // The sessions may be in the middle of an answer that never comes.
            Err(_) => sampler = Sampler::new(kept.record.clone(), kept.side),
        }
    }
}

/// A worker that ends while the launcher waits for another one to attach is forgotten as one that was asked for.
async fn see_to_workers(node: &Node, name: &str, launcher: &mut Launcher) -> Result<()> {
    let session = sql::connect_any(node).await?;
    if subscriptions::without_worker(&session, name).await?.is_none() {
        launcher.is_done();
    } else if launcher.is_due() {
        // A switchover disables subscriptions under this lock: looked at again within it, or one would be enabled after that.
        let _held = hold(node).await;
        if let Some(database) = subscriptions::without_worker(&session, name).await? {
            launcher.remind(&sql::connect(node, &database).await?, name).await?;
        }
    }
    Ok(())
}

/// The leader's own work: its heartbeat while it takes writes, its idle slots while it follows.
async fn lead_or_follow(kept: Arc<Kept>) {
    let node = kept.record.node.clone().unwrap_or_default();
    let cluster = kept.record.cluster.clone().unwrap_or_default();
    let databases: Vec<String> = cluster.databases.iter().map(|database| database.database.clone()).collect();
    let mut heart = Heart::default();
    let (mut advanced, mut launcher) = (None::<Instant>, Launcher::asked());
    let mut told = String::new();
    loop {
        let mut problem = String::new();
        let mut pause = WAKE;
        match heart.beat_if_writing(&node, &cluster.tag, kept.side, &databases).await {
            Ok(Found::Writing) => pause = BEAT,
            Ok(Found::Fenced) if advanced.is_none_or(|at| at.elapsed() >= IDLE) => {
                let moved = crate::side::advance_idle(&cluster, &node, kept.side.into()).await;
                let name = if kept.side == Side::Old { &cluster.reverse_tag } else { &cluster.tag };
                let asked = see_to_workers(&node, name, &mut launcher).await;
                advanced = Some(Instant::now());
                problem = moved.err().or(asked.err()).map_or_else(String::new, |error| error.message);
            }
            // Between two advances the last problem stays what it was.
            Ok(Found::Fenced) => problem.clone_from(&told),
            Ok(Found::Standby) => {}
            Err(error) => (problem, pause) = (error.message, BEAT),
        }
        if problem != told && !problem.is_empty() {
            tracing::warn!(node = node.name, reason = problem, "the leader's own work stands still");
        }
        told = problem;
        tokio::time::sleep(pause).await;
    }
}
