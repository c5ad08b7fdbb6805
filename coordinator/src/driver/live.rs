//! What running steps say, in memory only: progress, tools' lines, and what a step waits for. It is for people;
//! nothing is decided by it, and a restart forgets it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgleap_proto::agent::{LogLine, Progress};
use pgleap_proto::traffic::{ObserveReply, RouteReadsReply};
use tokio::sync::broadcast;

use super::replay::Replay;

/// Lines kept for each step; at least as many as an agent repeats to those who join.
const LINES_KEPT: usize = 400;
/// The rate for an estimate is taken over this stretch.
const WINDOW: Duration = Duration::from_secs(60);

/// One line of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveLine {
    /// Operation id.
    pub operation: String,
    /// Step id.
    pub step: String,
    /// When it arrived here.
    pub at: Timestamp,
    /// The line and its tool.
    pub log: LogLine,
}

/// What is known of a running step besides the replicated state.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LiveStatus {
    /// Newest progress.
    pub progress: Option<Progress>,
    /// Seconds to the end at the present rate; none when unknown.
    pub remaining: Option<f64>,
    /// Why it does not move; none while it does.
    pub waiting: Option<String>,
}

#[derive(Debug, Default)]
struct LiveStep {
    progress: Option<Progress>,
    samples: VecDeque<(Instant, u64)>,
    lines: VecDeque<LiveLine>,
    replay: Replay,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Timestamp,
    reason: String,
}

/// What is known of an operation's traffic besides the replicated state.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrafficNow {
    /// Who a switchover waits for, by name.
    pub waiting: BTreeMap<String, TrafficWait>,
    /// Latest answer of each balancer's agent, or why there is none.
    pub balancers: BTreeMap<String, Result<RouteReadsReply, String>>,
    /// What each node's agent said of it, or why it said nothing.
    pub nodes: BTreeMap<String, Result<ObserveReply, String>>,
}

/// Something that does not move.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficWait {
    /// Since when.
    pub since: Timestamp,
    /// Who, where, what and why.
    pub why: String,
}

type Key = (String, String);

/// Shared between the driver, which writes, and the API, which reads.
#[derive(Debug)]
pub struct Live {
    steps: Mutex<BTreeMap<Key, LiveStep>>,
    traffic: Mutex<BTreeMap<String, TrafficNow>>,
    lines: broadcast::Sender<LiveLine>,
}

impl Default for Live {
    fn default() -> Self {
        Live { steps: Mutex::default(), traffic: Mutex::default(), lines: broadcast::Sender::new(1024) }
    }
}

impl Live {
    /// What is known of a step.
    pub fn status(&self, operation: &str, step: &str) -> LiveStatus {
        let steps = self.lock();
        let Some(step) = steps.get(&(operation.to_owned(), step.to_owned())) else {
            return LiveStatus::default();
        };
        let total = step.progress.as_ref().map_or(0, |progress| progress.total);
        LiveStatus {
            progress: step.progress.clone(),
            remaining: remaining(&step.samples, total),
            waiting: step.waiting.as_ref().map(|waiting| waiting.reason.clone()),
        }
    }

    /// The lines kept (of one operation, or of all) in order of arrival, and a receiver of those to come (of all),
    /// without a gap between them.
    pub fn lines(&self, only: Option<&str>) -> (Vec<LiveLine>, broadcast::Receiver<LiveLine>) {
        let steps = self.lock();
        let receiver = self.lines.subscribe();
        let shown = steps.iter().filter(|((of, _), _)| only.is_none_or(|only| only == of));
        let mut lines: Vec<LiveLine> = shown.flat_map(|(_, step)| step.lines.iter().cloned()).collect();
        lines.sort_by_key(|line| line.at);
        (lines, receiver)
    }

    /// The step's run was joined: it moves again, and its newest lines will come once more.
    pub(super) fn joined(&self, operation: &str, step: &str) {
        self.with(operation, step, |live| {
            live.waiting = None;
            live.replay = Replay::new(live.lines.iter().map(|line| line.log.clone()).collect());
        });
    }

    /// Progress of a run.
    pub(super) fn progress(&self, operation: &str, step: &str, progress: Progress) {
        self.with(operation, step, |live| {
            let same = live.progress.as_ref().is_some_and(|before| {
                before.total == progress.total && before.unit == progress.unit && before.done <= progress.done
            });
            if !same {
                live.samples.clear();
            }
            let now = Instant::now();
            live.samples.push_back((now, progress.done));
            while live.samples.len() > 2 && live.samples.front().is_some_and(|(at, _)| now - *at > WINDOW) {
                live.samples.pop_front();
            }
            live.progress = Some(progress);
        });
    }

    /// A line of a run.
    pub(super) fn line(&self, operation: &str, step: &str, log: LogLine) {
        self.with(operation, step, |live| {
            let news = live.replay.push(log);
            self.keep(operation, step, live, news);
        });
    }

    /// The run ended or broke off.
    pub(super) fn left(&self, operation: &str, step: &str) {
        self.with(operation, step, |live| {
            let news = live.replay.flush();
            self.keep(operation, step, live, news);
            (live.progress, live.waiting) = (None, None);
            live.samples.clear();
        });
    }

    /// The step cannot go on; `reason` gets the time since when.
    pub(super) fn waits(&self, operation: &str, step: &str, reason: impl FnOnce(Timestamp) -> String) {
        self.with(operation, step, |live| {
            let since = live.waiting.as_ref().map_or_else(Timestamp::now, |waiting| waiting.since);
            live.waiting = Some(Waiting { since, reason: reason(since) });
        });
    }

    /// What is known of the traffic of an operation.
    pub fn traffic_now(&self, operation: &str) -> TrafficNow {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.get(operation).cloned().unwrap_or_default()
    }

    /// Changes what is known of the traffic of an operation.
    pub(super) fn traffic(&self, operation: &str, change: impl FnOnce(&mut TrafficNow)) {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        change(traffic.entry(operation.to_owned()).or_default());
    }

    /// A balancer answered.
    pub(super) fn reads(&self, operation: &str, balancer: &str, reply: RouteReadsReply) {
        self.traffic(operation, |now| {
            now.balancers.insert(balancer.to_owned(), Ok(reply));
        });
    }

    /// The operation is over.
    pub(super) fn forget(&self, operation: &str) {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).remove(operation);
        self.lock().retain(|(of, _), _| of != operation);
    }

    /// The operations something is kept of.
    pub(super) fn operations(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.lock().keys().map(|(operation, _)| operation.clone()).collect();
        ids.dedup();
        ids.extend(self.traffic.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned());
        ids
    }

    fn keep(&self, operation: &str, step: &str, live: &mut LiveStep, news: Vec<LogLine>) {
        for log in news {
            let (operation, step) = (operation.to_owned(), step.to_owned());
            let line = LiveLine { operation, step, at: Timestamp::now(), log };
            if live.lines.len() >= LINES_KEPT {
                live.lines.pop_front();
            }
            live.lines.push_back(line.clone());
            // Nobody listening is fine.
            let _ = self.lines.send(line);
        }
    }

    fn with(&self, operation: &str, step: &str, change: impl FnOnce(&mut LiveStep)) {
        change(self.lock().entry((operation.to_owned(), step.to_owned())).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, LiveStep>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds to go at the rate of the samples; none when nothing moves or there is too little to tell.
fn remaining(samples: &VecDeque<(Instant, u64)>, total: u64) -> Option<f64> {
    let ((first_at, first), (last_at, last)) = (samples.front()?, samples.back()?);
    let seconds = last_at.duration_since(*first_at).as_secs_f64();
    let done = last.saturating_sub(*first);
    if total == 0 || done == 0 || seconds < 0.5 {
        return None;
    }
    Some(total.saturating_sub(*last) as f64 * seconds / done as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_rate() {
        let start = Instant::now();
        let at = |seconds: u64, done: u64| (start + Duration::from_secs(seconds), done);
        assert_eq!(remaining(&[at(0, 0), at(10, 100)].into(), 300), Some(20.0));
        assert_eq!(remaining(&[at(0, 50), at(10, 50)].into(), 300), None);
        assert_eq!(remaining(&[at(0, 50)].into(), 300), None);
        assert_eq!(remaining(&[at(0, 0), at(10, 100)].into(), 0), None);
    }

    #[test]
    fn lines_repeated_on_a_second_join_are_kept_once() {
        let live = Live::default();
        let line = |n: u32| LogLine { source: "rsync".into(), line: n.to_string() };
        live.joined("o", "s");
        (0..3).for_each(|n| live.line("o", "s", line(n)));
        live.joined("o", "s");
        (1..5).for_each(|n| live.line("o", "s", line(n)));
        live.left("o", "s");
        let kept: Vec<String> = live.lines(None).0.into_iter().map(|line| line.log.line).collect();
        assert_eq!(kept, ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn the_wait_keeps_its_beginning() {
        let live = Live::default();
        live.waits("o", "s", |since| since.to_string());
        let first = live.status("o", "s").waiting;
        live.waits("o", "s", |since| since.to_string());
        assert_eq!(live.status("o", "s").waiting, first);
    }
}
