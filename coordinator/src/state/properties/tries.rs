//! What is tried in a random history, and the command it comes to.

use super::*;

/// What a random scheduler, agents and operators may try, legal or not.
#[derive(Debug, Clone)]
pub(super) enum Try {
    Start {
        op: usize,
        step: usize,
        undo: bool,
    },
    StartRunnable {
        op: usize,
        pick: usize,
    },
    Finish {
        op: usize,
        step: usize,
        stale: bool,
        ok: bool,
    },
    Block {
        op: usize,
        step: usize,
    },
    Cancel {
        op: usize,
    },
    Retry {
        op: usize,
    },
    Abandon {
        op: usize,
        host: usize,
    },
    Seen {
        host: usize,
        journal: u8,
        remembers: bool,
    },
    Fleet {
        good: bool,
    },
    Begin {
        op: usize,
    },
    Traffic {
        op: usize,
        what: Kind,
        stale: bool,
    },
    /// Makes and answers everything up to the gate.
    ToGate {
        op: usize,
    },
}

/// What may be asked of traffic, or come of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Reads,
    Ticket,
    Begin(Side),
    Started,
    Decide,
    Failed(bool),
    Undone,
    Noted,
    Led,
    /// The new leader's host is given up.
    GiveUp,
    TakeBack,
    Served,
    Done,
    Finish,
    Disturbed,
    Redirected,
}

pub(super) fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        1 => Just(Kind::Reads),
        1 => Just(Kind::Ticket),
        2 => any::<bool>().prop_map(|new| Kind::Begin(if new { Side::New } else { Side::Old })),
        4 => Just(Kind::Started),
        3 => Just(Kind::Decide),
        2 => any::<bool>().prop_map(Kind::Failed),
        2 => Just(Kind::Undone),
        1 => Just(Kind::Noted),
        1 => Just(Kind::Led),
        1 => Just(Kind::GiveUp),
        1 => Just(Kind::TakeBack),
        1 => Just(Kind::Served),
        2 => Just(Kind::Done),
        1 => Just(Kind::Finish),
        1 => Just(Kind::Disturbed),
        1 => Just(Kind::Redirected),
    ]
}

pub(super) const HOSTS: [[&str; 2]; 3] = [["h1", "h2"], ["h3", "h4"], ["h2", "h5"]];

pub(super) fn any_try() -> impl Strategy<Value = Try> {
    let op = 0..3usize;
    prop_oneof![
        1 => (op.clone(), 0..8usize, any::<bool>()).prop_map(|(op, step, undo)| Try::Start { op, step, undo }),
        8 => (op.clone(), any::<prop::sample::Index>()).prop_map(|(op, i)| Try::StartRunnable { op, pick: i.index(8) }),
        8 => (op.clone(), 0..8usize, prop::bool::weighted(0.1), prop::bool::weighted(0.85))
            .prop_map(|(op, step, stale, ok)| Try::Finish { op, step, stale, ok }),
        1 => (op.clone(), 0..8usize).prop_map(|(op, step)| Try::Block { op, step }),
        1 => op.clone().prop_map(|op| Try::Cancel { op }),
        2 => op.clone().prop_map(|op| Try::Retry { op }),
        1 => (op.clone(), 0..5usize).prop_map(|(op, host)| Try::Abandon { op, host }),
        1 => (0..5usize, 0..2u8, any::<bool>())
            .prop_map(|(host, journal, remembers)| Try::Seen { host, journal, remembers }),
        1 => any::<bool>().prop_map(|good| Try::Fleet { good }),
        10 => (op.clone(), any_kind(), prop::bool::weighted(0.1))
            .prop_map(|(op, what, stale)| Try::Traffic { op, what, stale }),
        2 => op.clone().prop_map(|op| Try::ToGate { op }),
        2 => op.prop_map(|op| Try::Begin { op }),
    ]
}

pub(super) fn id(op: usize) -> String {
    format!("c{op}-000000")
}

pub(super) fn command(state: &State, masks: &[u16], attempt: &Try) -> Option<Command> {
    let operation = |op: usize| state.operations.get(&id(op));
    Some(match attempt {
        Try::Start { op, step, undo } => {
            let verb = if *undo { Verb::Undo } else { Verb::Do };
            start_step(&id(*op), &format!("s{step}"), verb)
        }
        Try::StartRunnable { op, pick } => {
            let next = runnable(operation(*op)?);
            let StepToRun { id: step, verb } = next.get(pick % next.len().max(1))?.clone();
            start_step(&id(*op), &step, verb)
        }
        Try::Finish { op, step, stale, ok } => {
            let step = format!("s{step}");
            let StepState::Started(run) = &operation(*op)?.steps.get(&step)?.state else { return None };
            let attempt = if *stale { run.attempt - 1 } else { run.attempt };
            end_step(&id(*op), &step, attempt, if *ok { done() } else { failed("broken") })
        }
        Try::Block { op, step } => {
            let step = format!("s{step}");
            let StepState::Started(run) = &operation(*op)?.steps.get(&step)?.state else { return None };
            Command::StepBlocked { operation: id(*op), step, attempt: run.attempt, reason: "busy".into() }
        }
        Try::Cancel { op } => Command::Cancel { operation: id(*op) },
        Try::Retry { op } => Command::Retry { operation: id(*op) },
        Try::Abandon { op, host } => Command::Abandon { operation: id(*op), host: format!("h{}", host + 1) },
        Try::Seen { host, journal, remembers } => {
            let host = format!("h{}", host + 1);
            let known = state.agents.get(&host).cloned();
            let (journal, incarnation) = (journal.to_string(), remembers.to_string());
            let seen = AgentIdentity { journal, incarnation, generation: 1 };
            Command::AgentSeen { host, known, seen, remembers: *remembers }
        }
        Try::Fleet { good } => Command::ApplyFleet {
            toml: String::new(),
            generation: state.generation() + u64::from(*good),
            keeps: vec!["c0".into(), "c1".into(), "c2".into()],
            policy: Policy::default(),
        },
        Try::Traffic { op, what, stale } => {
            let known = operation(*op)?;
            let attempt = known.traffic.ticket.attempt.saturating_sub(u64::from(*stale));
            let mut command = traffic(id(*op), *what, attempt);
            if let Command::Redirected { plan, .. } = &mut command
                && !stale
            {
                plan.clone_from(&known.plan);
            }
            command
        }
        Try::ToGate { op } => {
            let operation = operation(*op)?;
            let started = |(id, record): (&String, &StepRecord)| match &record.state {
                StepState::Started(run) => Some((id.clone(), run.attempt)),
                _ => None,
            };
            if let Some((step, attempt)) = operation.steps.iter().find_map(started) {
                end_step(&id(*op), &step, attempt, done())
            } else {
                let StepToRun { id: step, verb } = runnable(operation).into_iter().next()?;
                start_step(&id(*op), &step, verb)
            }
        }
        Try::Begin { op } => Command::StartOperation {
            id: id(*op),
            plan: plan_of_masks(&format!("c{op}"), HOSTS[*op], masks),
            generation: state.generation(),
        },
    })
}

pub(super) fn traffic(operation: String, what: Kind, attempt: u64) -> Command {
    match what {
        Kind::Reads => Command::SetReads { operation, percent: 50 },
        Kind::Ticket => Command::TakeTicket { operation },
        Kind::Begin(to) => Command::BeginSwitchover { operation, to, accepted: Vec::new() },
        Kind::Started => Command::SwitchoverStarted { operation },
        Kind::Decide => Command::Decide { operation, attempt, positions: Vec::new() },
        Kind::Failed(again) => {
            let (reason, evidence) = ("it broke".into(), Vec::new());
            Command::SwitchoverFailed { operation, attempt, reason, evidence, again }
        }
        Kind::Undone => Command::SwitchoverUndone { operation, attempt },
        Kind::Noted => Command::SwitchoverNoted { operation, attempt, notes: vec!["told once".into()] },
        Kind::Led => Command::SwitchoverLed { operation, attempt },
        Kind::GiveUp => Command::Abandon { operation, host: "g".into() },
        Kind::TakeBack => Command::TakeBack { operation, attempt, evidence: vec!["not there".into()] },
        Kind::Served => Command::SwitchoverServed { operation, attempt },
        Kind::Done => Command::SwitchoverDone { operation, attempt, pause_us: Some(1), timings: Vec::new() },
        Kind::Finish => Command::Finish { operation, decommission: attempt % 2 == 1 },
        Kind::Disturbed => {
            let (reason, evidence) = ("it failed over".into(), Vec::new());
            Command::Disturbed { operation, reason, evidence, failover: attempt % 2 == 1 }
        }
        // Of which plan it is: whoever uses it knows.
        Kind::Redirected => Command::Redirected {
            operation,
            plan: plan("none", Vec::new()),
            timeline: 2,
            reason: "another one leads".into(),
            evidence: vec!["nothing is missing".into()],
        },
    }
}
