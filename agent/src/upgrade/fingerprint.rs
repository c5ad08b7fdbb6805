//! Whether a schema is still the one that was rehearsed: a fingerprint of everything a rehearsal's outcome follows from.
//!
//! Every DDL statement inserts, updates or deletes rows of the system catalogs, and every version of a row has its
//! transaction (`xmin`) and place (`ctid`), which a physical standby shares with its primary. Vacuum and freezing leave
//! both as they are (heapam.c, heap_prepare_freeze_tuple keeps the raw xmin since 9.4; vacuum updates `pg_class` in
//! place). So equal fingerprints mean equal schemas; unequal ones mean nothing, and the rehearsal is made again.

use pgleap_proto::node::{Conninfo, Node};

use crate::error::{Doing, Result};
use crate::pg::{conninfo, program};

/// Visible rows of each catalog by version, but for those that change without DDL. A role that is no superuser is not
/// shown all that a dump contains: options of user mappings, and subscriptions.
const CATALOGS: &str = "
    SELECT pg_catalog.json_build_object(
        'hidden', NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
                  AND (EXISTS (SELECT FROM pg_catalog.pg_user_mapping)
                       OR EXISTS (SELECT FROM pg_catalog.pg_subscription)),
        'rows', pg_catalog.string_agg(relname || ' ' || pg_catalog.query_to_xml(pg_catalog.format(
            'SELECT count(*) AS n, sum(pg_catalog.hashtextextended(xmin::text || ctid::text, 0)) AS h
             FROM pg_catalog.%I', relname), true, true, '')::text, '' ORDER BY relname))
    FROM pg_catalog.pg_class
    WHERE relnamespace = 'pg_catalog'::pg_catalog.regnamespace AND relkind = 'r'
          AND relname <> ALL ('{pg_statistic,pg_statistic_ext_data,pg_largeobject,pg_subscription_rel,
                                pg_replication_origin}'::name[])";

#[derive(serde::Deserialize)]
struct Catalogs {
    hidden: bool,
    rows: String,
}

/// What the fingerprint is of, besides the catalogs.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its binaries restore the schema.
    pub node: &'a Node,
    /// How the old server is read.
    pub upstream: &'a Conninfo,
    /// In a fixed order.
    pub databases: &'a [String],
    /// Preloaded for the restore.
    pub libraries: &'a str,
}

/// The fingerprint, in hexadecimal; none when this role may not see all that it is of.
///
/// # Errors
/// When the server cannot be asked. Before 11 it never can (no `hashtextextended`).
pub async fn of(subject: Subject<'_>) -> Result<Option<String>> {
    let Subject { node, upstream, databases, libraries } = subject;
    let version = program(node, "postgres").arg("--version").run().await?.stdout;
    let mut hash = blake3::Hasher::new();
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    [version.as_str(), &node.bin_dir, libraries].into_iter().for_each(&mut add);
    for database in databases {
        let target = conninfo(upstream, Some(database), "pgleap");
        let psql = program(node, "psql").args(["-X", "-A", "-t", "-q", "-d", &target, "-c", CATALOGS]);
        let printed = psql.env("PGCLIENTENCODING", "UTF8").run().await?.stdout;
        let found: Catalogs = serde_json::from_str(printed.trim()).doing(|| "reading the catalogs")?;
        if found.hidden {
            return Ok(None);
        }
        add(database);
        add(&found.rows);
    }
    Ok(Some(hash.finalize().to_hex().to_string()))
}
