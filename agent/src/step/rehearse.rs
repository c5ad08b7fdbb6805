//! Rehearse: restores the old schema into a scratch cluster of the new major, the way `pg_upgrade` will do it for real.
//!
//! `pg_upgrade --check` looks at versions, libraries and data types but never restores the schema, which is where an
//! upgrade really fails: an option the new release does not know, a function that changed, an extension that is not
//! installed. So the new binaries dump the old schema in binary-upgrade mode over the network and restore it into a
//! scratch server running in that mode (`-b`), with the same options as `create_new_objects` (pg_upgrade.c).
//! Differences: every error is collected instead of stopping at the first; tablespaces are left out, because their
//! directories are the real ones; passwords are not read; sequence values are left out, because an unlogged sequence
//! cannot be read on a standby.
//!
//! The scratch cluster is made while the schema is dumped: neither needs the other.
//!
//! It changes nothing on the old cluster and leaves nothing on this host. It tells a fingerprint of what it rehearsed, so
//! that a later rehearsal of the very same can be saved.

use std::sync::OnceLock;

use async_trait::async_trait;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{Output, Rehearse, RehearsedOutput, output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::{conninfo, program, sql};
use crate::program::Program;
use crate::upgrade::fingerprint;
use crate::upgrade::restore_errors::Failures;
use crate::upgrade::scratch::Scratch;

/// How often a dump is tried that a standby cancelled: replay of a lock conflicts with it ("conflict with recovery").
const DUMP_ATTEMPTS: u32 = 3;

/// See the module.
pub struct RehearseStep {
    params: Rehearse,
    /// What `act` has rehearsed, for `verify`.
    rehearsed: OnceLock<String>,
}

impl RehearseStep {
    /// The step with these parameters.
    pub fn new(params: Rehearse) -> RehearseStep {
        RehearseStep { params, rehearsed: OnceLock::new() }
    }
}

#[async_trait]
impl Step for RehearseStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        // Schema and binaries may have changed since it last passed.
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let fingerprint = rehearse(cx, &self.params, "").await?;
        self.rehearsed.get_or_init(|| fingerprint);
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let fingerprint = self.rehearsed.get().cloned().unwrap_or_default();
        Ok(Output { kind: Some(output::Kind::Rehearsed(RehearsedOutput { fingerprint })) })
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        Scratch::of(cx, given(&self.params.node, "node")?, "postgres")?.remove(cx).await
    }
}

/// The rehearsal. The scratch cluster is removed whatever comes of it. Gives the fingerprint of what was rehearsed, empty
/// when it has none; nothing is done when that is what was `rehearsed` before.
///
/// # Errors
/// Names the first statement that fails, with all of them as evidence.
pub async fn rehearse(cx: &Context, params: &Rehearse, rehearsed: &str) -> Result<String> {
    let node = given(&params.node, "node")?;
    let upstream = given(&params.upstream, "upstream")?;
    let old = look(node, upstream, &params.databases).await?;
    if !rehearsed.is_empty() && fingerprint(cx, node, upstream, &old).await == rehearsed {
        cx.report.log("pgleap", "the schema is the one that was rehearsed before: it is not restored again");
        return Ok(rehearsed.to_owned());
    }
    let scratch = Scratch::of(cx, node, &old.install_user)?;
    let outcome = restore(cx, node, upstream, &old, &scratch).await;
    let removed = scratch.remove(cx).await;
    let fingerprint = outcome?;
    removed.map(|()| fingerprint)
}

/// As [`fingerprint::of`]; that it cannot be told is no fault of the schema.
async fn fingerprint(cx: &Context, node: &Node, upstream: &Conninfo, old: &Old) -> String {
    let libraries = old.libraries.as_deref().unwrap_or_default();
    let subject = fingerprint::Subject { node, upstream, databases: &old.databases, libraries };
    match fingerprint::of(subject).await {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => {
            cx.report.log("pgleap", format!("whether the schema changes later cannot be told: {error}"));
            String::new()
        }
    }
}

/// What has to be known of the old server.
#[derive(Debug, serde::Deserialize)]
struct Old {
    version: String,
    install_user: String,
    /// Of the role that reads over the network.
    reader_oid: u32,
    /// All that can be connected to: `pg_upgrade` restores every one of them.
    databases: Vec<String>,
    libraries: Option<String>,
}

async fn look(node: &Node, upstream: &Conninfo, wanted: &[String]) -> Result<Old> {
    let query = "SELECT pg_catalog.json_build_object(
        'version', pg_catalog.current_setting('server_version'),
        'install_user', (SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10),
        'reader_oid', (SELECT oid::bigint FROM pg_catalog.pg_roles WHERE rolname = current_user),
        'databases', (SELECT pg_catalog.json_agg(datname ORDER BY datname) FROM pg_catalog.pg_database WHERE datallowconn),
        'libraries', CASE WHEN pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE')
                          THEN pg_catalog.current_setting('shared_preload_libraries') END)";
    let target = conninfo(upstream, Some("template1"), "pgleap");
    let psql = program(node, "psql").args(["-X", "-A", "-t", "-q", "-d", &target, "-c", query]);
    let printed = psql.env("PGCLIENTENCODING", "UTF8").run().await.map_err(|error| {
        let message = format!(
            "host {} cannot ask the old server at {}:{} as {}: {}",
            node.host, upstream.host, upstream.port, upstream.user, error.message
        );
        StepError { message, ..error }
    })?;
    let old: Old = serde_json::from_str(printed.stdout.trim()).doing(|| "reading the old server's answer")?;
    if let Some(missing) = wanted.iter().find(|name| !old.databases.contains(name)) {
        return Err(StepError::new(format!(
            "database \"{missing}\" does not exist on the old server at {}:{}, or allows no connections; allow them and retry, or cancel, then start \
             again without it",
            upstream.host, upstream.port
        )));
    }
    Ok(old)
}

/// A dump, and where it is restored.
struct Dump {
    job: String,
    /// For people.
    place: String,
    restore: Program,
}

/// Gives the fingerprint of what was restored.
async fn restore(
    cx: &Context,
    node: &Node,
    upstream: &Conninfo,
    old: &Old,
    scratch: &Scratch,
) -> Result<String> {
    scratch.prepare(cx).await?;
    let dumped = async {
        // Before the first dump: a change in between makes the fingerprint that of an older schema, never of a newer.
        let fingerprint = fingerprint(cx, node, upstream, old).await;
        dump(cx, node, upstream, old, scratch).await.map(|dumps| (fingerprint, dumps))
    };
    let ((), (fingerprint, dumps)) = tokio::try_join!(make(cx, upstream, old, scratch), dumped)?;
    let mut failures = Failures::expecting(format!("role \"{}\" already exists", old.install_user));
    let mut place = None;
    for (done, dump) in (0..).zip(&dumps) {
        cx.report.progress(done, dumps.len() as u64, "databases restored", &dump.place);
        run_restore(cx, &dump.job, &dump.restore, &mut failures).await?;
        if failures.count > 0 && place.is_none() {
            place = Some(dump.place.clone());
        }
    }
    verdict(node, upstream, old, &failures, &place.unwrap_or_default()).map(|()| fingerprint)
}

/// Makes and starts the scratch cluster.
async fn make(cx: &Context, upstream: &Conninfo, old: &Old, scratch: &Scratch) -> Result<()> {
    scratch.make(cx).await?;
    scratch.start(cx, old.libraries.as_deref().unwrap_or_default()).await?;
    // In binary-upgrade mode pg_dumpall leaves out the creation of the role it is connected as (dumpRoles): for
    // pg_upgrade that is the install user, which initdb has made; here it is the reader, which is made by hand, and
    // the install user's creation is what fails.
    if upstream.user == old.install_user {
        return Ok(());
    }
    let set_oid = format!("SELECT binary_upgrade_set_next_pg_authid_oid('{}')", old.reader_oid);
    let create = format!("CREATE ROLE {}", sql::ident(&upstream.user));
    let psql = scratch.client("psql").args(["-X", "-q", "-d", "template1", "-o", "/dev/null"]);
    psql.args(["-v", "ON_ERROR_STOP=1", "-c", &set_oid, "-c", &create]).run().await.map(drop)
}

/// Dumps everything into the scratch cluster's directory; gives the dumps in the order in which they are restored.
async fn dump(
    cx: &Context,
    node: &Node,
    upstream: &Conninfo,
    old: &Old,
    scratch: &Scratch,
) -> Result<Vec<Dump>> {
    let total = old.databases.len() as u64 + 1;
    cx.report.progress(0, total, "databases dumped", "roles and settings");
    let file = scratch.directory.join("globals.sql").to_string_lossy().into_owned();
    let target = conninfo(upstream, Some("template1"), "pgleap");
    let globals =
        program(node, "pg_dumpall").args(["--globals-only", "--quote-all-identifiers", "--binary-upgrade"]);
    let globals = globals.args(["--no-tablespaces", "--no-role-passwords", "-d", &target, "-f", &file]);
    run_dump(cx, "globals", &globals, upstream).await?;
    let psql = scratch.client("psql").args(["-X", "-q", "-b", "-d", "template1", "-o", "/dev/null"]);
    let mut dumps = vec![Dump {
        job: "globals".to_owned(),
        place: "the roles and settings of all databases".to_owned(),
        restore: psql.args(["-f", &file]),
    }];
    for (number, database) in old.databases.iter().enumerate() {
        cx.report.progress(number as u64 + 1, total, "databases dumped", database);
        let file = scratch.directory.join(format!("database-{number}.dump")).to_string_lossy().into_owned();
        let target = conninfo(upstream, Some(database), "pgleap");
        let dump =
            program(node, "pg_dump").args(["--quote-all-identifiers", "--binary-upgrade", "--format=custom"]);
        // pg_upgrade 18 carries statistics over; --schema-only then excludes them.
        let what: &[&str] =
            if node.major >= 18 { &["--no-data", "--statistics"] } else { &["--schema-only"] };
        let dump = dump.args(what.iter().copied()).args(["--no-tablespaces", "--no-sync"]);
        let job = format!("database-{number}");
        run_dump(cx, &job, &dump.args(["-d", &target, "-f", &file]), upstream).await?;
        // As create_new_objects: the two databases that exist already are made anew, from a session in another one.
        let exists = ["template1", "postgres"].contains(&database.as_str());
        let from = if database == "template1" { "postgres" } else { "template1" };
        let mut restore = scratch.client("pg_restore").args(["--create", "--no-tablespaces", "-d", from]);
        if exists {
            restore = restore.args(["--clean", "--if-exists"]);
        }
        dumps.push(Dump { job, place: format!("database \"{database}\""), restore: restore.arg(&file) });
    }
    Ok(dumps)
}

fn verdict(node: &Node, upstream: &Conninfo, old: &Old, failures: &Failures, place: &str) -> Result<()> {
    let Some(first) = failures.first.first() else { return Ok(()) };
    let hint = if first.error.contains("unrecognized") {
        " (an option of a later release set: update the new binaries to a minor release at least as new as the old server's)"
    } else if first.error.contains("could not access file") || first.error.contains("could not load library")
    {
        " (install the package with that library for the new major)"
    } else {
        ""
    };
    Err(StepError::new(format!(
        "the schema of the old cluster ({} at {}:{}) cannot be restored by PostgreSQL {} of {} on host {}: {}, in {place}{hint}; \
         {} statements fail, so pg_upgrade would fail too",
        old.version,
        upstream.host,
        upstream.port,
        node.major,
        node.bin_dir,
        node.host,
        first.error,
        failures.count,
    ))
    .with_evidence(failures.evidence()))
}

async fn run_dump(cx: &Context, name: &str, dump: &Program, upstream: &Conninfo) -> Result<()> {
    let mut attempt = 1;
    loop {
        let error = match cx.jobs.run(&format!("dump-{name}"), dump).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let said = |text: &str| error.evidence.iter().any(|line| line.contains(text));
        if said("conflict with recovery") && attempt < DUMP_ATTEMPTS {
            attempt += 1;
            cx.report.log("pgleap", "the standby cancelled the dump because of a lock it replayed: again");
            continue;
        }
        let cure = if said("permission denied") {
            format!(
                "; make role {} a superuser or, from PostgreSQL 14 on, a member of pg_read_all_data",
                upstream.user
            )
        } else {
            String::new()
        };
        let message = format!(
            "the schema of {}:{} cannot be read: {}{cure}",
            upstream.host, upstream.port, error.message
        );
        return Err(StepError { message, ..error });
    }
}

/// Errors of statements are collected; an error without any is one of the program itself.
async fn run_restore(cx: &Context, name: &str, program: &Program, failures: &mut Failures) -> Result<()> {
    let before = failures.count;
    let outcome =
        cx.jobs.run_observed(&format!("restore-{name}"), program, &mut |line| failures.line(line)).await;
    match outcome {
        Err(error) if failures.count == before => Err(error),
        _ => Ok(()),
    }
}
