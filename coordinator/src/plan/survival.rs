//! Whether an operation survives a failover of the old cluster: who leads it now, has every slot from which the new cluster follows, and
//! lacks nothing that the new cluster has applied. Judged from what agents said; what is unknown is not taken for well.
//!
//! It never looks at anything by itself, and changes nothing.

use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::traffic::{ObserveReply, SlotState};

use super::traffic::{Moving, Placed, Side};
use super::types::{Phase, Plan};

/// From this major on standbys can keep copies of logical slots.
pub const FAILOVER_SLOTS: u32 = 17;

/// What a node's agent said a moment ago.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// Of which side it is.
    pub side: Side,
    /// The node.
    pub at: &'a Placed<Node>,
    /// Its answer to a question that named the cluster.
    pub reply: &'a ObserveReply,
}

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Survival {
    /// It goes on with this leader.
    Survives {
        /// The old node that leads now; the one of the plan when that has only begun a new timeline.
        to: String,
        /// On this timeline.
        timeline: u32,
        /// What shows it, a line for each database.
        evidence: Vec<String>,
    },
    /// Not known yet: why.
    Unclear(String),
    /// It does not: why.
    Lost(String),
}

impl Plan {
    /// Whether the slots from which the new cluster follows can outlive a failover of the old one at all.
    pub fn may_survive(&self) -> bool {
        self.steps.iter().any(|step| match &step.action.kind {
            Some(Kind::CreateSlots(create)) => step.phase == Phase::Convert && create.failover,
            _ => false,
        })
    }
}

/// `timeline` is the one of the plan's old leader when that was last known to lead; 0 when nobody knows.
pub fn survival(plan: &Plan, timeline: u32, seen: &[Seen<'_>]) -> Survival {
    let Some(moving) = plan.moving().filter(|_| plan.may_survive()) else {
        let why = "its logical slots, from which the new cluster follows, did not move with it: standbys keep no copies of them";
        return Survival::Lost(why.to_owned());
    };
    match judge(&moving, timeline, seen) {
        Ok(survives) => survives,
        Err(verdict) => verdict,
    }
}

fn unclear<T>(why: impl Into<String>) -> Result<T, Survival> {
    Err(Survival::Unclear(why.into()))
}

fn lost<T>(why: impl Into<String>) -> Result<T, Survival> {
    Err(Survival::Lost(why.into()))
}

fn judge(moving: &Moving, timeline: u32, seen: &[Seen<'_>]) -> Result<Survival, Survival> {
    let leads = |seen: &&Seen<'_>| seen.reply.running && !seen.reply.in_recovery;
    let leading: Vec<&Seen<'_>> = seen.iter().filter(|seen| seen.side == Side::Old).filter(leads).collect();
    let leader = match leading[..] {
        [leader] => leader,
        [] => return unclear("nobody is seen to lead the old cluster"),
        [..] => return unclear("more than one node leads the old cluster"),
    };
    let name = leader.at.what.name.clone();
    let former = &moving.old.what.name;
    let slots = slots(moving, leader)?;
    // It has what it made itself, which neither a clone nor pg_rewind leaves: all of its WAL is what it was.
    let own = name == *former && slots.iter().all(|slot| !slot.synced);
    if let Some(slot) = slots.iter().find(|slot| !own && !slot.failover) {
        return lost(format!("slot {} of {name} was made without failover", slot.slot));
    }
    let reaches = if own { Reaches::All } else { reaches(former, leader, timeline)? };
    let mut evidence = vec![format!("{name} has every slot")];
    evidence.extend(applied(moving, &reaches, &name, seen)?);
    Ok(Survival::Survives { to: name, timeline: leader.reply.timeline, evidence })
}

/// The forward slots of a leader, all of them and fit for use.
fn slots<'s>(moving: &Moving, leader: &Seen<'s>) -> Result<Vec<&'s SlotState>, Survival> {
    let name = &leader.at.what.name;
    let mut slots = Vec::new();
    for database in &moving.cluster.databases {
        let wanted = &database.forward_slot;
        let Some(slot) = leader.reply.slots.iter().find(|slot| slot.slot == *wanted) else {
            return lost(format!(
                "{name} has no copy of slot {wanted}, from which database \"{}\" of the new cluster follows (is \
                 sync_replication_slots on?)",
                database.database
            ));
        };
        if slot.temporary {
            return lost(format!("slot {wanted} of {name} had not been copied whole when it was promoted"));
        }
        if slot.lost {
            return lost(format!("slot {wanted} of {name} is invalid, or the WAL it needs is gone"));
        }
        slots.push(slot);
    }
    Ok(slots)
}

/// Up to where what was written by the former leader is known to be on the new one.
enum Reaches {
    /// Whatever the new side has applied came from there.
    All,
    /// The new leader went its own way here.
    Fork(Lsn),
}

/// The former leader, once it is a standby, serves the subscriptions nothing more: they ask for a primary.
fn reaches(former: &str, leader: &Seen<'_>, timeline: u32) -> Result<Reaches, Survival> {
    let name = &leader.at.what.name;
    if timeline == 0 {
        return lost(format!(
            "the plan does not say on which timeline {former} was, so what {name} has cannot be told"
        ));
    }
    // There may have been two failovers since; one that was never on that timeline tells nothing.
    let fork = leader.reply.forks.iter().find(|fork| fork.parent == timeline);
    match fork {
        Some(fork) => Ok(Reaches::Fork(Lsn(fork.lsn))),
        None => unclear(format!(
            "where {name} left timeline {timeline} of {former} cannot be told: its history does not say so (it is on timeline {})",
            leader.reply.timeline
        )),
    }
}

/// Whether the new side has nothing that the old leader lacks; a line for each database.
fn applied(
    moving: &Moving,
    reaches: &Reaches,
    leader: &str,
    seen: &[Seen<'_>],
) -> Result<Vec<String>, Survival> {
    let new = seen.iter().find(|seen| seen.side == Side::New && seen.at.what.name == moving.new.what.name);
    let Some(new) = new.map(|seen| seen.reply).filter(|reply| reply.running && !reply.in_recovery) else {
        return unclear("the leader of the new cluster cannot be asked what it has applied");
    };
    let mut lines = Vec::new();
    for database in &moving.cluster.databases {
        let name = &database.database;
        let Some(origin) = new.origins.iter().find(|origin| origin.database == *name).map(|at| Lsn(at.lsn))
        else {
            return unclear(format!("what the new cluster has applied of database \"{name}\" is not known"));
        };
        let receiving = new.receiving.contains(name);
        lines.push(match reaches {
            Reaches::All => format!("database \"{name}\": {origin} is applied, all of it from {leader}"),
            Reaches::Fork(fork) if origin > *fork => {
                return lost(format!(
                    "the new cluster is ahead: it has applied database \"{name}\" up to {origin}, and {leader} took from the \
                     former leader what lies before {fork}. What lies between is in the new cluster only (name the standbys' slots in \
                     synchronized_standby_slots, so that this cannot happen)"
                ));
            }
            Reaches::Fork(_) if receiving => {
                return unclear(format!("the subscription of database \"{name}\" is still connected to the former leader"));
            }
            Reaches::Fork(fork) => {
                format!("database \"{name}\": {origin} is applied, and {leader} has everything up to {fork}")
            }
        });
    }
    Ok(lines)
}

#[cfg(test)]
#[path = "survival_tests.rs"]
mod tests;
