//! Poolers moved by a real agent over mutual TLS: real PgBouncers between clients and two real PostgreSQL servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may fail them")]
#![allow(clippy::print_stdout, reason = "tests say what they do")]

#[path = "../fake/caller.rs"]
mod caller;
#[path = "../fake/certificates.rs"]
mod certificates;
mod holds;
mod hooks;
mod leaders;
mod load;
mod moves;
#[path = "../postgres/mod.rs"]
mod postgres;
#[path = "../fake/private.rs"]
mod private;
mod refuses;
mod secrets;
#[path = "../convert/servers.rs"]
#[allow(dead_code, reason = "made for another test program")]
mod servers;
mod stages;
mod world;

use std::time::Duration;

use world::World;

/// The scenario on its servers, as an ordinary user.
fn in_world(test: &str, scenario: impl AsyncFnOnce(&mut World)) {
    let there = std::path::Path::new(world::PGBOUNCER).exists();
    assert!(there, "no {}: run tests/setup/all.sh", world::PGBOUNCER);
    if servers::was_run_as_ordinary_user(test) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        let limited = tokio::time::timeout(Duration::from_secs(120), scenario(&mut world)).await;
        assert!(limited.is_ok(), "{test} takes too long");
    });
}
