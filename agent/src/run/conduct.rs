//! One run from its start to its durable outcome, and the two ways it is cut off: an undo, and the agent's end.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use pgleap_proto::agent::{Blocked, Done, Finished, finished};
use pgleap_proto::failpoint;
use pgleap_proto::step::Output;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::{Run, Runner, failed};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::redact::redacted;
use crate::step::{Probe, Step};

/// How long the short programs of a cancelled step may take to end by themselves.
const GRACE: Duration = Duration::from_secs(10);
/// Lines kept as evidence when the error brings none.
const EVIDENCE: usize = 20;

/// The step itself: probe, act, verify; or undo. An earlier run is cut off before.
pub(super) async fn perform(earlier: Option<Run>, step: Box<dyn Step>, cx: Context, undo: bool) -> Finished {
    if let Some(earlier) = earlier {
        cancel(earlier).await;
    }
    let result = if undo { take_back(&*step, &cx).await } else { bring_about(&*step, &cx).await };
    match result {
        Ok(outcome) => Finished { outcome: Some(outcome) },
        Err(StepError { message, evidence, .. }) => {
            let evidence = if evidence.is_empty() { cx.report.last_lines(EVIDENCE) } else { evidence };
            failed(message, evidence)
        }
    }
}

async fn bring_about(step: &dyn Step, cx: &Context) -> Result<finished::Outcome> {
    let done = |output: Output, already| {
        finished::Outcome::Done(Done { output: output.kind.is_some().then_some(output), already })
    };
    match step.probe(cx).await? {
        Probe::Done(output) => Ok(done(output, true)),
        Probe::Blocked(reason) => Ok(finished::Outcome::Blocked(Blocked { reason })),
        Probe::Ready => {
            let acting = failpoint::during(failpoint::step_place(false, 2), &cx.step, step.act(cx));
            acting.await.doing(|| "acting")??;
            failpoint::reach_of(failpoint::step_place(false, 3), &cx.step).await.doing(|| "acting")?;
            Ok(done(step.verify(cx).await?, false))
        }
    }
}

async fn take_back(step: &dyn Step, cx: &Context) -> Result<finished::Outcome> {
    // Jobs of a run that an earlier agent process started would go on acting beside the undo.
    cx.jobs.stop_all().await?;
    let undoing = failpoint::during(failpoint::step_place(true, 2), &cx.step, step.undo(cx));
    undoing.await.doing(|| "undoing")??;
    failpoint::reach_of(failpoint::step_place(true, 3), &cx.step).await.doing(|| "undoing")?;
    Ok(finished::Outcome::Done(Done { output: None, already: false }))
}

/// Waits for the step's end, makes the outcome durable, and tells it. A run that was cut off has no outcome of its
/// own any more, not even when it ended at that very moment: the journal belongs to the undo.
pub(super) async fn conduct(
    runner: Arc<Runner>,
    cx: Context,
    (id, undo): (u64, bool),
    task: JoinHandle<Finished>,
    sender: watch::Sender<Option<Finished>>,
) {
    let outcome = match task.await {
        Ok(outcome) => Some(outcome),
        Err(error) if error.is_cancelled() => None,
        Err(error) => Some(panicked(&cx, error)),
    };
    match outcome.as_ref().and_then(|finished| finished.outcome.as_ref()) {
        Some(finished::Outcome::Done(Done { already, .. })) => tracing::info!(already, "done"),
        Some(finished::Outcome::Blocked(why)) => tracing::info!("blocked: {}", why.reason),
        Some(finished::Outcome::Failed(why)) => tracing::warn!("failed: {}", redacted(&why.message)),
        None => tracing::info!("cut off"),
    }
    let outcome = match outcome {
        Some(outcome) => runner.finish(&cx, id, outcome).await,
        None => None,
    };
    if outcome.is_some() {
        // What is recorded is told, whatever a test wants.
        let _ = failpoint::reach_of(failpoint::step_place(undo, 4), &cx.step).await;
    }
    let cut_off = || failed(format!("step {} was cut off, because it is to be undone", cx.step), Vec::new());
    sender.send_replace(Some(outcome.unwrap_or_else(cut_off)));
}

fn panicked(cx: &Context, error: JoinError) -> Finished {
    let payload: Option<Box<dyn Any + Send>> = error.try_into_panic().ok();
    let text = payload.as_ref().and_then(|p| {
        p.downcast_ref::<String>().map(String::as_str).or_else(|| p.downcast_ref::<&str>().copied())
    });
    failed(
        format!(
            "step {} broke off by a defect in pgleap ({}); what it had done stays and is looked at when the step is \
             started again; please report it",
            cx.step,
            text.unwrap_or("panic without a message")
        ),
        cx.report.last_lines(EVIDENCE),
    )
}

/// Cuts a run off for good, so that its undo can begin: nothing of it acts any more when this returns, but for jobs,
/// which the undo stops.
async fn cancel(run: Run) {
    run.report.log("pgleap", "cut off: the step is to be undone");
    end(run).await;
}

/// Cuts a run off because the agent ends. Jobs go on.
pub(super) async fn abandon(run: Run) {
    // Without its conductor nobody tells an outcome: streams end with an error, and the coordinator asks again.
    run.conductor.abort();
    end(run).await;
}

async fn end(run: Run) {
    run.step.abort();
    // Nothing is ever sent: the sender goes with the step's future.
    let _ = run.ended.await;
    run.in_flight.drain(GRACE).await;
}
