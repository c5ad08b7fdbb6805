//! One database: its locale, and everything in it that logical replication or pg_upgrade minds.

use pgleap_proto::agent::{DatabaseFacts, ExtensionFacts};
use pgleap_proto::node::Node;
use pgleap_proto::step::CollationVersion;
use serde_json::Value;
use tokio_postgres::Row;

use crate::error::{Doing, Result};
use crate::pg::collations;
use crate::pg::sql::{self, Session};

/// Names listed for each kind of trouble; the rest is counted by the last entry.
const LISTED: usize = 50;

/// All databases with what the shared catalogs say of them.
pub(super) async fn list(session: &Session) -> Result<Vec<DatabaseFacts>> {
    let version: i32 = session
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .doing(|| "reading the server's version")?
        .get(0);
    let actual_version =
        if version >= 150_000 { "pg_database_collation_actual_version(d.oid)" } else { "NULL::text" };
    // Columns differ by major (datlocprovider and datcollversion since 15, daticulocale 15-16, datlocale since 17),
    // so the row is read as JSON and absent keys are simply absent.
    let statement = format!(
        "SELECT to_jsonb(d) - 'datacl', pg_encoding_to_char(d.encoding)::text, \
                coalesce(pg_database_size(d.oid), 0), {actual_version} \
         FROM pg_catalog.pg_database d ORDER BY d.datname"
    );
    let rows = session.query(&statement, &[]).await.doing(|| "listing databases")?;
    Ok(rows.iter().map(from_row).collect())
}

fn from_row(row: &Row) -> DatabaseFacts {
    let json: Value = row.get(0);
    let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or_default();
    // An oid becomes a JSON string in some majors and a number in others.
    let oid = json.get("oid").map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    let provider = text("datlocprovider");
    let icu = [text("datlocale"), text("daticulocale")].into_iter().find(|l| !l.is_empty());
    DatabaseFacts {
        name: text("datname"),
        oid: oid.and_then(|o| o.parse().ok()).unwrap_or_default(),
        allow_connections: flag("datallowconn"),
        is_template: flag("datistemplate"),
        encoding: row.get(1),
        // Before 15 the server knew only libc's.
        locale_provider: if provider.is_empty() { "c".to_owned() } else { provider },
        collate: text("datcollate"),
        ctype: text("datctype"),
        icu_locale: icu.unwrap_or_default(),
        collation_version: text("datcollversion"),
        actual_collation_version: row.get::<_, Option<String>>(3).unwrap_or_default(),
        size_bytes: row.get::<_, i64>(2).unsigned_abs(),
        ..Default::default()
    }
}

/// Connects to the database and adds what is in it.
pub(super) async fn fill(node: &Node, facts: &mut DatabaseFacts) -> Result<()> {
    let session = sql::connect(node, &facts.name).await?;
    let counts = session
        .query_one(COUNTS, &[])
        .await
        .doing(|| format!("counting the relations of database \"{}\"", facts.name))?;
    let count = |column: usize| counts.get::<_, i64>(column).unsigned_abs();
    facts.tables = count(0);
    facts.sequences = count(1);
    facts.materialized_views = count(2);
    facts.large_objects = count(3);
    facts.extensions = extensions(&session).await?;
    facts.no_replica_identity = names(&session, NO_REPLICA_IDENTITY).await?;
    facts.unlogged_tables = names(&session, UNLOGGED).await?;
    facts.refused_columns = names(&session, REFUSED_COLUMNS).await?;
    facts.replica_triggers = names(&session, REPLICA_TRIGGERS).await?;
    facts.foreign_attribute_options = names(&session, ATTRIBUTE_OPTIONS).await?;
    facts.event_triggers = names(&session, EVENT_TRIGGERS).await?;
    facts.collations = collations(&session).await?;
    facts.publications = names(&session, PUBLICATIONS).await?;
    facts.subscriptions = names(&session, SUBSCRIPTIONS).await?;
    Ok(())
}

async fn collations(session: &Session) -> Result<Vec<CollationVersion>> {
    let found = collations::read(session).await?.into_iter().filter(|collation| collation.used);
    let told = found.map(|collation| CollationVersion {
        schema: collation.schema,
        name: collation.name,
        provider: collation.provider,
        recorded: collation.recorded,
        actual: collation.actual,
    });
    Ok(told.collect())
}

const COUNTS: &str = "\
SELECT count(*) FILTER (WHERE c.relkind = 'r'), count(*) FILTER (WHERE c.relkind = 'S'),
       count(*) FILTER (WHERE c.relkind = 'm'), (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'
  AND c.relpersistence <> 't'";

const EVENT_TRIGGERS: &str = "SELECT evtname::text FROM pg_catalog.pg_event_trigger ORDER BY 1";

const PUBLICATIONS: &str = "SELECT pubname::text FROM pg_catalog.pg_publication ORDER BY 1";

const SUBSCRIPTIONS: &str = "\
SELECT s.subname::text FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
WHERE d.datname = current_database() ORDER BY 1";

/// Tables whose UPDATE and DELETE would fail on the publisher, or could not be applied, once published. FULL cannot
/// match rows by columns whose type has no equality operator (logical-replication.sgml, "Replica identity").
const NO_REPLICA_IDENTITY: &str = "\
SELECT format('%I.%I: ', n.nspname, c.relname) || CASE c.relreplident
         WHEN 'n' THEN 'REPLICA IDENTITY NOTHING'
         WHEN 'd' THEN 'no primary key'
         WHEN 'i' THEN 'its replica identity index is missing or invalid'
         ELSE 'REPLICA IDENTITY FULL, and column ' || t.col || ' has no equality operator' END
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
  SELECT format('%I (%s)', a.attname, a.atttypid::regtype) AS col FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid::regtype::text IN
    ('json', 'xml', 'point', 'line', 'lseg', 'box', 'path', 'polygon', 'circle', 'pg_snapshot', 'txid_snapshot')
  ORDER BY a.attnum LIMIT 1) t ON c.relreplident = 'f'
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'
  AND CASE c.relreplident
        WHEN 'n' THEN true
        WHEN 'd' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                                  WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid)
        WHEN 'i' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                                  WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
        ELSE t.col IS NOT NULL END
ORDER BY 1";

/// Their content is not in the WAL: a standby has only the empty init fork.
const UNLOGGED: &str = "\
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relpersistence = 'u' AND c.relkind = 'r' ORDER BY 1";

/// What pg_upgrade refuses from 13 on (pg_upgrade/check.c, `data_types_usage_checks`, and the version-specific checks before 17): names
/// of objects kept as their OIDs, which do not stay the same; rows of catalogs, whose columns differ; `aclitem`, whose format changed in
/// 16. Whatever is made of them, too: domains, arrays, rows, ranges.
const REFUSED_COLUMNS: &str = "\
WITH RECURSIVE refused AS (
  SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  WHERE n.nspname = 'pg_catalog' AND (t.typname IN
      ('regcollation', 'regnamespace', 'regoper', 'regoperator', 'regproc', 'regprocedure')
      OR t.typname = 'aclitem' AND current_setting('server_version_num')::int < 160000)
    OR t.typtype = 'c' AND (t.oid < 16384 OR n.nspname = 'information_schema')
  UNION
  SELECT t.oid FROM refused r JOIN pg_catalog.pg_type t
    ON t.typtype = 'd' AND t.typbasetype = r.oid OR t.typtype = 'b' AND t.typelem = r.oid
    OR t.typtype = 'c' AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = t.typrelid AND NOT a.attisdropped AND a.atttypid = r.oid)
    OR t.typtype = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_range g WHERE g.rngtypid = t.oid AND g.rngsubtype = r.oid))
SELECT DISTINCT format('%I.%I.%I (%s)', n.nspname, c.relname, a.attname, a.atttypid::regtype)
FROM refused r JOIN pg_catalog.pg_attribute a ON a.atttypid = r.oid AND NOT a.attisdropped
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'i') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname !~ '^pg_(toast_)?temp_'
ORDER BY 1";

/// Apply runs with session_replication_role = replica, where only these fire.
const REPLICA_TRIGGERS: &str = "\
SELECT format('%I.%I.%I', n.nspname, c.relname, t.tgname) FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgenabled IN ('R', 'A') ORDER BY 1";

/// Attribute options that only newer minors know (pg_attver) stop the schema restore of pg_upgrade on older ones,
/// and `pg_upgrade --check` does not see them. System schemas carry them too, harmlessly.
const ATTRIBUTE_OPTIONS: &str = "\
SELECT format('%I.%I.%I (%s)', n.nspname, c.relname, a.attname, o) FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
unnest(a.attoptions) o
WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'm')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND split_part(o, '=', 1) NOT IN ('n_distinct', 'n_distinct_inherited') ORDER BY 1";

/// The first [`LISTED`] names of a query, and how many more there are.
async fn names(session: &Session, statement: &str) -> Result<Vec<String>> {
    let rows = session.query(statement, &[]).await.doing(|| format!("reading facts with: {statement}"))?;
    let mut names: Vec<String> = rows.iter().take(LISTED).map(|row| row.get(0)).collect();
    if rows.len() > LISTED {
        names.push(format!("and {} more", rows.len() - LISTED));
    }
    Ok(names)
}

async fn extensions(session: &Session) -> Result<Vec<ExtensionFacts>> {
    let rows = session
        .query(
            "SELECT e.extname::text, e.extversion, coalesce(a.default_version, '') \
             FROM pg_catalog.pg_extension e \
             LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = e.extname ORDER BY 1",
            &[],
        )
        .await
        .doing(|| "listing extensions")?;
    let extension =
        |row: &Row| ExtensionFacts { name: row.get(0), version: row.get(1), available: row.get(2) };
    Ok(rows.iter().map(extension).collect())
}
