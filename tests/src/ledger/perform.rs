//! Runs one planned transaction over a connection.

use sha2::{Digest, Sha256};
use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::effect::{Effect, Outcome};
use super::light;
use super::model::{Op, Planned};

/// What came of it.
pub(super) struct Performed {
    pub effects: Vec<Effect>,
    pub outcome: Outcome,
    /// The connection can be used again.
    pub usable: bool,
    /// The server contradicted what had been acknowledged before: a row was missing or doubled.
    pub contradictions: Vec<String>,
}

/// Runs it. Every statement goes unprepared, so that transaction poolers are no obstacle.
pub(super) async fn perform(
    client: &Client,
    worker: i32,
    planned: &Planned,
    hold: Duration,
    patience: Duration,
) -> Performed {
    if planned.single {
        return light::perform(client, worker, planned, patience).await;
    }
    let mut done = Performed {
        effects: Vec::new(),
        outcome: Outcome::RolledBack,
        usable: true,
        contradictions: Vec::new(),
    };
    let body = async {
        client.batch_execute("BEGIN").await?;
        let kind = if planned.roll_back { "rolled back" } else { "committed" };
        write_ledger(client, worker, planned.counter, kind).await?;
        if planned.savepoint {
            client.batch_execute("SAVEPOINT noise").await?;
            // Must never be seen anywhere: a number no transaction has.
            write_ledger(client, worker, -planned.counter, "savepoint").await?;
            client.batch_execute("ROLLBACK TO noise").await?;
        }
        for op in &planned.ops {
            run(client, worker, planned.counter, op, &mut done).await?;
        }
        if !hold.is_zero() {
            tokio::time::sleep(hold).await;
        }
        Ok::<(), Error>(())
    };
    let failure = match tokio::time::timeout(patience, body).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some((text(&error), error.is_closed() || error.as_db_error().is_none())),
        Err(_) => Some((format!("no answer within {patience:?}"), true)),
    };
    if let Some((why, broken)) = failure {
        done.effects.clear();
        done.outcome = Outcome::Failed(why);
        done.usable = !broken && client.batch_execute("ROLLBACK").await.is_ok();
        return done;
    }
    if planned.roll_back {
        done.effects.clear();
        done.usable = client.batch_execute("ROLLBACK").await.is_ok();
        return done;
    }
    match tokio::time::timeout(patience, client.batch_execute("COMMIT")).await {
        Ok(Ok(())) => done.outcome = Outcome::Acknowledged,
        Ok(Err(error)) => {
            // An ERROR is a refusal. A FATAL one, or none at all, leaves open what became of the commit.
            let refused = error.as_db_error().is_some_and(|e| e.severity() == "ERROR");
            done.usable = refused;
            let why = text(&error);
            done.outcome = if refused { Outcome::Failed(why) } else { Outcome::Unknown(why) };
        }
        Err(_) => {
            done.usable = false;
            done.outcome = Outcome::Unknown(format!("no answer to COMMIT within {patience:?}"));
        }
    }
    if matches!(done.outcome, Outcome::Failed(_)) {
        done.effects.clear();
    }
    done
}

async fn write_ledger(client: &Client, worker: i32, counter: i64, kind: &str) -> Result<(), Error> {
    let sql = "INSERT INTO load.ledger (worker, counter, kind) VALUES ($1, $2, $3)";
    client.execute_typed(sql, &[(&worker, Type::INT4), (&counter, Type::INT8), (&kind, Type::TEXT)]).await?;
    Ok(())
}

async fn run(client: &Client, worker: i32, version: i64, op: &Op, done: &mut Performed) -> Result<(), Error> {
    let w = (&worker as &(dyn ToSql + Sync), Type::INT4);
    let v = (&version as &(dyn ToSql + Sync), Type::INT8);
    let (rows, expected, effect) = match op {
        Op::InsertItem { body } => {
            let sql = "INSERT INTO load.items (worker, version, body) VALUES ($1, $2, $3) RETURNING id";
            let id = client.query_typed_one(sql, &[w, v, (body, Type::TEXT)]).await?.get(0);
            (1, 1, Effect::Item { id, new: true, body: body.clone() })
        }
        Op::UpdateItem { id, body } => {
            let sql = "UPDATE load.items SET version = $1, body = $2 WHERE id = $3";
            let rows = client.execute_typed(sql, &[v, (body, Type::TEXT), (id, Type::INT8)]).await?;
            (rows, 1, Effect::Item { id: *id, new: false, body: body.clone() })
        }
        Op::DeleteItem { id } => {
            let sql = "DELETE FROM load.items WHERE id = $1";
            (client.execute_typed(sql, &[(id, Type::INT8)]).await?, 1, Effect::ItemGone { id: *id })
        }
        Op::Transfer { from, to, amount } => {
            let sql = "UPDATE load.accounts SET balance = balance + CASE id WHEN $1 THEN -$3 ELSE $3 END \
                       WHERE id IN ($1, $2)";
            let arguments: [(&(dyn ToSql + Sync), Type); 3] =
                [(from, Type::INT4), (to, Type::INT4), (amount, Type::INT8)];
            let rows = client.execute_typed(sql, &arguments).await?;
            (rows, 2, Effect::Transfer { from: *from, to: *to, amount: *amount })
        }
        Op::Bump { by } => {
            let sql = "UPDATE load.counters SET value = value + $1 \
                       WHERE id = (SELECT max(id) FROM load.counters WHERE id <= $2)";
            (client.execute_typed(sql, &[(by, Type::INT8), w]).await?, 1, Effect::Bump { by: *by })
        }
        Op::InsertBlob { body } => {
            let sql = "INSERT INTO load.blobs (worker, version, body) VALUES ($1, $2, $3) RETURNING id";
            let id = client.query_typed_one(sql, &[w, v, (body, Type::TEXT)]).await?.get(0);
            (1, 1, Effect::Blob { id, digest: Some(digest(body)) })
        }
        Op::RewriteBlob { id, body } => {
            let sql = "UPDATE load.blobs SET version = $1, body = $2 WHERE id = $3";
            let rows = client.execute_typed(sql, &[v, (body, Type::TEXT), (id, Type::INT8)]).await?;
            (rows, 1, Effect::Blob { id: *id, digest: Some(digest(body)) })
        }
        Op::TouchBlob { id } => {
            let sql = "UPDATE load.blobs SET version = $1 WHERE id = $2";
            let rows = client.execute_typed(sql, &[v, (id, Type::INT8)]).await?;
            (rows, 1, Effect::Blob { id: *id, digest: None })
        }
        Op::DeleteBlob { id } => {
            let sql = "DELETE FROM load.blobs WHERE id = $1";
            (client.execute_typed(sql, &[(id, Type::INT8)]).await?, 1, Effect::BlobGone { id: *id })
        }
        Op::InsertPlain { key, value, copies } => {
            let sql = "INSERT INTO load.plain (worker, key, value, extra) \
                       SELECT $1, $2, $3, $2 / 7.0 FROM generate_series(1, $4)";
            let times = i32::try_from(*copies).unwrap_or(1);
            let arguments = [w, (key, Type::INT8), (value, Type::TEXT), (&times, Type::INT4)];
            let rows = client.execute_typed(sql, &arguments).await?;
            (rows, *copies, Effect::Plain { key: *key, value: value.clone(), copies: Some(*copies) })
        }
        Op::UpdatePlain { key, value, copies } => {
            let sql = "UPDATE load.plain SET value = $1 WHERE worker = $2 AND key = $3";
            let rows = client.execute_typed(sql, &[(value, Type::TEXT), w, (key, Type::INT8)]).await?;
            (rows, *copies, Effect::Plain { key: *key, value: value.clone(), copies: None })
        }
        Op::DeletePlain { key, copies } => {
            let sql = "DELETE FROM load.plain WHERE worker = $1 AND key = $2";
            let rows = client.execute_typed(sql, &[w, (key, Type::INT8)]).await?;
            (rows, *copies, Effect::PlainGone { key: *key })
        }
        Op::InsertEvent { bucket } => {
            let sql = "INSERT INTO load.events (bucket, worker, version, payload) \
                       VALUES ($1, $2, $3, jsonb_build_object('by', $2, 'n', $3)) RETURNING id";
            let id = client.query_typed_one(sql, &[(bucket, Type::INT4), w, v]).await?.get(0);
            (1, 1, Effect::Event { id, bucket: *bucket })
        }
        Op::MoveEvent { id, to } => {
            let sql = "UPDATE load.events SET bucket = $1, version = $2 WHERE id = $3";
            let rows = client.execute_typed(sql, &[(to, Type::INT4), v, (id, Type::INT8)]).await?;
            (rows, 1, Effect::Event { id: *id, bucket: *to })
        }
        Op::DeleteEvent { id } => {
            let sql = "DELETE FROM load.events WHERE id = $1";
            (client.execute_typed(sql, &[(id, Type::INT8)]).await?, 1, Effect::EventGone { id: *id })
        }
    };
    if rows != expected {
        done.contradictions.push(format!("worker {worker}: {op:.80?} met {rows} rows instead of {expected}"));
    }
    done.effects.push(effect);
    Ok(())
}

/// SHA-256 in hexadecimal, as `encode(sha256(...), 'hex')` prints it.
pub(super) fn digest(body: &str) -> String {
    Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn text(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => error.to_string(),
    }
}
