//! The promise of a pause: that it ends by itself. When its time is over, the agent asks the agents of both leaders which
//! of them takes writes, points there and resumes. It goes on asking for as long as that cannot be told: resuming toward a
//! fenced leader would only turn waiting into errors.

use std::sync::Weak;
use std::time::Duration;

use pgleap_proto::agent::LeadershipRequest;
use pgleap_proto::agent::peer_client::PeerClient;
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::Leader;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Channel;

use super::state::Owed;
use super::{Key, Poolers};
use crate::error::{Doing, Result, StepError};
use crate::peer_client;
use crate::step::given;

/// How often the leaders are asked.
const AGAIN: Duration = Duration::from_millis(100);
/// How long one of them may take to answer; the other one's answer may be enough.
const ANSWER: Duration = Duration::from_secs(1);

/// One of the two leaders of a switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// That which took writes before.
    Source,
    /// The other one.
    Target,
}

/// Where clients may go: to the only leader that is known to be open. Unknown is what could not be asked.
pub(super) fn open_end(source: Option<bool>, target: Option<bool>) -> Option<End> {
    match (source == Some(true), target == Some(true)) {
        (true, false) => Some(End::Source),
        (false, true) => Some(End::Target),
        // Neither, or both: whoever is wrong, waiting is safe.
        _ => None,
    }
}

/// A leader that is asked again and again over one connection.
struct Asked<'a> {
    leader: &'a Leader,
    tls: &'a TlsIdentity,
    client: Option<PeerClient<Channel>>,
}

impl Asked<'_> {
    /// Whether it runs, is not in recovery, and is not fenced.
    async fn is_open(&mut self) -> Result<bool> {
        let answer =
            timeout(ANSWER, self.ask()).await.doing(|| format!("asking the agent at {}", self.leader.agent));
        let answer = answer.and_then(|answer| answer);
        if answer.is_err() {
            self.client = None;
        }
        answer
    }

    async fn ask(&mut self) -> Result<bool> {
        let node = given(&self.leader.node, "node")?;
        let client = match self.client.take() {
            Some(client) => client,
            None => peer_client::connect(&self.leader.agent, &node.host, self.tls).await?,
        };
        let request = LeadershipRequest { node: Some(node.clone()) };
        let answer = self.client.insert(client).leadership(request).await;
        let answer = answer.map_err(|status| {
            peer_client::refused(
                &node.host,
                &format!("asking whether node {} takes writes", node.name),
                &status,
            )
        })?;
        let answer = answer.into_inner();
        Ok(answer.running && !answer.in_recovery && !answer.fenced)
    }
}

/// Waits for the deadline, then resumes until it has worked or somebody else has done it.
pub(super) async fn keep(poolers: Weak<Poolers>, key: Key, owed: Owed, deadline: Instant) {
    sleep_until(deadline).await;
    let Some(tls) = poolers.upgrade().map(|poolers| poolers.tls.clone()) else { return };
    let ends = owed.armed.as_ref().and_then(|armed| Some((armed.source.as_ref()?, armed.target.as_ref()?)));
    let Some((source, target)) = ends else {
        tracing::error!(
            operation = key.0,
            pooler = key.1,
            "the record of a pause lacks its leaders: point the pooler to the side that takes the writes (`pgleap status`) and \
             resume it by hand"
        );
        return;
    };
    let asked = |leader| Asked { leader, tls: &tls, client: None };
    let (mut source, mut target) = (asked(source), asked(target));
    let mut told = String::new();
    loop {
        // The agent may end while this waits: it does not keep it alive.
        match poolers.upgrade() {
            Some(poolers) if poolers.is_owed(&key, &owed.id).await => {}
            _ => return,
        }
        let (first, second) = tokio::join!(source.is_open(), target.is_open());
        let (said, opened) = (said(&first, &second), open_end(first.ok(), second.ok()));
        let problem = match (opened, poolers.upgrade()) {
            (_, None) => return,
            (None, _) => StepError::new(format!("nobody takes writes for certain: {said}")),
            (Some(end), Some(poolers)) => match poolers.redeem(&key, &owed, end).await {
                Ok(true) => return,
                // Pointed there on disk; the process has to come back.
                Ok(false) => StepError::new("the pooler does not run: start it"),
                Err(error) => error,
            },
        };
        if told != problem.message {
            told.clone_from(&problem.message);
            tracing::warn!(operation = key.0, pooler = key.1, %problem, "a pause is over, and cannot be ended yet");
        }
        sleep(AGAIN).await;
    }
}

fn said(source: &Result<bool>, target: &Result<bool>) -> String {
    let say = |answer: &Result<bool>| match answer {
        Ok(true) => "open".to_owned(),
        Ok(false) => "closed".to_owned(),
        Err(error) => error.message.clone(),
    };
    format!("source: {}, target: {}", say(source), say(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_go_to_the_only_leader_that_is_known_to_be_open() {
        let table = [
            (Some(true), Some(false), Some(End::Source)),
            (Some(true), None, Some(End::Source)),
            (Some(false), Some(true), Some(End::Target)),
            (None, Some(true), Some(End::Target)),
            (Some(true), Some(true), None),
            (Some(false), Some(false), None),
            (Some(false), None, None),
            (None, None, None),
        ];
        for (source, target, expected) in table {
            assert_eq!(open_end(source, target), expected, "{source:?} {target:?}");
        }
    }
}
