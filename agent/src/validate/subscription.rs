//! Reads what a subscription of a node of this host is: whether it is enabled, what it follows, which tables it knows.

use std::collections::BTreeSet;

use pgleap_proto::node::Node;

use crate::error::{Result, StepError};
use crate::pg::{relations, sql, subscriptions};

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
    let session = sql::connect(node, database).await?;
    let found = subscriptions::find(&session, subscription).await?;
    let found = found.ok_or_else(|| {
        StepError::new(format!("there is no subscription {subscription} {place}; cancel, then start again"))
    })?;
    if !found.enabled {
        return Err(StepError::new(format!(
            "subscription {subscription} {place} is disabled: nothing is applied, so nothing can be compared; an error in applying \
             disables it (see the new leader's log), repair that, ALTER SUBSCRIPTION {subscription} ENABLE, then retry"
        )));
    }
    let publications = found.publications;
    if publications.is_empty() || publications.contains(',') {
        return Err(StepError::new(format!(
            "subscription {subscription} {place} follows \"{publications}\" instead of one publication; pgleap did not make it so: cancel, then start again"
        )));
    }
    let tables = relations::subscribed(&session, subscription).await?;
    let ready = tables.into_iter().filter(|(_, state)| state == "r").map(|(table, _)| table);
    Ok(Subscription { publication: publications, tables: ready.collect() })
}
