//! A running server: what it is, its settings, slots, transactions, standbys.

use futures::StreamExt;
use pgleap_proto::agent::{
    DatabaseFacts, PatroniSession, PreparedFacts, ServerFacts, SlotFacts, StandbyFacts, TablespaceFacts,
    TransactionFacts,
};
use pgleap_proto::node::Node;
use tokio_postgres::Row;

use super::database;
use crate::error::{Doing, Result};
use crate::pg::sql::Session;

/// Databases looked into at the same time.
const PARALLEL: usize = 4;

/// Settings whose value may hold a secret; facts travel and are printed.
const SECRET: [&str; 2] = ["primary_conninfo", "ssl_passphrase_command"];

pub(super) async fn facts(node: &Node, session: &Session) -> Result<ServerFacts> {
    let mut facts = basics(session).await?;
    facts.settings =
        query(session, "SELECT name, setting FROM pg_catalog.pg_settings WHERE setting IS NOT NULL")
            .await?
            .iter()
            .map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)))
            .filter(|(name, _)| !SECRET.contains(&name.as_str()))
            .collect();
    facts.pending_restart =
        query(session, "SELECT name FROM pg_catalog.pg_settings WHERE pending_restart ORDER BY 1")
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect();
    facts.slots = query(session, SLOTS).await?.iter().map(slot).collect();
    facts.prepared = query(session, PREPARED).await?.iter().map(prepared).collect();
    facts.transactions = query(session, TRANSACTIONS).await?.iter().map(transaction).collect();
    facts.tablespaces = query(session, TABLESPACES).await?.iter().map(tablespace).collect();
    facts.standbys = query(session, STANDBYS).await?.iter().map(standby).collect();
    let patroni = |row: &Row| PatroniSession { user: row.get(0), client_addr: row.get(1) };
    facts.patroni_sessions = query(session, PATRONI).await?.iter().map(patroni).collect();
    if let Some(row) = query(session, UPSTREAM).await?.first() {
        facts.upstream_host = row.get(0);
        facts.upstream_port = row.get::<_, i32>(1).unsigned_abs();
    }
    let databases = database::list(session).await?;
    facts.databases = futures::stream::iter(databases.into_iter().map(|found| look_into(node, found)))
        .buffered(PARALLEL)
        .collect()
        .await;
    facts.size_bytes = facts.databases.iter().map(|d| d.size_bytes).sum();
    Ok(facts)
}

async fn look_into(node: &Node, mut found: DatabaseFacts) -> DatabaseFacts {
    if found.allow_connections
        && let Err(error) = database::fill(node, &mut found).await
    {
        found.connect_error = error.to_string();
    }
    found
}

async fn query(session: &Session, statement: &str) -> Result<Vec<Row>> {
    session.query(statement, &[]).await.doing(|| format!("reading facts with: {statement}"))
}

async fn basics(session: &Session) -> Result<ServerFacts> {
    let row = session.query_one(BASICS, &[]).await.doing(|| "reading the server's identity")?;
    Ok(ServerFacts {
        version_num: row.get::<_, i32>("version").unsigned_abs(),
        in_recovery: row.get("in_recovery"),
        // A bigint in SQL, but an unsigned number everywhere else.
        system_identifier: row.get::<_, i64>("system_identifier").cast_unsigned(),
        timeline: row.get::<_, i32>("timeline").unsigned_abs(),
        senders: row.get::<_, i32>("senders").unsigned_abs(),
        replication_origins: row.get::<_, i32>("origins").unsigned_abs(),
        install_user_problem: row.get::<_, Option<String>>("install_user").unwrap_or_default(),
        upstream_names_database: row.get("names_database"),
        ..Default::default()
    })
}

/// The timeline of a standby is the one it receives; its control file lags behind until the next restartpoint.
const BASICS: &str = "\
SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       coalesce((SELECT received_tli FROM pg_stat_wal_receiver),
                (SELECT timeline_id FROM pg_control_checkpoint())) AS timeline,
       (SELECT count(*) FROM pg_stat_replication)::int AS senders,
       (SELECT count(*) FROM pg_replication_origin)::int AS origins,
       coalesce(current_setting('primary_conninfo', true), '') ~ '(^|\\s)dbname\\s*=' AS names_database,
       (SELECT CASE WHEN r.oid = 10 AND r.rolsuper THEN ''
                    WHEN r.oid <> 10 THEN r.rolname || ' is not the role that initdb made (oid 10)'
                    ELSE r.rolname || ' is no superuser' END
        FROM pg_roles r WHERE r.rolname = current_user) AS install_user";

/// Named so by Patroni itself (its postgresql/connection.py), "Patroni ctl" left out: that is a person.
const PATRONI: &str = "\
SELECT DISTINCT usename::text, coalesce(client_addr::text, '') FROM pg_catalog.pg_stat_activity
WHERE application_name IN ('Patroni heartbeat', 'Patroni restapi', 'Patroni') AND usename IS NOT NULL ORDER BY 1, 2";

const UPSTREAM: &str = "\
SELECT coalesce(sender_host, ''), coalesce(sender_port, 0) FROM pg_catalog.pg_stat_wal_receiver
WHERE status = 'streaming'";

const SLOTS: &str = "\
SELECT slot_name::text, slot_type, coalesce(database::text, ''), active, coalesce(plugin::text, '')
FROM pg_catalog.pg_replication_slots ORDER BY 1";

fn slot(row: &Row) -> SlotFacts {
    SlotFacts {
        name: row.get(0),
        kind: row.get(1),
        database: row.get(2),
        active: row.get(3),
        plugin: row.get(4),
    }
}

const PREPARED: &str = "\
SELECT gid, database::text, owner::text, greatest(extract(epoch FROM now() - prepared), 0)::bigint
FROM pg_catalog.pg_prepared_xacts ORDER BY prepared LIMIT 100";

fn prepared(row: &Row) -> PreparedFacts {
    PreparedFacts {
        gid: row.get(0),
        database: row.get(1),
        owner: row.get(2),
        age_seconds: row.get::<_, i64>(3).unsigned_abs(),
    }
}

/// Oldest first. Every kind of backend counts: slot creation waits for autovacuum's transactions as well.
const TRANSACTIONS: &str = "\
SELECT pid, coalesce(datname::text, ''), coalesce(usename::text, ''), coalesce(application_name, ''),
       greatest(extract(epoch FROM now() - xact_start), 0)::bigint, left(coalesce(query, ''), 200)
FROM pg_catalog.pg_stat_activity
WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type <> 'walsender'
ORDER BY xact_start LIMIT 100";

fn transaction(row: &Row) -> TransactionFacts {
    TransactionFacts {
        pid: row.get(0),
        database: row.get(1),
        user: row.get(2),
        application: row.get(3),
        age_seconds: row.get::<_, i64>(4).unsigned_abs(),
        query: row.get(5),
    }
}

const TABLESPACES: &str = "\
SELECT spcname::text, oid, pg_tablespace_location(oid), coalesce(pg_tablespace_size(oid), 0)
FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1";

fn tablespace(row: &Row) -> TablespaceFacts {
    TablespaceFacts {
        name: row.get(0),
        oid: row.get(1),
        location: row.get(2),
        size_bytes: row.get::<_, i64>(3).unsigned_abs(),
    }
}

const STANDBYS: &str = "\
SELECT application_name, coalesce(client_addr::text, ''), state, sync_state,
       coalesce(greatest((CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                               ELSE pg_current_wal_lsn() END) - replay_lsn, 0), 0)::bigint
FROM pg_catalog.pg_stat_replication ORDER BY 1";

fn standby(row: &Row) -> StandbyFacts {
    StandbyFacts {
        application_name: row.get(0),
        client_addr: row.get(1),
        state: row.get(2),
        sync_state: row.get(3),
        replay_lag_bytes: row.get::<_, i64>(4).unsigned_abs(),
    }
}
