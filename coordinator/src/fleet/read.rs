//! Which keys a fleet file has, with their types, bounds and defaults. Relations between keys are in `rules`.

use super::read_many::{limits, wave, window};
use super::read_traffic::{balancer, pooler, traffic};
use super::reader::Reader;
use super::section::Section;
use super::spec::{
    ClusterSpec, FleetSpec, HostSpec, LoginSpec, NewNodeSpec, NewSpec, OldNodeSpec, OldSpec, OptionsSpec,
    PatroniSpec, TablespaceSpec, ValidateSpec,
};

/// Where Debian's packages and the PostgreSQL project's own put the socket.
const SOCKET_DIR: &str = "/var/run/postgresql";
const PORT: u16 = 5432;
/// The oldest major with everything the method needs: 13 has `FOR ALL TABLES` publications of partitioned tables and
/// cascading slots; older ones are neither supported nor tested.
const OLDEST: u64 = 13;
/// Far enough beyond any planned major that a larger number is a slip.
const NEWEST: u64 = 40;

/// The whole file; none when it is not TOML.
pub(super) fn fleet(reader: &Reader<'_>) -> Option<FleetSpec> {
    let tree = reader.tree()?;
    let mut top = Section::top(reader, tree.get_ref());
    let mut head = top.section("fleet", Some("begin the file with [fleet] and name = \"production\""));
    let name = head.text("name", "\"production\"");
    head.finish();
    let hosts: Vec<HostSpec> = top
        .sections("host", Some("add a [[host]] with name and agent for every host with an agent"))
        .into_iter()
        .map(host)
        .collect();
    let clusters = top
        .sections("cluster", Some("add a [[cluster]] with its old and new nodes"))
        .into_iter()
        .map(|section| cluster(section, &hosts))
        .collect();
    let limits = limits(top.section("limits", None));
    let windows = top.sections("window", None).into_iter().map(window).collect();
    let waves = top.sections("wave", None).into_iter().map(wave).collect();
    top.finish();
    Some(FleetSpec { name, hosts, clusters, limits, windows, waves })
}

fn host(mut section: Section<'_, '_>) -> HostSpec {
    let host = HostSpec {
        name: section.text("name", "\"db1\""),
        agent: section.text("agent", "\"10.0.0.1:7432\""),
        rack: section.optional_text("rack", "\"r12\""),
    };
    section.finish();
    host
}

fn cluster(mut section: Section<'_, '_>, hosts: &[HostSpec]) -> ClusterSpec {
    let name = section.text("name", "\"ledger\"");
    let old =
        old(section.section("old", Some("add [cluster.old] with version, bin_dir and its nodes")), hosts);
    let new = section.section("new", Some("add [cluster.new] with version, bin_dir and its nodes"));
    let new = new_cluster(new, hosts, &old);
    let poolers = section.sections("pooler", None).into_iter().map(|one| pooler(one, hosts)).collect();
    let balancers = section.sections("balancer", None).into_iter().map(|one| balancer(one, hosts)).collect();
    let traffic = traffic(section.section("traffic", None));
    let options = options(section.section("options", None));
    section.finish();
    ClusterSpec { name, old, new, options, poolers, balancers, traffic }
}

fn old(mut section: Section<'_, '_>, hosts: &[HostSpec]) -> OldSpec {
    let version = small(section.number("version", OLDEST, NEWEST, "15"));
    let bin_dir = section.text("bin_dir", "\"/usr/lib/postgresql/15/bin\"");
    let superuser = section.optional_text("superuser", "\"postgres\"").unwrap_or_else(|| "postgres".into());
    let replication = section
        .section("replication", Some("add replication = { user = \"replicator\", passfile = \"...\" }"));
    let replication = login(replication).unwrap_or_default();
    let rehearsal = login(section.section("rehearsal", None)).unwrap_or_else(|| replication.clone());
    let environment = section.texts("environment");
    let patroni = patroni(section.section("patroni", None), false);
    let nodes =
        section.sections("node", Some("add a [[cluster.old.node]] for every node of the old cluster"));
    let nodes = nodes.into_iter().map(|node| old_node(node, hosts)).collect();
    section.finish();
    OldSpec { version, bin_dir, superuser, replication, rehearsal, environment, patroni, nodes }
}

fn patroni(mut section: Section<'_, '_>, new: bool) -> Option<PatroniSpec> {
    let exists = section.exists();
    let scope = section.text("scope", "\"ledger\"");
    let seed_scope = if new { section.optional_text("seed_scope", "\"ledger-seed\"") } else { None };
    let patroni = PatroniSpec { scope, seed_scope: seed_scope.unwrap_or_default() };
    section.finish();
    exists.then_some(patroni)
}

fn login(mut section: Section<'_, '_>) -> Option<LoginSpec> {
    let exists = section.exists();
    let login = LoginSpec {
        user: section.text("user", "\"replicator\""),
        passfile: section.optional_text("passfile", "\"/var/lib/postgresql/.pgpass\"").unwrap_or_default(),
        sslmode: section.optional_text("sslmode", "\"verify-full\"").unwrap_or_default(),
    };
    section.finish();
    exists.then_some(login)
}

/// What old and new nodes have in common, in the order in which the reference lists it.
struct Common {
    name: String,
    host: String,
    agent: String,
    address: String,
    port: u16,
    socket_dir: String,
}

fn common(section: &mut Section<'_, '_>, hosts: &[HostSpec]) -> Common {
    let name = section.text("name", "\"ledger-1\"");
    let host = section.text("host", "\"db1\"");
    let agent = agent_of(&host, hosts);
    let of_agent = agent.rsplit_once(':').map_or("", |(host, _)| host);
    let of_agent = of_agent.trim_start_matches('[').trim_end_matches(']').to_owned();
    Common {
        name,
        host,
        address: section.optional_text("address", "\"10.0.0.1\"").unwrap_or(of_agent),
        agent,
        port: section
            .optional_number("port", 1, u16::MAX.into())
            .map_or(PORT, |n| u16::try_from(n).unwrap_or(PORT)),
        socket_dir: section
            .optional_text("socket_dir", &format!("\"{SOCKET_DIR}\""))
            .unwrap_or_else(|| SOCKET_DIR.into()),
    }
}

/// Empty for a host that is not declared; a rule tells of it.
pub(super) fn agent_of(host: &str, hosts: &[HostSpec]) -> String {
    hosts.iter().find(|h| h.name == host).map(|h| h.agent.clone()).unwrap_or_default()
}

fn old_node(mut section: Section<'_, '_>, hosts: &[HostSpec]) -> OldNodeSpec {
    let Common { name, host, agent, address, port, socket_dir } = common(&mut section, hosts);
    let data_dir = section.text("data_dir", "\"/var/lib/postgresql/15/main\"");
    let config_file = config_file(&mut section, "config_file");
    let rest = rest(&mut section);
    section.finish();
    OldNodeSpec { name, host, agent, address, port, socket_dir, data_dir, config_file, rest }
}

fn new_cluster(mut section: Section<'_, '_>, hosts: &[HostSpec], old: &OldSpec) -> NewSpec {
    let version = small(section.number("version", OLDEST, NEWEST, "18"));
    let bin_dir = section.text("bin_dir", "\"/usr/lib/postgresql/18/bin\"");
    let is_move = version > 0 && version == old.version;
    let old_bin_dir = section
        .optional_text("old_bin_dir", "\"/usr/lib/postgresql/15/bin\"")
        .unwrap_or_else(|| if is_move { bin_dir.clone() } else { old.bin_dir.clone() });
    let jobs = section.optional_number("jobs", 1, 1024).map(small);
    let environment = section.texts("environment");
    let replication = login(section.section("replication", None)).unwrap_or_else(|| old.replication.clone());
    let patroni = patroni(section.section("patroni", None), true);
    let nodes =
        section.sections("node", Some("add a [[cluster.new.node]]; the first becomes the new leader"));
    let nodes = nodes.into_iter().map(|node| new_node(node, hosts, is_move)).collect();
    section.finish();
    NewSpec { version, bin_dir, old_bin_dir, jobs, environment, replication, patroni, nodes }
}

/// In a move a node has one directory and one configuration, which need not be written twice.
fn new_node(mut section: Section<'_, '_>, hosts: &[HostSpec], is_move: bool) -> NewNodeSpec {
    let Common { name, host, agent, address, port, socket_dir } = common(&mut section, hosts);
    let seed_example = "\"/var/lib/postgresql/15/ledger\"";
    let seed_dir = if is_move {
        section.optional_text("seed_dir", seed_example)
    } else {
        Some(section.text("seed_dir", seed_example))
    };
    let data_dir = section.text("data_dir", "\"/var/lib/postgresql/18/ledger\"");
    let seed_dir = seed_dir.unwrap_or_else(|| data_dir.clone());
    let config_file_of_new = config_file(&mut section, "config_file");
    let mut seed_config_file = config_file(&mut section, "seed_config_file");
    if is_move && seed_config_file.is_empty() {
        seed_config_file.clone_from(&config_file_of_new);
    }
    let rest = rest(&mut section);
    let tablespaces = section.sections("tablespaces", None).into_iter().map(tablespace).collect();
    section.finish();
    NewNodeSpec {
        name,
        host,
        agent,
        address,
        port,
        socket_dir,
        seed_dir,
        data_dir,
        config_file: config_file_of_new,
        seed_config_file,
        rest,
        tablespaces,
    }
}

fn rest(section: &mut Section<'_, '_>) -> String {
    section.optional_text("rest", "\"http://10.0.0.1:8008\"").unwrap_or_default()
}

fn config_file(section: &mut Section<'_, '_>, key: &'static str) -> String {
    section.optional_text(key, "\"/etc/postgresql/15/main/postgresql.conf\"").unwrap_or_default()
}

fn tablespace(mut section: Section<'_, '_>) -> TablespaceSpec {
    let from = section.text("from", "\"/srv/fast\"");
    let to = section.text("to", "\"/srv/fast\"");
    section.finish();
    TablespaceSpec { from, to }
}

fn options(mut section: Section<'_, '_>) -> OptionsSpec {
    let usual = OptionsSpec::default();
    let slot_timeout_ms = section.optional_duration_ms("slot_timeout").unwrap_or(usual.slot_timeout_ms);
    let long = section.optional_duration_ms("long_transaction").unwrap_or(usual.long_transaction_ms);
    let sample = section.optional_number("verify_sample_percent", 1, 100);
    let margin = section.optional_number("disk_margin_percent", 0, 1000);
    let mut validate = section.section("validate", None);
    let rows = ValidateSpec {
        parallel: validate.optional_number("parallel", 1, 64).map_or(usual.validate.parallel, small),
        chunk_rows: validate
            .optional_number("chunk_rows", 1, 1_000_000)
            .map_or(usual.validate.chunk_rows, small),
        rows_per_second: validate
            .optional_number("rows_per_second", 1, u64::MAX)
            .unwrap_or(usual.validate.rows_per_second),
    };
    validate.finish();
    section.finish();
    OptionsSpec {
        slot_timeout_ms,
        long_transaction_ms: long,
        verify_sample_percent: sample.map_or(usual.verify_sample_percent, small),
        disk_margin_percent: margin.map_or(usual.disk_margin_percent, small),
        validate: rows,
    }
}

/// Bounds were checked when the number was read.
pub(super) fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or_default()
}
