//! A group of three coordinators over mutual TLS on loopback addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pgleap_proto::fleet::StatusRequest;
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::raft::members_client::MembersClient;
use pgleap_proto::raft::raft_client::RaftClient;
use pgleap_proto::raft::*;
use pgleap_proto::tls;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use crate::cli::follow::Leading;
use crate::raft::LEADER_KEY;
use crate::state::{Command, Reply};
use crate::testing::{Pki, poll};

struct Serving {
    raft: Raft,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

struct Group {
    pki: Pki,
    tls_dir: PathBuf,
    data: tempfile::TempDir,
    serving: BTreeMap<u64, Serving>,
    generation: u64,
}

impl Group {
    async fn three() -> Group {
        let pki = Pki::new();
        let tls_dir = pki.issue(Role::Coordinator, "c");
        let data = tempfile::tempdir().unwrap();
        let mut group = Group { pki, tls_dir, data, serving: BTreeMap::new(), generation: 0 };
        let first = group.open(group.config(1, "1", None, &[])).await.unwrap();
        group.run(first);
        group.leader().await;
        // Larger than one packet, so that who joins is sent a snapshot in several.
        group.apply(3 << 20).await;
        for member in [2, 3] {
            group.let_in(member, &member.to_string()).await;
        }
        group
    }

    fn config(
        &self,
        member: u64,
        disk: &str,
        listen: Option<SocketAddr>,
        join: &[SocketAddr],
    ) -> ServeConfig {
        ServeConfig {
            data_dir: self.data.path().join(disk),
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 10 + member as u8], 0))),
            tls_dir: self.tls_dir.clone(),
            member,
            advertise: None,
            begin: disk == "1",
            join: join.iter().map(SocketAddr::to_string).collect(),
        }
    }

    async fn open(&self, config: ServeConfig) -> Result<Coordinator, ServeError> {
        Coordinator::open(config).await
    }

    fn run(&mut self, coordinator: Coordinator) {
        let (member, raft) = (coordinator.raft.latest().member, coordinator.raft.clone());
        let address = coordinator.address();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(coordinator.run(async {
            let _ = stopped.await;
        }));
        self.serving.insert(member, Serving { raft, address, stop, task });
    }

    async fn let_in(&mut self, member: u64, disk: &str) {
        let via: Vec<SocketAddr> = self.serving.values().map(|serving| serving.address).collect();
        let coordinator = self.open(self.config(member, disk, None, &via)).await.unwrap();
        let address = coordinator.address().to_string();
        let request = AddRequest { member, address, request_id: format!("add-{disk}") };
        let added = self.members().await.add(request.clone()).await.unwrap().into_inner();
        assert!(added.members.iter().any(|m| m.id == member && !m.voter), "{added:?}");
        self.members().await.add(request).await.unwrap();
        self.run(coordinator);
        self.until_voter(member).await;
    }

    async fn until_voter(&self, member: u64) {
        poll("it votes, and every member knows", || {
            let votes = |serving: &Serving| {
                serving.raft.latest().group.members.iter().any(|m| m.id == member && m.voter)
            };
            self.serving.values().all(votes)
        })
        .await;
    }

    async fn kill(&mut self, member: u64) -> SocketAddr {
        let serving = self.serving.remove(&member).unwrap();
        serving.stop.send(()).unwrap();
        serving.task.await.unwrap().unwrap();
        serving.address
    }

    async fn restart(&mut self, member: u64, listen: Option<SocketAddr>) {
        let coordinator = self.open(self.config(member, &member.to_string(), listen, &[])).await.unwrap();
        self.run(coordinator);
    }

    async fn leader(&self) -> u64 {
        let leads = |serving: &Serving| serving.raft.latest().leading.is_some();
        poll("a leader", || self.serving.values().any(leads)).await;
        self.serving.iter().find(|(_, serving)| leads(serving)).map(|(id, _)| *id).unwrap()
    }

    async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.serving.keys().find(|id| **id != leader).unwrap()
    }

    async fn apply(&mut self, bytes: usize) {
        self.generation += 1;
        let generation = self.generation;
        let toml = format!("# {generation}{}", "x".repeat(bytes));
        // The same request to whoever leads, until one answers: applied once.
        let id = format!("apply-{generation}");
        loop {
            let leader = &self.serving[&self.leader().await];
            let command = Command::ApplyFleet {
                toml: toml.clone(),
                generation,
                keeps: vec![],
                policy: Default::default(),
            };
            match leader.raft.propose("test", Some(id.clone()), command).await {
                Ok(reply) => return assert_eq!(reply, Reply::Fleet { generation }),
                Err(error) => assert!(error.ask_instead().is_some(), "{error}"),
            }
        }
    }

    async fn all_agree(&mut self) {
        self.apply(0).await;
        let applied = |serving: &Serving| serving.raft.latest().state.generation() == self.generation;
        poll("all have caught up", || self.serving.values().all(applied)).await;
    }

    async fn channel(&self, address: SocketAddr, role: Role) -> Channel {
        let identity = self.pki.identity(role, "alice");
        let endpoint = tls::endpoint(&address.to_string()).unwrap();
        identity.connect(&endpoint, Role::Coordinator, "").await.unwrap()
    }

    /// As the command line does, told of all members.
    async fn following(&self) -> Leading {
        let addresses = self.serving.values().map(|serving| serving.address.to_string()).collect();
        Leading::open(addresses, self.pki.identity(Role::Operator, "alice")).await.unwrap()
    }

    async fn members(&self) -> MembersClient<Leading> {
        MembersClient::new(self.following().await)
    }

    /// The audit log of every member ends so, the fleet files left out.
    async fn noted(&self, verbs: &[&str]) {
        let told = |serving: &Serving| -> Vec<String> {
            let state = serving.raft.latest().state;
            let verbs = state.audit.entries().map(|entry| entry.note.verb.clone());
            verbs.filter(|verb| verb != "fleet apply").collect()
        };
        poll("every member has it", || {
            self.serving.values().all(|serving| {
                told(serving).ends_with(&verbs.iter().map(|verb| verb.to_string()).collect::<Vec<_>>())
            })
        })
        .await;
    }

    async fn stop(mut self) {
        for member in self.serving.keys().copied().collect::<Vec<_>>() {
            self.kill(member).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_lose_their_leader_and_all_and_go_on() {
    let mut group = Group::three().await;
    group.all_agree().await;
    let mut client = FleetClient::new(group.following().await);
    let old = group.leader().await;
    let old_address = group.kill(old).await;
    group.apply(0).await;
    assert_ne!(group.leader().await, old);
    // The same client finds the new leader, and is told how it stands with the old one.
    let status = client.status(StatusRequest::default()).await.unwrap().into_inner().coordinator.unwrap();
    assert_eq!((status.leader, status.members.len()), (status.member, 3));
    assert_ne!(status.leader, old);
    poll("the others are told why it does not answer", || {
        let raft = &group.serving[&status.leader].raft;
        let statuses = futures::executor::block_on(raft.members()).unwrap();
        statuses.iter().any(|m| m.id == old && !m.problem.is_empty())
    })
    .await;
    group.restart(old, Some(old_address)).await;
    group.all_agree().await;

    let mut addresses = BTreeMap::new();
    for member in [1, 2, 3] {
        addresses.insert(member, group.kill(member).await);
    }
    for (member, address) in addresses {
        group.restart(member, Some(address)).await;
    }
    group.all_agree().await;
    // One that comes back at another address is found there.
    let follower = group.follower().await;
    group.kill(follower).await;
    group.restart(follower, None).await;
    group.all_agree().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader_and_the_client_goes_there() {
    let group = Group::three().await;
    let (leader, follower) = (group.leader().await, group.follower().await);
    let (leader_at, follower_at) = (group.serving[&leader].address, group.serving[&follower].address);
    poll("the follower knows the leader", || group.serving[&follower].raft.latest().leader == Some(leader))
        .await;

    let mut client = FleetClient::new(group.channel(follower_at, Role::Operator).await);
    let refused = client.status(StatusRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.metadata().get(LEADER_KEY).unwrap(), &leader_at.to_string());
    let only_follower = vec![follower_at.to_string()];
    let identity = group.pki.identity(Role::Viewer, "victor");
    let following = Leading::open(only_follower, identity).await.unwrap();
    let status = FleetClient::new(following.clone()).status(StatusRequest::default()).await.unwrap();
    assert_eq!(status.into_inner().coordinator.unwrap().member, leader);
    // Anyone answers who the members are; a viewer changes nothing.
    let mut members = MembersClient::new(group.channel(follower_at, Role::Viewer).await);
    let list = members.list(ListRequest {}).await.unwrap().into_inner();
    assert_eq!((list.member, list.leader, list.leader_address), (follower, leader, leader_at.to_string()));
    // The leader judges, and its audit log tells every member.
    let elsewhere = members.remove(RemoveRequest::default()).await.unwrap_err();
    assert_eq!(elsewhere.metadata().get(LEADER_KEY).unwrap(), &leader_at.to_string());
    let mut members = MembersClient::new(group.channel(leader_at, Role::Viewer).await);
    let refused = members.remove(RemoveRequest { member: 3, request_id: "r".into() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    group.noted(&["members add", "members join", "members add", "members join", "members remove"]).await;

    let moved =
        group.members().await.transfer(TransferRequest { to: follower, ..TransferRequest::default() }).await;
    moved.unwrap();
    assert_eq!(group.leader().await, follower);
    group.noted(&["members remove", "members transfer"]).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_and_a_removed_member_are_refused() {
    let mut group = Group::three().await;
    let lost = group.follower().await;
    let address = group.kill(lost).await;
    let via: Vec<SocketAddr> = group.serving.values().map(|serving| serving.address).collect();
    // Without --join it does not begin a group of its own, be it the first member; nor do others when they are told to.
    let refused = group.open(group.config(lost, "empty", None, &[])).await.unwrap_err();
    assert!(matches!(refused, ServeError::NoGroup { .. }), "{refused}");
    let told = ServeConfig { begin: true, ..group.config(3, "empty", None, &[]) };
    let refused = group.open(told).await.unwrap_err();
    assert!(matches!(refused, ServeError::NoGroup { member: 3, .. }), "{refused}");
    let empty = group.open(group.config(lost, "empty", Some(address), &via)).await.unwrap();
    let refused = empty.run(std::future::pending()).await.unwrap_err();
    assert!(matches!(&refused, ServeError::Join { why, .. } if why.contains("lose its disk")), "{refused}");

    let request = RemoveRequest { member: lost, request_id: "r-1".into() };
    group.members().await.remove(request.clone()).await.unwrap();
    group.members().await.remove(request).await.unwrap();
    let again = RemoveRequest { member: lost, request_id: "r-2".into() };
    assert_eq!(group.members().await.remove(again).await.unwrap_err().code(), Code::FailedPrecondition);
    // With its old disk it learns that it was removed, and ends.
    let old = group.open(group.config(lost, &lost.to_string(), Some(address), &[])).await.unwrap();
    let ended = old.run(std::future::pending()).await.unwrap_err();
    assert!(matches!(ended, ServeError::Raft(RaftError::Removed { .. })), "{ended}");

    group.let_in(lost, "fresh").await;
    group.all_agree().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_of_the_group_are_heard() {
    let group = Group::three().await;
    let serving = &group.serving[&group.leader().await];
    let view = serving.raft.latest();
    let other = view.group.members.iter().find(|m| m.id != view.member).unwrap().clone();
    let hello = Hello {
        group: view.group.id.clone(),
        from: other.id,
        from_identity: "another disk".into(),
        to: view.member,
        to_identity: serving.raft.identity().to_owned(),
        address: String::new(),
        as_of: view.group.as_of,
    };
    let packet = |kind| Packet { kind: Some(kind) };
    let deliver = async |role, packets: Vec<Packet>| {
        let mut client = RaftClient::new(group.channel(serving.address, role).await);
        let answer = client.deliver(tokio_stream::iter(packets)).await;
        let mut acks = answer?.into_inner();
        while let Some(ack) = acks.message().await? {
            assert!(ack.kind.is_some());
        }
        Ok::<(), tonic::Status>(())
    };
    let hello_of = |hello: &Hello| packet(packet::Kind::Hello(hello.clone()));
    let refused = deliver(Role::Operator, vec![hello_of(&hello)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = deliver(Role::Coordinator, vec![hello_of(&hello)]).await.unwrap_err();
    assert!(refused.message().contains("lose its disk"), "{refused}");
    let foreign = Hello { group: "another".into(), ..hello.clone() };
    let refused = deliver(Role::Coordinator, vec![hello_of(&foreign)]).await.unwrap_err();
    assert!(refused.message().contains("another group"), "{refused}");
    // With the right identity, a message in another's name, and a snapshot without end.
    let right = Hello { from_identity: other.identity, ..hello };
    let forged = Message { from: 9, to: view.member, ..Message::default() };
    let refused =
        deliver(Role::Coordinator, vec![hello_of(&right), packet(packet::Kind::Message(forged))]).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let endless = Snapshot { size: u64::MAX, ..Snapshot::default() };
    let endless = Message { from: other.id, to: view.member, snapshot: Some(endless), ..Message::default() };
    let refused =
        deliver(Role::Coordinator, vec![hello_of(&right), packet(packet::Kind::Message(endless))]).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    group.stop().await;
}
