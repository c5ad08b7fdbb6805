//! Honest drivers, agents and coordinators; and an operation at the gate.

use super::*;

pub(super) fn position(index: u64) -> Position {
    Position { index, term: 1 + index / 10 }
}

/// Plays an honest driver and honest agents until nothing is runnable; returns the undone steps in order.
pub(super) fn run_to_rest(state: &mut State, operation: &str) -> Vec<String> {
    let mut undone = Vec::new();
    let mut index = state.applied;
    let mut apply = |state: &mut State, command| {
        index += 1;
        state.apply(position(index), &envelope(index, command))
    };
    while let Some(StepToRun { id: step, verb }) = runnable(&state.operations[operation]).into_iter().next() {
        let Ok(Reply::Started { attempt, .. }) = apply(state, start_step(operation, &step, verb)) else {
            panic!("runnable but refused")
        };
        apply(state, end_step(operation, &step, attempt, done())).unwrap();
        if verb == Verb::Undo {
            undone.push(step);
        }
    }
    undone
}

/// Plays an honest coordinator until no switchover is under way.
pub(super) fn end_switchover(state: &mut State, operation: &str) {
    let tell = |state: &mut State, command: Command| {
        let index = state.applied + 1;
        state.apply(position(index), &envelope(index, command)).unwrap()
    };
    while let Some(switchover) = state.operations[operation].traffic.switchover.clone() {
        let started = Command::SwitchoverStarted { operation: operation.into() };
        let Reply::Started { attempt, .. } = tell(state, started) else { panic!() };
        let what = match state.operations[operation].traffic.switchover.as_ref().unwrap().stage {
            Stage::Trying => Kind::Failed(switchover.tries % 2 == 0),
            Stage::Undoing => Kind::Undone,
            Stage::Decided => Kind::Done,
            Stage::Waiting => panic!("started and waiting"),
        };
        tell(state, traffic(operation.into(), what, attempt));
    }
}

/// Ends a switchover first; false when the new side takes the writes, or it is being finished: then cancel is refused.
pub(super) fn can_be_cancelled(state: &mut State, operation: &str) -> bool {
    end_switchover(state, operation);
    let known = state.operations[operation].clone();
    let finishing = match &known.status {
        Status::Finishing => true,
        Status::Stopped(stop) => stop.finishing,
        _ => false,
    };
    if known.traffic.writer == Side::Old && !finishing {
        return true;
    }
    let index = state.applied + 1;
    let refused =
        state.apply(position(index), &envelope(index, Command::Cancel { operation: operation.into() }));
    assert!(matches!(refused, Err(Rejection::Illegal { .. })), "{refused:?}");
    assert_eq!(state.operations[operation], known);
    false
}

pub(super) fn started(steps: Vec<crate::plan::PlannedStep>) -> State {
    let mut state = State::default();
    let start = Command::StartOperation { id: "c-1".into(), plan: plan("c", steps), generation: 0 };
    state.apply(position(1), &envelope(1, start)).unwrap();
    state
}

/// An operation at the gate whose traffic can be moved, and a way to tell it things in a term.
pub(super) struct Gate(pub(super) State);

impl Gate {
    pub(super) fn new() -> Gate {
        let steps = [("o", "h", Some(Side::Old)), ("n", "g", Some(Side::New)), ("b", "h", None)];
        let steps =
            steps.map(|(id, host, side)| movable(step(id, host, &format!("{host}:1"), &[]), side)).into();
        let mut state = started(steps);
        run_to_rest(&mut state, "c-1");
        assert_eq!(state.operations["c-1"].status, Status::AtGate);
        Gate(state)
    }

    pub(super) fn tell(&mut self, term: u64, command: Command) -> Result<Reply, Rejection> {
        let index = self.0.applied + 1;
        self.0.apply(Position { index, term }, &envelope(index, command))
    }

    pub(super) fn traffic(&mut self, term: u64, what: Kind, attempt: u64) -> Result<Reply, Rejection> {
        self.tell(term, traffic("c-1".into(), what, attempt))
    }

    pub(super) fn begin(&mut self, term: u64, to: Side) -> u64 {
        self.traffic(term, Kind::Begin(to), 0).unwrap();
        self.start(term)
    }

    pub(super) fn start(&mut self, term: u64) -> u64 {
        let Ok(Reply::Started { attempt, .. }) = self.traffic(term, Kind::Started, 0) else { panic!() };
        attempt
    }

    /// A step is asked of its agent; the attempt.
    pub(super) fn start_step(&mut self, step: &str, verb: Verb) -> u64 {
        let Ok(Reply::Started { attempt, .. }) = self.tell(5, start_step("c-1", step, verb)) else {
            panic!("{step}")
        };
        attempt
    }

    pub(super) fn end_step(&mut self, step: &str, attempt: u64, outcome: Outcome) {
        self.tell(5, end_step("c-1", step, attempt, outcome)).unwrap();
    }

    pub(super) fn refused(&mut self, term: u64, what: Kind, attempt: u64) -> String {
        self.traffic(term, what, attempt).unwrap_err().to_string()
    }

    pub(super) fn operation(&self) -> &Operation {
        &self.0.operations["c-1"]
    }

    pub(super) fn cancel(&mut self) -> Result<Reply, Rejection> {
        self.tell(9, Command::Cancel { operation: "c-1".into() })
    }
}
