//! Agents that lose their memory, or are two: every such case stops what had begun there, and nothing else does.

use std::sync::Arc;

use pgleap_proto::agent::AgentIdentity;

use super::samples::{done, envelope, movable, plan, start_step, step};
use super::*;

const OP: &str = "c-1";

struct World(State);

impl World {
    /// An operation with steps a and b on host h, and c on host g.
    fn new() -> World {
        let steps =
            vec![step("a", "h", "x:1", &[]), step("b", "h", "x:1", &["a"]), step("c", "g", "y:1", &[])];
        World::with(steps)
    }

    fn with(steps: Vec<crate::plan::PlannedStep>) -> World {
        let mut world = World(State::default());
        let start = Command::StartOperation { id: OP.into(), plan: plan("c", steps), generation: 0 };
        world.tell(start).unwrap();
        world
    }

    fn tell(&mut self, command: Command) -> Result<Reply, Rejection> {
        let index = self.0.applied + 1;
        let before = self.0.clone();
        let reply = self.0.apply(Position { index, term: 1 }, &envelope(index, command));
        if reply.is_err() {
            assert_eq!(State { applied: index, ..before }, self.0, "a refused command changed something");
        }
        reply
    }

    fn start(&mut self, step: &str, verb: Verb) -> u64 {
        let Ok(Reply::Started { attempt, .. }) = self.tell(start_step(OP, step, verb)) else {
            panic!("{step}")
        };
        attempt
    }

    fn end(&mut self, step: &str, attempt: u64, agent: Option<AgentIdentity>) -> Result<Reply, Rejection> {
        let (operation, step, outcome) = (OP.into(), step.into(), done());
        self.tell(Command::StepFinished { operation, step, attempt, outcome, agent })
    }

    fn rest(&mut self) {
        while let Some(StepToRun { id, verb }) = runnable(self.operation()).into_iter().next() {
            let attempt = self.start(&id, verb);
            self.end(&id, attempt, None).unwrap();
        }
    }

    fn seen(&mut self, host: &str, seen: AgentIdentity, remembers: bool) -> Result<Reply, Rejection> {
        let known = self.0.agents.get(host).cloned();
        self.tell(Command::AgentSeen { host: host.into(), known, seen, remembers })
    }

    fn operation(&self) -> &Operation {
        &self.0.operations[OP]
    }

    fn stop(&self) -> Option<&operation::Stop> {
        match &self.operation().status {
            Status::Stopped(stop) => Some(stop),
            _ => None,
        }
    }

    fn retry(&mut self) {
        self.tell(Command::Retry { operation: OP.into() }).unwrap();
    }
}

fn agent(journal: &str, incarnation: &str, generation: u64) -> AgentIdentity {
    AgentIdentity { journal: journal.into(), incarnation: incarnation.into(), generation }
}

#[test]
fn a_fresh_agent_and_a_restart_stop_nothing() {
    let mut world = World::new();
    world.seen("h", agent("j", "1", 1), false).unwrap();
    let attempt = world.start("a", Verb::Do);
    world.seen("h", agent("j", "2", 3), true).unwrap();
    world.end("a", attempt, Some(agent("j", "2", 4))).unwrap();
    assert_eq!(world.0.agents["h"], agent("j", "2", 4));
    assert_eq!(world.operation().status, Status::Running);
    let kinds: Vec<&str> = world.operation().events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["operation-started", "started", "done"]);
}

#[test]
fn what_a_former_start_wrote_is_no_news() {
    let mut world = World::new();
    world.seen("h", agent("j", "1", 1), false).unwrap();
    let attempt = world.start("a", Verb::Do);
    world.seen("h", agent("j", "2", 5), true).unwrap();
    world.end("a", attempt, Some(agent("j", "1", 9))).unwrap();
    assert_eq!(world.0.agents["h"], agent("j", "2", 5));
}

#[test]
fn an_answer_to_an_older_question_is_refused() {
    let mut world = World::new();
    world.seen("h", agent("j", "1", 1), false).unwrap();
    let late =
        Command::AgentSeen { host: "h".into(), known: None, seen: agent("j", "0", 1), remembers: false };
    let refused = world.tell(late).unwrap_err();
    assert!(matches!(refused, Rejection::OtherAgentKnown { .. }), "{refused}");
}

#[test]
fn each_kind_of_doubt_is_told_with_evidence_and_the_next_command() {
    for (seen, told, kind) in [
        (agent("k", "2", 1), "has a new journal", "journal-lost"),
        (agent("j", "2", 4), "restored from an older image, or a second copy", "agent-forked"),
        // The whole host, processes and all, went back in time.
        (agent("j", "1", 2), "restored from an older image, or a second copy", "agent-forked"),
    ] {
        let mut world = World::new();
        world.seen("h", agent("j", "1", 1), false).unwrap();
        // Nothing has begun on g: no harm.
        world.seen("g", agent("j", "1", 1), false).unwrap();
        world.seen("g", agent("j", "9", 1), false).unwrap();
        let first = world.start("a", Verb::Do);
        world.end("a", first, Some(agent("j", "1", 3))).unwrap();
        let second = world.start("b", Verb::Do);
        world.seen("h", seen.clone(), false).unwrap();
        let stop = world.stop().unwrap().clone();
        assert!(stop.reason.contains(told) && stop.reason.contains("host h"), "{}", stop.reason);
        assert!(stop.reason.contains("`pgleap retry c-1`") && stop.reason.contains("`pgleap cancel c-1`"));
        assert_eq!(stop.evidence[0], "known until now: journal j, start 1, record 3");
        assert!(stop.evidence[1].starts_with("answers now: journal"), "{:?}", stop.evidence);
        assert_eq!(world.operation().events.iter().last().unwrap().kind, kind);
        let late = world.end("b", second, None).unwrap_err();
        assert!(matches!(late, Rejection::StaleAttempt { .. }), "{late}");
        assert!(runnable(world.operation()).is_empty());
        // The operator has looked: it goes on with the agent as it is, and only what was not done is asked for.
        assert_eq!(world.0.agents["h"], seen);
        world.retry();
        world.rest();
        assert_eq!(world.operation().status, Status::AtGate);
    }
}

/// Two lives of one agent that may part, restarts, writes the coordinators hear of and writes they do not, and greetings of
/// whichever answers just now: every sequence of six. The operation stops exactly when the last point that the coordinators
/// know is not in the life of the one that answers.
#[test]
fn images_and_copies_in_every_order() {
    const EVENTS: u32 = 6;
    const TURNS: u32 = 6;
    let (mut stops, mut restarts) = (0, 0);
    for code in 0..EVENTS.pow(TURNS) {
        let mut world = World::new();
        let first = agent("j", "0", 1);
        world.seen("h", first.clone(), false).unwrap();
        world.start("a", Verb::Do);
        // Each life is the line of its points. The second one is an image until it is started.
        let mut lives = [vec![first.clone()], vec![first]];
        let (mut answers, mut starts) = (0, 0);
        for turn in 0..TURNS {
            let mut write = |life: &mut Vec<AgentIdentity>, restart: bool| {
                let mut next = life.last().unwrap().clone();
                next.generation += 1;
                if restart {
                    starts += 1;
                    next.incarnation = starts.to_string();
                }
                life.push(next);
            };
            match code / EVENTS.pow(turn) % EVENTS {
                0 => write(&mut lives[answers], false),
                1 => write(&mut lives[answers], true),
                // An image is taken of the one that answers: a backup, or a clone of the host.
                2 => lives[1 - answers] = lives[answers].clone(),
                // The other one is started, and answers from now on: a restored image, or a second copy.
                3 => {
                    answers = 1 - answers;
                    write(&mut lives[answers], true);
                }
                // The other one answers that was never ended.
                4 => answers = 1 - answers,
                _ => {
                    let seen = lives[answers].last().unwrap().clone();
                    let known = world.0.agents["h"].clone();
                    let remembers = lives[answers].contains(&known);
                    world.seen("h", seen.clone(), remembers).unwrap();
                    assert_eq!(world.stop().is_some(), !remembers, "{code}: {known:?} {seen:?}");
                    assert_eq!(world.0.agents["h"], seen);
                    if world.stop().is_some() {
                        stops += 1;
                        world.retry();
                        world.start("a", Verb::Do);
                    } else if known.incarnation != seen.incarnation {
                        restarts += 1;
                    }
                }
            }
        }
    }
    assert!(stops > 1000 && restarts > 1000, "{stops} {restarts}");
}

/// What an operation can be doing when one of its agents is doubted.
#[test]
fn whatever_it_was_doing_it_stops_and_retry_leads_on() {
    type Prepare = fn(&mut World);
    let at_gate: Prepare = |world| world.rest();
    let cases: [(&str, Prepare); 5] = [
        ("running", |world| {
            world.start("o", Verb::Do);
        }),
        ("waiting", at_gate),
        ("cancelling", |world| {
            world.rest();
            world.tell(Command::Cancel { operation: OP.into() }).unwrap();
            world.start("b", Verb::Undo);
        }),
        ("finishing", |world| {
            world.rest();
            world.tell(Command::Finish { operation: OP.into(), decommission: false }).unwrap();
            world.start("b", Verb::Undo);
        }),
        ("stopped", |world| {
            world.rest();
            let (reason, evidence) = ("the first reason".to_owned(), Vec::new());
            world
                .tell(Command::Disturbed { operation: OP.into(), reason, evidence, failover: true })
                .unwrap();
        }),
    ];
    for (name, prepare) in cases {
        let mut world = World::with(movables());
        world.seen("h", agent("j", "1", 1), false).unwrap();
        prepare(&mut world);
        assert_eq!(world.operation().status_name(), name);
        world.seen("h", agent("j", "2", 1), false).unwrap();
        let stop = world.stop().unwrap_or_else(|| panic!("{name} goes on")).clone();
        assert_eq!((stop.cancelling, stop.finishing), (name == "cancelling", name == "finishing"));
        match name {
            "stopped" => {
                assert_eq!(stop.reason, "the first reason");
                assert!(stop.evidence[0].contains("older image"), "{:?}", stop.evidence);
            }
            _ => assert!(stop.reason.contains("older image"), "{}", stop.reason),
        }
        assert_eq!(stop.reason.contains("pgleap cancel"), matches!(name, "running" | "waiting"), "{name}");
        assert!(runnable(world.operation()).is_empty(), "{name}");
        world.retry();
        world.rest();
        let end = world.operation().status_name();
        let expected = match name {
            "cancelling" => "cancelled",
            "finishing" => "finished",
            _ => "waiting",
        };
        assert_eq!(end, expected, "{name}");
    }
}

fn movables() -> Vec<crate::plan::PlannedStep> {
    let steps = [("o", Some(Side::Old)), ("n", Some(Side::New)), ("b", None)];
    steps.map(|(id, side)| movable(step(id, "h", "x:1", &[]), side)).into()
}

#[test]
fn a_switchover_comes_to_an_end_by_the_register_and_then_it_stops() {
    let attempt = |world: &mut World| {
        let started = Command::SwitchoverStarted { operation: OP.into() };
        let Ok(Reply::Started { attempt, .. }) = world.tell(started) else { panic!() };
        attempt
    };
    let decide = |attempt| Command::Decide { operation: OP.into(), attempt, positions: Vec::new() };
    for stage in [Stage::Waiting, Stage::Trying, Stage::Undoing, Stage::Decided] {
        let mut world = World::with(movables());
        world.rest();
        world.seen("h", agent("j", "1", 1), false).unwrap();
        let begin = Command::BeginSwitchover { operation: OP.into(), to: Side::New, accepted: Vec::new() };
        world.tell(begin).unwrap();
        let number = if stage == Stage::Waiting { 0 } else { attempt(&mut world) };
        match stage {
            Stage::Undoing => {
                let failed = Command::SwitchoverFailed {
                    operation: OP.into(),
                    attempt: number,
                    reason: "late".into(),
                    evidence: Vec::new(),
                    again: true,
                };
                world.tell(failed).unwrap();
            }
            Stage::Decided => {
                world.tell(decide(number)).unwrap();
            }
            Stage::Waiting | Stage::Trying => {}
        }
        world.seen("h", agent("j", "2", 1), false).unwrap();
        if stage != Stage::Waiting {
            assert_eq!(world.operation().status, Status::Switching, "clients wait");
        }
        assert!(world.tell(decide(number)).is_err(), "{stage:?}: decided after the doubt");
        match stage {
            Stage::Waiting => {}
            Stage::Trying | Stage::Undoing => {
                let undone = Command::SwitchoverUndone { operation: OP.into(), attempt: number };
                world.tell(undone).unwrap();
            }
            Stage::Decided => {
                let (timings, pause_us) = (Vec::new(), None);
                let done =
                    Command::SwitchoverDone { operation: OP.into(), attempt: number, pause_us, timings };
                world.tell(done).unwrap();
            }
        }
        let stop = world.stop().unwrap_or_else(|| panic!("{stage:?} goes on"));
        assert!(stop.reason.contains("older image"), "{}", stop.reason);
        let writer = if stage == Stage::Decided { Side::New } else { Side::Old };
        assert_eq!(world.operation().traffic.writer, writer);
        assert_eq!(world.operation().doubted, None);
        world.retry();
        assert_eq!(world.operation().status, Status::AtGate);
    }
}

#[test]
fn what_is_over_is_left_alone() {
    let mut world = World::new();
    world.seen("h", agent("j", "1", 1), false).unwrap();
    world.rest();
    world.tell(Command::Cancel { operation: OP.into() }).unwrap();
    world.rest();
    assert_eq!(world.operation().status, Status::Cancelled);
    let before: Arc<Operation> = world.0.operations[OP].clone();
    world.seen("h", agent("j", "2", 1), false).unwrap();
    assert_eq!(*before, *world.0.operations[OP]);
}
