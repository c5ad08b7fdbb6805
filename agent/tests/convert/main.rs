//! The steps of seed, convert and replicate on real PostgreSQL 15, under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may fail them")]
#![allow(clippy::print_stdout, reason = "tests say what they do")]

#[path = "../fake/certificates.rs"]
mod certificates;
mod clone;
mod exact;
#[path = "../postgres/mod.rs"]
mod postgres;
mod prepared;
#[path = "../fake/private.rs"]
mod private;
mod refuse;
mod secrets;
mod servers;

use std::time::Duration;

use certificates::Authority;
use pgleap_proto::tls::Role;
use servers::Servers;

/// The scenario on its servers, as an ordinary user.
fn on_servers(test: &str, scenario: impl AsyncFnOnce(&Servers)) {
    if servers::was_run_as_ordinary_user(test) {
        return;
    }
    let servers = Servers::new(|tls| Authority::new().issue(tls, Role::Agent, "here"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let limited = tokio::time::timeout(Duration::from_secs(300), scenario(&servers)).await;
        assert!(limited.is_ok(), "{test} takes too long");
    });
}
