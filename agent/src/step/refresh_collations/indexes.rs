//! What of a database hangs on the order of some collations. Nothing is changed here.

use crate::error::{Doing, Result};
use crate::pg::sql::Session;

/// Types whose values sort by one of the collations in $1, whatever a column's own collation is: ranges over text, row types, and
/// what is made of them. `rngmultitypid` exists since 14, so rows are read as JSON.
const ORDERED: &str = "\
WITH RECURSIVE ordered (type) AS (
    SELECT r.rngtypid FROM pg_range r WHERE r.rngcollation = ANY ($1)
  UNION
    SELECT c.reltype FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.reltype <> 0 AND a.attcollation = ANY ($1)
  UNION
    SELECT made.type FROM ordered o JOIN (
        SELECT t.oid AS type, t.typelem AS part FROM pg_type t WHERE t.typelem <> 0
        UNION ALL SELECT t.oid, t.typbasetype FROM pg_type t WHERE t.typtype = 'd'
        UNION ALL SELECT r.rngtypid, r.rngsubtype FROM pg_range r
        UNION ALL SELECT (to_jsonb(r) ->> 'rngmultitypid')::oid, r.rngtypid FROM pg_range r
        UNION ALL SELECT c.reltype, a.atttypid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
                  WHERE c.reltype <> 0 AND a.attnum > 0 AND NOT a.attisdropped) AS made ON made.part = o.type)";

/// Indexes with storage: those of columns and expressions that sort by one of them, of types that do, and those whose expression
/// or condition compares by one. The default is not in `pg_depend`, so the stored trees are read (`inputcollid`, primnodes.h).
/// The largest first, because several are rebuilt at once.
const INDEXES: &str = "
SELECT format('%I.%I', n.nspname, x.relname)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
WHERE x.relkind = 'i' AND x.relpersistence <> 't' AND i.indisvalid AND (
      EXISTS (SELECT FROM unnest(i.indcollation::oid[]) AS k (oid) WHERE k.oid = ANY ($1))
   OR EXISTS (SELECT FROM pg_attribute a JOIN ordered o ON o.type = a.atttypid
              WHERE a.attrelid = i.indexrelid OR a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey))
   OR EXISTS (SELECT FROM regexp_matches(concat(i.indexprs::text, i.indpred::text), 'inputcollid ([0-9]+)', 'g') AS m (found)
              WHERE m.found[1]::oid = ANY ($1)))
ORDER BY pg_relation_size(x.oid) DESC, 1";

/// Tables whose rows lie in partitions by an order that may have changed.
const PARTITIONED: &str = "
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.partstrat = 'r' AND (
      EXISTS (SELECT FROM unnest(p.partcollation::oid[]) AS k (oid) WHERE k.oid = ANY ($1))
   OR EXISTS (SELECT FROM pg_attribute a JOIN ordered o ON o.type = a.atttypid
              WHERE a.attrelid = c.oid AND a.attnum = ANY (p.partattrs)))
ORDER BY 1";

/// The indexes that a rebuild brings in order again, quoted and qualified.
///
/// # Errors
/// When the server cannot be asked.
pub(super) async fn of(session: &Session, collations: &[u32]) -> Result<Vec<String>> {
    names(session, INDEXES, collations).await
}

/// The partitioned tables for which it does nothing, quoted and qualified.
///
/// # Errors
/// When the server cannot be asked.
pub(super) async fn partitioned(session: &Session, collations: &[u32]) -> Result<Vec<String>> {
    names(session, PARTITIONED, collations).await
}

async fn names(session: &Session, sql: &str, collations: &[u32]) -> Result<Vec<String>> {
    let rows = session.query(&format!("{ORDERED}{sql}"), &[&collations]).await;
    let rows = rows.doing(|| "looking for what depends on collations")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
