//! From specification and facts to a plan.

use pgleap_proto::step::DatabaseSlot;

use super::draft::Draft;
use super::table::{After, At, Each, Row, TABLE};
use super::types::{Plan, PlannedStep};
use crate::check::{Facts, View, replicated};
use crate::fleet::{ClusterSpec, NewNodeSpec};

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
/// `tag` is `pgleap_` and six hexadecimal digits; it names the publication, the subscription and the slots.
///
/// # Errors
/// When the facts do not show exactly one old leader and its databases, or when something in it has the tag already.
pub fn build(cluster: &ClusterSpec, facts: &Facts, tag: &str) -> Result<Plan, PlanError> {
    let view = View::new(cluster, facts);
    let draft = draft(&view, tag).map_err(|reason| PlanError { cluster: cluster.name.clone(), reason })?;
    let mut steps = Vec::new();
    for row in TABLE {
        steps.extend(subjects(row, cluster).map(|node| step(row, &draft, node)));
    }
    Ok(Plan {
        cluster: cluster.name.clone(),
        old_major: cluster.old.version,
        new_major: cluster.new.version,
        tag: tag.to_owned(),
        steps,
    })
}

fn draft<'a>(view: &View<'a>, tag: &'a str) -> Result<Draft<'a>, String> {
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
    let slots: Vec<DatabaseSlot> = replicated(server)
        .map(|db| DatabaseSlot { database: db.name.clone(), slot: format!("{tag}_{}", db.oid), lsn: 0 })
        .collect();
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
        tag,
        old_leader: leader.spec,
        upstream: upstream.spec,
        new_leader,
        server,
        upstream_server: upstream.server(),
        slots,
        connectable,
        jobs: cluster.new.jobs.unwrap_or(cpus).max(1),
    })
}

fn subjects<'c>(row: &Row, cluster: &'c ClusterSpec) -> impl Iterator<Item = &'c NewNodeSpec> + use<'c> {
    let (skip, take) = match row.each {
        Each::Leader => (0, 1),
        Each::Replica => (1, usize::MAX),
    };
    cluster.new.nodes.iter().skip(skip).take(take)
}

fn step(row: &'static Row, draft: &Draft<'_>, node: &NewNodeSpec) -> PlannedStep {
    let (host, agent) = match row.at {
        At::OldLeader => (&draft.old_leader.host, &draft.old_leader.agent),
        At::Upstream => (&draft.upstream.host, &draft.upstream.agent),
        At::NewLeader => (&draft.new_leader.host, &draft.new_leader.agent),
        At::Node => (&node.host, &node.agent),
    };
    let words = |text: &str| {
        text.replace("{node}", &node.name)
            .replace("{upstream}", &draft.upstream.name)
            .replace("{old}", &draft.old_leader.name)
            .replace("{leader}", &draft.new_leader.name)
    };
    PlannedStep {
        id: row.id(&node.name),
        phase: row.phase,
        host: host.clone(),
        agent: agent.clone(),
        title: words(row.title),
        action: (row.action)(draft, node),
        commands: (row.commands)(draft, node),
        undo: row.undo.map(str::to_owned),
        waits_for: row.waits_for.map(words),
        after: after(row, draft.cluster, node),
    }
}

/// Ids of the steps that this one follows.
fn after(row: &Row, cluster: &ClusterSpec, node: &NewNodeSpec) -> Vec<String> {
    let own = row.id(&node.name);
    let mut ids: Vec<String> = Vec::new();
    for dependency in row.after {
        match *dependency {
            After::Leader(phase, name) => ids.extend(
                Row::find(phase, name, Each::Leader)
                    .zip(cluster.new_leader())
                    .map(|(row, node)| row.id(&node.name)),
            ),
            After::Same(phase, name) => {
                let row = Row::find(phase, name, row.each).or_else(|| Row::find(phase, name, Each::Leader));
                ids.extend(row.map(|row| row.id(&node.name)));
            }
            After::All(phase, name) => {
                let rows = TABLE.iter().filter(|row| row.phase == phase && row.name == name);
                ids.extend(rows.flat_map(|row| subjects(row, cluster).map(|node| row.id(&node.name))));
            }
        }
    }
    // "All" of a step's own name means the others.
    ids.retain(|id| *id != own);
    ids
}
