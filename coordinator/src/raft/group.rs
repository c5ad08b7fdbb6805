//! The members as the group agrees on them: who they are, where they are, and which data directory is theirs.
//!
//! Pure. Raft itself knows only numbers; addresses and identities travel in the context of its configuration changes
//! and lie in the snapshot beside the state. Every data directory carries a random identity: a number whose identity
//! is another than the one the group knows has lost its disk, with votes and entries that the others count on.

use jiff::Timestamp;
use pgleap_proto::raft::{Change, Group, Hello, Image, Member};
use prost::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType};

use super::error::{MembershipError, RaftError};
use crate::state::State;
use crate::state::audit::Note;

/// Members a group may have; more only make it slower.
const MAX_MEMBERS: usize = 7;
/// Changes remembered by request id.
const REQUESTS_KEPT: usize = 64;
/// Identities of removed data directories remembered.
const REMOVED_KEPT: usize = 256;

/// A change of the group that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Expect a new member.
    Add {
        /// Its number.
        member: u64,
        /// Where it will be reached.
        address: String,
    },
    /// A new member is there, with this data directory.
    Join {
        /// Its number.
        member: u64,
        /// Of its data directory.
        identity: String,
        /// Where it is reached.
        address: String,
    },
    /// It has caught up: let it vote.
    Promote {
        /// Its number.
        member: u64,
    },
    /// It is reached elsewhere now.
    Moved {
        /// Its number.
        member: u64,
        /// Where.
        address: String,
    },
    /// Let it go.
    Remove {
        /// Its number.
        member: u64,
    },
}

/// Who wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Role and name.
    pub(super) by: String,
    /// Makes a repeated request one request; empty when there is none.
    pub(super) request_id: String,
    /// When; none when nobody asked, and then nothing is noted in the audit log.
    pub(super) at: Option<Timestamp>,
}

impl Asked {
    /// A member does it by itself.
    pub(super) fn by_itself(by: &str) -> Asked {
        Asked { by: by.to_owned(), request_id: String::new(), at: None }
    }
}

/// What the audit log says of a configuration change: that somebody asked for it, in the same entry.
pub(super) fn audited(entry: &ConfChange) -> Option<(Asked, Note)> {
    let change = Change::decode(entry.context.as_ref()).ok()?;
    let (member, at) = (change.member?, change.at.parse().ok()?);
    let verb = match entry.get_change_type() {
        ConfChangeType::RemoveNode => "members remove",
        ConfChangeType::AddLearnerNode if member.identity.is_empty() => "members add",
        _ => "members join",
    };
    let note = Note::new(verb, "", &format!("member {}", member.id), member.address);
    Some((Asked { by: change.by, request_id: change.request_id, at: Some(at) }, note))
}

/// The member of this number.
pub(super) fn find(group: &Group, id: u64) -> Option<&Member> {
    group.members.iter().find(|member| member.id == id)
}

/// Makes the wish a configuration change; none when it is fulfilled already.
///
/// `leader` decides; `alive` are the voters it has heard of lately, itself included.
pub(super) fn change(
    group: &Group,
    leader: u64,
    alive: &[u64],
    wish: &Wish,
) -> Result<Option<(ConfChangeType, Member)>, MembershipError> {
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    let known = |id: &u64| find(group, *id).ok_or(MembershipError::Unknown(*id));
    let kind = |member: &Member| if member.voter { AddNode } else { AddLearnerNode };
    match wish {
        Wish::Add { member: id, address } => {
            if let Some(member) = find(group, *id) {
                let same = member.address == *address && member.identity.is_empty();
                return if same { Ok(None) } else { Err(MembershipError::Exists(member.clone())) };
            }
            if *id == 0 {
                return Err(MembershipError::Number);
            }
            if group.members.len() >= MAX_MEMBERS {
                return Err(MembershipError::Full);
            }
            if let Some(other) = group.members.iter().find(|m| m.address == *address) {
                return Err(MembershipError::AddressTaken(other.clone()));
            }
            let hidden = |m: &&Member| local_only(&m.address) && !local_only(address);
            if let Some(hidden) = group.members.iter().find(hidden) {
                return Err(MembershipError::Hidden(hidden.clone()));
            }
            let member = Member { id: *id, address: address.clone(), identity: String::new(), voter: false };
            Ok(Some((AddLearnerNode, member)))
        }
        Wish::Join { member: id, identity, address } => {
            let member = known(id)?;
            if group.removed.contains(identity) {
                return Err(MembershipError::Removed(*id));
            }
            if member.identity == *identity {
                return Ok(None);
            }
            if !member.identity.is_empty() {
                return Err(MembershipError::LostDisk(member.clone()));
            }
            let joined = Member { identity: identity.clone(), address: address.clone(), ..member.clone() };
            Ok(Some((AddLearnerNode, joined)))
        }
        Wish::Promote { member: id } => {
            let member = known(id)?;
            Ok((!member.voter).then(|| (AddNode, Member { voter: true, ..member.clone() })))
        }
        Wish::Moved { member: id, address } => {
            let member = known(id)?;
            let moved = Member { address: address.clone(), ..member.clone() };
            Ok((moved != *member).then(|| (kind(member), moved)))
        }
        Wish::Remove { member: id } => {
            let member = known(id)?;
            if *id == leader {
                return Err(MembershipError::RemovesLeader(*id));
            }
            let rest = group.members.iter().filter(|m| m.voter && m.id != *id);
            let (all, up) =
                rest.fold((0, 0), |(all, up), m| (all + 1, up + usize::from(alive.contains(&m.id))));
            if member.voter && up <= all / 2 {
                return Err(MembershipError::NoMajority { member: *id, all, up });
            }
            Ok(Some((RemoveNode, member.clone())))
        }
    }
}

/// The entry that makes the change.
pub(super) fn entry(kind: ConfChangeType, change: &Change) -> ConfChange {
    let mut entry = ConfChange::default();
    entry.set_change_type(kind);
    entry.node_id = change.member.as_ref().map(|member| member.id).unwrap_or_default();
    entry.context = change.encode_to_vec().into();
    entry
}

/// The group after an entry. One without our context (there is none but in tests) changes nothing here.
pub(super) fn apply(group: &mut Group, index: u64, entry: &ConfChange) {
    let Ok(Change { member: Some(member), request_id, .. }) = Change::decode(entry.context.as_ref()) else {
        return;
    };
    group.as_of = index;
    group.members.retain(|m| m.id != member.id);
    if entry.get_change_type() == ConfChangeType::RemoveNode {
        if !member.identity.is_empty() {
            keep(&mut group.removed, member.identity, REMOVED_KEPT);
        }
    } else {
        group.members.push(member);
        group.members.sort_by_key(|m| m.id);
    }
    if !request_id.is_empty() {
        keep(&mut group.requests, request_id, REQUESTS_KEPT);
    }
}

fn keep(list: &mut Vec<String>, item: String, most: usize) {
    list.push(item);
    list.drain(..list.len().saturating_sub(most));
}

/// Another member of whom this one has not read in its log yet: who that is and where, by its own word.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stranger {
    member: Member,
    /// Of its group, which is newer.
    as_of: u64,
}

/// Whether a stream that begins so may bring messages to the member `me` with the data directory `identity`.
///
/// Who was away does not know yet who came meanwhile, in another's place, too, and may be needed by them before it can read it: a sender
/// whose group is newer is let in, and is to be answered where it says it is. A lost disk cannot say that: it has no group until it has joined.
pub(super) fn admit(
    group: &Group,
    me: u64,
    identity: &str,
    hello: &Hello,
) -> Result<Option<Stranger>, MembershipError> {
    if hello.to != me || hello.to_identity != identity {
        return Err(MembershipError::NotMe { asked: hello.to, member: me });
    }
    if group.id.is_empty() || group.id != hello.group {
        return Err(MembershipError::OtherGroup(me));
    }
    if group.removed.contains(&hello.from_identity) {
        return Err(MembershipError::Removed(hello.from));
    }
    let Hello { from: id, from_identity: identity, address, as_of, .. } = hello.clone();
    let newer = as_of > group.as_of;
    match find(group, id) {
        Some(known) if known.identity == identity => Ok(None),
        Some(known) if !newer => Err(MembershipError::LostDisk(known.clone())),
        _ => {
            let member = Member { id, address, identity, voter: false };
            Ok(newer.then_some(Stranger { member, as_of }))
        }
    }
}

/// Notes one; who is known by the log does not need it any more.
pub(super) fn meet(strangers: &mut Vec<Stranger>, group: &Group, stranger: Stranger) {
    strangers.retain(|other| other.member.id != stranger.member.id);
    strangers.push(stranger);
    strangers.retain(|stranger| stranger.as_of > group.as_of);
}

/// The group with strangers in their places: whom this member answers.
pub(super) fn with(group: &Group, strangers: &[Stranger]) -> Group {
    let mut group = group.clone();
    for Stranger { member, .. } in strangers.iter().filter(|stranger| stranger.as_of > group.as_of) {
        group.members.retain(|other| other.id != member.id);
        group.members.push(member.clone());
    }
    group
}

/// The others to whom a member speaks: not to one that has not joined, which could not be told from one that lost its disk.
pub(super) fn others(group: &Group, member: u64) -> impl Iterator<Item = &Member> {
    group.members.iter().filter(move |other| other.id != member && !other.identity.is_empty())
}

/// How `from` begins a stream to another member.
pub(super) fn hello(group: &Group, from: u64, identity: &str, address: &str, to: &Member) -> Hello {
    Hello {
        group: group.id.clone(),
        from,
        from_identity: identity.to_owned(),
        to: to.id,
        to_identity: to.identity.clone(),
        address: address.to_owned(),
        as_of: group.as_of,
    }
}

/// The bytes of a snapshot.
pub(super) fn image(group: &Group, state: &State) -> Result<Vec<u8>, RaftError> {
    let state = state.snapshot().map_err(RaftError::Encode)?;
    Ok(Image { group: Some(group.clone()), state }.encode_to_vec())
}

/// What [`image`] wrote.
pub(super) fn read_image(bytes: &[u8]) -> Result<(Group, State), RaftError> {
    let image = Image::decode(bytes).map_err(|e| RaftError::Image(e.to_string()))?;
    Ok((image.group.unwrap_or_default(), State::restore(&image.state)?))
}

/// Whether other hosts cannot reach it: a loopback address or one that stands for all.
fn local_only(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, identity: &str, voter: bool) -> Member {
        Member { id, address: format!("127.0.0.1:{id}"), identity: identity.into(), voter }
    }

    fn group(members: Vec<Member>) -> Group {
        Group { id: "g".into(), members, ..Group::default() }
    }

    fn wish(group: &Group, wish: Wish) -> Result<Option<(ConfChangeType, Member)>, MembershipError> {
        change(group, 1, &[1, 2], &wish)
    }

    #[test]
    fn a_number_is_bound_to_one_data_directory_until_it_is_removed() {
        let mut group = group(vec![member(1, "a", true), member(2, "", false)]);
        let join =
            |identity: &str| Wish::Join { member: 2, identity: identity.into(), address: "h:1".into() };
        let (kind, joined) = wish(&group, join("b")).unwrap().unwrap();
        apply(&mut group, 1, &entry(kind, &Change { member: Some(joined), ..Change::default() }));
        assert_eq!(wish(&group, join("b")), Ok(None));
        assert!(matches!(wish(&group, join("c")), Err(MembershipError::LostDisk(_))));
        let (kind, gone) = wish(&group, Wish::Remove { member: 2 }).unwrap().unwrap();
        apply(&mut group, 1, &entry(kind, &Change { member: Some(gone), ..Change::default() }));
        assert_eq!(wish(&group, join("b")), Err(MembershipError::Unknown(2)));
        let add = Wish::Add { member: 2, address: "127.0.0.1:2".into() };
        let (kind, added) = wish(&group, add.clone()).unwrap().unwrap();
        apply(&mut group, 1, &entry(kind, &Change { member: Some(added), ..Change::default() }));
        assert_eq!(wish(&group, add), Ok(None));
        assert_eq!(wish(&group, join("b")), Err(MembershipError::Removed(2)));
        assert!(wish(&group, join("c")).unwrap().is_some());
    }

    #[test]
    fn nobody_is_removed_whom_the_rest_needs() {
        let three = group(vec![member(1, "a", true), member(2, "b", true), member(3, "c", true)]);
        // 3 is away: it may go, 2 may not.
        assert!(wish(&three, Wish::Remove { member: 3 }).unwrap().is_some());
        let refused = wish(&three, Wish::Remove { member: 2 });
        assert_eq!(refused, Err(MembershipError::NoMajority { member: 2, all: 2, up: 1 }));
        assert_eq!(wish(&three, Wish::Remove { member: 1 }), Err(MembershipError::RemovesLeader(1)));
    }

    fn hello_of(from: u64, identity: &str, as_of: u64) -> Hello {
        Hello {
            group: "g".into(),
            from,
            from_identity: identity.into(),
            to: 1,
            to_identity: "a".into(),
            address: "there:1".into(),
            as_of,
        }
    }

    #[test]
    fn streams_are_let_in_by_identity() {
        let mut group = group(vec![member(1, "a", true), member(2, "b", true)]);
        group.removed.push("old".into());
        group.as_of = 7;
        let admit = |hello: &Hello| admit(&group, 1, "a", hello);
        assert_eq!(admit(&hello_of(2, "b", 7)), Ok(None));
        assert_eq!(admit(&hello_of(3, "new", 7)), Ok(None));
        assert!(matches!(admit(&hello_of(2, "x", 7)), Err(MembershipError::LostDisk(_))));
        assert_eq!(admit(&hello_of(3, "old", 8)), Err(MembershipError::Removed(3)));
        let other_disk = Hello { to_identity: "z".into(), ..hello_of(2, "b", 7) };
        assert!(matches!(admit(&other_disk), Err(MembershipError::NotMe { .. })));
        let other_group = Hello { group: "h".into(), ..hello_of(2, "b", 7) };
        assert_eq!(admit(&other_group), Err(MembershipError::OtherGroup(1)));
    }

    #[test]
    fn who_came_meanwhile_is_let_in_and_answered_until_the_log_tells() {
        let mut group = group(vec![member(1, "a", true), member(2, "b", true)]);
        group.as_of = 7;
        let mut strangers = Vec::new();
        for (id, identity) in [(2, "x"), (3, "y")] {
            let stranger = admit(&group, 1, "a", &hello_of(id, identity, 8)).unwrap().unwrap();
            meet(&mut strangers, &group, stranger);
        }
        let answered = |group: &Group| {
            let known = with(group, &strangers);
            others(&known, 1).map(|other| other.identity.clone()).collect::<Vec<_>>()
        };
        assert_eq!(answered(&group), ["x", "y"]);
        group.as_of = 8;
        assert_eq!(answered(&group), ["b"]);
    }

    #[test]
    fn an_address_that_others_cannot_reach_is_told_before_they_try() {
        let one = group(vec![member(1, "a", true)]);
        let add = |address: &str| wish(&one, Wish::Add { member: 2, address: address.into() });
        assert!(matches!(add("db2:7430"), Err(MembershipError::Hidden(_))));
        assert!(add("127.0.0.1:7431").unwrap().is_some());
    }
}
