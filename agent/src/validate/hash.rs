//! Serves row hashes of a part of one table of a node of this host. Reads only, in one short snapshot.

use std::future::Future;

use pgleap_proto::Lsn;
use pgleap_proto::agent::{BucketHash, HashRowsReply, HashRowsRequest, RowHash};
use pgleap_proto::node::Node;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::sessions;
use super::statement::{Column, Range, Table};
use crate::error::{Doing, Result, StepError};
use crate::pg::sql;

/// Most rows in one reply that lists rows; the asker goes on after the last.
const PAGE_ROWS: u64 = 20_000;
/// Most bytes of keys in one reply, well below the largest message.
const PAGE_BYTES: usize = 4 << 20;
/// Most hashes of keyless rows in one reply; 25 bytes each.
const PAGE_HASHES: usize = 400_000;

/// Settings of one request. Keyed reads must follow the key's index whatever the statistics say: a sort of the rest of a
/// large table for each chunk would never end.
const BY_KEY: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; \
    SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL statement_timeout = '15min'";
/// A scan of a whole table takes as long as it takes.
const BY_SCAN: &str = "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; \
    SET LOCAL enable_bitmapscan = off; SET LOCAL work_mem = '64MB'; SET LOCAL statement_timeout = 0";

/// Answers one request.
///
/// # Errors
/// When the node cannot be reached, the table or a column is not there, or the server refuses; the message says which.
pub async fn hash_rows(request: HashRowsRequest) -> Result<HashRowsReply> {
    let node =
        request.node.clone().ok_or_else(|| StepError::new("a request for row hashes names no node"))?;
    let lease = sessions::lease(&node, &request.database).await?;
    let doing = || {
        format!(
            "reading row hashes of table {}.{} in database \"{}\" of node {}",
            request.schema, request.table, request.database, node.name
        )
    };
    let settings = if request.key.is_empty() { BY_SCAN } else { BY_KEY };
    lease
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL lock_timeout = '30s'; {settings}"
        ))
        .await
        .doing(doing)?;
    let mut reply = within(&lease, &request, doing).await?;
    lease.batch_execute("COMMIT").await.doing(doing)?;
    lease.back();
    reply.rows = reply.rows.max(reply.each.iter().map(|row| row.count).sum());
    Ok(reply)
}

/// Boxed, because the futures of five kinds of reading in one frame would be large.
fn within<'a, D: std::fmt::Display>(
    client: &'a Client,
    request: &'a HashRowsRequest,
    doing: impl Fn() -> D + Copy + Send + Sync + 'a,
) -> std::pin::Pin<Box<dyn Future<Output = Result<HashRowsReply>> + Send + 'a>> {
    Box::pin(async move {
        // The transaction's snapshot is taken before the position is read: every commit it sees ends at or before that.
        // The insert position, because a commit can be visible before its record is written out.
        let row = client
            .query_one(
                "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                 ELSE pg_catalog.pg_current_wal_insert_lsn() END::text AS lsn",
                &[],
            )
            .await
            .doing(doing)?;
        let lsn: Lsn = sql::lsn(&row, "lsn")?;
        let table = describe(client, request).await?;
        let mut reply = if request.key.is_empty() {
            by_scan(client, request, &table).await
        } else {
            by_key(client, request, &table).await
        }
        .map_err(|error| StepError { message: format!("{}: {}", doing(), error.message), ..error })?;
        reply.lsn = lsn.0;
        Ok(reply)
    })
}

async fn by_key(client: &Client, request: &HashRowsRequest, table: &Table) -> Result<HashRowsReply> {
    if !request.keys.is_empty() {
        return by_keys(client, request, table).await;
    }
    let (after, upto) = (request.after.len(), request.upto.len());
    if after.max(upto) > table.key.len() {
        return Err(StepError::new("a bound has more values than the key has columns"));
    }
    let mut reply = HashRowsReply::default();
    let bounds = texts(request.after.iter().chain(&request.upto));
    if after > 0 && upto > 0 {
        let row = query(client, &table.disordered(after, upto), &bounds).await?;
        if row.first().map_or(Ok(false), |row| get(row, 0))? {
            reply.disordered = true;
            return Ok(reply);
        }
    }
    if request.each_row {
        let limit = if request.limit == 0 { PAGE_ROWS } else { request.limit.min(PAGE_ROWS) };
        let rows = query(client, &table.range_each(Range { after, upto, limit }), &bounds).await?;
        let mut bytes = 0;
        for row in &rows {
            let key: Vec<String> = get(row, 0)?;
            bytes += key.iter().map(|part| part.len() + 2).sum::<usize>() + 16;
            reply.each.push(RowHash { key, count: 1, hash: get(row, 1)?, version: String::new() });
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        let cut = reply.each.len() < rows.len() || rows.len() as u64 == limit;
        if let (true, Some(last)) = (cut, reply.each.last()) {
            reply.last = last.key.clone();
        }
        return Ok(reply);
    }
    let limit = request.limit;
    let rows = query(client, &table.range_sum(Range { after, upto, limit }), &bounds).await?;
    let row = rows.first().ok_or_else(|| StepError::new("the server returned no sum"))?;
    reply.rows = unsigned(get(row, 0)?);
    reply.sum = get(row, 1)?;
    if limit > 0 && reply.rows == limit {
        reply.last = get::<Option<Vec<String>>>(row, 2)?.unwrap_or_default();
    }
    Ok(reply)
}

async fn by_keys(client: &Client, request: &HashRowsRequest, table: &Table) -> Result<HashRowsReply> {
    if request.keys.iter().any(|key| key.column.len() != table.key.len()) {
        return Err(StepError::new("a key has another number of values than the key has columns"));
    }
    let arrays: Vec<Vec<&str>> = (0..table.key.len())
        .map(|at| request.keys.iter().filter_map(|key| key.column.get(at).map(String::as_str)).collect())
        .collect();
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        arrays.iter().map(|array| (array as &(dyn ToSql + Sync), Type::TEXT_ARRAY)).collect();
    let mut reply = HashRowsReply::default();
    for row in query(client, &table.by_keys(), &parameters).await? {
        let asked = usize::try_from(get::<i64>(&row, 0)? - 1).doing(|| "number of a key")?;
        let key = request.keys.get(asked).map(|key| key.column.clone()).unwrap_or_default();
        reply.each.push(RowHash { key, count: 1, hash: get(&row, 1)?, version: get(&row, 2)? });
    }
    Ok(reply)
}

async fn by_scan(client: &Client, request: &HashRowsRequest, table: &Table) -> Result<HashRowsReply> {
    let mut reply = HashRowsReply::default();
    if !request.each_row {
        let buckets = u32::try_from(request.limit).ok().filter(|b| (1..=1 << 20).contains(b));
        let buckets = buckets.ok_or_else(|| StepError::new("the number of buckets must be 1 to 1048576"))?;
        for row in query(client, &table.bucket_sums(buckets), &[]).await? {
            let (bucket, rows) = (get::<i32>(&row, 0)?.unsigned_abs(), unsigned(get(&row, 1)?));
            reply.bucket_hashes.push(BucketHash { bucket, rows, sum: get(&row, 2)? });
            reply.rows += rows;
        }
        return Ok(reply);
    }
    let set = if request.bucket_set.is_empty() { vec![request.bucket] } else { request.bucket_set.clone() };
    let set: Vec<i32> = set.into_iter().filter_map(|bucket| bucket.try_into().ok()).collect();
    let rows = query(client, &table.bucket_each(request.buckets.max(1)), &[(&set, Type::INT4_ARRAY)]).await?;
    if rows.len() > PAGE_HASHES {
        return Err(StepError::new(format!(
            "{} different rows in the buckets asked for are more than one reply holds ({PAGE_HASHES}); ask for fewer buckets",
            rows.len()
        )));
    }
    for row in &rows {
        let (hash, count) = (get(row, 0)?, unsigned(get(row, 1)?));
        reply.each.push(RowHash { key: Vec::new(), count, hash, version: String::new() });
    }
    Ok(reply)
}

/// The table's columns as the catalog has them now.
async fn describe(client: &Client, request: &HashRowsRequest) -> Result<Table> {
    let rows = query(
        client,
        "SELECT a.attname::text, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), \
         coalesce((SELECT ' COLLATE ' || pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) \
           FROM pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace \
           WHERE co.oid = a.attcollation AND co.oid <> 100), '') \
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped \
         ORDER BY a.attname::text COLLATE \"C\"",
        &texts([&request.schema, &request.table]),
    )
    .await?;
    let mut columns = Vec::new();
    for row in &rows {
        let (name, type_oid) = (get(row, 0)?, get(row, 1)?);
        columns.push(Column { name, type_oid, type_name: get(row, 2)?, collate: get(row, 3)? });
    }
    let of = |name: &String| {
        let column = columns.iter().find(|column| column.name == *name).cloned();
        column.ok_or_else(|| {
            StepError::new(format!(
                "table {}.{} of database \"{}\" is not there, or has no column {name}: it was changed or dropped meanwhile",
                request.schema, request.table, request.database
            ))
        })
    };
    let key = request.key.iter().map(of).collect::<Result<Vec<_>>>()?;
    if !request.columns.is_empty() {
        let chosen = request.columns.iter().map(of).collect::<Result<Vec<_>>>()?;
        columns = chosen;
    }
    if columns.is_empty() && !exists(client, request).await? {
        return Err(StepError::new(format!(
            "table {}.{} of database \"{}\" is not there: it was dropped meanwhile",
            request.schema, request.table, request.database
        )));
    }
    Ok(Table { schema: request.schema.clone(), name: request.table.clone(), columns, key })
}

/// Names of the columns of a table of a node of this host.
///
/// # Errors
/// As [`hash_rows`].
pub async fn column_names(node: &Node, database: &str, schema: &str, table: &str) -> Result<Vec<String>> {
    let lease = sessions::lease(node, database).await?;
    let request =
        HashRowsRequest { schema: schema.to_owned(), table: table.to_owned(), ..Default::default() };
    let columns = describe(&lease, &request).await?.columns;
    lease.back();
    Ok(columns.into_iter().map(|column| column.name).collect())
}

/// A table may have no column at all.
async fn exists(client: &Client, request: &HashRowsRequest) -> Result<bool> {
    let rows = query(
        client,
        "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r'",
        &texts([&request.schema, &request.table]),
    )
    .await?;
    Ok(!rows.is_empty())
}

fn texts<'a>(values: impl IntoIterator<Item = &'a String>) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    values.into_iter().map(|value| (value as &(dyn ToSql + Sync), Type::TEXT)).collect()
}

/// Without a separate round trip to prepare the statement.
async fn query(client: &Client, sql: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>> {
    client.query_typed(sql, parameters).await.map_err(|error| {
        // The state lets the asker tell what may pass (a lock, a restart) from what will not (a missing function).
        let state = error.code().map_or_else(String::new, |state| format!(" (SQLSTATE {})", state.code()));
        match Err::<(), _>(error).doing(|| "the server refused") {
            Err(error) => StepError { message: error.message.clone() + &state, ..error },
            Ok(()) => StepError::new("the server refused"),
        }
    })
}

fn get<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, at: usize) -> Result<T> {
    row.try_get(at).doing(|| "reading a row hash")
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
