//! At most one runner of a step, whatever the verb. And what runs beside it does not depend on it: a step acts only when those before it
//! are made, and is taken back only when nothing after it is left; taking back is one step at a time.

use crate::simulation::world::{Cluster, Effect};
use crate::state::Verb;

/// When a step begins to act.
pub(in crate::simulation) fn check(
    cluster: &Cluster,
    operation: &str,
    step: &str,
    verb: Verb,
) -> Result<(), String> {
    let key = (operation.to_owned(), step.to_owned());
    if let Some(other) = cluster.acting.get(&key) {
        return Err(format!("{operation} {step}: {verb:?} begins while {other:?} runs"));
    }
    let Some(plan) = cluster.plans.get(operation) else {
        return Err(format!("{operation} has no plan"));
    };
    let planned = plan.step(step).ok_or_else(|| format!("{operation} has no step {step}"))?;
    let beside =
        |verb: Verb| cluster.acting.iter().filter(move |((of, _), other)| of == operation && **other == verb);
    match verb {
        Verb::Do => {
            let open = planned.after.iter().find(|id| cluster.effect(operation, id) != Effect::Made);
            if let Some(open) = open {
                return Err(format!("{operation} {step} acts, and {open} before it is not made"));
            }
        }
        Verb::Undo => {
            let mut later = plan.steps.iter().filter(|other| other.after.iter().any(|id| id == step));
            let left = later.find(|other| {
                // What `finish` keeps stays when what it stood on goes; and nobody goes to a lost host.
                let lost = cluster.lost.as_ref() == Some(&other.host);
                !lost
                    && other.finish == planned.finish
                    && cluster.effect(operation, &other.id) != Effect::Absent
            });
            if let Some(left) = left {
                return Err(format!("{operation} {step} is taken back, and {} after it is left", left.id));
            }
            if let Some(((_, other), _)) = beside(Verb::Undo).next() {
                return Err(format!("{operation} {step} is taken back beside {other}"));
            }
        }
    }
    Ok(())
}
