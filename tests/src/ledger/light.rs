//! Short transactions of one statement: the entry in the books and at most one change, in one round trip.

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::effect::{Effect, Outcome};
use super::model::{Op, Planned};
use super::perform::{Performed, text};

/// The entry, as the first part of a statement.
const ENTRY: &str =
    "WITH entry AS (INSERT INTO load.ledger (worker, counter, kind) VALUES ($1, $2, 'committed'))";

/// Runs a transaction that is planned as a single statement.
pub(super) async fn perform(
    client: &Client,
    worker: i32,
    planned: &Planned,
    patience: Duration,
) -> Performed {
    let mut done = Performed {
        effects: Vec::new(),
        outcome: Outcome::Acknowledged,
        usable: true,
        contradictions: Vec::new(),
    };
    let ran = run(client, worker, planned.counter, planned.ops.first());
    match tokio::time::timeout(patience, ran).await {
        Ok(Ok((effect, rows, expected))) => {
            if rows != expected {
                let op = &planned.ops;
                let text = format!("worker {worker}: {op:.80?} met {rows} rows instead of {expected}");
                done.contradictions.push(text);
            }
            done.effects.extend(effect);
        }
        Ok(Err(error)) => {
            // The statement commits by itself: an ERROR is a refusal, anything else leaves open what became of it.
            let refused = error.as_db_error().is_some_and(|e| e.severity() == "ERROR");
            done.usable = refused;
            let why = text(&error);
            done.outcome = if refused { Outcome::Failed(why) } else { Outcome::Unknown(why) };
        }
        Err(_) => {
            done.usable = false;
            done.outcome = Outcome::Unknown(format!("no answer within {patience:?}"));
        }
    }
    if matches!(done.outcome, Outcome::Unknown(_)) {
        done.effects.extend(intended(planned.ops.first()));
    }
    done
}

/// What a transaction of unknown outcome has done if it is there. (Nothing is planned here whose effect depends on an
/// answer, such as a key from a sequence.)
fn intended(op: Option<&Op>) -> Option<Effect> {
    match op {
        Some(Op::Transfer { from, to, amount }) => {
            Some(Effect::Transfer { from: *from, to: *to, amount: *amount })
        }
        _ => None,
    }
}

/// Effect, rows met, rows expected.
async fn run(
    client: &Client,
    worker: i32,
    counter: i64,
    op: Option<&Op>,
) -> Result<(Option<Effect>, u64, u64), Error> {
    let w = (&worker as &(dyn ToSql + Sync), Type::INT4);
    let c = (&counter as &(dyn ToSql + Sync), Type::INT8);
    Ok(match op {
        Some(Op::Transfer { from, to, amount }) => {
            let sql = format!(
                "{ENTRY} UPDATE load.accounts SET balance = balance + CASE id WHEN $3 THEN -$5 ELSE $5 END \
                 WHERE id IN ($3, $4)"
            );
            let arguments = [w, c, (from, Type::INT4), (to, Type::INT4), (amount, Type::INT8)];
            let rows = client.execute_typed(&sql, &arguments).await?;
            (Some(Effect::Transfer { from: *from, to: *to, amount: *amount }), rows, 2)
        }
        _ => {
            let sql = "INSERT INTO load.ledger (worker, counter, kind) VALUES ($1, $2, 'committed')";
            (None, client.execute_typed(sql, &[w, c]).await?, 1)
        }
    })
}
