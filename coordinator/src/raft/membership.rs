//! The member's part in changing its group: one change at a time, proposed by the leader and agreed on like a command;
//! learners become voters by themselves when they have caught up.

use std::sync::Arc;

use pgleap_proto::raft::{Change, Group, MemberStatus};
use raft::eraftpb::{ConfChange, ConfChangeType};
use raft::{ProgressState, SnapshotStatus, StateRole};

use super::error::{Leader, MembershipError, ProposeError, RaftError};
use super::group::{self, Asked, Stranger, Wish};
use super::node::{Answer, Node};
use super::transport::{Transport, Undelivered};
use crate::state::Reply;

/// A learner becomes a voter when it is not more entries than this behind.
const CAUGHT_UP: u64 = 64;

impl<T: Transport> Node<T> {
    /// Wishes a change of the group; the answer comes when it is applied.
    pub(super) fn change(&mut self, wish: &Wish, asked: &Asked, answer: Answer) {
        if let Some(result) = self.try_change(wish, asked, answer) {
            let (answer, result) = result;
            self.answers.push((answer, result));
        }
    }

    fn try_change(
        &mut self,
        wish: &Wish,
        asked: &Asked,
        answer: Answer,
    ) -> Option<(Answer, Result<Reply, ProposeError>)> {
        if self.leading().is_none() {
            let refusal = self.not_leader();
            return Some((answer, Err(refusal)));
        }
        let Asked { by, request_id, at } = asked;
        if !request_id.is_empty() && self.group.requests.contains(request_id) {
            return Some((answer, Ok(Reply::Accepted)));
        }
        let (kind, member) = match group::change(&self.group, self.member, &self.alive(), wish) {
            Ok(Some(change)) => change,
            Ok(None) => return Some((answer, Ok(Reply::Accepted))),
            Err(error) => return Some((answer, Err(error.into()))),
        };
        // Raft would put an empty entry in its place without a word.
        if self.raw.raft.has_pending_conf() {
            return Some((answer, Err(MembershipError::UnderWay.into())));
        }
        let at = at.map(|at| at.to_string()).unwrap_or_default();
        let change = Change { member: Some(member), request_id: request_id.clone(), by: by.clone(), at };
        let id = self.new_id();
        match self.raw.propose_conf_change(id.clone(), group::entry(kind, &change)) {
            Ok(()) => {
                self.pending.insert(id, answer);
                None
            }
            Err(raft::Error::ProposalDropped) => Some((answer, Err(ProposeError::Busy))),
            Err(error) => Some((answer, Err(ProposeError::Unwritable(error.to_string())))),
        }
    }

    /// A configuration change was committed.
    pub(super) fn changed(&mut self, index: u64, entry: &ConfChange) -> Result<(), RaftError> {
        self.conf = self.raw.apply_conf_change(entry)?;
        let known = group::find(&self.group, entry.node_id).is_some();
        let mut group = Group::clone(&self.group);
        group::apply(&mut group, index, entry);
        self.regroup(group);
        let kind = entry.get_change_type();
        if kind == ConfChangeType::RemoveNode {
            self.heard.remove(&entry.node_id);
            self.problems.remove(&entry.node_id);
            if entry.node_id == self.member {
                self.removed = true;
            }
        }
        // A new member can only begin with a snapshot that knows it.
        self.compact_now |= kind == ConfChangeType::AddLearnerNode && !known;
        tracing::info!(member = entry.node_id, change = ?kind, voters = ?self.conf.voters,
            learners = ?self.conf.learners, "the group changed");
        Ok(())
    }

    /// The group is this now.
    pub(super) fn regroup(&mut self, group: Group) {
        if *self.group != group {
            self.group = Arc::new(group);
            self.transport.members(&self.known());
        }
    }

    /// Another member is there of whom the log does not tell yet.
    pub(super) fn meet(&mut self, stranger: Stranger) {
        group::meet(&mut self.strangers, &self.group, stranger);
        self.transport.members(&self.known());
    }

    /// Whom this member answers.
    pub(super) fn known(&self) -> Group {
        group::with(&self.group, &self.strangers)
    }

    /// What the leader told a member that has nothing yet: whom to listen to. The log will tell it again.
    pub(super) fn introduce(&mut self, group: Group) {
        if self.group.id.is_empty() {
            self.regroup(group);
        }
    }

    /// Moves leadership; the answer is whether that was begun.
    pub(super) fn transfer(&mut self, to: u64) -> Result<(), ProposeError> {
        if self.leading().is_none() {
            return Err(self.not_leader());
        }
        if !self.alive().contains(&to) {
            return Err(MembershipError::CannotLead(to).into());
        }
        self.raw.transfer_leader(to);
        Ok(())
    }

    /// What the leader does by itself, at every tick.
    pub(super) fn tend(&mut self) {
        if self.leading().is_none() || self.raw.raft.has_pending_conf() {
            return;
        }
        let me = group::find(&self.group, self.member);
        let moved = me.is_some_and(|me| me.address != self.address) && !self.address.is_empty();
        let committed = self.raw.raft.raft_log.committed;
        let caught_up = |id: u64| {
            self.raw.raft.prs().get(id).is_some_and(|progress| {
                progress.state == ProgressState::Replicate && progress.matched + CAUGHT_UP >= committed
            })
        };
        let learner =
            self.group.members.iter().find(|m| !m.voter && !m.identity.is_empty() && caught_up(m.id));
        let wish = match learner {
            _ if moved => Wish::Moved { member: self.member, address: self.address.clone() },
            Some(learner) => Wish::Promote { member: learner.id },
            None => return,
        };
        // Nobody waits for it; when it is refused, the next tick asks again.
        let (answer, _) = tokio::sync::oneshot::channel();
        self.change(&wish, &Asked::by_itself("the leader"), answer);
    }

    /// Voters that were heard of lately, this one included.
    fn alive(&self) -> Vec<u64> {
        let recent = |id: &u64| {
            *id == self.member
                || self.heard.get(id).is_some_and(|at| self.ticks - at <= self.election_ticks())
        };
        self.conf.voters.iter().copied().filter(recent).collect()
    }

    /// The members and, on the leader, how they keep up.
    pub(super) fn statuses(&self) -> Vec<MemberStatus> {
        let leads = self.raw.raft.state == StateRole::Leader;
        let status = |member: &pgleap_proto::raft::Member| {
            let id = member.id;
            let progress = self.raw.raft.prs().get(id).filter(|_| leads);
            let heard = self.heard.get(&id).map(|at| (self.ticks - at) as f64 * super::TICK.as_secs_f64());
            let role = match member {
                _ if id == self.raw.raft.leader_id => "leader",
                m if m.voter => "voter",
                m if m.identity.is_empty() => "added",
                _ => "learner",
            };
            MemberStatus {
                id,
                address: member.address.clone(),
                role: role.to_owned(),
                matched: progress.map(|progress| progress.matched).unwrap_or_default(),
                seconds_since_contact: match heard {
                    _ if id == self.member => 0.0,
                    Some(heard) if leads || id == self.raw.raft.leader_id => heard,
                    _ => -1.0,
                },
                problem: self.problems.get(&id).cloned().unwrap_or_default(),
            }
        };
        self.group.members.iter().map(status).collect()
    }

    /// A message did not, or will not, arrive.
    pub(super) fn undelivered(&mut self, lost: Undelivered) {
        self.raw.report_unreachable(lost.to);
        if lost.snapshot {
            self.snapshot_ended(lost.to, false);
        }
    }

    /// A member cannot be reached, for this reason.
    pub(super) fn unreachable(&mut self, member: u64, why: String) {
        self.raw.report_unreachable(member);
        self.problems.insert(member, why);
    }

    /// A member has a snapshot, or has not.
    pub(super) fn snapshot_ended(&mut self, member: u64, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(member, status);
    }

    pub(super) fn not_leader(&self) -> ProposeError {
        let leader = self.raw.raft.leader_id;
        let other = leader != raft::INVALID_ID && leader != self.member;
        let address = group::find(&self.group, leader).map(|member| member.address.clone());
        let leader = Leader { member: leader, address: address.unwrap_or_default() };
        ProposeError::NotLeader(other.then_some(leader))
    }
}
