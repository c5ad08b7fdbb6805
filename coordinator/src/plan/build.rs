//! From specification and facts to a plan.

use std::collections::{BTreeMap, BTreeSet};

use pgleap_proto::agent::DatabaseFacts;
use pgleap_proto::step::DatabaseSlot;

use super::draft::{Draft, reverse_tag};
use super::subject::Subject;
use super::table::{After, At, Each, Row, rows};
use super::types::{Plan, PlannedStep};
use crate::check::{Facts, View, replicated};
use crate::fleet::ClusterSpec;

/// No plan can be made from these facts: what, why and what to do. `check` tells the whole of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no plan for cluster {cluster}: {reason}; `pgleap check {cluster}` tells more")]
pub struct PlanError {
    /// The cluster.
    pub cluster: String,
    /// In one sentence.
    pub reason: String,
}

/// Decides everything that can be decided beforehand. The same arguments give the same plan.
///
/// `tag` is `pgleap_` and six hexadecimal digits; it names the publications, the subscriptions, the slots and the schema of
/// marks. `operation` is the id under which agents will know it.
///
/// # Errors
/// When the facts do not show exactly one old leader and its databases, or when something in it has the tag already.
pub fn build(cluster: &ClusterSpec, facts: &Facts, operation: &str, tag: &str) -> Result<Plan, PlanError> {
    let view = View::new(cluster, facts);
    let no_plan = |reason| PlanError { cluster: cluster.name.clone(), reason };
    let draft = draft(&view, operation, tag).map_err(no_plan)?;
    let mut steps = Vec::new();
    // Of rows that are left out: what follows them follows what they would have followed.
    let mut bridges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows() {
        for subject in subjects(row, cluster) {
            let after = bridged(after(row, cluster, subject.name()), &bridges);
            if row.in_moves || !cluster.is_move() {
                steps.extend(step(row, &draft, subject, after));
            } else {
                bridges.insert(row.id(subject.name()), after);
            }
        }
    }
    Ok(Plan {
        cluster: cluster.name.clone(),
        old_major: cluster.old.version,
        new_major: cluster.new.version,
        tag: tag.to_owned(),
        traffic: cluster.traffic.clone(),
        steps,
    })
}

fn draft<'a>(view: &View<'a>, operation: &'a str, tag: &'a str) -> Result<Draft<'a>, String> {
    if let Some((host, error)) = view.facts.unreachable.first_key_value() {
        return Err(format!("the agent of host {host} cannot be reached ({error})"));
    }
    let cluster = view.cluster;
    let new_leader = cluster.new_leader().ok_or("it has no new node")?;
    let leader = view.leader().ok_or("not exactly one of its old nodes runs as a leader")?;
    let server = leader.server().ok_or("the old leader does not run")?;
    let upstream = view.upstream().unwrap_or(leader);
    if let Some(unknown) =
        server.databases.iter().find(|db| db.allow_connections && !db.connect_error.is_empty())
    {
        return Err(format!(
            "database \"{}\" could not be inspected ({})",
            unknown.name, unknown.connect_error
        ));
    }
    let connectable: Vec<_> = server.databases.iter().filter(|db| db.allow_connections).collect();
    let slots = |prefix: String| -> Vec<DatabaseSlot> {
        let one = |db: &DatabaseFacts| {
            let slot = format!("{prefix}_{}", db.oid);
            DatabaseSlot { database: db.name.clone(), slot, lsn: 0 }
        };
        replicated(server).map(one).collect()
    };
    // The way back has its own names; the old oid is as good a suffix as any.
    let (slots, reverse_slots) = (slots(tag.to_owned()), slots(reverse_tag(tag)));
    if slots.is_empty() {
        return Err("it has no database that can be connected to".to_owned());
    }
    let publication = server.databases.iter().flat_map(|db| &db.publications).find(|name| *name == tag);
    let taken = view.old.iter().filter_map(|node| node.server()).flat_map(|server| &server.slots);
    let slot = taken.map(|slot| &slot.name).find(|name| name.starts_with(&format!("{tag}_")));
    if let Some(name) = publication.or(slot) {
        return Err(format!("\"{name}\" exists already in the old cluster"));
    }
    let cpus = view.host(&new_leader.host).map_or(1, |host| host.cpus);
    Ok(Draft {
        cluster,
        operation,
        tag,
        old_leader: leader.spec,
        upstream: upstream.spec,
        new_leader,
        adopts_seed: view.adopts_seed(),
        server,
        upstream_server: upstream.server(),
        slots,
        reverse_slots,
        connectable,
        jobs: cluster.new.jobs.unwrap_or(cpus).max(1),
    })
}

fn subjects<'c>(row: &Row, cluster: &'c ClusterSpec) -> Vec<Subject<'c>> {
    let new = cluster.new.nodes.iter().map(Subject::New);
    let handed_over = cluster.new.patroni.is_some();
    let seeded = cluster.new.patroni.as_ref().is_some_and(|patroni| !patroni.seed_scope.is_empty());
    match row.each {
        Each::Leader => new.take(1).collect(),
        Each::Replica => new.skip(1).collect(),
        Each::New => new.collect(),
        Each::UnderPatroni => new.take(usize::from(cluster.old.patroni.is_some())).collect(),
        Each::LeaderToPatroni => new.take(usize::from(handed_over)).collect(),
        Each::ReplicaToPatroni => new.skip(1).filter(|_| handed_over).collect(),
        Each::LeaderByPatroni => new.take(usize::from(seeded)).collect(),
        Each::ReplicaByPatroni => new.skip(1).filter(|_| seeded).collect(),
        Each::Old => cluster.old.nodes.iter().map(Subject::Old).collect(),
        Each::Pooler => cluster.poolers.iter().map(Subject::Pooler).collect(),
        Each::Balancer => cluster.balancers.iter().map(Subject::Balancer).collect(),
    }
}

/// None when the row makes nothing for such a subject, which is a fault of the table; a test keeps it sound.
fn step(
    row: &'static Row,
    draft: &Draft<'_>,
    subject: Subject<'_>,
    after: Vec<String>,
) -> Option<PlannedStep> {
    let (host, agent) = match row.at {
        At::OldLeader => (&draft.old_leader.host, &draft.old_leader.agent),
        At::Upstream => (&draft.upstream.host, &draft.upstream.agent),
        At::NewLeader => (&draft.new_leader.host, &draft.new_leader.agent),
        At::Node => subject.place(),
    };
    let words = |text: &str| {
        text.replace("{node}", subject.name())
            .replace("{upstream}", &draft.upstream.name)
            .replace("{old}", &draft.old_leader.name)
            .replace("{leader}", &draft.new_leader.name)
    };
    Some(PlannedStep {
        id: row.id(subject.name()),
        phase: row.phase,
        host: host.clone(),
        agent: agent.clone(),
        title: words(row.title),
        action: row.action.of(draft, subject)?,
        commands: row.commands.of(draft, subject)?,
        undo: row.undo.map(str::to_owned),
        waits_for: row.waits_for.map(words),
        after,
        finish: row.finish,
    })
}

/// The same ids, each once, with those of left-out rows replaced by what these follow. A row comes after all it follows, so
/// their own are bridged already.
fn bridged(after: Vec<String>, bridges: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for id in after {
        match bridges.get(&id) {
            Some(beyond) => ids.extend(beyond.iter().cloned()),
            None => ids.push(id),
        }
    }
    let mut seen = BTreeSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    ids
}

/// Ids of the steps that this one follows.
fn after(row: &Row, cluster: &ClusterSpec, subject: &str) -> Vec<String> {
    let own = row.id(subject);
    let mut ids: Vec<String> = Vec::new();
    for dependency in row.after {
        match *dependency {
            After::Leader(phase, name) => {
                let row = Row::of_leader(phase, name);
                ids.extend(row.into_iter().flat_map(|row| {
                    subjects(row, cluster).into_iter().map(|subject| row.id(subject.name()))
                }));
            }
            After::Same(phase, name) => {
                let kinds = [row.each, Each::Leader, Each::Replica];
                let row = kinds.into_iter().find_map(|each| Row::find(phase, name, each));
                ids.extend(row.map(|row| row.id(subject)));
            }
            After::All(phase, name) => {
                let named = rows().filter(|row| row.phase == phase && row.name == name);
                ids.extend(named.flat_map(|row| {
                    subjects(row, cluster).into_iter().map(|subject| row.id(subject.name()))
                }));
            }
        }
    }
    // "All" of a step's own name means the others.
    ids.retain(|id| *id != own);
    ids
}
