//! What a health endpoint answers for a node, from its newest sample alone. Pure. A sample that is too old is no sample: what
//! is unknown never serves.

use serde_json::{Value, json};

use super::bounds::Bounds;
use super::lag::Side;
use super::leaders::STALE_US;
use super::sampler::Sample;

/// What is asked of a node, in the manner of Patroni's endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Does it take writes?
    Primary,
    /// Does it serve reads that are not older than the bounds?
    Replica,
    /// Either.
    ReadOnly,
    /// Does it run?
    Health,
    /// How far is it behind? Always answered.
    Lag,
}

impl Question {
    /// From the last part of a path.
    pub fn of(path: &str) -> Option<Question> {
        Some(match path {
            "" | "primary" => Question::Primary,
            "replica" => Question::Replica,
            "read-only" => Question::ReadOnly,
            "health" => Question::Health,
            "lag" => Question::Lag,
            _ => return None,
        })
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// 200, else 503.
    pub fine: bool,
    /// It runs as far as is known, so that sessions it has may go on.
    pub alive: bool,
    /// Why not.
    pub reason: String,
    /// Figures for whoever looks.
    pub body: Value,
}

/// A kept node as the endpoints see it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its name.
    pub node: &'a str,
    /// Of which side it is.
    pub side: Side,
    /// The newest sample.
    pub sample: Option<&'a Sample>,
}

/// Judges.
pub fn judge(question: Question, seen: Seen<'_>, bounds: Bounds, now_us: i64) -> Verdict {
    let fresh = seen.sample.filter(|sample| now_us - sample.at_us <= STALE_US);
    let alive = fresh.is_some_and(|sample| sample.server.is_ok());
    let answer = match fresh {
        None => Err(match seen.sample {
            Some(_) => "the newest look at the node is too old".to_owned(),
            None => "the node was not looked at yet".to_owned(),
        }),
        Some(sample) => match question {
            Question::Lag => Ok(()),
            Question::Health => sample.server.as_ref().map(drop).map_err(Clone::clone),
            Question::Primary => primary(sample, seen.side),
            Question::Replica => replica(sample, bounds, now_us),
            Question::ReadOnly => primary(sample, seen.side).or_else(|primary| {
                replica(sample, bounds, now_us).map_err(|why| format!("{primary}; {why}"))
            }),
        },
    };
    let fine = answer.is_ok() || question == Question::Lag;
    let reason = answer.err().unwrap_or_default();
    let body = body(seen, fresh, &reason, now_us);
    Verdict { fine, alive, reason, body }
}

fn primary(sample: &Sample, side: Side) -> Result<(), String> {
    let server = sample.server.as_ref().map_err(Clone::clone)?;
    if server.in_recovery {
        return Err("it is in recovery".to_owned());
    }
    match sample.fenced {
        Some(false) => {}
        Some(true) => return Err("it is fenced: clients are kept out".to_owned()),
        None => return Err("whether it is fenced is unknown".to_owned()),
    }
    match sample.writer {
        Some(writer) if writer == side => Ok(()),
        Some(writer) => Err(format!("the {} side takes writes", writer.name())),
        None => {
            Err(sample.lag.clone().err().unwrap_or_else(|| "which side takes writes is unknown".to_owned()))
        }
    }
}

fn replica(sample: &Sample, bounds: Bounds, now_us: i64) -> Result<(), String> {
    let server = sample.server.as_ref().map_err(Clone::clone)?;
    if sample.fenced == Some(true) {
        return Err("it is fenced: clients are kept out".to_owned());
    }
    if !server.in_recovery && server.following.is_empty() {
        return Err("it is neither in recovery nor following the other side".to_owned());
    }
    let lag = sample.lag.clone().map_err(|why| format!("its lag is unknown: {why}"))?;
    if let Some(most) = bounds.bytes
        && lag.bytes > most
    {
        return Err(format!("it is {} bytes behind, more than {most}", lag.bytes));
    }
    // What was that old at the look is older now.
    let ms = lag.ms.saturating_add(u64::try_from((now_us - sample.at_us) / 1000).unwrap_or(0));
    if let Some(most) = bounds.ms
        && ms > most
    {
        return Err(format!("what it holds is {ms} ms old, more than {most}"));
    }
    Ok(())
}

fn body(seen: Seen<'_>, fresh: Option<&Sample>, reason: &str, now_us: i64) -> Value {
    let server = fresh.and_then(|sample| sample.server.as_ref().ok());
    let lag = fresh.map(|sample| &sample.lag);
    let unknown = match lag {
        Some(Ok(_)) => None,
        Some(Err(why)) => Some(why.as_str()),
        None => Some(reason).filter(|reason| !reason.is_empty()).or(Some("there is no sample")),
    };
    json!({
        "node": seen.node,
        "side": seen.side.name(),
        "running": server.is_some(),
        "in_recovery": server.map(|server| server.in_recovery),
        "timeline": server.map(|server| server.timeline),
        // A string: it does not fit the numbers of JSON's readers.
        "system_identifier": server.map(|server| server.system_identifier.to_string()),
        "lsn": server.map(|server| server.lsn.to_string()),
        "fenced": fresh.and_then(|sample| sample.fenced),
        "following": server.map(|server| &server.following),
        "writer": fresh.and_then(|sample| sample.writer).map(Side::name),
        "lag_bytes": lag.and_then(|lag| lag.as_ref().ok()).map(|lag| lag.bytes),
        "lag_ms": lag.and_then(|lag| lag.as_ref().ok()).map(|lag| lag.ms),
        "lag_unknown": unknown,
        "sampled_ms_ago": seen.sample.map(|sample| (now_us - sample.at_us) / 1000),
        "reason": Some(reason).filter(|reason| !reason.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use pgleap_proto::Lsn;

    use super::*;
    use crate::reads::lag::Lag;
    use crate::reads::sampler::Server;

    fn sample(in_recovery: bool, writer: Side) -> Sample {
        let server = Server {
            in_recovery,
            timeline: 1,
            system_identifier: 7,
            lsn: Lsn(1),
            following: vec!["a".into()],
            origins: Vec::new(),
            confirmed: Vec::new(),
            slots: Vec::new(),
            receiving: Vec::new(),
        };
        Sample {
            at_us: 0,
            server: Ok(server),
            fenced: Some(false),
            scheduler: None,
            writer: Some(writer),
            lag: Ok(Lag { bytes: 100, ms: 200 }),
        }
    }

    fn ask(question: Question, sample: &Sample, bounds: Bounds, now_us: i64) -> Verdict {
        judge(question, Seen { node: "n1", side: Side::New, sample: Some(sample) }, bounds, now_us)
    }

    fn fine(question: Question, sample: &Sample) -> bool {
        ask(question, sample, Bounds::default(), 0).fine
    }

    #[test]
    fn only_the_open_leader_of_the_writing_side_is_primary() {
        let leader = sample(false, Side::New);
        assert!(fine(Question::Primary, &leader));
        let not = [
            sample(true, Side::New),
            sample(false, Side::Old),
            Sample { fenced: Some(true), ..leader.clone() },
            Sample { fenced: None, ..leader.clone() },
            Sample { writer: None, lag: Err("nobody".into()), ..leader.clone() },
            Sample { server: Err("down".into()), ..leader.clone() },
        ];
        for sample in not {
            assert!(!fine(Question::Primary, &sample), "{sample:?}");
        }
        assert!(fine(Question::ReadOnly, &leader));
    }

    #[test]
    fn a_replica_is_judged_by_the_bounds() {
        let replica = sample(true, Side::Old);
        let within = |bytes, ms| ask(Question::Replica, &replica, Bounds { bytes, ms }, 0).fine;
        assert!(within(None, None) && within(Some(100), Some(200)));
        assert!(!within(Some(99), None) && !within(None, Some(199)));
        let later = ask(Question::Replica, &replica, Bounds { bytes: None, ms: Some(200) }, 1_000);
        assert!(!later.fine, "a sample grows old: {}", later.reason);
        let unknown = Sample { lag: Err("why".into()), ..replica.clone() };
        assert!(!fine(Question::Replica, &unknown), "unknown is infinite, also without bounds");
        assert!(ask(Question::Replica, &unknown, Bounds::default(), 0).alive);
        assert!(!fine(Question::Replica, &Sample { fenced: Some(true), ..replica }));
        let mut alone = sample(false, Side::Old);
        assert!(fine(Question::Replica, &alone), "a leader that follows");
        alone.server.as_mut().unwrap().following.clear();
        assert!(!fine(Question::Replica, &alone));
    }

    #[test]
    fn an_old_sample_is_no_sample() {
        let leader = sample(false, Side::New);
        for question in [Question::Primary, Question::Replica, Question::ReadOnly, Question::Health] {
            assert!(!ask(question, &leader, Bounds::default(), STALE_US + 1).fine, "{question:?}");
            let seen = Seen { node: "n1", side: Side::New, sample: None };
            assert!(!judge(question, seen, Bounds::default(), 0).fine, "{question:?}");
        }
        let figures = ask(Question::Lag, &leader, Bounds::default(), STALE_US + 1);
        assert!(figures.fine && figures.body["lag_bytes"].is_null() && !figures.alive, "{figures:?}");
        assert_eq!(ask(Question::Lag, &leader, Bounds::default(), 0).body["lag_bytes"], 100);
    }
}
