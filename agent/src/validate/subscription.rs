//! Reads what a subscription of a node of this host is: whether it is enabled, what it follows, which tables it knows.

use std::collections::BTreeSet;

use pgleap_proto::node::Node;

use super::sessions;
use crate::error::{Doing, Result, StepError};

/// A subscription as the catalogs have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its only publication.
    pub publication: String,
    /// (schema, table) in state ready.
    pub tables: BTreeSet<(String, String)>,
}

/// Reads it.
///
/// # Errors
/// When it is not there, is disabled (nothing would ever be applied), or does not follow exactly one publication.
pub async fn read(node: &Node, database: &str, subscription: &str) -> Result<Subscription> {
    let place = format!("in database \"{database}\" of node {}", node.name);
    let doing = || format!("reading subscription {subscription} {place}");
    let lease = sessions::lease(node, database).await?;
    let row = lease
        .query_opt(
            "SELECT subenabled, subpublications FROM pg_catalog.pg_subscription s \
             WHERE subname = $1::text AND subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
            &[&subscription],
        )
        .await
        .doing(doing)?
        .ok_or_else(|| StepError::new(format!("there is no subscription {subscription} {place}; subscribe first")))?;
    if !row.try_get::<_, bool>(0).doing(doing)? {
        return Err(StepError::new(format!(
            "subscription {subscription} {place} is disabled: nothing is applied, so nothing can be compared; an error in applying \
             disables it (see the new leader's log), ALTER SUBSCRIPTION {subscription} ENABLE goes on"
        )));
    }
    let publications: Vec<String> = row.try_get(1).doing(doing)?;
    let [publication] = publications.as_slice() else {
        return Err(StepError::new(format!(
            "subscription {subscription} {place} follows {} publications ({}); pgleap makes it with exactly one",
            publications.len(),
            publications.join(", ")
        )));
    };
    let rows = lease
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_subscription_rel r \
             JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid AND s.subname = $1::text \
             JOIN pg_catalog.pg_class c ON c.oid = r.srrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE r.srsubstate = 'r'",
            &[&subscription],
        )
        .await
        .doing(doing)?;
    let tables = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let tables = tables.collect::<Result<_, tokio_postgres::Error>>().doing(doing)?;
    let publication = publication.clone();
    lease.back();
    Ok(Subscription { publication, tables })
}
