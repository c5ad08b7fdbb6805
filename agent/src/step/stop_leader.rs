//! StopLeader: fast stop of the promoted leader while its replicas still stream, so that they receive its shutdown checkpoint.
//!
//! Stopping the replicas first, or anything but a clean stop, would leave them at another checkpoint than the leader's,
//! and the relink would have to become a re-clone (pg_upgrade manual, "Upgrade streaming replication standbys").

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::{ControlData, Node};
use pgleap_proto::step::{Output, StopLeader, StoppedOutput, output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::{control, sql};
use crate::wait::Wait;

/// See the module.
pub struct StopLeaderStep(pub StopLeader);

/// Longest wait for a replica that has a slot but is not connected.
const STANDBYS: Duration = Duration::from_secs(15);

/// State of a cleanly stopped primary (pg_controldata.c, dbState).
const CLEAN: &str = "shut down";

fn output(control: ControlData) -> Output {
    let stopped = StoppedOutput { control: Some(control), same_checkpoint: true, difference: String::new() };
    Output { kind: Some(output::Kind::Stopped(stopped)) }
}

async fn control_of(node: &Node) -> Result<ControlData> {
    control::read(node, Path::new(&node.data_dir)).await
}

/// `finish --decommission` stops the former leader of a side, too, and cannot be cancelled.
fn not_promoted(cx: &Context, node: &Node, why: &str) -> StepError {
    let cure = if cx.finishing {
        "make it the leader of its side again (start it if it is stopped; `pg_ctl promote`, with Patroni `patronictl switchover`), \
         then retry"
    } else {
        "cancel, then start again"
    };
    StepError::new(format!(
        "node {} on host {} is a standby and no leader ({why}): {cure}",
        node.name, node.host
    ))
}

/// Waits, not for ever, until whoever has a physical slot here is connected: who is not would miss the end.
async fn wait_for_standbys(cx: &Context, node: &Node, session: &sql::Session) -> Result<()> {
    let absent = "SELECT slot_name::text FROM pg_catalog.pg_replication_slots
                  WHERE slot_type = 'physical' AND NOT active ORDER BY 1";
    let wait = Wait::of(STANDBYS);
    loop {
        let rows =
            session.query(absent, &[]).await.doing(|| format!("reading the slots of node {}", node.name))?;
        let names: Vec<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
        if names.is_empty() {
            return Ok(());
        }
        if !wait.again().await {
            let names = names.join(", ");
            cx.report.log(
                "pgleap",
                format!("nobody streams through slot {names}: that replica will be cloned again"),
            );
            return Ok(());
        }
    }
}

#[async_trait]
impl Step for StopLeaderStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = given(&self.0.node, "node")?;
        if ctl::manager(cx, node).state().await? != ServerState::Stopped {
            return Ok(Probe::Ready);
        }
        // Once pg_upgrade has linked, the control file has another name and nothing is left to stop.
        let control = control_of(node).await?;
        match control.state.as_str() {
            CLEAN => Ok(Probe::Done(output(control))),
            "shut down in recovery" | "in archive recovery" => {
                Err(not_promoted(cx, node, &format!("\"{}\" in {}", control.state, node.data_dir)))
            }
            // Crashed: it is started and stopped again, cleanly, with its replicas connected.
            _ => Ok(Probe::Ready),
        }
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        let server = ctl::manager(cx, node);
        if server.state().await? == ServerState::Stopped {
            cx.report
                .log("pgleap", format!("node {} had crashed: starting it to stop it cleanly", node.name));
            server.start(&[]).await?;
        }
        let session = sql::connect_running(node).await?;
        let doing = || format!("preparing node {} for its stop", node.name);
        let row = session.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await.doing(doing)?;
        if row.try_get(0).doing(doing)? {
            return Err(not_promoted(cx, node, "it is in recovery"));
        }
        wait_for_standbys(cx, node, &session).await?;
        let standbys = "SELECT application_name || ' ' || coalesce(client_addr::text, 'local') || ' ' || state || ' sent '
                            || sent_lsn || ' replayed ' || coalesce(replay_lsn::text, '?')
                        FROM pg_catalog.pg_stat_replication ORDER BY 1";
        let rows = session.query(standbys, &[]).await.doing(doing)?;
        cx.report.log("pgleap", format!("{} standbys of node {} are connected", rows.len(), node.name));
        for row in rows {
            cx.report.log("pgleap", row.try_get::<_, String>(0).doing(doing)?);
        }
        // Most of the shutdown checkpoint's work, done while the standbys can keep pace.
        session.batch_execute("CHECKPOINT").await.doing(doing)?;
        drop(session);
        // Waits until the connected standbys have received everything, the shutdown checkpoint included
        // (postmaster.c, PM_SHUTDOWN_2; walsender.c, WalSndDone).
        server.stop(StopMode::Fast).await
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let node = given(&self.0.node, "node")?;
        let control = control_of(node).await?;
        if control.state != CLEAN {
            return Err(StepError::new(format!(
                "node {} on host {} did not stop cleanly: its control file says \"{}\", checkpoint {}; retry starts it and \
                 stops it again",
                node.name,
                node.host,
                control.state,
                Lsn(control.checkpoint_lsn)
            )));
        }
        Ok(output(control))
    }

    async fn undo(&self, _cx: &Context) -> Result<()> {
        // A stopped new node is what the undo of the earlier steps removes; nothing to take back.
        Ok(())
    }
}
