//! For tests: certificates, and agents that act out a script instead of touching anything.

mod agent;
mod traffic;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use pgleap_proto::tls::{Role, TlsFiles, TlsIdentity};

pub(crate) use agent::{Behaviour, FakeAgent, done};
pub(crate) use traffic::{Answer, Moved};

use crate::raft::{Alone, Member, Raft, RaftThread};
use crate::state::State;

/// A CA in a directory of its own.
pub(crate) struct Pki(tempfile::TempDir);

impl Pki {
    pub(crate) fn new() -> Pki {
        let dir = tempfile::tempdir().unwrap();
        crate::pki::init(&dir.path().join("ca"), Timestamp::now()).unwrap();
        Pki(dir)
    }

    /// Directory with a fresh certificate.
    pub(crate) fn issue(&self, role: Role, name: &str) -> std::path::PathBuf {
        let out = self.0.path().join(format!("{role}-{name}"));
        crate::pki::issue(&self.0.path().join("ca"), role, name, &out, 1, &[], Timestamp::now()).unwrap();
        out
    }

    pub(crate) fn identity(&self, role: Role, name: &str) -> TlsIdentity {
        TlsFiles::in_directory(&self.issue(role, name)).load().unwrap()
    }
}

/// The only member, on this data directory.
pub(crate) fn open_raft(data_dir: &Path) -> (Raft, RaftThread) {
    Raft::open(data_dir, &Member::alone(1), Alone).unwrap()
}

/// Waits until the state is as told.
pub(crate) async fn until(raft: &Raft, what: &str, condition: impl Fn(&State) -> bool) {
    let mut view = raft.watch();
    let reached =
        tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| condition(&view.state))).await;
    if !matches!(reached, Ok(Ok(_))) {
        panic!("never came about: {what}; the state is {:#?}", raft.latest().state.operations);
    }
}

/// Asks again until the condition holds: where nothing notifies.
pub(crate) async fn poll(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never came about: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
