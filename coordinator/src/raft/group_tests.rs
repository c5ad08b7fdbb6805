//! The group changes, loses members and takes them back: real redb files, a network of our own, no threads, no sockets, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use pgleap_proto::raft::Group as Members;
use raft::eraftpb::MessageType;
use tokio::sync::oneshot;

use super::group::Asked;
use super::node::{Answer, Node};
use super::tests::{Outbox, content, fleet};
use super::{Member, MembershipError, ProposeError, RaftError, Reports, Wish, group, wire};
use crate::state::{Envelope, Reply};

/// Members on a network that can be cut, in one direction, too.
struct Net {
    dir: tempfile::TempDir,
    nodes: BTreeMap<u64, (Node<Outbox>, Outbox)>,
    /// From and to whom nothing passes.
    cut: BTreeSet<(u64, u64)>,
    snapshots: usize,
    generation: u64,
}

impl Net {
    /// A group of three that was built as operators do: member 1, then the others let in one after the other.
    fn three() -> Net {
        let dir = tempfile::tempdir().unwrap();
        let mut net = Net { dir, nodes: BTreeMap::new(), cut: BTreeSet::new(), snapshots: 0, generation: 0 };
        net.start(net.config(1));
        for id in [2, 3] {
            net.let_in(id, &id.to_string());
        }
        net
    }

    fn config(&self, id: u64) -> Member {
        let voters = if id == 1 { vec![1] } else { vec![] };
        Member { voters, compact_after: 5, ..Member::first(id, &format!("127.0.0.1:{id}")) }
    }

    fn path(&self, id: u64, disk: &str) -> PathBuf {
        self.dir.path().join(format!("{id}-{disk}.redb"))
    }

    fn start(&mut self, member: Member) {
        let disk = member.id.to_string();
        self.start_on(member, &disk).unwrap();
    }

    fn start_on(&mut self, member: Member, disk: &str) -> Result<(), RaftError> {
        let outbox = Outbox::default();
        let node = Node::open(&self.path(member.id, disk), &member, outbox.clone(), Reports::nowhere())?;
        self.nodes.insert(member.id, (node, outbox));
        Ok(())
    }

    /// `members add` and `serve --join` with this disk, until it votes.
    fn let_in(&mut self, id: u64, disk: &str) {
        self.wish(&Wish::Add { member: id, address: format!("127.0.0.1:{id}") }).unwrap();
        self.start_on(self.config(id), disk).unwrap();
        self.join(id).unwrap();
        self.until("it votes", |net| {
            net.leader().is_some_and(|l| net.group(l).members.iter().any(|m| m.id == id && m.voter))
        });
    }

    fn join(&mut self, id: u64) -> Result<(), ProposeError> {
        let identity = self.nodes[&id].0.identity().to_owned();
        self.wish(&Wish::Join { member: id, identity, address: format!("127.0.0.1:{id}") })?;
        let group = self.group(self.leader().unwrap()).clone();
        self.nodes.get_mut(&id).unwrap().0.introduce(group);
        Ok(())
    }

    fn group(&self, id: u64) -> &Members {
        &self.nodes[&id].0.group
    }

    fn round(&mut self) {
        let mut mail = Vec::new();
        for (node, outbox) in self.nodes.values_mut() {
            node.tick();
            node.advance().unwrap();
            node.flush();
            mail.append(&mut outbox.0.lock().unwrap());
        }
        for message in mail {
            let (from, to) = (message.from, message.to);
            let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let arrives = !self.cut.contains(&(from, to)) && self.admitted(from, to);
            if arrives {
                let (message, data) = wire::encode(message).unwrap();
                let message = wire::decode(message, data.to_vec()).unwrap();
                self.nodes.get_mut(&to).unwrap().0.step(message);
            }
            if let Some((sender, _)) = self.nodes.get_mut(&from).filter(|_| is_snapshot || !arrives) {
                if is_snapshot {
                    self.snapshots += usize::from(arrives);
                    sender.snapshot_ended(to, arrives);
                } else {
                    sender.unreachable(to, "cut".into());
                }
            }
        }
    }

    /// What both ends of a stream look at before they speak.
    fn admitted(&mut self, from: u64, to: u64) -> bool {
        let (Some((sender, _)), Some((receiver, _))) = (self.nodes.get(&from), self.nodes.get(&to)) else {
            return false;
        };
        let known = sender.known();
        let Some(other) = group::others(&known, from).find(|other| other.id == to) else { return false };
        let address = format!("127.0.0.1:{from}");
        let hello = group::hello(&known, from, sender.identity(), &address, other);
        match group::admit(&receiver.group, to, receiver.identity(), &hello) {
            Ok(stranger) => {
                let (receiver, _) = self.nodes.get_mut(&to).unwrap();
                stranger.into_iter().for_each(|stranger| receiver.meet(stranger));
                true
            }
            Err(_) => false,
        }
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Net) -> bool) {
        for _ in 0..2000 {
            if condition(self) {
                return;
            }
            self.round();
        }
        panic!("never came about: {what}");
    }

    /// A leader that a majority hears.
    fn leader(&self) -> Option<u64> {
        let heard = |id: u64| {
            let voters = &self.nodes[&id].0.conf.voters;
            let reached = |to: &&u64| {
                **to == id
                    || (self.nodes.contains_key(to)
                        && !self.cut.contains(&(id, **to))
                        && !self.cut.contains(&(**to, id)))
            };
            voters.iter().filter(reached).count() > voters.len() / 2
        };
        self.nodes.iter().find(|(id, (node, _))| node.leading().is_some() && heard(**id)).map(|(id, _)| *id)
    }

    fn new_leader(&mut self) -> u64 {
        self.until("a leader", |net| net.leader().is_some());
        self.leader().unwrap()
    }

    fn ask(&mut self, ask: impl Fn(&mut Node<Outbox>, Answer)) -> Result<Reply, ProposeError> {
        let leader = self.new_leader();
        let (answer, mut answered) = oneshot::channel();
        ask(&mut self.nodes.get_mut(&leader).unwrap().0, answer);
        for _ in 0..2000 {
            if let Ok(result) = answered.try_recv() {
                return result;
            }
            self.round();
        }
        panic!("never answered");
    }

    fn wish(&mut self, wish: &Wish) -> Result<(), ProposeError> {
        loop {
            match self.ask(|node, answer| node.change(wish, &Asked::by_itself("test"), answer)) {
                Err(ProposeError::Membership(MembershipError::UnderWay)) => self.round(),
                other => return other.map(drop),
            }
        }
    }

    fn apply(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        let reply = self.ask(|node, answer| node.propose(&fleet(generation), answer));
        assert_eq!(reply, Ok(Reply::Fleet { generation }));
    }

    fn all_agree(&mut self) {
        self.apply();
        let generation = self.generation;
        self.until("all have caught up", |net| {
            net.nodes.values().all(|(node, _)| node.state().generation() == generation)
        });
        let states: Vec<_> = self.nodes.values().map(|(node, _)| content(node.state())).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]));
        let groups: Vec<_> = self.nodes.values().map(|(node, _)| node.group.clone()).collect();
        assert!(groups.windows(2).all(|pair| pair[0] == pair[1]), "{groups:#?}");
    }
}

#[test]
fn a_group_grows_from_one_to_three_and_survives_its_leader() {
    let mut net = Net::three();
    net.all_agree();
    assert!(net.group(1).members.iter().all(|m| m.voter && !m.identity.is_empty()));
    let old = net.new_leader();
    net.nodes.remove(&old);
    net.apply();
    assert_ne!(net.leader(), Some(old));
    let next = net.leader().unwrap();
    net.start(net.config(old));
    net.all_agree();
    // Down to one voter nothing is decided, and nothing is lost.
    net.nodes.retain(|id, _| *id == next);
    net.until("it steps down", |net| net.nodes[&next].0.leading().is_none());
    let (answer, mut refused) = oneshot::channel();
    net.nodes.get_mut(&next).unwrap().0.propose(&fleet(99), answer);
    net.round();
    assert!(matches!(refused.try_recv().unwrap(), Err(ProposeError::NotLeader(_))));
    for id in 1..=3 {
        if id != next {
            net.start(net.config(id));
        }
    }
    net.all_agree();
}

#[test]
fn a_lost_disk_is_refused_until_the_member_is_added_again() {
    let mut net = Net::three();
    net.apply();
    if net.new_leader() == 3 {
        net.nodes.get_mut(&3).unwrap().0.transfer(1).unwrap();
        net.until("another leads", |net| net.leader().is_some_and(|leader| leader != 3));
    }
    net.nodes.remove(&3);
    net.start_on(net.config(3), "empty").unwrap();
    let refused = net.join(3).unwrap_err();
    assert!(matches!(refused, ProposeError::Membership(MembershipError::LostDisk(_))), "{refused}");
    assert_eq!(net.nodes[&3].0.group.id, "", "it must not learn of the group");
    net.nodes.remove(&3);
    net.wish(&Wish::Remove { member: 3 }).unwrap();
    net.let_in(3, "empty2");
    net.all_agree();
    // And the old disk, found again, is not taken for it.
    net.nodes.remove(&3);
    net.start_on(net.config(3), "3").unwrap();
    let refused = net.join(3).unwrap_err();
    assert!(matches!(refused, ProposeError::Membership(MembershipError::Removed(3))), "{refused}");
}

/// Five members; 5 is away while 4 is replaced, and then 4, 3 and 5 are all that is left, with 4 as the only one who reaches the others.
#[test]
fn one_that_was_away_works_with_who_came_in_anothers_place_meanwhile() {
    let mut net = Net::three();
    net.let_in(4, "4");
    net.let_in(5, "5");
    net.all_agree();
    let away = net.nodes.remove(&5).unwrap();
    if net.new_leader() == 4 {
        net.nodes.get_mut(&4).unwrap().0.transfer(1).unwrap();
        net.until("another leads", |net| net.leader().is_some_and(|leader| leader != 4));
    }
    net.nodes.remove(&4);
    net.wish(&Wish::Remove { member: 4 }).unwrap();
    net.let_in(4, "another");
    net.apply();
    let applied = |net: &Net| net.nodes[&4].0.state().generation() == net.generation;
    net.until("it has caught up", applied);
    net.nodes.retain(|id, _| [3, 4].contains(id));
    net.cut.extend([(3, 5), (5, 3)]);
    net.nodes.insert(5, away);
    net.all_agree();
    assert_eq!(net.leader(), Some(4));
}

#[test]
fn a_removed_member_ends_and_its_disk_stays_removed() {
    let mut net = Net::three();
    net.apply();
    let leader = net.new_leader();
    let gone = (1..=3).find(|id| *id != leader).unwrap();
    let refused = net.wish(&Wish::Remove { member: leader }).unwrap_err();
    assert_eq!(refused, ProposeError::Membership(MembershipError::RemovesLeader(leader)));
    let (node, _) = net.nodes.remove(&gone).unwrap();
    drop(node);
    net.wish(&Wish::Remove { member: gone }).unwrap();
    net.apply();
    assert_eq!(net.group(leader).members.len(), 2);
    assert_eq!(net.group(leader).removed.len(), 1);
    // It still has its configuration of three and stands for election: the others go on undisturbed.
    net.start(net.config(gone));
    let term = net.nodes[&leader].0.view().term;
    for _ in 0..200 {
        net.round();
    }
    assert_eq!(net.nodes[&leader].0.view().term, term);
}

#[test]
fn a_member_cut_off_for_long_gets_a_snapshot_and_one_shortly_away_does_not() {
    let mut net = Net::three();
    net.all_agree();
    let leader = net.new_leader();
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let before = net.snapshots;
    net.nodes.remove(&away);
    net.apply();
    net.start(net.config(away));
    net.all_agree();
    assert_eq!(net.snapshots, before);
    net.nodes.remove(&away);
    for _ in 0..20 {
        net.apply();
    }
    net.start(net.config(away));
    net.all_agree();
    assert!(net.snapshots > before);
    net.nodes.remove(&away);
    net.start(net.config(away));
    net.all_agree();
}

#[test]
fn a_leader_that_is_only_heard_or_only_hears_is_replaced() {
    for heard in [true, false] {
        let mut net = Net::three();
        net.apply();
        let old = net.new_leader();
        for other in (1..=3).filter(|id| *id != old) {
            net.cut.insert(if heard { (other, old) } else { (old, other) });
        }
        net.until("the old one steps down", |net| net.nodes[&old].0.leading().is_none());
        net.apply();
        assert_ne!(net.leader(), Some(old));
        net.cut.clear();
        net.all_agree();
    }
}

#[test]
fn leadership_moves_where_it_is_told() {
    let mut net = Net::three();
    let old = net.new_leader();
    let to = (1..=3).find(|id| *id != old).unwrap();
    assert_eq!(
        net.nodes.get_mut(&old).unwrap().0.transfer(9),
        Err(ProposeError::Membership(MembershipError::CannotLead(9)))
    );
    net.nodes.get_mut(&old).unwrap().0.transfer(to).unwrap();
    net.until("it leads", |net| net.leader() == Some(to));
    net.all_agree();
}

#[test]
fn a_request_repeated_to_the_next_leader_is_applied_once() {
    let mut net = Net::three();
    net.apply();
    let old = net.new_leader();
    let request = Envelope { request_id: Some("r-1".into()), ..fleet(2) };
    let (answer, mut lost) = oneshot::channel();
    net.nodes.get_mut(&old).unwrap().0.propose(&request, answer);
    // It reaches the others, but the old leader never hears so.
    for other in (1..=3).filter(|id| *id != old) {
        net.cut.insert((other, old));
    }
    net.until("the old one steps down", |net| net.nodes[&old].0.leading().is_none());
    assert_eq!(lost.try_recv().unwrap(), Err(ProposeError::Lost));
    let again = net.ask(|node, answer| node.propose(&request, answer));
    assert_eq!(again, Ok(Reply::Fleet { generation: 2 }), "applied once, answered twice");
    net.cut.clear();
    net.generation = 2;
    net.all_agree();
}
