//! The keys about moving traffic: `[[cluster.pooler]]`, `[[cluster.balancer]]` and `[cluster.traffic]`.

use super::read::{agent_of, small};
use super::section::Section;
use super::spec::HostSpec;
use super::traffic::{BalancerSpec, PoolerKind, PoolerSpec, TrafficSpec};

/// PgBouncer's own default.
const PGBOUNCER_PORT: u16 = 6432;
const DRAIN_MS: u64 = 1_000;

pub(super) fn pooler(mut section: Section<'_, '_>, hosts: &[HostSpec]) -> PoolerSpec {
    let name = section.text("name", "\"pool1\"");
    let host = section.text("host", "\"app1\"");
    let pgbouncer = section.section("pgbouncer", None);
    let hook = section.section("hook", None);
    let cure = "give it either pgbouncer = { config = \"...\", socket_dir = \"...\", port = 6432, user = \"...\" } or \
                hook = { name = \"...\" }";
    let both = pgbouncer.exists() && hook.exists();
    if both {
        section.fault("hook", "stands beside pgbouncer, and a pooler is one of them", cure);
    } else if !pgbouncer.exists() && !hook.exists() {
        section.fault("pgbouncer", "is required and missing, and so is hook", cure);
    }
    let kind = if hook.exists() && !both { read_hook(hook) } else { read_pgbouncer(pgbouncer) };
    section.finish();
    PoolerSpec { name, agent: agent_of(&host, hosts), host, kind }
}

fn read_pgbouncer(mut section: Section<'_, '_>) -> PoolerKind {
    let kind = PoolerKind::PgBouncer {
        config: section.text("config", "\"/etc/pgbouncer/pgbouncer.ini\""),
        socket_dir: section.text("socket_dir", "\"/var/run/pgbouncer\""),
        port: section
            .optional_number("port", 1, u16::MAX.into())
            .map_or(PGBOUNCER_PORT, |n| u16::try_from(n).unwrap_or(PGBOUNCER_PORT)),
        user: section.text("user", "\"pgbouncer\""),
    };
    section.finish();
    kind
}

fn read_hook(mut section: Section<'_, '_>) -> PoolerKind {
    let kind = PoolerKind::Hook {
        name: section.text("name", "\"flip-database\""),
        drain_ms: section.optional_duration_or_none_ms("drain").unwrap_or(DRAIN_MS),
    };
    section.finish();
    kind
}

pub(super) fn balancer(mut section: Section<'_, '_>, hosts: &[HostSpec]) -> BalancerSpec {
    let name = section.text("name", "\"reads\"");
    let host = section.text("host", "\"app1\"");
    let cure =
        "add haproxy = { socket = \"...\", backend = \"...\", old_servers = [...], new_servers = [...] }";
    let mut haproxy = section.section("haproxy", Some(cure));
    let balancer = BalancerSpec {
        name,
        agent: agent_of(&host, hosts),
        host,
        socket: haproxy.text("socket", "\"/run/haproxy/admin.sock\""),
        backend: haproxy.text("backend", "\"reads\""),
        old_servers: haproxy.list("old_servers", "[\"old2\"]"),
        new_servers: haproxy.list("new_servers", "[\"new2\"]"),
    };
    haproxy.finish();
    section.finish();
    balancer
}

pub(super) fn traffic(mut section: Section<'_, '_>) -> TrafficSpec {
    let usual = TrafficSpec::default();
    let session_pools = section.optional_choice("session_pools", &["refuse", "wait"]);
    let traffic = TrafficSpec {
        acquire_ms: section.optional_duration_ms("acquire").unwrap_or(usual.acquire_ms),
        hold_ms: section.optional_duration_ms("hold").unwrap_or(usual.hold_ms),
        tries: section.optional_number("tries", 1, 100).map_or(usual.tries, small),
        terminate_blockers_ms: section
            .optional_duration_or_none_ms("terminate_blockers")
            .unwrap_or(usual.terminate_blockers_ms),
        refuse_session_pools: session_pools != Some("wait"),
        max_lag_bytes: section.optional_number("max_lag_bytes", 1, u64::MAX).unwrap_or(usual.max_lag_bytes),
        read_max_lag_bytes: section
            .optional_number("read_max_lag_bytes", 0, u64::MAX)
            .unwrap_or(usual.read_max_lag_bytes),
        read_max_age_ms: section
            .optional_duration_or_none_ms("read_max_age")
            .unwrap_or(usual.read_max_age_ms),
    };
    section.finish();
    traffic
}
