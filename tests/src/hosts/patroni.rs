//! Patroni on real hosts, as an operator has it there: etcd on three of them, a unit on each, the REST API behind TLS and a password.
//!
//! It writes files and starts units; what a scenario claims is asserted elsewhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::Value;

use super::{Hosts, Machine, PART};
use crate::harness::{Binaries, eventually};

/// User and password of the REST API, and password of the replication role.
const USER: &str = "rest";
const PASSWORD: &str = "secret";
/// Where its files are on each host.
const FILES: &str = "/etc/patroni";
/// What Patroni's callbacks told on a host: action, role and scope in a line.
pub const TOLD: &str = "/var/lib/postgresql/told";
/// Directory of data on every host.
const DATA: &str = "/var/lib/postgresql";

/// The environment of the programs, when it is not in the hosts' own root.
pub(super) fn environment(binaries: &Binaries) -> Result<Option<PathBuf>> {
    let Some(bin) = binaries.setting("PGLEAP_PATRONI_BIN") else { return Ok(None) };
    Ok(Path::new(bin).parent().map(Path::to_owned))
}

/// One of the two clusters. Both have a synchronous replica, and tell a script who leads.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its name in the store.
    pub name: &'static str,
    /// Major version.
    pub major: u32,
    /// Its binaries.
    pub bin_dir: String,
    /// Whether its members know each other by IPv6.
    pub ipv6: bool,
}

impl Scope {
    /// The address by which a member is known.
    pub fn address<'m>(&self, machine: &'m Machine) -> &'m str {
        if self.ipv6 { &machine.address6 } else { &machine.address }
    }

    /// The same with a port.
    fn at(&self, machine: &Machine, port: u16) -> String {
        if self.ipv6 {
            format!("[{}]:{port}", machine.address6)
        } else {
            format!("{}:{port}", machine.address)
        }
    }

    /// Its REST API.
    pub fn rest(&self, machine: &Machine) -> String {
        format!("https://{}", self.at(machine, 8008))
    }
}

/// Certificates of the REST APIs.
#[derive(Debug)]
pub struct RestTls {
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl RestTls {
    /// A CA of their own.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn new() -> Result<RestTls> {
        let key = KeyPair::generate()?;
        let mut params = named("Patroni")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key)?.pem();
        Ok(RestTls { ca, issuer: Issuer::new(params, key) })
    }

    fn bring(&self, machine: &Machine) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = named(&machine.name)?;
        for address in [&machine.address, &machine.address6] {
            params.subject_alt_names.push(SanType::IpAddress(address.parse()?));
        }
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        machine.put(&format!("{FILES}/ca.crt"), 0o644, &self.ca)?;
        machine.put(&format!("{FILES}/rest.crt"), 0o644, &certificate)?;
        machine.put(&format!("{FILES}/rest.key"), 0o600, &key.serialize_pem())
    }
}

/// A certificate whose subject is that of its issuer would count as signed by itself.
fn named(subject: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, subject);
    Ok(params)
}

/// Starts a store of three members.
///
/// # Errors
/// When it does not come up.
pub async fn start_etcd(hosts: &Hosts, names: [&str; 3]) -> Result<()> {
    let all: Vec<String> =
        names.iter().map(|name| format!("{name}=http://{}:2380", hosts.machine(name).address)).collect();
    for name in names {
        let machine = hosts.machine(name);
        let address = &machine.address;
        let settings = format!(
            "ETCD_NAME={name}\nETCD_DATA_DIR=/var/lib/etcd/patroni\nETCD_LISTEN_PEER_URLS=http://{address}:2380\n\
             ETCD_LISTEN_CLIENT_URLS=http://{address}:2379\nETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379\n\
             ETCD_HEARTBEAT_INTERVAL=500\nETCD_ELECTION_TIMEOUT=5000\n\
             ETCD_INITIAL_ADVERTISE_PEER_URLS=http://{address}:2380\nETCD_INITIAL_CLUSTER={}\n",
            all.join(",")
        );
        machine.put("/etc/default/etcd", 0o644, &settings)?;
        machine.ssh("systemctl enable -q etcd; systemctl restart --no-block etcd")?;
    }
    for name in names {
        let up = async || {
            let state = hosts.machine(name).ssh("systemctl is-active etcd || true")?;
            ensure!(state == "active", "{state}");
            Ok(Some(()))
        };
        eventually(&format!("etcd on {name}"), PART, up).await?;
    }
    Ok(())
}

/// Writes configuration and unit of a member, and starts nothing.
///
/// # Errors
/// When a file cannot be written.
pub fn configure(hosts: &Hosts, tls: &RestTls, store: [&str; 3], scope: &Scope, host: &str) -> Result<()> {
    let machine = hosts.machine(host);
    tls.bring(machine)?;
    machine.put(&format!("{FILES}/password"), 0o600, PASSWORD)?;
    machine.put(&format!("{FILES}/told"), 0o755, &format!("#!/bin/sh\necho \"$@\" >>{TOLD}\n"))?;
    machine.put(&format!("{FILES}/patroni.yml"), 0o600, &member(hosts, store, scope, machine)?)?;
    machine.put(&format!("{DATA}/.pgpass"), 0o600, &format!("*:*:*:replicator:{PASSWORD}\n"))?;
    let bin = hosts.binaries.setting("PGLEAP_PATRONI_BIN").context("no Patroni: run `make setup`")?;
    // As Patroni's documentation has it: its end must reach its own process only.
    let unit = format!(
        "[Unit]\nDescription=Patroni\nAfter=network.target etcd.service\n[Service]\nUser=postgres\n\
         ExecStart={bin}/patroni {FILES}/patroni.yml\nKillMode=process\nTimeoutSec=60\nRestart=no\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    machine.put("/etc/systemd/system/patroni.service", 0o644, &unit)?;
    machine.ssh("systemctl daemon-reload").map(drop)
}

/// Starts it, now and with the host, and waits until it leads or streams.
///
/// # Errors
/// When it does neither.
pub async fn start(hosts: &Hosts, scope: &Scope, host: &str) -> Result<()> {
    let machine = hosts.machine(host);
    machine.ssh("systemctl enable -q --now patroni")?;
    let well = async || Ok(state(machine, scope)?.1.then_some(()));
    let log = || machine.ssh("journalctl -u patroni -n 40 --no-pager -o cat").unwrap_or_default();
    eventually(&format!("Patroni on {host}"), PART, well).await.with_context(log)
}

/// Role of the member of that host in its own words, and whether it is well.
///
/// # Errors
/// When its REST API does not answer.
pub fn state(machine: &Machine, scope: &Scope) -> Result<(String, bool)> {
    let said = machine.ssh(&format!(
        "python3 -c \"import ssl,urllib.request as u; \
         print(u.urlopen('{}/patroni', context=ssl.create_default_context(cafile='{FILES}/ca.crt')).read().decode())\"",
        scope.rest(machine)
    ))?;
    let said: Value = serde_json::from_str(&said)?;
    let role = said["role"].as_str().unwrap_or_default().to_owned();
    let well = match role.as_str() {
        "primary" => said["state"] == "running",
        _ => said["replication_state"] == "streaming",
    };
    Ok((role, well))
}

/// The entry of `agent.toml` for it.
pub fn agent_settings(scope: &str) -> String {
    format!(
        "[[patroni]]\nscope = \"{scope}\"\nca = \"{FILES}/ca.crt\"\nuser = \"{USER}\"\npassword_file = \"{FILES}/password\"\n\
         config = \"{FILES}/patroni.yml\"\nstart = [\"/usr/bin/systemctl\", \"start\", \"patroni\"]\n\
         stop = [\"/usr/bin/systemctl\", \"stop\", \"patroni\"]\n"
    )
}

fn member(hosts: &Hosts, store: [&str; 3], scope: &Scope, machine: &Machine) -> Result<String> {
    let (major, address) = (scope.major, &machine.address);
    let net = address.rsplit_once('.').context("an address")?.0;
    let net6 = machine.address6.rsplit_once(':').context("an address")?.0;
    let stores: Vec<String> =
        store.iter().map(|name| format!("{}:2379", hosts.machine(name).address)).collect();
    let mut out = String::new();
    writeln!(out, "scope: {}\nname: {}", scope.name, machine.name)?;
    writeln!(
        out,
        "restapi:\n  listen: '{}:8008'\n  connect_address: '{}'\n  certfile: {FILES}/rest.crt\n  \
         keyfile: {FILES}/rest.key\n  cafile: {FILES}/ca.crt\n  authentication:\n    username: {USER}\n    password: {PASSWORD}\n\
         ctl:\n  cacert: {FILES}/ca.crt",
        if scope.ipv6 { "[::]" } else { "0.0.0.0" },
        scope.at(machine, 8008)
    )?;
    writeln!(out, "etcd3:\n  hosts: {}", stores.join(","))?;
    writeln!(
        out,
        // On a busy machine nobody else may lead because of a pause.
        "bootstrap:\n  dcs:\n    ttl: 120\n    loop_wait: 2\n    retry_timeout: 30\n    synchronous_mode: true\n    postgresql:\n      parameters:\n        \
         wal_level: logical\n        max_connections: 100\n        max_replication_slots: 20\n        max_wal_senders: 20\n        \
         max_worker_processes: 24\n        max_logical_replication_workers: 12\n        wal_keep_size: 128MB\n  \
         initdb:\n  - encoding: UTF8\n  - locale: C.UTF-8\n  - data-checksums\n  \
         pg_hba:\n  - local all all peer\n  - host all replicator {net}.0/24 scram-sha-256\n  \
         - host replication replicator {net}.0/24 scram-sha-256\n  - host all replicator {net6}:/64 scram-sha-256\n  \
         - host replication replicator {net6}:/64 scram-sha-256"
    )?;
    writeln!(
        out,
        "postgresql:\n  listen: '*:5432'\n  connect_address: '{}'\n  data_dir: {DATA}/{major}/main\n  bin_dir: {}\n  \
         pgpass: {DATA}/.patroni-pgpass\n  use_unix_socket: true\n  authentication:\n    superuser:\n      username: postgres\n    \
         replication:\n      username: replicator\n      password: {PASSWORD}\n  basebackup:\n  - checkpoint: fast\n  \
         parameters:\n    unix_socket_directories: /var/run/postgresql\n  \
         callbacks:\n    on_start: {FILES}/told\n    on_role_change: {FILES}/told\ntags:\n  clonefrom: true",
        scope.at(machine, 5432),
        scope.bin_dir
    )?;
    Ok(out)
}
