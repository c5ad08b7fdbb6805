//! Settle: the target has everything, durably, and follows no more; its own slots stand behind everything that came from the source.

use std::time::Duration;

use futures::future::{try_join, try_join_all};
use pgleap_proto::Lsn;
use pgleap_proto::traffic::{SettleReply, SettleRequest};
use tokio::time::Instant;

use super::arm::{Target, confirmed, set_sequences};
use super::sessions::{Limit, Watch, make_durable};
use super::{following, locks, slots};
use crate::error::{Doing, Result, StepError};

/// Without progress for so long, the source writes once more something that moves its slots on, and workers are woken.
const NUDGE: Duration = Duration::from_millis(50);

pub(super) async fn run(target: &Target, request: SettleRequest) -> Result<SettleReply> {
    let mut watch = Watch::start();
    let limit = Limit::of_ms(request.timeout_ms);
    let held = locks::hold(target.view.node()).await;
    try_join(wait_for_mark(target, request.mark, limit), set_sequences(target, &request.sequences)).await?;
    watch.lap("mark");
    // What a worker has applied it confirms only once it is on the disk: apply commits asynchronously.
    make_durable(target.sessions.any()?, "settled").await?;
    // Everything is applied, and the source is fenced: where this side's own slots stand from here on is behind all of it.
    let confirmation = wait_for_confirmation(target, Lsn(request.lsn), limit);
    let (_, positions) =
        try_join(confirmation, slots::advance(&target.view, &target.sessions, &held)).await?;
    watch.lap("confirmed");
    let stop = target.sessions.0.iter().map(|database| following::stop(&target.view, database, limit));
    try_join_all(stop).await?;
    watch.lap("disabled");
    pgleap_proto::failpoint::reach("side.settled").await.doing(|| "settling")?;
    Ok(SettleReply { positions, timings: watch.timings() })
}

/// One subscription a database, which applies commits in their order: the mark comes behind everything of the clients.
async fn wait_for_mark(target: &Target, mark: i64, limit: Limit) -> Result<()> {
    let row = target.view.other_row();
    let wait = target.sessions.0.iter().zip(&target.marks).map(|(database, statement)| async move {
        let name = &database.facts.database;
        loop {
            let found = database.session.query_one(statement, &[&row]).await;
            let found: i64 = found.doing(|| format!("waiting for the mark in database \"{name}\""))?.get(0);
            if found == mark {
                return Ok(());
            }
            if !limit.again().await {
                return Err(StepError::late(format!(
                    "the last write of the source did not arrive in database \"{name}\" of node {} within {} ms",
                    target.view.node().name,
                    limit.elapsed().as_millis()
                )));
            }
        }
    });
    try_join_all(wait).await.map(drop)
}

/// Until the source knows, durably enough to drop it, that everything before `lsn` is on this side's disk.
async fn wait_for_confirmation(target: &Target, lsn: Lsn, limit: Limit) -> Result<()> {
    let mut told: Option<Instant> = None;
    loop {
        // With something new to send on, the source sends a keepalive, and to that a worker answers with what is on the disk
        // (walsender.c, `WalSndWaitForWal`; worker.c, `LogicalRepApplyLoop`); otherwise some milliseconds up to a second pass.
        let tell = told.is_none_or(|at| at.elapsed() >= NUDGE);
        if tell {
            if told.is_some() {
                // A reload wakes the workers, too; and everybody else, which is why it comes second.
                let woke = target.sessions.any()?.fetch("SELECT pg_reload_conf()", &[]).await;
                woke.doing(|| "waking the apply workers")?;
            }
            told = Some(Instant::now());
        }
        let at = confirmed(target, tell).await?;
        if at.lowest >= lsn {
            return Ok(());
        }
        if !limit.again().await {
            return Err(StepError::late(format!(
                "replication slot {} is confirmed up to {} and not to {lsn} after {} ms",
                at.slot,
                at.lowest,
                limit.elapsed().as_millis()
            )));
        }
    }
}
