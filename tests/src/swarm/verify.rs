//! PURE: what must hold when every operation stands at its gate, whatever was killed meanwhile. Each sentence that is
//! returned is a fault.
//!
//! On the hosts: every step of the plan was done exactly once and no other; none began before those it follows had ended;
//! no two starts share a fence, and within one term a step is started once. In the log: every step is done once, and
//! its start comes before that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use pgleap_proto::fleet::{OperationEvent, PlanReply, PlanStep};

use super::book::{Key, StepSeen};

/// Faults told of one kind; a thousand of the same say no more.
const TOLD: usize = 20;

/// What hosts and log say of operations that were to reach their gates.
#[derive(Debug, Clone, Copy)]
pub struct Story<'a> {
    /// Operation of each cluster.
    pub operations: &'a BTreeMap<String, String>,
    /// Plan of each cluster.
    pub plans: &'a BTreeMap<String, PlanReply>,
    /// What happened to the hosts.
    pub hosts: &'a BTreeMap<Key, StepSeen>,
    /// What the log says.
    pub events: &'a [OperationEvent],
}

/// Steps as agents know them: their ids become names of directories there.
fn wire_name(step: &str) -> String {
    step.replace('/', ":")
}

impl Story<'_> {
    /// Everything that is wrong.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for more in [self.acts(), self.order(), self.fences(), self.log()] {
            let left = more.len().saturating_sub(TOLD);
            faults.extend(more.into_iter().take(TOLD));
            faults.extend((left > 0).then(|| format!("… and {left} more of this kind")));
        }
        faults
    }

    /// Every step of every plan: its operation, its id, and what its host saw.
    fn planned(&self) -> impl Iterator<Item = (&str, &PlanStep, Option<&StepSeen>)> {
        self.operations.iter().flat_map(move |(cluster, operation)| {
            let steps = self.plans.get(cluster).into_iter().flat_map(|plan| &plan.steps);
            steps.map(move |step| {
                let key = (operation.clone(), wire_name(&step.id));
                (operation.as_str(), step, self.hosts.get(&key))
            })
        })
    }

    fn acts(&self) -> Vec<String> {
        let mut faults: Vec<String> = self
            .planned()
            .filter_map(|(operation, step, seen)| match seen.map_or(0, |seen| seen.acts) {
                1 => None,
                acts => Some(format!("{operation}: {} was done {acts} times", step.id)),
            })
            .collect();
        let known: BTreeSet<Key> =
            self.planned().map(|(operation, step, _)| (operation.to_owned(), wire_name(&step.id))).collect();
        let others = self.hosts.keys().filter(|key| !known.contains(key));
        faults.extend(others.map(|(operation, step)| format!("{operation}: {step} is in no plan")));
        faults
    }

    fn order(&self) -> Vec<String> {
        let wrong = self.waits().filter(|(_, _, ended, begun)| ended.is_none_or(|ended| *begun < ended));
        let told = wrong.map(|(operation, step, ..)| {
            format!("{operation}: {step} began before what it follows had ended")
        });
        told.collect()
    }

    /// Of each step that follows others: when the last of those ended (none: it never did), and when it began.
    fn waits(&self) -> impl Iterator<Item = (&str, &str, Option<Instant>, Instant)> {
        self.planned().filter(|(_, step, _)| !step.after.is_empty()).filter_map(|(operation, step, seen)| {
            let ended = step.after.iter().map(|id| {
                let key = (operation.to_owned(), wire_name(id));
                self.hosts.get(&key).and_then(|seen| seen.ended)
            });
            let last = ended.collect::<Option<Vec<_>>>().and_then(|ended| ended.into_iter().max());
            Some((operation, step.id.as_str(), last, seen?.begun?))
        })
    }

    /// From the end of what a step waits for to its beginning, of every step that waits, in milliseconds.
    pub fn turnarounds(&self) -> Vec<f64> {
        let between = self.waits().filter_map(|(_, _, ended, begun)| Some(begun.duration_since(ended?)));
        between.map(|time| time.as_secs_f64() * 1000.0).collect()
    }

    fn fences(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut owners: BTreeMap<(&str, u64), &str> = BTreeMap::new();
        for ((operation, step), seen) in self.hosts {
            let mut terms = BTreeSet::new();
            for (term, attempt) in &seen.fences {
                if !terms.insert(term) {
                    faults.push(format!("{operation}: {step} was started twice in term {term}"));
                }
                if let Some(other) = owners.insert((operation, *attempt), step) {
                    faults.push(format!("{operation}: {step} and {other} share start {attempt}"));
                }
            }
            if !seen.fences.is_sorted() {
                faults.push(format!("{operation}: {step} accepted an old fence: {:?}", seen.fences));
            }
        }
        faults
    }

    /// Starts of steps beyond the first: what later leaders joined.
    pub fn joined(&self) -> u64 {
        self.hosts.values().map(|seen| seen.fences.len().saturating_sub(1) as u64).sum()
    }

    fn log(&self) -> Vec<String> {
        let mut said: BTreeMap<(&str, &str), (u32, u32)> = BTreeMap::new();
        let mut faults = Vec::new();
        for event in self.events {
            let (started, done) = said.entry((&event.operation, &event.step)).or_default();
            match event.kind.as_str() {
                "started" => *started += 1,
                "done" if *started == 0 => {
                    faults.push(format!("{}: {} is done and was not started", event.operation, event.step))
                }
                "done" => *done += 1,
                _ => {}
            }
        }
        for (operation, step, _) in self.planned() {
            let (_, done) = said.get(&(operation, step.id.as_str())).copied().unwrap_or_default();
            if done != 1 {
                faults.push(format!("{operation}: the log has {} as done {done} times", step.id));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Case {
        operations: BTreeMap<String, String>,
        plans: BTreeMap<String, PlanReply>,
        hosts: BTreeMap<Key, StepSeen>,
        events: Vec<OperationEvent>,
    }

    /// Two steps, one after the other, as it should be; a second leader joined the second one.
    fn sound() -> Case {
        let step = |id: &str, after: &[&str]| PlanStep {
            id: id.into(),
            after: after.iter().map(|id| (*id).to_owned()).collect(),
            ..PlanStep::default()
        };
        let plan = PlanReply { steps: vec![step("a", &[]), step("b/n", &["a"])], ..PlanReply::default() };
        let now = Instant::now();
        let seen = |from: u64, fences: &[(u64, u64)]| StepSeen {
            acts: 1,
            begun: Some(now + Duration::from_secs(from)),
            ended: Some(now + Duration::from_secs(from + 1)),
            fences: fences.to_vec(),
        };
        let event = |step: &str, kind: &str| OperationEvent {
            operation: "c-1".into(),
            step: step.into(),
            kind: kind.into(),
            ..OperationEvent::default()
        };
        let key = |step: &str| ("c-1".to_owned(), step.to_owned());
        Case {
            operations: [("c".to_owned(), "c-1".to_owned())].into(),
            plans: [("c".to_owned(), plan)].into(),
            hosts: [(key("a"), seen(0, &[(2, 1)])), (key("b:n"), seen(2, &[(2, 2), (3, 3)]))].into(),
            events: ["a", "b/n"].iter().flat_map(|s| [event(s, "started"), event(s, "done")]).collect(),
        }
    }

    fn faults(spoil: impl FnOnce(&mut Case)) -> Vec<String> {
        let mut case = sound();
        spoil(&mut case);
        let Case { operations, plans, hosts, events } = &case;
        Story { operations, plans, hosts, events }.faults()
    }

    fn host<'c>(case: &'c mut Case, step: &str) -> &'c mut StepSeen {
        case.hosts.get_mut(&("c-1".to_owned(), step.to_owned())).unwrap()
    }

    #[test]
    fn a_sound_story_has_no_faults() {
        assert_eq!(faults(|_| {}), Vec::<String>::new());
        let Case { operations, plans, hosts, events } = &sound();
        let story = Story { operations, plans, hosts, events };
        assert_eq!((story.joined(), story.turnarounds()), (1, vec![1000.0]));
    }

    #[test]
    fn what_hosts_must_not_see_is_told() {
        assert_eq!(faults(|case| host(case, "a").acts = 2), ["c-1: a was done 2 times"]);
        let never = faults(|case| drop(case.hosts.remove(&("c-1".to_owned(), "b:n".to_owned()))));
        assert_eq!(never, ["c-1: b/n was done 0 times"]);
        let other = faults(|case| drop(case.hosts.insert(("c-1".into(), "x".into()), StepSeen::default())));
        assert_eq!(other, ["c-1: x is in no plan"]);
        let early = faults(|case| host(case, "b:n").begun = host(case, "a").begun);
        assert_eq!(early, ["c-1: b/n began before what it follows had ended"]);
        let open = faults(|case| host(case, "a").ended = None);
        assert_eq!(open, ["c-1: b/n began before what it follows had ended"]);
    }

    #[test]
    fn fences_that_must_not_be_are_told() {
        assert_eq!(
            faults(|case| host(case, "a").fences = vec![(2, 1), (2, 4)]),
            ["c-1: a was started twice in term 2"]
        );
        assert_eq!(faults(|case| host(case, "a").fences = vec![(2, 3)]), ["c-1: b:n and a share start 3"]);
        let old = faults(|case| host(case, "b:n").fences = vec![(3, 3), (2, 2)]);
        assert_eq!(old, ["c-1: b:n accepted an old fence: [(3, 3), (2, 2)]"]);
    }

    #[test]
    fn what_the_log_must_not_say_is_told() {
        let again = |case: &mut Case| case.events.push(case.events[1].clone());
        assert_eq!(faults(again), ["c-1: the log has a as done 2 times"]);
        assert_eq!(faults(|case| case.events.truncate(3)), ["c-1: the log has b/n as done 0 times"]);
        let unstarted = faults(|case| drop(case.events.remove(0)));
        assert_eq!(unstarted, ["c-1: a is done and was not started", "c-1: the log has a as done 0 times"]);
    }
}
