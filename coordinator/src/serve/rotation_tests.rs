//! Certificates change hands while requests go on: a new CA, new certificates, then the old CA is no more trusted.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use jiff::Timestamp;
use pgleap_proto::agent::HelloRequest;
use pgleap_proto::bounds;
use pgleap_proto::raft::ListRequest;
use pgleap_proto::raft::members_client::MembersClient;
use pgleap_proto::tls;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::*;
use crate::testing::FakeAgent;

/// Two CAs and a holder's directory, which begins with the first.
struct Cas(tempfile::TempDir);

impl Cas {
    fn new() -> Cas {
        let dir = tempfile::tempdir().unwrap();
        for ca in ["old", "new"] {
            crate::pki::init(&dir.path().join(ca), Timestamp::now()).unwrap();
        }
        Cas(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The directory of a holder, with a certificate of this CA that trusts these.
    fn issue(&self, ca: &str, role: Role, name: &str, trust: &[&str]) -> PathBuf {
        // Those of the new CA end later: so it can be seen which is in force.
        let (out, days) = (self.path(name), if ca == "new" { 2 } else { 1 });
        crate::pki::issue(
            &self.path(ca),
            role,
            name,
            &out,
            days,
            &self.certificates(trust),
            Timestamp::now(),
        )
        .unwrap();
        out
    }

    fn certificates(&self, cas: &[&str]) -> Vec<PathBuf> {
        cas.iter().map(|ca| self.path(ca).join("ca.crt")).collect()
    }

    fn trust(&self, name: &str, cas: &[&str]) {
        crate::pki::trust(&self.path(name), &self.certificates(cas)).unwrap();
    }
}

fn load(directory: &Path) -> TlsIdentity {
    TlsFiles::in_directory(directory).load().unwrap()
}

async fn connect(identity: &TlsIdentity, address: SocketAddr) -> Option<MembersClient<Channel>> {
    let endpoint = tls::endpoint(&address.to_string()).unwrap();
    let channel = identity.connect(&endpoint, Role::Coordinator, "").await.ok()?;
    let mut client = MembersClient::new(channel);
    // With TLS 1.3 who is refused learns it from the first call.
    client.list(ListRequest {}).await.ok().map(|_| client)
}

/// Asks again until a new connection of this holder is let in, or is not.
async fn until_let_in(identity: &TlsIdentity, address: SocketAddr, wanted: bool) {
    let asking = async {
        while connect(identity, address).await.is_some() != wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_ca_is_taken_up_while_requests_go_on() {
    let cas = Cas::new();
    let tls_dir = cas.issue("old", Role::Coordinator, "c1", &["old"]);
    let data = tempfile::tempdir().unwrap();
    let config = ServeConfig {
        data_dir: data.path().join("data"),
        listen: "127.0.0.1:0".parse().unwrap(),
        tls_dir,
        member: 1,
        advertise: None,
        begin: true,
        join: vec![],
    };
    let coordinator = Coordinator::open(config).await.unwrap();
    let address = coordinator.address();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(coordinator.run(async move { drop(stopped.await) }));

    let old_only = load(&cas.issue("old", Role::Viewer, "old-only", &["old"]));
    let new_only = load(&cas.issue("new", Role::Viewer, "new-only", &["new"]));
    let alice = load(&cas.issue("old", Role::Viewer, "alice", &["old"]));
    alice.watch();
    let in_force = alice.clone();

    // One connection that lives on, and a new one for every other request.
    let (ending, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut lasting = connect(&alice, address).await.unwrap();
    let asking = {
        let (ending, asked) = (ending.clone(), asked.clone());
        tokio::spawn(async move {
            while !ending.load(Ordering::SeqCst) {
                lasting.list(ListRequest {}).await.unwrap();
                assert!(connect(&alice, address).await.is_some(), "a request failed");
                asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };

    // Both are trusted everywhere, then the certificates change.
    cas.trust("alice", &["old", "new"]);
    cas.trust("c1", &["old", "new"]);
    // Its certificate is not trusted by this one yet; it would be by alice.
    let both = load(&cas.issue("new", Role::Viewer, "both", &["old", "new"]));
    until_let_in(&both, address, true).await;
    cas.issue("new", Role::Coordinator, "c1", &["old", "new"]);
    until_let_in(&new_only, address, true).await;
    // Who still shows an old one is let in while both are trusted.
    cas.trust("old-only", &["old", "new"]);
    let old_certificate = load(&cas.path("old-only"));
    until_let_in(&old_certificate, address, true).await;
    let before = in_force.ends();
    cas.issue("new", Role::Viewer, "alice", &["old", "new"]);
    crate::testing::poll("alice's program has the new one", || in_force.ends() > before).await;
    cas.trust("c1", &["new"]);
    until_let_in(&old_certificate, address, false).await;
    until_let_in(&new_only, address, true).await;
    assert!(connect(&old_only, address).await.is_none());
    let before = asked.load(Ordering::SeqCst);
    crate::testing::poll("requests go on", || asked.load(Ordering::SeqCst) > before + 5).await;
    ending.store(true, Ordering::SeqCst);
    asking.await.unwrap();
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_connects_again_shows_the_certificate_in_force() {
    let cas = Cas::new();
    let agent = FakeAgent::new("db1");
    let serve = |identity: TlsIdentity, listener: TcpListener| {
        let (stop, stopped) = oneshot::channel::<()>();
        let server = bounds::server()
            .add_service(pgleap_proto::agent::agent_server::AgentServer::new(agent.clone()))
            .serve_with_incoming_shutdown(identity.incoming(listener), async move { drop(stopped.await) });
        (stop, tokio::spawn(server))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, served) = serve(load(&cas.issue("old", Role::Agent, "db1", &["old"])), listener);

    let identity = load(&cas.issue("old", Role::Coordinator, "c1", &["old"]));
    let data = tempfile::tempdir().unwrap();
    let (raft, _thread) = crate::testing::open_raft(&data.path().join("data"));
    let agents = Agents::new(identity.clone(), raft);
    let mut client = agents.client("db1", &address.to_string()).await.unwrap();
    client.hello(HelloRequest::default()).await.unwrap();

    // The agent comes back with nothing but the new CA.
    cas.issue("new", Role::Coordinator, "c1", &["new"]);
    identity.watch();
    drop(stop);
    served.await.unwrap().unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let (_stop, _served) = serve(load(&cas.issue("new", Role::Agent, "db1", &["new"])), listener);
    let asking = async {
        while client.hello(HelloRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.unwrap();
}
