//! The new leader alone recovers to exactly the target LSN, is promoted there, and waits for its upgrade in a state in
//! which nobody but the agent and its own replicas can do anything with it.
//!
//! The target is the highest LSN of the logical slots. With `recovery_target_inclusive = off` recovery stops before the
//! first record that starts at or behind it (xlogrecovery.c, `recoveryStopsBefore`), and decoding keeps exactly the
//! commits whose record starts there or later (snapbuild.c, `SnapBuildXactNeedsSkip`): nothing is lost, nothing twice.
//!
//! Nothing is written to configuration files: all settings are given on the command line, hold until the server is
//! stopped for its upgrade, and are gone then.

mod settings;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{Output, RecoverTo, RecoveredOutput, output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::server_log::ServerLog;
use crate::pg::sql::{self, Session};
use crate::pg::{control, history, marker, standby, upstream};
use crate::wait::Wait;

/// How long nothing may move before that is a failure.
const SILENCE: Duration = Duration::from_secs(60);

/// See [`RecoverTo`].
pub struct RecoverToStep(pub RecoverTo);

/// Where the node is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A standby that has not passed the target.
    Before { running: bool },
    /// Promoted exactly at the target; on this timeline.
    There { running: bool, timeline: u32 },
}

impl RecoverToStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    fn upstream(&self) -> Result<&Conninfo> {
        super::given(&self.0.upstream, "upstream")
    }

    fn data_dir(&self) -> Result<&Path> {
        Ok(Path::new(&self.node()?.data_dir))
    }

    fn target(&self) -> Result<Lsn> {
        let target = Lsn(self.0.target_lsn);
        if target.is_valid() {
            return Ok(target);
        }
        Err(StepError::new(
            "the coordinator asked for a recovery without a target LSN; this is a defect of pgleap",
        ))
    }

    fn must_be_made_anew(&self, why: &str) -> Result<StepError> {
        let node = self.node()?;
        Ok(StepError::new(format!(
            "node {} ({}) cannot be the new leader: {why}; it must be made anew: cancel, then start again",
            node.name, node.data_dir
        )))
    }

    async fn place(&self, cx: &Context) -> Result<Place> {
        let node = self.node()?;
        if ctl::manager(cx, node).state().await? != ServerState::Stopped {
            let session = sql::connect_running(node).await?;
            if sql::in_recovery(&session).await? {
                let replayed = standby::receiver(&session).await?.replayed;
                self.check_not_past(replayed, "it has replayed")?;
                return Ok(Place::Before { running: true });
            }
            // Not the control file: it learns the new timeline only at the first checkpoint after the promotion.
            let sql = "SELECT pg_walfile_name(pg_current_wal_lsn())";
            let file: String = session.query_one(sql, &[]).await.doing(|| "reading the timeline")?.get(0);
            let timeline = u32::from_str_radix(file.get(..8).unwrap_or_default(), 16);
            let timeline = timeline.doing(|| format!("timeline of WAL file {file}"))?;
            self.check_history(timeline)?;
            return Ok(Place::There { running: true, timeline });
        }
        let control = control::read(node, self.data_dir()?).await?;
        if self.data_dir()?.join("standby.signal").exists() {
            self.check_not_past(Lsn(control.min_recovery_lsn), "its files hold changes")?;
            return Ok(Place::Before { running: false });
        }
        // PostgreSQL removes standby.signal at its promotion.
        self.check_history(control.timeline)?;
        Ok(Place::There { running: false, timeline: control.timeline })
    }

    fn check_not_past(&self, position: Lsn, what: &str) -> Result<()> {
        let target = self.target()?;
        if position <= target {
            return Ok(());
        }
        let why = format!("{what} up to {position}, past {target}, where the slots begin");
        Err(self.must_be_made_anew(&why)?)
    }

    fn check_history(&self, timeline: u32) -> Result<history::Fork> {
        let fork = history::read(self.data_dir()?, timeline).map_err(|e| {
            StepError::new(format!(
                "node {} accepts writes, and how it left its upstream cannot be read ({}); it must be made anew: \
                 cancel, then start again",
                self.0.node.as_ref().map(|n| n.name.as_str()).unwrap_or_default(),
                e.message
            ))
        })?;
        match fork.check_stopped_at(self.target()?) {
            Ok(()) => Ok(fork),
            Err(why) => Err(self.must_be_made_anew(&why)?),
        }
    }

    /// Whether a running server in recovery was started by this step, for this target.
    async fn is_bound(&self, session: &Session) -> Result<bool> {
        let sql = "SELECT current_setting('recovery_target_lsn'), current_setting('recovery_target_inclusive'), \
                   current_setting('recovery_target_action')";
        let row = session.query_one(sql, &[]).await.doing(|| "reading the recovery target")?;
        let target = row.get::<_, &str>(0).parse::<Lsn>();
        let (inclusive, action): (&str, &str) = (row.get(1), row.get(2));
        Ok(target == Ok(self.target()?) && inclusive == "off" && action == "promote")
    }

    /// Whether a promoted server was started by this step: nothing that writes or archives may run in it.
    async fn is_guarded(&self) -> Result<bool> {
        let session = sql::connect_any(self.node()?).await?;
        let sql = "SELECT current_setting('max_logical_replication_workers') = '0' \
                   AND current_setting('archive_mode') = 'off' AND current_setting('synchronous_standby_names') = ''";
        Ok(session.query_one(sql, &[]).await.doing(|| "reading how the new leader was started")?.get(0))
    }

    async fn start(&self, cx: &Context) -> Result<()> {
        let (node, upstream) = (self.node()?, self.upstream()?);
        standby::remove_recovery_signal(node)?;
        let hba = settings::write_fence(cx, node).await?;
        let settings = settings::of(node, upstream, &self.0.slot, self.target()?, hba.as_deref()).await?;
        let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
        ctl::manager(cx, node).launch(&settings).await
    }

    async fn wait_until_promoted(&self, cx: &Context, log: &ServerLog) -> Result<()> {
        let (node, target) = (self.node()?, self.target()?);
        let manager = ctl::manager(cx, node);
        let mut session: Option<Session> = None;
        let (mut from, mut last) = (None, Lsn::INVALID);
        let mut silence = Wait::of(SILENCE);
        loop {
            if manager.state().await? == ServerState::Stopped {
                return Err(StepError::new(format!(
                    "the new leader {} ended while it recovered to {target}; its log says why, repair that and retry",
                    node.name
                ))
                .with_evidence(log.evidence(20)));
            }
            if session.as_ref().is_none_or(|session| session.is_closed()) {
                session = sql::connect_any(node).await.ok();
            }
            if let Some(session) = &session
                && let Ok(in_recovery) = sql::in_recovery(session).await
            {
                if !in_recovery {
                    return Ok(());
                }
                // Between the two questions it may have been promoted: then there is simply another round.
                let now = standby::receiver(session).await.unwrap_or_default();
                if now.replayed > last {
                    last = now.replayed;
                    silence.restart();
                }
                let from = *from.get_or_insert(last);
                cx.report.progress(last.since(from), target.since(from), "bytes", "recovering to the slots");
            }
            if !silence.again().await {
                let why = if last >= target {
                    "it has everything before the target, but the old leader sends no further record, before which it \
                     could stop; let something be written there (SELECT pg_logical_emit_message(true, 'pgleap', ''))"
                } else {
                    "nothing arrives from its upstream; its log says why, repair that"
                };
                return Err(StepError::new(format!(
                    "the new leader {} does not get from {last} to {target}: {why}, then retry",
                    node.name
                ))
                .with_evidence(log.evidence(20)));
            }
        }
    }
}

#[async_trait]
impl Step for RecoverToStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = self.node()?;
        cx.confine(&node.data_dir)?;
        match self.place(cx).await? {
            Place::There { running: true, .. } if self.is_guarded().await? => {
                Ok(Probe::Done(self.verify(cx).await?))
            }
            // Promoted, but stopped since, or started by something else: it has to run, and guarded.
            Place::There { .. } => Ok(Probe::Ready),
            Place::Before { .. } => {
                crate::pg::settings::check_data_directory(node).await?;
                let upstream = upstream::identify(node, self.upstream()?).await?;
                let own = control::read(node, self.data_dir()?).await?.system_identifier;
                if upstream.system_identifier != own {
                    return Err(StepError::new(format!(
                        "node {} (system identifier {own}) is no standby of {} (system identifier {}); \
                         cancel, correct the fleet file and apply it, start again",
                        node.name,
                        upstream::place(self.upstream()?),
                        upstream.system_identifier
                    )));
                }
                Ok(Probe::Ready)
            }
        }
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        let log = ServerLog::from_now(cx, node);
        let mut place = self.place(cx).await?;
        if place == (Place::Before { running: true }) {
            let session = sql::connect_any(node).await?;
            if !self.is_bound(&session).await? {
                // It follows its upstream without a target: stop it, and look again how far it got.
                drop(session);
                ctl::manager(cx, node).stop(StopMode::Fast).await?;
                place = self.place(cx).await?;
            }
        }
        if matches!(place, Place::There { running: true, .. }) && !self.is_guarded().await? {
            cx.report.log("pgleap", "something else started the new leader: restarted without its workers");
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
            place = self.place(cx).await?;
        }
        if matches!(place, Place::Before { running: false } | Place::There { running: false, .. }) {
            self.start(cx).await?;
        }
        self.wait_until_promoted(cx, &log).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let Place::There { running: true, timeline } = self.place(cx).await? else {
            return Err(StepError::new(format!(
                "node {} is not promoted yet, or has stopped; its log says more, then retry",
                self.node()?.name
            )));
        };
        let fork = self.check_history(timeline)?;
        let target = self.target()?;
        let evidence = format!(
            "timeline {timeline} left {} at {}: {} (target {target})",
            fork.parent, fork.switch, fork.reason
        );
        cx.report.log("pgleap", evidence.clone());
        let recovered = RecoveredOutput { lsn: target.0, timeline, evidence };
        Ok(Output { kind: Some(output::Kind::Recovered(recovered)) })
    }

    /// A promotion cannot be taken back: what pgleap made is removed by the step that made it. An adopted node is left,
    /// stopped, because a second writable leader must not stay up.
    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        settings::remove_fence(cx, node)?;
        let manager = ctl::manager(cx, node);
        if manager.state().await? != ServerState::Stopped {
            manager.stop(StopMode::Fast).await?;
        }
        let data_dir = self.data_dir()?;
        let left_standby = data_dir.join("standby.signal").exists();
        if data_dir.exists() && !left_standby && !marker::made_by_operation(cx, data_dir)? {
            cx.report.log(
                "pgleap",
                format!(
                    "node {} was adopted and has been promoted: it is left stopped in {}, and must be made anew before \
                     it can follow the old cluster again",
                    node.name, node.data_dir
                ),
            );
        }
        Ok(())
    }
}

/// File with the fenced client authentication of a node.
fn fence_path(cx: &Context, node: &Node) -> PathBuf {
    cx.config.state_dir.join("hba").join(format!("{}-{}.conf", cx.operation, node.name))
}
