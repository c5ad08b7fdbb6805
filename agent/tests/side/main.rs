//! Switchovers between two leaders on real PostgreSQL: the fence, exact sequences, both directions, and crashes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(clippy::print_stdout, reason = "tests say what they do")]

#[path = "../fake/certificates.rs"]
mod certificates;
mod client;
mod crash;
mod fence;
mod jobs;
mod pair;
#[path = "../postgres/mod.rs"]
mod postgres;
mod sequences;
mod steps;
mod switch;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// PostgreSQL refuses to run as root, and the agent runs as the user who owns the data.
const USER: &str = "pgleap-test";

/// The scenario, as an ordinary user.
fn scenario(test: &str, run: impl AsyncFnOnce()) {
    if nix::unistd::geteuid().is_root() {
        let status = Command::new("setpriv")
            .args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads", "1"])
            .current_dir("/")
            .env("HOME", "/")
            .status()
            .unwrap();
        assert!(status.success(), "{test} failed as user {USER}");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let limited = tokio::time::timeout(Duration::from_secs(240), run()).await;
        assert!(limited.is_ok(), "{test} takes too long");
    });
}

/// The majors that matter: old and new.
fn majors() -> Vec<(u32, PathBuf)> {
    [15, 18].map(|major| (major, postgres::binaries(major))).into()
}

/// Waits for a condition that nothing notifies.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok(), "never happened: {what}");
}
