//! Serves the list of tables that validation compares, with what it needs to know to read them. Reads only.

use pgleap_proto::agent::{TableFacts, TablesReply, TablesRequest};

use super::{sessions, statement};
use crate::error::{Doing, Result, StepError};

/// Parameter 1: the publication, or empty. What could be published at all follows `is_publishable_class`
/// (pg_publication.c): permanent ordinary tables that are not part of the system. Foreign tables, temporary and unlogged ones
/// are not replicated.
///
/// A key must give one order on both sides and be served by its index: btree, default operator classes, the columns' own
/// collations, one direction, no expression, no predicate, no NULLs.
const TABLES: &str = r#"
WITH published AS (
  SELECT c.oid FROM pg_catalog.pg_publication_tables p
  JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
  WHERE p.pubname = $1),
keys AS (
  SELECT DISTINCT ON (i.indrelid) i.indrelid, array_agg(a.attname::text ORDER BY u.at) AS key,
    array_agg(a.attcollation ORDER BY u.at) AS collations, min(a.attnum) FILTER (WHERE u.at = 1) AS first
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
  JOIN pg_catalog.pg_am am ON am.oid = ic.relam AND am.amname = 'btree'
  CROSS JOIN LATERAL (SELECT g.at, i.indkey[g.at - 1] AS attnum, i.indcollation[g.at - 1] AS collation,
      i.indclass[g.at - 1] AS opclass, i.indoption[g.at - 1] AS option
    FROM pg_catalog.generate_series(1, i.indnkeyatts) AS g(at)) AS u
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum AND u.attnum > 0
  LEFT JOIN pg_catalog.pg_opclass o ON o.oid = u.opclass
  WHERE i.indisunique AND i.indisvalid AND i.indislive AND i.indpred IS NULL AND i.indexprs IS NULL
    AND (i.indisprimary OR i.indimmediate)
  GROUP BY i.indrelid, i.indexrelid, i.indisprimary, i.indnkeyatts
  HAVING bool_and(coalesce(a.attnotnull AND o.opcdefault AND u.collation = a.attcollation, false))
    AND count(DISTINCT u.option & 1) = 1
  ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, i.indexrelid)
SELECT n.nspname::text, c.relname::text, k.key,
  (SELECT string_agg(DISTINCT CASE
      WHEN co.oid = 100 THEN (SELECT {DATABASE_ORDER} FROM pg_catalog.pg_database d WHERE d.datname = current_database())
      ELSE co.collprovider::text || ' ' || co.collname || ' ' || coalesce(pg_catalog.pg_collation_actual_version(co.oid), '') END, ', ')
    FROM pg_catalog.unnest(k.collations) AS x(oid) JOIN pg_catalog.pg_collation co ON co.oid = x.oid),
  (SELECT pg_catalog.md5(string_agg(pg_catalog.quote_ident(a.attname), ',' ORDER BY a.attname::text COLLATE "C"))
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''),
  c.reltuples::float8,
  CASE WHEN c.reltuples > 200000 THEN
    (SELECT s.histogram_bounds::text::text[] FROM pg_catalog.pg_stats s JOIN pg_catalog.pg_attribute a
       ON a.attrelid = c.oid AND a.attnum = k.first AND a.attname = s.attname
      WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND NOT s.inherited) END,
  (SELECT e.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
      AND d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e' LIMIT 1)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN keys k ON k.indrelid = c.oid
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND ($1 = '' OR EXISTS (SELECT FROM published p WHERE p.oid = c.oid)
    OR (c.relispartition AND EXISTS (SELECT FROM published p
      JOIN pg_catalog.pg_partition_ancestors(c.oid) AS anc(relid) ON p.oid = anc.relid)))
ORDER BY c.relpages DESC, 1, 2
"#;

/// How the database's own collation is named and versioned. Until 14 there is only libc, and the function knows the
/// version of the default collation; later it has its own function.
fn database_order(major: u32) -> &'static str {
    if major < 15 {
        "'c ' || d.datcollate::text || ' ' || coalesce(pg_catalog.pg_collation_actual_version(100), '')"
    } else {
        "d.datlocprovider::text || ' ' || d.datcollate::text || ' ' || coalesce(pg_catalog.pg_database_collation_actual_version(d.oid), '')"
    }
}

/// Most parts that a large table is cut into.
const MOST_SPLITS: usize = 31;

/// Answers one request.
///
/// # Errors
/// When the node cannot be reached, the publication is not there, or the server refuses.
pub async fn tables(request: TablesRequest) -> Result<TablesReply> {
    let node = request.node.clone().ok_or_else(|| StepError::new("a request for tables names no node"))?;
    let doing = || format!("listing the tables of database \"{}\" of node {}", request.database, node.name);
    let lease = sessions::lease(&node, &request.database).await?;
    if !request.publication.is_empty() {
        let there = lease
            .query_opt(
                "SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = $1::text",
                &[&request.publication],
            )
            .await
            .doing(doing)?;
        if there.is_none() {
            return Err(StepError::new(format!(
                "database \"{}\" of node {} has no publication {}: nothing is replicated from it; it was dropped, \
                 or the operation was cancelled",
                request.database, node.name, request.publication
            )));
        }
    }
    let calibration: String =
        lease.query_one(&statement::calibration(), &[]).await.doing(doing)?.try_get(0).doing(doing)?;
    let encoding: String = lease
        .query_one("SELECT pg_catalog.current_setting('server_encoding')", &[])
        .await
        .doing(doing)?
        .try_get(0)
        .doing(doing)?;
    let statement = TABLES.replace("{DATABASE_ORDER}", database_order(node.major)).replace("$1", "$1::text");
    let rows = lease.query(&statement, &[&request.publication]).await.doing(doing)?;
    let mut tables = Vec::with_capacity(rows.len());
    for row in rows {
        let mut key: Vec<String> = row.try_get::<_, Option<_>>(2).doing(doing)?.unwrap_or_default();
        let key_order: String = row.try_get::<_, Option<_>>(3).doing(doing)?.unwrap_or_default();
        if encoding == "SQL_ASCII" && !key_order.is_empty() {
            // Such a key can hold bytes that are no text in any encoding, and could not be sent.
            key.clear();
        }
        let bounds: Vec<Option<String>> = row.try_get::<_, Option<_>>(7).doing(doing)?.unwrap_or_default();
        tables.push(TableFacts {
            schema: row.try_get(0).doing(doing)?,
            table: row.try_get(1).doing(doing)?,
            key_order,
            columns: row.try_get::<_, Option<_>>(4).doing(doing)?.unwrap_or_default(),
            generated: row.try_get::<_, Option<_>>(5).doing(doing)?.unwrap_or_default(),
            estimated_rows: row.try_get(6).doing(doing)?,
            splits: if key.is_empty() { Vec::new() } else { thin(bounds.into_iter().flatten().collect()) },
            extension: row.try_get::<_, Option<_>>(8).doing(doing)?.unwrap_or_default(),
            key,
        });
    }
    lease.back();
    Ok(TablesReply { calibration, tables })
}

/// At most [`MOST_SPLITS`] of the bounds, evenly taken; without the outermost, which cut off nothing.
fn thin(mut bounds: Vec<String>) -> Vec<String> {
    bounds.dedup();
    if bounds.len() <= 2 {
        return Vec::new();
    }
    bounds.pop();
    bounds.remove(0);
    let step = bounds.len().div_ceil(MOST_SPLITS).max(1);
    bounds.into_iter().step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_thinned_evenly() {
        let bounds: Vec<String> = (0..=100).map(|n| n.to_string()).collect();
        let thinned = thin(bounds);
        assert!(thinned.len() <= MOST_SPLITS && thinned.len() > MOST_SPLITS / 2, "{}", thinned.len());
        assert_eq!(thinned.first().map(String::as_str), Some("1"));
        assert!(thin(vec!["1".into(), "1".into(), "2".into()]).is_empty());
    }
}
