//! What a cluster is, put together from what was told: one member's file, if it was given, and the answers of REST APIs, as far as they
//! came. What nobody told stays empty, and a note says so.

use std::collections::BTreeMap;

use pgleap_proto::patroni::{Cluster, Status};
use serde::Serialize;
use serde_json::Value;

use pgleap_proto::patroni::Config;

/// Everything that was told.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Of one member.
    pub config: Option<Config>,
    /// `GET /cluster`; none when no REST API answered.
    pub cluster: Option<Cluster>,
    /// `GET /config`; none when it was not answered.
    pub dynamic: Option<Value>,
    /// `GET /patroni` of each member that answered.
    pub statuses: BTreeMap<String, Status>,
    /// Why others did not.
    pub unanswered: BTreeMap<String, String>,
}

/// A cluster run by Patroni, for people and programs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Found {
    /// Name in the store.
    pub scope: String,
    /// Root of its keys in the store; empty when only a REST API was asked.
    pub namespace: String,
    /// Kind of the store; empty when only a REST API was asked.
    pub store: String,
    /// Versions of Patroni that its members run.
    pub patroni_versions: Vec<String>,
    /// Major version of PostgreSQL; 0 when no member runs.
    pub major: u32,
    /// Directory of its programs; empty when nobody told.
    pub bin_dir: String,
    /// Superuser; empty when nobody told.
    pub superuser: String,
    /// Role of the replication; empty when nobody told.
    pub replicator: String,
    /// The leader first, then by name.
    pub members: Vec<FoundMember>,
    /// Patroni looks on only.
    pub paused: bool,
    /// `synchronous_mode` of the dynamic configuration: `off`, `on`, `quorum`, …
    pub synchronous_mode: String,
    /// Where the rules for clients come from: `file`, `dynamic`, `local`; empty when unknown.
    pub hba: String,
    /// What should be known, looked at, or filled in.
    pub notes: Vec<String>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct FoundMember {
    /// Its name.
    pub name: String,
    /// `leader`, `replica`, …
    pub role: String,
    /// Where PostgreSQL is reached.
    pub address: String,
    /// TCP port; 0 when unknown.
    pub port: u16,
    /// Its REST API, without a path.
    pub rest: String,
    /// Data directory; empty when nobody told.
    pub data_dir: String,
    /// postgresql.conf, when it is not in the data directory.
    pub config_file: String,
    /// Directory of its unix socket; empty when nobody told.
    pub socket_dir: String,
    /// Tags that are set.
    pub tags: Vec<String>,
    /// Directories are taken from another member's file.
    pub assumed: bool,
}

/// Puts it together.
///
/// # Errors
/// When neither a file nor a REST API told which members there are, or they contradict each other.
pub fn find(told: &Told) -> Result<Found, String> {
    let config = told.config.as_ref();
    let mut found = Found { scope: scope(told)?, ..Found::default() };
    found.notes.extend(told.unanswered.iter().map(|(name, why)| format!("member {name}: {why}")));
    if let Some(config) = config {
        found.namespace.clone_from(&config.namespace);
        found.store.clone_from(&config.store);
        found.superuser.clone_from(&config.superuser);
        found.replicator.clone_from(&config.replicator);
        found.bin_dir.clone_from(&config.bin_dir);
        if !config.use_unix_socket {
            found.notes.push(format!(
                "Patroni of {} connects to PostgreSQL over TCP, and would be kept out with the clients when its node is fenced: set \
                 postgresql.use_unix_socket: true on every member and restart Patroni (PostgreSQL goes on while it is paused)",
                config.name
            ));
        }
    }
    members(told, &mut found)?;
    let majors: Vec<u32> = told
        .statuses
        .values()
        .map(|status| status.server_version / 10_000)
        .filter(|major| *major > 0)
        .collect();
    found.major = majors.first().copied().unwrap_or_default();
    if majors.iter().any(|major| *major != found.major) {
        found.notes.push("its members run different major versions of PostgreSQL".to_owned());
    }
    found.patroni_versions = told.statuses.values().map(|status| status.patroni.version.clone()).collect();
    found.patroni_versions.retain(|version| !version.is_empty());
    found.patroni_versions.sort();
    found.patroni_versions.dedup();
    dynamic(told, &mut found);
    Ok(found)
}

fn scope(told: &Told) -> Result<String, String> {
    let of_file = told.config.as_ref().map(|config| config.scope.clone());
    let of_rest =
        told.cluster.as_ref().map(|cluster| cluster.scope.clone()).filter(|scope| !scope.is_empty());
    let of_rest =
        of_rest.or_else(|| told.statuses.values().map(|status| status.patroni.scope.clone()).next());
    match (of_file, of_rest) {
        (Some(file), Some(rest)) if file != rest => Err(format!(
            "the configuration file is of cluster \"{file}\", but the REST API that it names answers for \"{rest}\"; name the right file or \
             the right address"
        )),
        (file, rest) => file.or(rest).filter(|scope| !scope.is_empty()).ok_or_else(|| {
            "the REST API does not say to which cluster it belongs; is Patroni older than 3.0? Name its configuration file instead".to_owned()
        }),
    }
}

fn members(told: &Told, found: &mut Found) -> Result<(), String> {
    let config = told.config.as_ref();
    let setting = |name: &str| -> String {
        let dynamic = told.dynamic.as_ref().map(|dynamic| &dynamic["postgresql"]["parameters"][name]);
        dynamic.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let socket_dirs = config.and_then(|config| config.parameters.get("unix_socket_directories").cloned());
    let socket_dirs = socket_dirs.unwrap_or_else(|| setting("unix_socket_directories"));
    let socket_dir = socket_dirs.split(',').map(str::trim).next().unwrap_or_default().to_owned();
    let directories = |member: &mut FoundMember| {
        member.socket_dir.clone_from(&socket_dir);
        if let Some(config) = config {
            member.data_dir.clone_from(&config.data_dir);
            if !config.config_dir.is_empty() && config.config_dir != config.data_dir {
                member.config_file = format!("{}/postgresql.conf", config.config_dir.trim_end_matches('/'));
            }
            member.assumed = member.name != config.name;
        }
    };
    match (&told.cluster, config) {
        (Some(cluster), _) => {
            for one in &cluster.members {
                let mut member = FoundMember {
                    name: one.name.clone(),
                    role: one.role.clone(),
                    address: one.host.clone(),
                    port: one.port,
                    rest: rest(&one.api_url),
                    tags: one
                        .tags
                        .iter()
                        .filter(|(_, value)| !is_no(value))
                        .map(|(tag, value)| tag_text(tag, value))
                        .collect(),
                    ..FoundMember::default()
                };
                directories(&mut member);
                found.members.push(member);
            }
        }
        (None, Some(config)) => {
            let (address, port) = split(&config.connect_address);
            let mut member = FoundMember {
                name: config.name.clone(),
                address,
                port,
                rest: config.rest.as_ref().map(ToString::to_string).unwrap_or_default(),
                ..FoundMember::default()
            };
            directories(&mut member);
            found.members.push(member);
            found.notes.push(
                "no REST API answered, so that only the member of the configuration file is known: add the others".to_owned(),
            );
        }
        (None, None) => return Err("no REST API answered".to_owned()),
    }
    if let Some(config) =
        config.filter(|config| found.members.iter().all(|member| member.name != config.name))
    {
        found.notes.push(format!(
            "member {} of the configuration file is not among those that the REST API tells",
            config.name
        ));
    }
    let leads = |member: &FoundMember| !matches!(member.role.as_str(), "leader" | "standby_leader");
    found.members.sort_by(|a, b| leads(a).cmp(&leads(b)).then_with(|| a.name.cmp(&b.name)));
    if found.members.iter().any(|member| member.role == "standby_leader") {
        found.notes.push(
            "it is a standby cluster of another one: pgleap upgrades clusters that take writes".to_owned(),
        );
    }
    for member in &found.members {
        for tag in member
            .tags
            .iter()
            .filter(|tag| tag.starts_with("nofailover") || tag.starts_with("failover_priority=0"))
        {
            found.notes.push(format!("member {} is tagged {tag}: Patroni never lets it lead", member.name));
        }
    }
    Ok(())
}

fn dynamic(told: &Told, found: &mut Found) {
    found.paused = told.cluster.as_ref().is_some_and(|cluster| cluster.pause);
    if found.paused {
        found.notes.push("Patroni is paused: nobody fails over while it is".to_owned());
    }
    let Some(dynamic) = &told.dynamic else { return };
    found.synchronous_mode = match &dynamic["synchronous_mode"] {
        Value::Null | Value::Bool(false) => "off".to_owned(),
        Value::Bool(true) => "on".to_owned(),
        Value::String(mode) => mode.clone(),
        other => other.to_string(),
    };
    if found.synchronous_mode != "off" {
        found.notes.push(format!(
            "synchronous_mode is {}: commits wait for a standby of the cluster itself, which stays so",
            found.synchronous_mode
        ));
    }
    let is_dynamic = dynamic["postgresql"]["pg_hba"].as_array().is_some_and(|lines| !lines.is_empty());
    found.hba = match &told.config {
        Some(config) if config.has_hba => "local",
        _ if is_dynamic => "dynamic",
        Some(_) => "file",
        None => "",
    }
    .to_owned();
    if found.hba == "local" {
        found.notes.push(
            "postgresql.pg_hba stands in the member's own file, so that Patroni would write over a fence: move it to the dynamic configuration \
             (patronictl edit-config) on every member, then reload"
                .to_owned(),
        );
    }
}

/// Scheme and place of an `api_url`, without its path.
fn rest(api_url: &str) -> String {
    api_url.parse::<pgleap_proto::patroni::Address>().map(|address| address.to_string()).unwrap_or_default()
}

fn is_no(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

fn tag_text(tag: &str, value: &Value) -> String {
    match value {
        Value::Bool(true) => tag.to_owned(),
        Value::String(text) => format!("{tag}={text}"),
        other => format!("{tag}={other}"),
    }
}

/// `host:port` as `postgresql.connect_address` has it; IPv6 addresses in brackets.
fn split(address: &str) -> (String, u16) {
    // `listen` may name several addresses before the port: the first one is as good as any.
    let (hosts, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = hosts.split(',').next().unwrap_or_default().trim().trim_matches(['[', ']']);
    (host.to_owned(), port.parse().unwrap_or(5432))
}
