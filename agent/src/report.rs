//! What a running step tells whoever watches: progress and the tools' own lines.

use std::sync::{Arc, Mutex, PoisonError};

use pgleap_proto::agent::{LogLine, Progress, StepEvent, step_event};
use tokio::sync::broadcast;

use crate::redact::redacted;

/// Lines kept for watchers that join late, and for the evidence of a failure.
const RECENT: usize = 200;

/// Hands a step's events to every stream that watches it. Cheap to clone. Never blocks the step: a watcher
/// that is too slow loses the oldest events.
#[derive(Clone, Debug)]
pub struct Reporter {
    sender: broadcast::Sender<StepEvent>,
    recent: Arc<Mutex<Recent>>,
}

#[derive(Debug, Default)]
struct Recent {
    lines: std::collections::VecDeque<LogLine>,
    progress: Option<Progress>,
}

impl Default for Reporter {
    fn default() -> Self {
        Reporter { sender: broadcast::Sender::new(1024), recent: Arc::default() }
    }
}

impl Reporter {
    /// How far the step is. `total` 0 means unknown.
    pub fn progress(&self, done: u64, total: u64, unit: &str, message: impl Into<String>) {
        let progress = Progress { done, total, unit: unit.to_owned(), message: message.into() };
        // Sent under the lock: a watcher that comes now has the event either among the recent ones or as the next.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.progress = Some(progress.clone());
        self.send(step_event::Kind::Progress(progress));
    }

    /// A line that a tool printed, or (source `pgleap`) that the step has to say. Secrets in it are masked.
    pub fn log(&self, source: &str, line: impl Into<String>) {
        let line = LogLine { source: source.to_owned(), line: redacted(line) };
        tracing::info!(source, "{}", line.line);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.lines.len() == RECENT {
            recent.lines.pop_front();
        }
        recent.lines.push_back(line.clone());
        self.send(step_event::Kind::Log(line));
    }

    /// The newest events so far, and a receiver of those to come, with neither a gap nor an overlap between them.
    pub fn watch(&self) -> (Vec<StepEvent>, broadcast::Receiver<StepEvent>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.sender.subscribe();
        let lines = recent.lines.iter().cloned().map(step_event::Kind::Log);
        let progress = recent.progress.iter().cloned().map(step_event::Kind::Progress);
        (lines.chain(progress).map(|kind| StepEvent { kind: Some(kind), generation: 0 }).collect(), receiver)
    }

    /// The last `count` lines, as evidence.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = recent.lines.len().saturating_sub(count);
        recent.lines.iter().skip(skip).map(|l| format!("{}: {}", l.source, l.line)).collect()
    }

    fn send(&self, kind: step_event::Kind) {
        // Nobody watching is fine: the step goes on.
        let _ = self.sender.send(StepEvent { kind: Some(kind), generation: 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_watcher_gets_the_newest_lines_once_and_then_what_comes() {
        let report = Reporter::default();
        for n in 0..RECENT + 5 {
            report.log("tool", format!("line {n}"));
        }
        report.progress(1, 2, "files", "");
        report.progress(2, 2, "files", "");
        let (recent, mut receiver) = report.watch();
        assert_eq!(recent.len(), RECENT + 1);
        let first = LogLine { source: "tool".into(), line: "line 5".into() };
        assert_eq!(recent[0].kind, Some(step_event::Kind::Log(first)));
        assert!(matches!(&recent[RECENT].kind, Some(step_event::Kind::Progress(p)) if p.done == 2));
        assert!(receiver.try_recv().is_err());
        report.log("tool", "new");
        assert!(
            matches!(receiver.try_recv().unwrap().kind, Some(step_event::Kind::Log(l)) if l.line == "new")
        );
        assert_eq!(report.last_lines(1), ["tool: new"]);
    }
}
