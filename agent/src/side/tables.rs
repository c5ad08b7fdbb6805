//! Which tables there are: both sides had the same when a switchover was armed, and a look at the source behind its fence tells whether
//! that is still so. A table that only the source has would be missing on the target, with every row of it, and nothing else shows it:
//! the target subscribes to what it knows.

use futures::future::try_join_all;

use super::sessions::{Database, Sessions};
use crate::error::{Doing, Result, StepError};

/// Names and numbers of columns, in one figure. Without what changes by itself (TRUNCATE, VACUUM, ANALYZE, indexes).
pub(super) const TABLES: &str = "SELECT count(*), coalesce(sum(hashtextextended(concat_ws(' ', c.oid, c.relnamespace, c.relname, \
    c.relnatts), 0)), 0)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')";

/// Of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tables {
    count: i64,
    figure: String,
}

async fn read(database: &Database) -> Result<Tables> {
    let row = database.session.fetch_one(TABLES, &[]).await;
    let row = row.doing(|| format!("looking at the tables of database \"{}\"", database.facts.database))?;
    Ok(Tables { count: row.get(0), figure: row.get(1) })
}

/// Of every database, in their order.
pub(super) async fn read_all(sessions: &Sessions) -> Result<Vec<Tables>> {
    try_join_all(sessions.0.iter().map(read)).await
}

/// Refuses when they are not the same any more.
pub(super) async fn check_same(node: &str, sessions: &Sessions, before: &[Tables]) -> Result<()> {
    let now = read_all(sessions).await?;
    match now.iter().zip(before).zip(&sessions.0).find(|((now, before), _)| now != before) {
        None => Ok(()),
        Some(((now, before), database)) => Err(StepError::new(format!(
            "tables of database \"{}\" of node {node} were made, dropped or changed since the switchover was prepared ({} tables then, {} \
             now): make the same change on the other side, then try again",
            database.facts.database, before.count, now.count
        ))),
    }
}
