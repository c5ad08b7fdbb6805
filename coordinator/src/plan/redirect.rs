//! The same plan with another old leader, after a failover of the old cluster. Only what names the leader changes: databases, slots,
//! collations and jobs stay those of the start, and so does what belongs to a server and not to its leadership (physical slots, where
//! a seed was cloned from).

use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::quote::{conninfo_value, sh};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{HaltStandby, StopLeader};
use pgleap_proto::traffic::{Cluster, Leader};

use super::quote::psql;
use super::table::rows;
use super::traffic::{Placed, Side};
use super::types::{Finish, Plan, PlannedStep};

/// The plan with the old node of this name as its old leader.
///
/// # Errors
/// When the plan cannot move traffic, or has no such old node.
pub fn redirect(plan: &Plan, to: &str) -> Result<Plan, String> {
    let moving = plan.moving().ok_or("its plan was made by an older pgleap, which could not move traffic")?;
    let mut old = moving.nodes.iter().filter(|(side, _)| *side == Side::Old).map(|(_, at)| at);
    let to = old.find(|at| at.what.name == to).ok_or_else(|| format!("the plan has no old node {to}"))?;
    let mut plan = plan.clone();
    if to.what.name != moving.old.what.name {
        let swap = Swap { from: &moving.old, to, new: &moving.new.what };
        plan.steps.iter_mut().for_each(|step| swap.step(step));
    }
    Ok(plan)
}

struct Swap<'a> {
    from: &'a Placed<Node>,
    to: &'a Placed<Node>,
    /// The new leader.
    new: &'a Node,
}

impl Swap<'_> {
    fn step(&self, step: &mut PlannedStep) {
        let mut runs_there = false;
        match &mut step.action.kind {
            Some(Kind::Publish(publish)) => runs_there = self.node(&mut publish.node),
            Some(Kind::CreateMarker(create)) => runs_there = self.node(&mut create.node),
            Some(Kind::CreateSlots(create)) => runs_there = self.node(&mut create.node),
            Some(Kind::ProtectFromPatroni(protect)) => runs_there = self.node(&mut protect.node),
            Some(Kind::Subscribe(subscribe)) => {
                runs_there = self.node(&mut subscribe.node);
                if !runs_there {
                    self.publisher(&mut subscribe.publisher);
                }
            }
            Some(Kind::CatchUp(catch_up)) => {
                self.publisher(&mut catch_up.publisher);
                self.node(&mut catch_up.publisher_node);
                catch_up.publisher_agent.clone_from(&self.to.agent);
            }
            Some(Kind::Validate(validate)) => {
                self.node(&mut validate.publisher_node);
                validate.publisher_agent.clone_from(&self.to.agent);
            }
            Some(Kind::KeepTraffic(keep)) => {
                self.cluster(&mut keep.cluster);
                if keep.side == Side::Old.message() {
                    keep.leader = keep.node.as_ref().is_some_and(|node| node.name == self.to.what.name);
                }
                return;
            }
            Some(Kind::StagePooler(stage)) => {
                stage.old_leader = Some(self.leader());
                return;
            }
            _ if step.finish == Finish::StopOld => return self.retire(step),
            _ => return,
        }
        if runs_there {
            step.host.clone_from(&self.to.host);
            step.agent.clone_from(&self.to.agent);
        }
        self.words(step);
        self.commands(step);
    }

    /// Whether it was the former leader.
    fn node(&self, node: &mut Option<Node>) -> bool {
        let was = node.as_ref().is_some_and(|node| node.name == self.from.what.name);
        if was {
            *node = Some(self.to.what.clone());
        }
        was
    }

    fn publisher(&self, publisher: &mut Option<Conninfo>) {
        let (from, to) = (&self.from.what, &self.to.what);
        if let Some(reached) = publisher.as_mut().filter(|at| at.host == from.address && at.port == from.port)
        {
            reached.host.clone_from(&to.address);
            reached.port = to.port;
        }
    }

    fn leader(&self) -> Leader {
        Leader { node: Some(self.to.what.clone()), agent: self.to.agent.clone() }
    }

    fn cluster(&self, cluster: &mut Option<Cluster>) {
        if let Some(cluster) = cluster {
            cluster.old_leader = Some(self.leader());
        }
    }

    /// The leader is stopped while its standbys stream.
    fn retire(&self, step: &mut PlannedStep) {
        let node = match &step.action.kind {
            Some(Kind::StopLeader(stop)) => stop.node.clone(),
            Some(Kind::HaltStandby(halt)) => halt.node.clone(),
            _ => return,
        };
        let leads = node.as_ref().is_some_and(|node| node.name == self.to.what.name);
        step.action.kind = Some(if leads {
            Kind::StopLeader(StopLeader { node })
        } else {
            Kind::HaltStandby(HaltStandby { node })
        });
    }

    /// What people read. A name stands in it only where the table says so.
    fn words(&self, step: &mut PlannedStep) {
        let name = step.id.split('/').next().unwrap_or_default();
        let is_row = |row: &&super::table::Row| format!("{}.{}", row.phase, row.name) == name;
        let (from, to) = (&self.from.what.name, &self.to.what.name);
        if rows().filter(is_row).any(|row| row.title.contains("{old}")) {
            step.title = renamed(&step.title, from, to);
        }
        let waits = |row: &super::table::Row| row.waits_for.is_some_and(|text| text.contains("{old}"));
        if rows().filter(is_row).any(waits) {
            step.waits_for = step.waits_for.as_ref().map(|text| renamed(text, from, to));
        }
    }

    /// Commands as they would be typed by hand. On the socket of the new leader they look the same where all nodes have the same paths; then there
    /// is nothing to change either.
    fn commands(&self, step: &mut PlannedStep) {
        let (from, to) = (&self.from.what, &self.to.what);
        let socket = |node: &Node| psql(node, "", &[]).trim_end_matches("''").to_owned();
        let (here, there) = (socket(from), socket(to));
        let ambiguous = [&here, &there].contains(&&socket(self.new));
        let reach = |node: &Node| format!("host={} port={} ", conninfo_value(&node.address), node.port);
        let rest = |node: &Node| node.patroni.as_ref().map(|patroni| sh(&format!("{}/config", patroni.rest)));
        for command in &mut step.commands {
            if !ambiguous && let Some(rest) = command.strip_prefix(&here) {
                *command = format!("{there}{rest}");
            }
            *command = command.replace(&reach(from), &reach(to));
            if let (Some(here), Some(there)) = (rest(from), rest(to)) {
                *command = command.replace(&here, &there);
            }
        }
    }
}

/// Another name where one stands as a word of its own.
fn renamed(text: &str, from: &str, to: &str) -> String {
    let within = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let (before, behind) =
            (rest.get(..at).unwrap_or_default(), rest.get(at + from.len()..).unwrap_or_default());
        let open = |c: Option<char>| c.is_none_or(|c| !within(c));
        // "node-1's" ends at the apostrophe; a sentence's full stop is never behind a name here.
        let word =
            open(before.chars().next_back().or(out.chars().next_back())) && open(behind.chars().next());
        out.push_str(before);
        out.push_str(if word { to } else { from });
        rest = behind;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_changed_only_as_a_whole_word() {
        assert_eq!(renamed("on o1, o10 and xo1; of o1's", "o1", "o2"), "on o2, o10 and xo1; of o2's");
    }
}
