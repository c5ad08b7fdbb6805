//! PURE: which command is for whom: the whole state, many operations, or one.

use std::sync::Arc;

use super::command::Command;
use super::envelope::Envelope;
use super::rejection::Rejection;
use super::switchover::Move;
use super::transition::{self, Happening, Occasion};
use super::{Position, Reply, State};

impl State {
    pub(super) fn dispatch(&mut self, position: Position, envelope: &Envelope) -> Result<Reply, Rejection> {
        let occasion = Occasion { position, at: envelope.at, by: &envelope.by };
        self.gate(envelope.at, &envelope.command)?;
        match &envelope.command {
            Command::ApplyFleet { toml, generation, keeps, policy } => {
                self.apply_fleet(occasion, (toml, policy), *generation, keeps)
            }
            Command::StartOperation { id, plan, generation } => {
                self.start_operation(occasion, id, plan, *generation)
            }
            Command::StepStarted { operation, step, verb } => {
                self.happen(occasion, operation, Happening::Started { step, verb: *verb })
            }
            Command::StepFinished { operation, step, attempt, outcome, agent } => {
                let finished = Happening::Finished { step, attempt: *attempt, outcome };
                let reply = self.happen(occasion, operation, finished)?;
                self.agent_wrote(operation, step, agent.as_ref());
                Ok(reply)
            }
            Command::StepBlocked { operation, step, attempt, reason } => {
                self.happen(occasion, operation, Happening::Blocked { step, attempt: *attempt, reason })
            }
            Command::Queue { operations, rollout, generation, accept_warnings } => {
                self.queue(occasion, operations, rollout.as_ref(), (*generation, *accept_warnings))
            }
            Command::Admit { operation, plan, generation } => {
                self.admit(occasion, operation, plan, *generation)
            }
            Command::NotReady { operation, reason, evidence } => {
                self.not_ready(occasion, operation, reason, evidence)
            }
            Command::Hold { name, at } => self.hold(occasion, name, *at),
            Command::Proceed { name } => self.proceed(occasion, name),
            Command::Cancel { operation } if self.rollouts.contains_key(operation) => {
                self.cancel_queued(occasion, operation)
            }
            Command::Cancel { operation } => self.happen(occasion, operation, Happening::Cancel),
            Command::Retry { operation } => self.happen(occasion, operation, Happening::Retry),
            Command::Abandon { operation, host } => {
                self.happen(occasion, operation, Happening::Abandon { host })
            }
            Command::SetReads { operation, percent } => {
                self.traffic(occasion, operation, Move::SetReads { percent: *percent })
            }
            Command::TakeTicket { operation } => self.traffic(occasion, operation, Move::NewTicket),
            Command::BeginSwitchover { operation, to, accepted } => {
                self.traffic(occasion, operation, Move::Begin { to: *to, accepted })
            }
            Command::SwitchoverStarted { operation } => self.traffic(occasion, operation, Move::Started),
            Command::Decide { operation, attempt, positions } => {
                self.traffic(occasion, operation, Move::Decide { attempt: *attempt, positions })
            }
            Command::SwitchoverFailed { operation, attempt, reason, evidence, again } => {
                let (attempt, again) = (*attempt, *again);
                self.traffic(occasion, operation, Move::Failed { attempt, reason, evidence, again })
            }
            Command::SwitchoverUndone { operation, attempt } => {
                self.traffic(occasion, operation, Move::Undone { attempt: *attempt })
            }
            Command::SwitchoverNoted { operation, attempt, notes } => {
                self.traffic(occasion, operation, Move::Noted { attempt: *attempt, notes })
            }
            Command::SwitchoverLed { operation, attempt } => {
                self.traffic(occasion, operation, Move::Led { attempt: *attempt })
            }
            Command::TakeBack { operation, attempt, evidence } => {
                self.traffic(occasion, operation, Move::TakeBack { attempt: *attempt, evidence })
            }
            Command::SwitchoverServed { operation, attempt } => {
                self.traffic(occasion, operation, Move::Served { attempt: *attempt })
            }
            Command::SwitchoverDone { operation, attempt, pause_us, timings } => {
                let (attempt, pause_us) = (*attempt, *pause_us);
                self.traffic(occasion, operation, Move::Done { attempt, pause_us, timings })
            }
            Command::Finish { operation, decommission } => {
                self.traffic(occasion, operation, Move::Finish { decommission: *decommission })
            }
            Command::Disturbed { operation, reason, evidence, failover } => {
                let failover = *failover;
                self.traffic(occasion, operation, Move::Disturbed { reason, evidence, failover })
            }
            Command::Redirected { operation, plan, timeline, reason, evidence } => {
                let timeline = *timeline;
                self.happen(occasion, operation, Happening::Redirected { plan, timeline, reason, evidence })
            }
            Command::AgentSeen { host, known, seen, remembers } => {
                self.agent_seen(occasion, host, known.as_ref(), seen, *remembers)
            }
            Command::Audit { .. } => Ok(Reply::Accepted),
        }
    }

    fn happen(
        &mut self,
        occasion: Occasion<'_>,
        id: &str,
        happening: Happening<'_>,
    ) -> Result<Reply, Rejection> {
        let unknown = || Rejection::UnknownOperation(id.to_owned());
        let operation = self.operations.get_mut(id).ok_or_else(unknown)?;
        transition::apply(Arc::make_mut(operation), occasion, happening)
    }

    fn traffic(&mut self, occasion: Occasion<'_>, id: &str, what: Move<'_>) -> Result<Reply, Rejection> {
        self.happen(occasion, id, Happening::Traffic(what))
    }
}
