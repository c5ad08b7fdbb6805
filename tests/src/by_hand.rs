//! The same conversion with the tools alone, as a person with a shell would run them: what pgleap's times are held
//! against. No proofs, no way back, no load; only the work that nobody can save.

use std::time::Instant;

use anyhow::{Context, Result};
use pgleap_proto::quote::conninfo_value;

use crate::harness::postgres::{REPLICATOR, SUPERUSER, Server};
use crate::harness::{Base, Cluster, eventually};

/// Times of single tools, in seconds, by phase and name of pgleap's step that calls the same tool: `seed.clone_node`.
#[derive(Debug, Default)]
pub struct Raw {
    /// In the order in which they ran.
    pub times: Vec<(&'static str, f64)>,
}

impl Raw {
    fn add(&mut self, step: &'static str, since: Instant) {
        self.times.push((step, since.elapsed().as_secs_f64()));
    }

    /// Seconds of all tools of a step, or of a phase; none when it calls none.
    pub fn of(&self, name: &str) -> Option<f64> {
        let counts = |step: &str| step == name || step.split('.').next() == Some(name);
        let times = self.times.iter().filter(|(step, _)| counts(step)).map(|(_, seconds)| *seconds);
        times.reduce(|sum, seconds| sum + seconds)
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
    rehearse(base, source, leader).await?;
    raw.add("check.rehearse", began);
    let began = Instant::now();
    backup(base, old, source, &seed_leader).await?;
    raw.add("seed.clone_node", began);
    let began = Instant::now();
    seed_leader.start(base).await?;
    seed_leader.catch_up(primary).await?;
    raw.add("seed.start_standby", began);
    let began = Instant::now();
    backup(base, old, &seed_leader, &seed_replica).await?;
    raw.add("seed.clone_node", began);
    let began = Instant::now();
    seed_replica.start(base).await?;
    seed_replica.catch_up(primary).await?;
    raw.add("seed.start_standby", began);
    let began = Instant::now();
    let data_dir = leader.data_dir.to_string_lossy();
    let initdb = ["-D", data_dir.as_ref(), "-U", SUPERUSER, "--encoding=UTF8", "--locale=C.UTF-8"];
    base.run(leader.bin_dir.join("initdb"), &initdb).await?;
    raw.add("seed.init_new", began);
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let (old_bin, new_bin) = (text(&seed_leader.bin_dir), text(&leader.bin_dir));
    let (old_dir, new_dir, jobs) = (text(&seed_leader.data_dir), text(&leader.data_dir), jobs.to_string());
    let (sockets, port) = (text(&leader.socket_dir), leader.port.to_string());
    let upgrade = ["-b", &old_bin, "-B", &new_bin, "-d", &old_dir, "-D", &new_dir, "-U", SUPERUSER];
    let upgrade = [&upgrade[..], &["--socketdir", &sockets, "--link", "--jobs", &jobs]].concat();
    let began = Instant::now();
    let check = [&upgrade[..], &["--check", "--old-port", &port]].concat();
    base.run(leader.bin_dir.join("pg_upgrade"), &check).await?;
    raw.add("seed.check_upgrade", began);

    let began = Instant::now();
    seed_replica.stop(base).await?;
    seed_leader.stop(base).await?;
    raw.add("convert.halt_standby", began);
    let databases = databases(primary).await?;
    let began = Instant::now();
    for database in &databases {
        psql(base, primary, database, "CREATE PUBLICATION by_hand FOR ALL TABLES").await?;
    }
    raw.add("convert.publish", began);
    let began = Instant::now();
    let mut target = String::new();
    for (number, database) in databases.iter().enumerate() {
        let slot =
            format!("SELECT lsn FROM pg_create_logical_replication_slot('by_hand_{number}', 'pgoutput')");
        target = psql(base, primary, database, &slot).await?;
    }
    raw.add("convert.create_slots", began);
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
    raw.add("convert.recover_to", began);
    let began = Instant::now();
    for database in &databases {
        psql(base, &seed_leader, database, "DROP PUBLICATION by_hand").await?;
    }
    raw.add("convert.clean_promoted", began);
    let began = Instant::now();
    seed_replica.start(base).await?;
    seed_replica.catch_up(&seed_leader).await?;
    raw.add("convert.start_standby", began);

    let began = Instant::now();
    seed_leader.stop(base).await?;
    raw.add("upgrade.stop_leader", began);
    let began = Instant::now();
    seed_replica.stop(base).await?;
    raw.add("upgrade.stop_replica", began);
    let began = Instant::now();
    base.run(leader.bin_dir.join("pg_upgrade"), &upgrade).await?;
    raw.add("upgrade.upgrade", began);

    let began = Instant::now();
    let parent = replica.data_dir.parent().context("parent")?.to_string_lossy().into_owned();
    let rsync = ["--archive", "--delete", "--hard-links", "--size-only", "--no-inc-recursive"];
    base.run("/usr/bin/rsync", &[&rsync[..], &[&old_dir, &new_dir, &parent]].concat()).await?;
    // rsync leaves what it wrote to the kernel; nobody should start a server on that.
    base.run("/usr/bin/sync", &["--file-system", &parent]).await?;
    raw.add("upgrade.relink", began);

    let settings = |server: &Server| {
        format!(
            "port = {}\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nfsync = off\n\
             primary_conninfo = 'host=127.0.0.1 port={port} user={SUPERUSER}'\n",
            server.port,
            server.socket_dir.display()
        )
    };
    for server in [leader, replica] {
        base.user.write(&server.data_dir.join("postgresql.auto.conf"), &settings(server), 0o600)?;
    }
    base.user.write(&replica.data_dir.join("standby.signal"), "", 0o600)?;
    let began = Instant::now();
    leader.start(base).await?;
    raw.add("upgrade.start_leader", began);
    let began = Instant::now();
    replica.start(base).await?;
    replica.catch_up(leader).await?;
    raw.add("upgrade.start_replica", began);
    let began = Instant::now();
    let script = base.join("update_extensions.sql").to_string_lossy().into_owned();
    if std::path::Path::new(&script).exists() {
        let update =
            ["-X", "-q", "-h", &sockets, "-p", &port, "-U", SUPERUSER, "-d", "postgres", "-f", &script];
        base.run(leader.bin_dir.join("psql"), &update).await?;
    }
    raw.add("upgrade.update_extensions", began);
    let began = Instant::now();
    let vacuum = ["-h", &sockets, "-p", &port, "-U", SUPERUSER, "--all", "--jobs", &jobs];
    for more in [&["--analyze-in-stages", "--missing-stats-only"] as &[&str], &["--analyze-only"]] {
        base.run(leader.bin_dir.join("vacuumdb"), &[&vacuum[..], more].concat()).await?;
    }
    raw.add("upgrade.analyze", began);
    replica.stop(base).await?;
    leader.stop(base).await?;
    Ok(raw)
}

/// The databases that get a publication and a slot.
async fn databases(server: &Server) -> Result<Vec<String>> {
    let client = server.connect("postgres").await?;
    let sql = "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// One statement in one psql, as it would be typed; gives what it prints.
async fn psql(base: &Base, server: &Server, database: &str, sql: &str) -> Result<String> {
    let (host, port) = (server.socket_dir.to_string_lossy().into_owned(), server.port.to_string());
    let target = format!("dbname={}", conninfo_value(database));
    let arguments =
        ["-X", "-A", "-t", "-q", "-h", &host, "-p", &port, "-U", SUPERUSER, "-d", &target, "-c", sql];
    Ok(base.run(server.bin_dir.join("psql"), &arguments).await?.trim().to_owned())
}

/// The schema of all databases dumped, and restored into a scratch cluster of the new major.
async fn rehearse(base: &Base, source: &Server, leader: &Server) -> Result<()> {
    let scratch = Server { data_dir: base.join("tmp/rehearsal"), ..leader.clone() };
    let data_dir = scratch.data_dir.to_string_lossy().into_owned();
    let initdb = ["-D", &data_dir, "-U", SUPERUSER, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"];
    base.run(scratch.bin_dir.join("initdb"), &initdb).await?;
    let settings = format!(
        "port = {}\nunix_socket_directories = '{}'\nfsync = off\n",
        scratch.port,
        scratch.socket_dir.display()
    );
    base.user.write(&scratch.data_dir.join("postgresql.auto.conf"), &settings, 0o600)?;
    scratch.start(base).await?;
    let file = base.join("tmp/schema.sql").to_string_lossy().into_owned();
    let reach = |server: &Server| (server.socket_dir.to_string_lossy().into_owned(), server.port.to_string());
    let (host, port) = reach(source);
    let dump = ["-h", &host, "-p", &port, "-U", SUPERUSER, "--schema-only", "-f", &file];
    base.run(scratch.bin_dir.join("pg_dumpall"), &dump).await?;
    let (host, port) = reach(&scratch);
    let restore = ["-X", "-q", "-h", &host, "-p", &port, "-U", SUPERUSER, "-d", "postgres", "-f", &file];
    base.run(scratch.bin_dir.join("psql"), &restore).await?;
    scratch.stop(base).await?;
    std::fs::remove_dir_all(&scratch.data_dir)?;
    Ok(())
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
