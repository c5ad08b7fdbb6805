//! What operators get wrong, and what is wrong with their machines.
//!
//! Claims: each fault gives an error that names what, where and what to do, from `fleet apply` or from `check`; `start`
//! refuses as well; and after all of them the old cluster is exactly as it was and the new hosts are untouched.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pgleap_proto::fleet::finding::Severity;
use pgleap_tests::harness::fleet_file::FleetFile;
use pgleap_tests::harness::os_user::OsUser;
use pgleap_tests::harness::postgres::{REPLICATOR, SUPERUSER, Server};
use pgleap_tests::harness::{ClusterOptions, Fleet, FleetOptions};
use pgleap_tests::schema;
use pgleap_tests::snapshot::Snapshot;

/// Applies the fleet file with one change; gives what `fleet apply` says when it refuses.
async fn apply_changed(fleet: &mut Fleet, change: impl FnOnce(&mut FleetFile)) -> Result<Option<String>> {
    let sound = fleet.file.clone();
    change(&mut fleet.file);
    let path = fleet.write_file()?.to_string_lossy().into_owned();
    fleet.file = sound;
    let ran = fleet.pgleap(&["fleet", "apply", &path]).await?;
    ensure!(matches!(ran.code, 0 | 1), "fleet apply ended with {}: {}", ran.code, ran.text());
    Ok((ran.code == 1).then_some(ran.stderr))
}

/// The errors of `check`, one text each; and `start` has to refuse too.
async fn errors(fleet: &Fleet, quick: bool) -> Result<Vec<String>> {
    let (findings, ran) = fleet.check(if quick { &["--quick"] } else { &[] }).await?;
    ensure!(ran.code == 3, "check ended with {}: {} {findings:#?}", ran.code, ran.stderr);
    let start = fleet.pgleap(&["start", &fleet.name, "--accept-warnings"]).await?;
    if start.code == 0 {
        fleet.pgleap(&["cancel", &fleet.name, "--yes", "--wait"]).await?;
    }
    ensure!(start.code == 1, "start was not refused: {}", start.text());
    let errors = findings.iter().filter(|finding| finding.severity() == Severity::Error);
    let errors = errors.map(|f| {
        ensure!(!f.cure.is_empty() && !f.why.is_empty(), "without a cure or a reason: {f:?}");
        Ok(format!("{} [{}] {}; {}", f.check, f.subject, f.message, f.cure))
    });
    errors.collect()
}

/// One of the errors has to speak of all these.
fn require(errors: &[String], words: &[&str]) -> Result<()> {
    let found = errors.iter().any(|error| words.iter().all(|word| error.contains(word)));
    ensure!(found, "no error speaks of {words:?}: {errors:#?}");
    Ok(())
}

/// Applies a changed file, in which either `apply` or `check` has to find the fault.
async fn refused(fleet: &mut Fleet, words: &[&str], change: impl FnOnce(&mut FleetFile)) -> Result<()> {
    let errors = match apply_changed(fleet, change).await? {
        Some(text) => vec![text],
        None => errors(fleet, true).await?,
    };
    require(&errors, words)
}

fn small() -> FleetOptions {
    FleetOptions {
        old: ClusterOptions {
            nodes: vec!["o1".into()],
            settings: vec![("max_prepared_transactions".into(), "5".into())],
            ..ClusterOptions::default()
        },
        ..FleetOptions::default()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn is_refused_before_anything_is_changed() -> Result<()> {
    let mut fleet = Fleet::make(small()).await?;
    let primary = fleet.old.primary().clone();
    schema::make(&primary, None, 100).await?;
    fleet.apply().await?;
    let (findings, ran) = fleet.check(&["--quick"]).await?;
    ensure!(ran.code == 0, "the sound fleet: {findings:#?}");
    let before = Snapshot::take(&fleet.base, &primary).await?;

    files(&mut fleet).await.context("fleet file")?;
    binaries(&mut fleet).await.context("binaries")?;
    directories(&mut fleet).await.context("directories")?;
    full_disk(&mut fleet).await.context("full disk")?;
    lost_agent(&mut fleet).await.context("lost agent")?;
    slot_names(&mut fleet, &primary).await.context("slot names")?;
    before.require_same(&Snapshot::take(&fleet.base, &primary).await?)?;
    databases(&mut fleet, &primary).await.context("databases")?;

    // All of it mended, the fleet is sound again and nothing was left on the new hosts.
    fleet.apply().await?;
    let (findings, ran) = fleet.check(&["--quick"]).await?;
    ensure!(ran.code == 0, "mended: {findings:#?}");
    before.require_same(&Snapshot::take(&fleet.base, &primary).await?)?;
    for node in &fleet.new {
        let parent = node.data_dir.parent().context("parent")?;
        ensure!(std::fs::read_dir(parent)?.count() == 0, "something was left in {}", parent.display());
    }
    ensure!(fleet.status(&fleet.name).await?.is_none_or(|s| s.state == "cancelled"), "an operation was left");
    fleet.passed();
    Ok(())
}

async fn files(fleet: &mut Fleet) -> Result<()> {
    // One data directory twice, on one host.
    let again = fleet.file.old[0].clone();
    refused(fleet, &["data_dir", again.data_dir.as_str(), "fleet.toml:"], |file| {
        file.old.push(pgleap_tests::harness::fleet_file::NodeEntry {
            name: "o9".into(),
            port: 1,
            ..again.clone()
        })
    })
    .await?;
    // An unknown key, with its line and what was perhaps meant.
    refused(fleet, &["slot_timout", "slot_timeout", "fleet.toml:"], |file| {
        file.options.push(("slot_timout".into(), "\"5s\"".into()));
    })
    .await?;
    refused(fleet, &["no-such-host"], |file| file.new[0].host = "no-such-host".into()).await
}

async fn binaries(fleet: &mut Fleet) -> Result<()> {
    let missing = text(&fleet.base.join("nowhere/18/bin"));
    refused(fleet, &["binaries", &missing], |file| file.new_bin_dir = missing.clone()).await?;
    // A directory that says 18 and holds 15.
    let lying = fleet.base.join("18-bin");
    std::os::unix::fs::symlink(&fleet.old.primary().bin_dir, &lying)?;
    refused(fleet, &["versions", "18-bin", "of PostgreSQL 15.", "expected 18"], |file| {
        file.new_bin_dir = text(&lying)
    })
    .await?;
    let lying = fleet.base.join("15-bin");
    std::os::unix::fs::symlink(&fleet.new_leader().bin_dir, &lying)?;
    refused(fleet, &["versions", "15-bin", "of PostgreSQL 18.", "expected 15"], |file| {
        file.seed_bin_dir = text(&lying)
    })
    .await?;
    // One directory for both majors is seen without looking at any host.
    let new = text(&fleet.new_leader().bin_dir);
    refused(fleet, &["fleet.toml:", &new], |file| file.seed_bin_dir = new.clone()).await
}

async fn directories(fleet: &mut Fleet) -> Result<()> {
    fleet.apply().await?;
    // A data directory that holds somebody's file.
    let data_dir = fleet.new_leader().data_dir.clone();
    fleet.base.user.make_dir(&data_dir, 0o700)?;
    fleet.base.user.write(&data_dir.join("precious.txt"), "mine\n", 0o600)?;
    require(&errors(fleet, true).await?, &[&text(&data_dir), "empty"])?;
    ensure!(data_dir.join("precious.txt").exists(), "somebody's file is gone");
    std::fs::remove_dir_all(&data_dir)?;

    // A seed of another cluster.
    let seed: Server = fleet.seed(fleet.new_leader());
    let directory = text(&seed.data_dir);
    let initdb = ["-D", &directory, "-U", SUPERUSER, "--auth=trust", "--no-sync"];
    fleet.base.run(seed.bin_dir.join("initdb"), &initdb).await?;
    require(&errors(fleet, true).await?, &[&directory, "another cluster"])?;
    std::fs::remove_dir_all(&seed.data_dir)?;

    // A copy of the old cluster that is not in recovery but a primary of its own.
    let upstream = format!(
        "host=127.0.0.1 port={} user={REPLICATOR} passfile={}",
        fleet.old.primary().port,
        fleet.old.passfile.display()
    );
    let backup = ["-d", &upstream, "-D", &directory, "--checkpoint=fast", "--no-sync"];
    fleet.base.run(seed.bin_dir.join("pg_basebackup"), &backup).await?;
    let conf = format!("port = {}\nunix_socket_directories = '{}'\n", seed.port, seed.socket_dir.display());
    fleet.base.user.write(&seed.data_dir.join("postgresql.auto.conf"), &conf, 0o600)?;
    seed.start(&fleet.base).await?;
    let found = errors(fleet, true).await;
    seed.stop(&fleet.base).await?;
    std::fs::remove_dir_all(&seed.data_dir)?;
    require(&found?, &["n1", "no standby"])?;

    // Outside of what the agent may touch.
    let outside = text(&fleet.base.join("elsewhere/18"));
    let outside_seed = text(&fleet.base.join("elsewhere/15"));
    refused(fleet, &["elsewhere", "roots"], |file| {
        for node in file.new.iter_mut() {
            node.data_dir = outside.clone();
            node.seed_dir = outside_seed.clone();
        }
    })
    .await
}

/// Needs root, to mount a small file system.
async fn full_disk(fleet: &mut Fleet) -> Result<()> {
    if !OsUser::may("a full disk") {
        return Ok(());
    }
    fleet.apply().await?;
    let directory = fleet.new_leader().data_dir.parent().context("parent")?.to_owned();
    let mount = Mount::small(&directory)?;
    fleet.base.user.own(&directory)?;
    let found = errors(fleet, true).await;
    drop(mount);
    require(&found?, &["disk-space", "n1"])
}

/// A file system of 24 MB that is unmounted when this is dropped.
struct Mount<'a>(&'a Path);

impl Mount<'_> {
    fn small(directory: &Path) -> Result<Mount<'_>> {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(directory);
        ensure!(command.status()?.success(), "mount failed");
        Ok(Mount(directory))
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

async fn lost_agent(fleet: &mut Fleet) -> Result<()> {
    fleet.apply().await?;
    fleet.kill_agent("n2");
    require(&errors(fleet, true).await?, &["agents", "n2"])?;
    fleet.start_agent("n2").await
}

/// Slots under the names that pgleap takes, which nobody but an earlier operation has given.
async fn slot_names(fleet: &mut Fleet, primary: &Server) -> Result<()> {
    fleet.apply().await?;
    let slots = [
        ("pgleap_0123ab_n1", "pg_create_physical_replication_slot('pgleap_0123ab_n1')"),
        ("pgleap_0123ab_5", "pg_create_logical_replication_slot('pgleap_0123ab_5', 'pgoutput')"),
    ];
    for (name, create) in slots {
        primary.execute("shop", &format!("SELECT {create}")).await?;
        let found = errors(fleet, true).await;
        let there = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'");
        let there = primary.value("shop", &there).await?;
        primary.execute("shop", &format!("SELECT pg_drop_replication_slot('{name}')")).await?;
        let found = found?;
        ensure!(found.len() == 1, "one fault, one error: {found:#?}");
        require(&found, &["leftovers", "o1", name, "pg_drop_replication_slot"])?;
        ensure!(there.as_deref() == Some("1"), "somebody's slot is gone");
    }
    Ok(())
}

async fn databases(fleet: &mut Fleet, primary: &Server) -> Result<()> {
    fleet.apply().await?;
    let weird = schema::WEIRD;
    let cases: [(&str, &str, &str, &[&str]); 5] = [
        (
            weird,
            "CREATE TABLE shop.keyless (x int)",
            "DROP TABLE shop.keyless",
            &["replica-identity", weird, "keyless"],
        ),
        (
            "shop",
            "CREATE UNLOGGED TABLE shop.fleeting (x int PRIMARY KEY)",
            "DROP TABLE shop.fleeting",
            &["unlogged-tables", "shop", "fleeting"],
        ),
        // An array in a row type in a domain: nothing of it is hidden.
        (
            "shop",
            "CREATE TYPE shop.grants AS (acl aclitem[]); CREATE DOMAIN shop.given AS shop.grants; \
             CREATE TABLE shop.granted (id int PRIMARY KEY, given shop.given, of regclass)",
            "DROP TABLE shop.granted; DROP DOMAIN shop.given; DROP TYPE shop.grants",
            &["column-types", "shop.granted.given (shop.given)"],
        ),
        ("shop", "SELECT lo_create(4711)", "SELECT lo_unlink(4711)", &["large-objects", "shop"]),
        (
            weird,
            "BEGIN; INSERT INTO shop.empty VALUES (1); PREPARE TRANSACTION 'for''gotten'",
            "ROLLBACK PREPARED 'for''gotten'",
            &["prepared-transactions", "for'gotten"],
        ),
    ];
    for (database, spoil, mend, words) in cases {
        primary.execute(database, spoil).await?;
        let found = fleet.check(&["--quick"]).await;
        primary.execute(database, mend).await?;
        let findings = found?.0;
        let told = findings.iter().filter(|finding| finding.severity() != Severity::Ok);
        let told: Vec<String> =
            told.map(|f| format!("{} [{}] {}; {}", f.check, f.subject, f.message, f.cure)).collect();
        require(&told, words)?;
    }
    Ok(())
}

/// The old cluster's minor is newer than the new binaries' release set: pg_upgrade would fail in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_minor_of_the_old_major_is_refused() -> Result<()> {
    let mut options = small();
    options.old.version = "15-security".into();
    options.new_nodes.truncate(1);
    let mut fleet = Fleet::make(options).await?;
    let primary = fleet.old.primary().clone();
    schema::make(&primary, None, 100).await?;
    let before = Snapshot::take(&fleet.base, &primary).await?;
    fleet.apply().await?;
    let errors = errors(&fleet, false).await?;
    let version = primary.value("postgres", "SHOW server_version").await?.unwrap_or_default();
    let number = version.split(' ').next().unwrap_or_default();
    require(&errors, &["release-sets", number])?;
    // And the rehearsal, which restores the real schema, finds it by itself.
    require(&errors, &["rehearsal"])?;
    before.require_same(&Snapshot::take(&fleet.base, &primary).await?)?;
    fleet.passed();
    Ok(())
}

/// wal_level = replica, too few slots and senders.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_cannot_decode_is_refused() -> Result<()> {
    let mut options = small();
    options.new_nodes.truncate(1);
    options.old.settings =
        [("wal_level", "replica"), ("max_replication_slots", "1"), ("max_wal_senders", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let mut fleet = Fleet::make(options).await?;
    schema::make(fleet.old.primary(), None, 100).await?;
    fleet.apply().await?;
    let errors = errors(&fleet, true).await?;
    require(&errors, &["wal-level", "logical"])?;
    require(&errors, &["slots"])?;
    require(&errors, &["senders"])?;
    fleet.passed();
    Ok(())
}
