//! Which tables a publication has on its publisher, which a subscription has on its subscriber, and whether these are
//! the same: a table that is missing in the subscription is skipped silently, with no lag to be seen.

use std::collections::BTreeMap;

use pgleap_proto::node::{Conninfo, Node};

use super::sql::{Session, literal};
use super::upstream;
use crate::error::{Doing, Result, StepError};

/// `(schema, table)` and the state in `pg_subscription_rel`; `r` is ready.
pub type Subscribed = BTreeMap<(String, String), String>;

/// Tables of a publication, asked of the publisher.
///
/// # Errors
/// When it cannot be asked.
pub async fn published(
    node: &Node,
    publisher: &Conninfo,
    database: &str,
    publication: &str,
) -> Result<Vec<(String, String)>> {
    let sql = format!(
        "SELECT coalesce(json_agg(json_build_array(schemaname, tablename)), '[]') \
         FROM pg_publication_tables WHERE pubname = {}",
        literal(publication)
    );
    upstream::query(node, publisher, database, &sql).await
}

/// Tables of a subscription in the session's database.
///
/// # Errors
/// When the server cannot be asked.
pub async fn subscribed(session: &Session, subscription: &str) -> Result<Subscribed> {
    let sql = "SELECT n.nspname::text, c.relname::text, r.srsubstate::text FROM pg_subscription_rel r \
               JOIN pg_subscription s ON s.oid = r.srsubid JOIN pg_class c ON c.oid = r.srrelid \
               JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_database d ON d.oid = s.subdbid \
               WHERE s.subname::text = $1 AND d.datname = current_database()";
    let rows = session.query(sql, &[&subscription]).await;
    let rows = rows.doing(|| format!("reading the tables of subscription {subscription}"))?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

/// Refuses any difference, and any table that is not ready.
///
/// # Errors
/// Names the tables, what it means, and the cure.
pub fn check_same(database: &str, published: &[(String, String)], subscribed: &Subscribed) -> Result<()> {
    let name = |(schema, table): &(String, String)| format!("{schema}.{table}");
    let missing: Vec<String> =
        published.iter().filter(|table| !subscribed.contains_key(*table)).map(name).collect();
    let extra: Vec<String> = subscribed.keys().filter(|table| !published.contains(table)).map(name).collect();
    let unready: Vec<String> = subscribed
        .iter()
        .filter(|(_, state)| *state != "r")
        .map(|(table, state)| format!("{} ({state})", name(table)))
        .collect();
    if missing.is_empty() && extra.is_empty() && unready.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    for (what, tables) in [
        ("published but not subscribed, so its changes are skipped silently", &missing),
        ("subscribed but not published", &extra),
        ("not ready", &unready),
    ] {
        found.extend(tables.iter().map(|table| format!("{table}: {what}")));
    }
    let sample = found.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    Err(StepError::new(format!(
        "in database \"{database}\" the subscription does not cover exactly the tables of its publication: {sample}; \
         tables were probably created, dropped or renamed during the upgrade: take that back there and try again, or, \
         while the old cluster takes the writes, cancel and start again without such changes"
    ))
    .with_evidence(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> (String, String) {
        ("public".to_owned(), name.to_owned())
    }

    #[test]
    fn any_difference_is_refused_and_named() {
        let ready = |names: &[&str]| -> Subscribed {
            names.iter().map(|name| (table(name), "r".to_owned())).collect()
        };
        assert!(check_same("d", &[table("a"), table("b")], &ready(&["a", "b"])).is_ok());
        let error = check_same("d", &[table("a"), table("b")], &ready(&["a", "c"])).unwrap_err();
        assert_eq!(error.evidence.len(), 2);
        assert!(error.message.contains("public.b: published but not subscribed"), "{}", error.message);
        let copying: Subscribed = [(table("a"), "d".to_owned())].into();
        assert!(check_same("d", &[table("a")], &copying).is_err());
    }
}
