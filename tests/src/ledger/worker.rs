//! One connection's loop: connect, plan, perform, write down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Config};

use super::Shared;
use super::effect::{Logged, Outcome};
use super::model::Model;
use super::perform::perform;
use super::record::WorkerRecord;
use crate::harness::postgres::connect;

/// Pause after a refused connection.
const RETRY: Duration = Duration::from_millis(20);

/// Works until told to stop.
pub(super) async fn run(shared: Arc<Shared>, config: Config, worker: i32, database: u64) -> WorkerRecord {
    let options = &shared.options;
    let mut model = Model::new(options, worker, database);
    let mut record = WorkerRecord::new(worker);
    let mut client: Option<Client> = None;
    let mut pace = (options.rate > 0.0).then(|| {
        let mut pace = tokio::time::interval(Duration::from_secs_f64(options.workers as f64 / options.rate));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    while !shared.stop.load(Ordering::Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let open = match client.take().filter(|client| !client.is_closed()) {
            Some(open) => open,
            None => match connect(&config).await {
                Ok(open) => {
                    record.connections += 1;
                    open
                }
                Err(_) => {
                    record.refused += 1;
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        let planned = model.next();
        let done = perform(&open, worker, &planned, options.hold, options.patience).await;
        match &done.outcome {
            Outcome::Acknowledged => {
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                model.committed(&done.effects);
            }
            Outcome::RolledBack => {}
            Outcome::Failed(_) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Unknown(_) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                model.doubted(&done.effects);
            }
        }
        record.contradictions.extend(done.contradictions);
        record.transactions.push(Logged {
            counter: planned.counter,
            effects: done.effects,
            outcome: done.outcome,
            at: shared.started.elapsed(),
        });
        client = done.usable.then_some(open);
    }
    record
}
