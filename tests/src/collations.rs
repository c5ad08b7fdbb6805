//! A collation with another version on the new side than the one that was recorded, and the proof that its index was rebuilt.

use anyhow::{Context, Result, bail, ensure};
use pgleap_proto::step::output;

use crate::scenario::Scenario;

/// A table of names in the first database of the old cluster, and a version of their collation in the catalogs that nobody has. False,
/// and nothing is made, where PostgreSQL was built without ICU.
///
/// # Errors
/// When it cannot be made.
pub async fn sorted_by_an_old_version(scenario: &Scenario) -> Result<bool> {
    let database = scenario.databases.first().context("no database")?;
    let icu = "SELECT count(*)::text FROM pg_collation WHERE collname = 'en-x-icu'";
    if scenario.fleet.old.primary().value(database, icu).await?.as_deref() == Some("0") {
        return Ok(false);
    }
    let made = "CREATE TABLE public.named (name text COLLATE \"en-x-icu\" PRIMARY KEY); \
        INSERT INTO public.named SELECT md5(n::text) FROM generate_series(1, 500) n; \
        UPDATE pg_catalog.pg_collation SET collversion = '1.2' WHERE collname = 'en-x-icu'";
    scenario.fleet.old.primary().execute(database, made).await?;
    Ok(true)
}

/// Each new node has its host's version in the catalogs, and the operation tells of the rebuilt index.
///
/// # Errors
/// When that is not so.
pub async fn sorted_by_the_new_version(scenario: &Scenario) -> Result<()> {
    let database = scenario.databases.first().context("no database")?;
    let sql = "SELECT (collversion = pg_collation_actual_version(oid))::text FROM pg_collation WHERE collname = 'en-x-icu'";
    for node in &scenario.fleet.new {
        let recorded = node.value(database, sql).await?;
        ensure!(recorded.as_deref() == Some("true"), "{} has another version than its host", node.name);
    }
    let status = scenario.fleet.status(&scenario.fleet.name).await?.context("no operation shows")?;
    let step = status.steps.iter().find(|step| step.id == "upgrade.refresh_collations");
    let output = step.and_then(|step| step.output.as_ref()?.kind.clone());
    let Some(output::Kind::Collations(found)) = output else { bail!("{output:?}") };
    ensure!(found.rebuilt > 0 && found.changed.iter().any(|line| line.contains("en-x-icu")), "{found:?}");
    Ok(())
}
