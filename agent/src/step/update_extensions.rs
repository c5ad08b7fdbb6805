//! UpdateExtensions: `ALTER EXTENSION … UPDATE` wherever the new binaries' default version differs from the installed one.
//!
//! An extension whose update fails, or to which no update leads, stops the step: with the old SQL definitions over a new
//! library, results can be wrong without an error, and here, before anyone uses the new cluster, is the last cheap moment
//! to cure it. The exception is an installed version that the new binaries themselves still provide: that pair is
//! supported as it is (the default is merely another), so it is told and left.

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{Output, UpdateExtensions};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql;

/// See the module.
pub struct UpdateExtensionsStep(pub UpdateExtensions);

/// An extension at another version than the default.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outdated {
    database: String,
    name: String,
    installed: String,
    default: Option<String>,
    has_path: bool,
    /// The new binaries come with the installed version too.
    provided: bool,
}

/// What to do about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Update,
    Leave,
    Refuse,
}

impl Outdated {
    fn decide(&self) -> Decision {
        match (self.has_path, self.provided) {
            (true, _) => Decision::Update,
            (false, true) => Decision::Leave,
            (false, false) => Decision::Refuse,
        }
    }

    fn describe(&self) -> String {
        let default = self.default.as_deref().unwrap_or("none");
        format!(
            "extension {} {} in database \"{}\" (default of the new binaries: {default})",
            self.name, self.installed, self.database
        )
    }
}

const OUTDATED: &str = "
    SELECT e.extname::text AS name, e.extversion AS installed, a.default_version AS default,
           coalesce((SELECT p.path IS NOT NULL FROM pg_catalog.pg_extension_update_paths(e.extname) p
                     WHERE p.source = e.extversion AND p.target = a.default_version), false) AS has_path,
           EXISTS (SELECT FROM pg_catalog.pg_available_extension_versions v
                   WHERE v.name = e.extname AND v.version = e.extversion) AS provided
    FROM pg_catalog.pg_extension e LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = e.extname
    WHERE a.default_version IS DISTINCT FROM e.extversion ORDER BY 1";

#[async_trait]
impl Step for UpdateExtensionsStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        let outdated = self.outdated().await?;
        let settled = outdated.iter().all(|extension| extension.decide() == Decision::Leave);
        Ok(if settled { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        let outdated = self.outdated().await?;
        let total = outdated.len() as u64;
        let mut failed = Vec::new();
        for (number, extension) in outdated.iter().enumerate() {
            cx.report.progress(number as u64, total, "extensions", extension.describe());
            match extension.decide() {
                Decision::Leave => cx
                    .report
                    .log("pgleap", format!("{} is left: no update leads to it", extension.describe())),
                Decision::Refuse => failed.push(format!(
                    "{}: the new binaries have neither this version nor an update from it",
                    extension.describe()
                )),
                Decision::Update => {
                    let session = sql::connect(node, &extension.database).await?;
                    let statement = format!("ALTER EXTENSION {} UPDATE", sql::ident(&extension.name));
                    match session.batch_execute(&statement).await.doing(|| extension.describe()) {
                        Ok(()) => {
                            cx.report.log("pgleap", format!("{statement} in \"{}\"", extension.database))
                        }
                        Err(error) => failed.push(error.message),
                    }
                }
            }
        }
        match failed.first() {
            None => Ok(()),
            Some(first) => Err(StepError::new(format!(
                "{} extensions of node {} on host {} cannot be updated, the first: {first}; install the extension's package \
                 for PostgreSQL {} at least as new as the old cluster's, or update or drop the extension by hand, then retry",
                failed.len(),
                node.name,
                node.host,
                node.major
            ))
            .with_evidence(failed)),
        }
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let left = self.outdated().await?;
        match left.iter().find(|extension| extension.decide() != Decision::Leave) {
            None => Ok(Output::default()),
            Some(extension) => {
                Err(StepError::new(format!("{} is still not updated: retry", extension.describe())))
            }
        }
    }

    async fn undo(&self, _cx: &Context) -> Result<()> {
        // It goes with the new cluster.
        Ok(())
    }
}

impl UpdateExtensionsStep {
    /// Of all databases that can be connected to, whatever the request names: templates carry extensions too.
    async fn outdated(&self) -> Result<Vec<Outdated>> {
        let node = given(&self.0.node, "node")?;
        let mut found = Vec::new();
        for database in databases(node).await? {
            let doing = || format!("reading the extensions of database \"{database}\" of node {}", node.name);
            let session = sql::connect(node, &database).await?;
            for row in session.query(OUTDATED, &[]).await.doing(doing)? {
                found.push(Outdated {
                    database: database.clone(),
                    name: row.try_get("name").doing(doing)?,
                    installed: row.try_get("installed").doing(doing)?,
                    default: row.try_get("default").doing(doing)?,
                    has_path: row.try_get("has_path").doing(doing)?,
                    provided: row.try_get("provided").doing(doing)?,
                });
            }
        }
        Ok(found)
    }
}

async fn databases(node: &Node) -> Result<Vec<String>> {
    let doing = || format!("reading the databases of node {}", node.name);
    let session = sql::connect_any(node).await?;
    let query = "SELECT datname::text FROM pg_catalog.pg_database WHERE datallowconn ORDER BY 1";
    let rows = session.query(query, &[]).await.doing(doing)?;
    rows.iter().map(|row| row.try_get(0).doing(doing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_version_the_new_binaries_provide_is_left() {
        let with = |has_path, provided| Outdated {
            database: "d".into(),
            name: "postgis".into(),
            installed: "3.4".into(),
            default: Some("3.3".into()),
            has_path,
            provided,
        };
        assert_eq!(with(true, false).decide(), Decision::Update);
        assert_eq!(with(true, true).decide(), Decision::Update);
        assert_eq!(with(false, true).decide(), Decision::Leave);
        assert_eq!(with(false, false).decide(), Decision::Refuse);
    }
}
