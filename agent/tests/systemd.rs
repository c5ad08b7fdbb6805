//! What the agent tells a service manager, which here is a socket of the test.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail them")]

#[path = "fake/certificates.rs"]
mod certificates;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_proto::tls::Role;

/// Longest wait for any one message, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn it_says_when_it_serves_that_it_lives_and_that_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    certificates::Authority::new().issue(at, Role::Agent, "db1");
    let config = format!(
        "host = \"db1\"\nlisten = \"127.0.0.1:0\"\nstate_dir = \"{0}/state\"\ntls_dir = \"{0}\"\nroots = [\"{0}/data\"]\n",
        at.display()
    );
    std::fs::write(at.join("agent.toml"), config).unwrap();
    let manager = UnixDatagram::bind(at.join("notify")).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_pgleap-agent"))
        .args(["run", "--config", at.join("agent.toml").to_str().unwrap()])
        .env("NOTIFY_SOCKET", at.join("notify"))
        .env("WATCHDOG_USEC", "400000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let next = || {
        let mut message = [0; 4096];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let first = next();
    assert!(first.contains("READY=1") && first.contains("STATUS=serving 127.0.0.1:"), "{first}");
    for _ in 0..3 {
        assert_eq!(next().trim(), "WATCHDOG=1");
    }
    kill(Pid::from_raw(agent.id() as i32), Signal::SIGTERM).unwrap();
    let last = std::iter::repeat_with(next).find(|message| message.trim() != "WATCHDOG=1");
    assert_eq!(last.as_deref().map(str::trim), Some("STOPPING=1"));
    assert!(agent.wait().unwrap().success());
}
