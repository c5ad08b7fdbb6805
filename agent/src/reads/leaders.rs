//! Which side takes writes, found by asking the agents of both leaders again and again over connections that stay open: once for
//! all nodes of an operation on this host.
//!
//! Decides nothing: the fence in the databases does. Exactly one leader that runs, is a primary and lets clients in is the
//! writer; when both do, that is unknown; when none does (the moment of a switchover) the last one is believed for as long as a sample
//! may be old.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgleap_proto::Lsn;
use pgleap_proto::agent::peer_client::PeerClient;
use pgleap_proto::agent::{LeadershipReply, LeadershipRequest};
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::{Cluster, Leader};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

use super::clock::now_us;
use super::lag::{Side, Trail, Writer};
use crate::config::AgentConfig;
use crate::error::{Result, StepError};
use crate::peer_client;

/// What was seen longer ago than this is not known any more.
pub const STALE_US: i64 = 3_000_000;
/// How often both are asked: each answer costs the leader a look at its fence.
const ASK: Duration = Duration::from_secs(1);
/// Longest wait for one answer, the connection included.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one leader's agent said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    /// When it came, on this agent's clock.
    at_us: i64,
    /// It runs, is a primary and lets clients in.
    open: bool,
    lsn: Lsn,
    /// Its clock minus this agent's, taken to be read half way between question and answer.
    offset_us: i64,
}

impl Answer {
    fn of(reply: &LeadershipReply, asked_us: i64, heard_us: i64) -> Answer {
        Answer {
            at_us: heard_us,
            open: reply.running && !reply.in_recovery && !reply.fenced,
            lsn: Lsn(reply.lsn),
            offset_us: reply.now_us - (asked_us + (heard_us - asked_us) / 2),
        }
    }
}

/// One leader as it was heard of.
#[derive(Debug, Clone, Default)]
struct Track {
    newest: Option<Answer>,
    trail: Trail,
    /// Why the last question had no answer.
    error: String,
}

/// What is known of both leaders. Pure.
#[derive(Debug, Clone, Default)]
struct Knowledge {
    old: Track,
    new: Track,
    last: Option<(Side, i64)>,
}

impl Knowledge {
    fn track(&self, side: Side) -> &Track {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }

    fn track_mut(&mut self, side: Side) -> &mut Track {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }

    fn hear(&mut self, side: Side, answer: Result<Answer, String>) {
        let track = self.track_mut(side);
        match answer {
            Ok(answer) => {
                if answer.lsn.is_valid() {
                    track.trail.push(answer.at_us, answer.lsn);
                }
                track.error.clear();
                track.newest = Some(answer);
            }
            Err(error) => track.error = error,
        }
    }

    fn fresh(&self, side: Side, now_us: i64) -> Option<Answer> {
        self.track(side).newest.filter(|answer| now_us - answer.at_us <= STALE_US)
    }

    /// A time of the side's clock on this agent's.
    fn local_us(&self, side: Side, time_us: i64) -> Option<i64> {
        // Clocks drift slowly: an offset is good for longer than an answer, so that the row of a side whose host is gone still counts.
        self.track(side).newest.map(|answer| time_us - answer.offset_us)
    }

    /// The side that takes writes.
    ///
    /// # Errors
    /// Why it is unknown.
    fn writer(&mut self, now_us: i64) -> Result<Writer, String> {
        let open = |side| self.fresh(side, now_us).is_some_and(|answer| answer.open);
        let side = match (open(Side::Old), open(Side::New)) {
            (true, true) => {
                self.last = None;
                return Err("both leaders let clients in, so which side takes writes is unknown".to_owned());
            }
            (true, false) => Some(Side::Old),
            (false, true) => Some(Side::New),
            (false, false) => None,
        };
        if let Some(side) = side {
            self.last = Some((side, now_us));
        }
        let (side, since) = self.last.ok_or_else(|| self.nobody(now_us))?;
        if now_us - since > STALE_US {
            return Err(self.nobody(now_us));
        }
        let track = self.track(side);
        let lsn = track.newest.map(|answer| answer.lsn).filter(|lsn| lsn.is_valid());
        let lsn = lsn.ok_or_else(|| format!("the WAL position of the {} leader is unknown", side.name()))?;
        Ok(Writer { side, lsn, trail: track.trail.clone() })
    }

    fn nobody(&self, now_us: i64) -> String {
        let told = |side: Side| match self.fresh(side, now_us) {
            Some(_) => format!("the {} leader is fenced, in recovery or stopped", side.name()),
            None if self.track(side).error.is_empty() => {
                format!("the {} leader's agent has not answered yet", side.name())
            }
            None => format!("the {} leader's agent: {}", side.name(), self.track(side).error),
        };
        format!("which side takes writes is unknown: {}; {}", told(Side::Old), told(Side::New))
    }
}

/// Asks one leader's agent.
struct Asker {
    leader: Leader,
    tls: TlsIdentity,
    /// It is on this agent's own host: no connection is needed.
    own: bool,
    client: Option<PeerClient<Channel>>,
}

impl Asker {
    fn new(leader: Leader, config: &AgentConfig, tls: &TlsIdentity) -> Asker {
        let own = leader.node.as_ref().is_some_and(|node| node.host == config.host);
        Asker { leader, tls: tls.clone(), own, client: None }
    }

    async fn ask(&mut self) -> Result<Answer, String> {
        let answered = tokio::time::timeout(PATIENCE, self.exchange()).await;
        let answered = answered.unwrap_or_else(|_| {
            Err(StepError::new(format!("{} gave no answer in {} s", self.leader.agent, PATIENCE.as_secs())))
        });
        answered.map_err(|error| {
            self.client = None;
            error.message
        })
    }

    async fn exchange(&mut self) -> Result<Answer> {
        let request = LeadershipRequest { node: self.leader.node.clone() };
        let host = self.leader.node.as_ref().map(|node| node.host.clone()).unwrap_or_default();
        if self.own {
            let asked = now_us();
            let reply = crate::side::leadership(request).await?;
            return Ok(Answer::of(&reply, asked, now_us()));
        }
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let client = peer_client::connect(&self.leader.agent, &host, &self.tls).await?;
                self.client.insert(client)
            }
        };
        let asked = now_us();
        let reply = client.leadership(request).await;
        let reply =
            reply.map_err(|status| peer_client::refused(&host, "asking who takes writes", &status))?;
        Ok(Answer::of(reply.get_ref(), asked, now_us()))
    }
}

/// What is known of both leaders of an operation, kept up by a task until this is dropped.
#[derive(Debug)]
pub struct Leaders {
    known: Arc<Mutex<Knowledge>>,
    _asking: DropGuard,
}

impl Leaders {
    /// Begins to ask.
    pub fn ask(cluster: &Cluster, config: &AgentConfig, tls: &TlsIdentity) -> Leaders {
        let asker = |leader: &Option<Leader>| Asker::new(leader.clone().unwrap_or_default(), config, tls);
        let (mut old, mut new) = (asker(&cluster.old_leader), asker(&cluster.new_leader));
        let known: Arc<Mutex<Knowledge>> = Arc::default();
        let heard = known.clone();
        let asking = CancellationToken::new();
        let ended = asking.clone();
        let asked = async move {
            let mut ticks = interval(ASK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let (old, new) = tokio::join!(old.ask(), new.ask());
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.hear(Side::Old, old);
                heard.hear(Side::New, new);
            }
        };
        tokio::spawn(async move { ended.run_until_cancelled(asked).await });
        Leaders { known, _asking: asking.drop_guard() }
    }

    /// Nobody is asked.
    pub fn nobody() -> Leaders {
        Leaders { known: Arc::default(), _asking: CancellationToken::new().drop_guard() }
    }

    /// A time of the side's clock on this agent's; none while that clock is unknown.
    pub fn local_us(&self, side: Side, time_us: i64) -> Option<i64> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).local_us(side, time_us)
    }

    /// The side that takes writes.
    ///
    /// # Errors
    /// Why it is unknown.
    pub fn writer(&self, now_us: i64) -> Result<Writer, String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).writer(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(at_us: i64, open: bool, lsn: u64) -> Result<Answer, String> {
        Ok(Answer { at_us, open, lsn: Lsn(lsn), offset_us: 0 })
    }

    #[test]
    fn exactly_one_open_leader_is_the_writer() {
        let mut known = Knowledge::default();
        assert!(known.writer(0).unwrap_err().contains("has not answered yet"));
        known.hear(Side::Old, answer(0, true, 5));
        assert_eq!(known.writer(0).unwrap().side, Side::Old, "the other one's host may be gone for good");
        known.hear(Side::New, answer(0, true, 9));
        assert!(known.writer(0).unwrap_err().contains("both"));
        known.hear(Side::Old, answer(1, false, 6));
        let writer = known.writer(1).unwrap();
        assert_eq!((writer.side, writer.lsn), (Side::New, Lsn(9)));
    }

    #[test]
    fn the_moment_of_a_switchover_is_bridged_and_no_more() {
        let mut known = Knowledge::default();
        known.hear(Side::Old, answer(0, true, 5));
        known.writer(0).unwrap();
        known.hear(Side::Old, answer(1_000, false, 6));
        known.hear(Side::New, answer(1_000, false, 9));
        assert_eq!(known.writer(1_000).unwrap().side, Side::Old);
        let later = STALE_US + 1;
        known.hear(Side::Old, answer(later, false, 6));
        assert!(known.writer(later).unwrap_err().contains("fenced"));
        // Nobody open after both were: nothing is left to believe.
        known.hear(Side::Old, answer(later, true, 6));
        known.hear(Side::New, answer(later, true, 6));
        known.writer(later).unwrap_err();
        known.hear(Side::Old, answer(later, false, 6));
        known.hear(Side::New, answer(later, false, 6));
        known.writer(later).unwrap_err();
    }

    #[test]
    fn silence_becomes_unknown_with_its_reason() {
        let mut known = Knowledge::default();
        known.hear(Side::Old, answer(0, true, 5));
        known.hear(Side::Old, Err("connection refused".into()));
        assert_eq!(known.writer(STALE_US).unwrap().side, Side::Old);
        // The last look that knew it was at STALE_US.
        let why = known.writer(2 * STALE_US + 1).unwrap_err();
        assert!(why.contains("connection refused"), "{why}");
    }

    #[test]
    fn a_clock_is_compared_half_way() {
        let reply = LeadershipReply { now_us: 10_500, running: true, ..Default::default() };
        let answer = Answer::of(&reply, 1_000, 2_000);
        assert_eq!((answer.offset_us, answer.at_us, answer.open), (9_000, 2_000, true));
        let mut known = Knowledge::default();
        known.hear(Side::New, Ok(answer));
        assert_eq!(known.local_us(Side::New, 10_500), Some(1_500));
        assert_eq!(known.local_us(Side::Old, 10_500), None);
        let fenced = LeadershipReply { fenced: true, ..reply };
        assert!(!Answer::of(&fenced, 0, 0).open);
    }
}
