//! The same conversion with the tools alone, as a person with a shell would run them: what pgleap's times are held
//! against. No proofs, no way back, no load; only the work that nobody can save.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::harness::postgres::{REPLICATOR, SUPERUSER, Server};
use crate::harness::{Base, Cluster, eventually};

/// Times of single tools, in seconds, by the name of pgleap's step that calls the same tool.
#[derive(Debug, Default)]
pub struct Raw {
    /// In the order in which they ran.
    pub times: Vec<(&'static str, &'static str, f64)>,
}

impl Raw {
    fn add(&mut self, step: &'static str, tool: &'static str, since: Instant) {
        self.times.push((step, tool, since.elapsed().as_secs_f64()));
    }

    /// Seconds of all tools of a step; none when it calls none.
    pub fn of(&self, step: &str) -> Option<f64> {
        let times: Vec<f64> = self.times.iter().filter(|time| time.0 == step).map(|time| time.2).collect();
        (!times.is_empty()).then(|| times.iter().sum())
    }
}

/// Converts and upgrades the cluster to two nodes of the new major, by hand.
///
/// # Errors
/// When a tool fails.
pub async fn convert(
    base: &Base,
    old: &Cluster,
    leader: &Server,
    replica: &Server,
    jobs: usize,
) -> Result<Raw> {
    let mut raw = Raw::default();
    let primary = old.primary();
    let source = old.nodes.get(1).unwrap_or(primary);
    let seed = |server: &Server| Server {
        data_dir: server.data_dir.with_file_name("15"),
        bin_dir: primary.bin_dir.clone(),
        ..server.clone()
    };
    let (seed_leader, seed_replica) = (seed(leader), seed(replica));

    let began = Instant::now();
    backup(base, old, source, &seed_leader).await?;
    raw.add("clone_node", "pg_basebackup", began);
    let began = Instant::now();
    seed_leader.start(base).await?;
    seed_leader.catch_up(primary).await?;
    raw.add("start_standby", "pg_ctl start", began);
    let began = Instant::now();
    backup(base, old, &seed_leader, &seed_replica).await?;
    raw.add("clone_node", "pg_basebackup", began);
    let began = Instant::now();
    seed_replica.start(base).await?;
    seed_replica.catch_up(primary).await?;
    raw.add("start_standby", "pg_ctl start", began);
    let began = Instant::now();
    let data_dir = leader.data_dir.to_string_lossy();
    let initdb =
        ["-D", data_dir.as_ref(), "-U", SUPERUSER, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"];
    base.run(leader.bin_dir.join("initdb"), &initdb).await?;
    raw.add("init_new", "initdb", began);

    let began = Instant::now();
    seed_replica.stop(base).await?;
    seed_leader.stop(base).await?;
    raw.add("halt_standby", "pg_ctl stop", began);
    let target = primary.value("postgres", "SELECT pg_current_wal_lsn()").await?.context("no LSN")?;
    primary.execute("postgres", "SELECT pg_logical_emit_message(false, 'bench', '')").await?;
    let began = Instant::now();
    let mut conf = std::fs::read_to_string(seed_leader.data_dir.join("postgresql.auto.conf"))?;
    conf.push_str(&format!(
        "recovery_target_lsn = '{target}'\nrecovery_target_inclusive = off\nrecovery_target_action = promote\n"
    ));
    base.user.write(&seed_leader.data_dir.join("postgresql.auto.conf"), &conf, 0o600)?;
    seed_leader.start(base).await?;
    eventually("promotion", std::time::Duration::from_secs(60), || async {
        let recovers = seed_leader.value("postgres", "SELECT pg_is_in_recovery()").await?;
        Ok((recovers.as_deref() == Some("f")).then_some(()))
    })
    .await?;
    raw.add("recover_to", "recovery", began);
    let began = Instant::now();
    seed_replica.start(base).await?;
    seed_replica.catch_up(&seed_leader).await?;
    raw.add("start_standby", "pg_ctl start", began);

    let began = Instant::now();
    seed_leader.stop(base).await?;
    raw.add("stop_leader", "pg_ctl stop", began);
    let began = Instant::now();
    seed_replica.stop(base).await?;
    raw.add("stop_replica", "pg_ctl stop", began);
    let began = Instant::now();
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let (old_bin, new_bin) = (text(&seed_leader.bin_dir), text(&leader.bin_dir));
    let (old_dir, new_dir, jobs) = (text(&seed_leader.data_dir), text(&leader.data_dir), jobs.to_string());
    let sockets = text(&leader.socket_dir);
    let upgrade = ["-b", &old_bin, "-B", &new_bin, "-d", &old_dir, "-D", &new_dir, "-U", SUPERUSER];
    let upgrade = [&upgrade[..], &["--socketdir", &sockets, "--link", "--jobs", &jobs]].concat();
    base.run(leader.bin_dir.join("pg_upgrade"), &upgrade).await?;
    raw.add("upgrade", "pg_upgrade --link", began);

    let began = Instant::now();
    let parent = replica.data_dir.parent().context("parent")?.to_string_lossy().into_owned();
    let rsync = ["--archive", "--delete", "--hard-links", "--size-only", "--no-inc-recursive"];
    base.run("/usr/bin/rsync", &[&rsync[..], &[&old_dir, &new_dir, &parent]].concat()).await?;
    raw.add("relink", "rsync", began);

    let settings = |server: &Server| {
        format!(
            "port = {}\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nfsync = off\n",
            server.port,
            server.socket_dir.display()
        )
    };
    base.user.write(&leader.data_dir.join("postgresql.auto.conf"), &settings(leader), 0o600)?;
    let began = Instant::now();
    leader.start(base).await?;
    raw.add("start_leader", "pg_ctl start", began);
    let began = Instant::now();
    let (host, port) = (text(&leader.socket_dir), leader.port.to_string());
    let vacuum = ["-h", &host, "-p", &port, "-U", SUPERUSER, "--all", "--jobs", &jobs];
    for more in [&["--analyze-in-stages", "--missing-stats-only"] as &[&str], &["--analyze-only"]] {
        base.run(leader.bin_dir.join("vacuumdb"), &[&vacuum[..], more].concat()).await?;
    }
    raw.add("analyze", "vacuumdb", began);
    leader.stop(base).await?;
    Ok(raw)
}

/// `pg_basebackup -R` of one server to the place of another.
async fn backup(base: &Base, old: &Cluster, from: &Server, to: &Server) -> Result<()> {
    let upstream =
        format!("host=127.0.0.1 port={} user={REPLICATOR} passfile={}", from.port, old.passfile.display());
    let data_dir = to.data_dir.to_string_lossy().into_owned();
    let arguments = ["-d", &upstream, "-D", &data_dir, "-R", "-X", "stream", "--checkpoint=fast"];
    base.run(to.bin_dir.join("pg_basebackup"), &arguments).await?;
    let path = to.data_dir.join("postgresql.auto.conf");
    let mut conf = std::fs::read_to_string(&path)?;
    conf.push_str(&format!(
        "port = {}\nunix_socket_directories = '{}'\nprimary_slot_name = ''\n",
        to.port,
        to.socket_dir.display()
    ));
    base.user.write(&path, &conf, 0o600)
}
