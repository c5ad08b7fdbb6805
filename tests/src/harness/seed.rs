//! The seed of a new cluster under real Patroni: the template and the commands that agents are given, or a standby cluster that is there
//! before pgleap comes.
//!
//! It writes files and starts daemons; what a scenario claims is asserted elsewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::base::Base;
use super::cluster::Cluster;
use super::eventually::eventually;
use super::patroni::{Patroni, REST_USER, scripts};
use super::postgres::{PASSWORD, REPLICATOR, Server};

/// Root of its keys in the store.
pub const NAMESPACE: &str = "/seeds/";
/// Longest time until an existing one has come up.
const LIMIT: Duration = Duration::from_secs(90);

/// What it is like.
#[derive(Debug, Clone)]
pub struct SeedOptions {
    /// `seed_scope` of the fleet file.
    pub scope: String,
    /// Nodes are made from a copy of the old leader's directory that [`Seed::snapshot`] takes, by a method of the operator's; else by
    /// `pg_basebackup`.
    pub snapshot: bool,
    /// The standby cluster is there before, started by [`Seed::start`].
    pub exists: bool,
}

/// What one new host has of it.
#[derive(Debug)]
pub struct SeedHost {
    /// The operator's template; none where the standby cluster exists.
    pub template: Option<PathBuf>,
    /// What Patroni is started with: a directory that the agent makes, or a file that exists.
    pub config: PathBuf,
    /// Scripts that start and stop its daemon.
    pub commands: (PathBuf, PathBuf),
}

/// The seed of a fleet.
#[derive(Debug)]
pub struct Seed {
    /// As it was made.
    pub options: SeedOptions,
    /// In the order of the new nodes.
    pub hosts: Vec<SeedHost>,
    copy: PathBuf,
}

impl Seed {
    /// Writes everything, and starts nothing. The daemons have the REST API of those that run the new nodes later: never two at once.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn prepare(
        base: &Base,
        options: SeedOptions,
        seeds: &[Server],
        new: &Patroni,
        old: &Server,
    ) -> Result<Seed> {
        let copy = base.join("snapshot");
        let mut hosts = Vec::new();
        for (index, (server, member)) in seeds.iter().zip(&new.members).enumerate() {
            let directory = base.make_dir(format!("{}/patroni-seed", server.name))?;
            let restore = directory.join("restore");
            // As a snapshot comes: all at once, whatever has been written since.
            let text = format!(
                "#!/bin/sh\nset -e\necho \"$@\" >>'{}'\nfor one; do case $one in --datadir=*) to=${{one#--datadir=}};; esac; done\n\
                 cp -a '{}' \"$to\"\n",
                directory.join("restored").display(),
                copy.display()
            );
            base.user.write(&restore, &text, 0o700)?;
            let mut standby =
                json!({"create_replica_methods": [if options.snapshot { "snapshot" } else { "basebackup" }]});
            let mut text = json!({
                "namespace": NAMESPACE,
                "etcd3": {"hosts": new.etcd.address()},
                "restapi": {},
                "bootstrap": {"dcs": {
                    "ttl": new.options.ttl, "loop_wait": 1, "retry_timeout": 3,
                    "standby_cluster": standby,
                }},
                "postgresql": {
                    "listen": server.address,
                    "pgpass": directory.join("pgpass"),
                    "authentication": {"replication": {"username": REPLICATOR, "password": PASSWORD}},
                    "basebackup": [{"checkpoint": "fast"}, "no-sync"],
                    "snapshot": {"command": restore},
                },
            });
            if new.options.password {
                text["restapi"]["authentication"] = json!({"username": REST_USER, "password": PASSWORD});
            }
            let (template, config) = if options.exists {
                // What an operator has written by hand.
                standby["host"] = json!(old.address);
                standby["port"] = json!(old.port);
                text["bootstrap"]["dcs"]["standby_cluster"] = standby;
                text["scope"] = json!(options.scope);
                text["name"] = json!(server.name);
                for key in ["listen", "connect_address"] {
                    text["restapi"][key] = json!(member.rest_address());
                    text["postgresql"][key] = json!(format!("{}:{}", server.address, server.port));
                }
                text["postgresql"]["data_dir"] = json!(server.data_dir);
                text["postgresql"]["bin_dir"] = json!(server.bin_dir);
                text["postgresql"]["use_unix_socket"] = json!(true);
                text["postgresql"]["authentication"]["superuser"] = json!({"username": "postgres"});
                text["postgresql"]["parameters"] = json!({"unix_socket_directories": server.socket_dir});
                (None, directory.join("patroni.yml"))
            } else {
                (Some(directory.join("template.yml")), directory.join("config"))
            };
            base.user.write(template.as_deref().unwrap_or(&config), &format!("{text:#}\n"), 0o600)?;
            let log = base.join("log").join(format!("patroni-seed-{}.log", server.name));
            let commands = scripts(base, &new.program, &config, &directory, &log)?;
            ensure!(index < new.members.len(), "no member for {}", server.name);
            hosts.push(SeedHost { template, config, commands });
        }
        Ok(Seed { options, hosts, copy })
    }

    /// Takes the copy from which the nodes are restored.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub async fn snapshot(&self, base: &Base, old: &Cluster) -> Result<()> {
        let of = old.primary();
        let conninfo = format!(
            "host={} port={} user={REPLICATOR} passfile={}",
            of.address,
            of.port,
            old.passfile.display()
        );
        let copy = self.copy.to_string_lossy();
        let arguments = ["-D", &copy, "-d", &conninfo, "-c", "fast", "--no-sync"];
        base.run(of.bin_dir.join("pg_basebackup"), &arguments).await.map(drop)
    }

    /// How often the method has restored on a host, and with what arguments.
    ///
    /// # Errors
    /// When the note cannot be read.
    pub fn restored(&self, index: usize) -> Result<Vec<String>> {
        let directory = self.hosts[index].config.parent().context("a path without a parent")?;
        match std::fs::read_to_string(directory.join("restored")) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts one that exists, the leader first, and waits until all members stream.
    ///
    /// # Errors
    /// When they do not.
    pub async fn start(&self, base: &Base, new: &Patroni) -> Result<()> {
        for (index, host) in self.hosts.iter().enumerate() {
            base.run(&host.commands.0, &[]).await?;
            self.streams(new, index).await?;
        }
        Ok(())
    }

    /// Waits until a member streams: the first one as the leader of the standby cluster.
    ///
    /// # Errors
    /// When it does not.
    pub async fn streams(&self, new: &Patroni, index: usize) -> Result<()> {
        let member = &new.members[index];
        let role = if index == 0 { "standby_leader" } else { "replica" };
        eventually(&format!("{} to stream under Patroni", member.server.name), LIMIT, || async {
            let cluster = member.ask("/cluster").await?;
            let own = cluster["members"].as_array().into_iter().flatten();
            let mut own = own.filter(|one| one["name"] == json!(member.server.name));
            let own = own.next().cloned().unwrap_or_default();
            ensure!(own["role"] == json!(role) && own["state"] == json!("streaming"), "{cluster}");
            ensure!(cluster["pause"].is_null(), "paused: {cluster}");
            Ok(Some(()))
        })
        .await
    }
}

/// What `[patroni.seed]` has to say on a host.
pub(super) fn entry(host: &SeedHost) -> toml::Table {
    let text = |path: &Path| toml::Value::String(path.to_string_lossy().into_owned());
    let mut entry = toml::Table::new();
    if let Some(template) = &host.template {
        entry.insert("template".into(), text(template));
        entry.insert("config".into(), text(&host.config));
    }
    entry.insert("start".into(), toml::Value::Array(vec![text(&host.commands.0)]));
    entry.insert("stop".into(), toml::Value::Array(vec![text(&host.commands.1)]));
    entry
}
