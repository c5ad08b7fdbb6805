//! The documents generated from the step table.

use super::*;
use crate::plan::table::{After, At, Each, rows};

#[test]
fn the_documentation_is_the_table() {
    let mut text = String::from(
        "# The steps of an operation\n\n\
         Generated from the step table, `coordinator/src/plan/table/`; a test fails when this page is stale\n\
         (`PGLEAP_UPDATE_GOLDEN=1 cargo test -p pgleap-coordinator the_documentation` writes it anew).\n\n\
         Steps start as soon as everything in *follows* is done, so replicas are worked on side by side. An undo takes back\n\
         every started step, the last one first; where nothing is said, the step leaves nothing to take back. `finish` takes back\n\
         only what was needed while there were two sides. A *move* keeps its major: what follows a step that is not in it follows\n\
         what that one would have followed.\n",
    );
    let mut phase = None;
    for row in rows() {
        if phase != Some(row.phase) {
            phase = Some(row.phase);
            text.push_str(&format!(
                "\n## {}\n\n| step | for | runs on | what | follows | may wait for | taken back by | by `finish` too | in a move |\n\
                 | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
                row.phase
            ));
        }
        let each = match row.each {
            Each::Leader => "new leader",
            Each::UnderPatroni => "the old cluster, if Patroni runs it",
            Each::LeaderToPatroni => "new leader, if Patroni is to run it",
            Each::ReplicaToPatroni => "each new replica, if Patroni is to run it",
            Each::LeaderByPatroni => "new leader, if Patroni makes the seed",
            Each::ReplicaByPatroni => "each new replica, if Patroni makes the seed",
            Each::Replica => "each new replica",
            Each::New => "each new node",
            Each::Old => "each old node",
            Each::Pooler => "each pooler",
            Each::Balancer => "each balancer",
        };
        let at = match row.at {
            At::OldLeader => "old leader",
            At::Upstream => "upstream",
            At::NewLeader => "new leader",
            At::Node => each
                .trim_start_matches("each ")
                .trim_end_matches(", if Patroni is to run it")
                .trim_end_matches(", if Patroni makes the seed"),
        };
        let node = match row.each {
            Each::Leader | Each::UnderPatroni | Each::LeaderToPatroni | Each::LeaderByPatroni => "*leader*",
            Each::Replica | Each::ReplicaToPatroni | Each::ReplicaByPatroni => "*replica*",
            Each::New | Each::Old => "*node*",
            Each::Pooler => "*pooler*",
            Each::Balancer => "*balancer*",
        };
        let finish = match row.finish {
            Finish::Keep => "",
            Finish::TakeBack => "yes",
            Finish::TakeBackWhenLeading => "if the new side takes the writes",
            Finish::StopOld | Finish::StopNew => "done by `finish --decommission`",
        };
        let words = |text: &str| {
            text.replace("{node}", node)
                .replace("{upstream}", "*upstream*")
                .replace("{leader}", "*leader*")
                .replace("{old}", "*old leader*")
        };
        let follows: Vec<String> = row
            .after
            .iter()
            .map(|after| match after {
                After::All(phase, name) => format!("every {phase}.{name}"),
                After::Leader(phase, name) | After::Same(phase, name) => format!("{phase}.{name}"),
            })
            .collect();
        text.push_str(&format!(
            "| `{}` | {each} | {at} | {} | {} | {} | {} | {finish} | {} |\n",
            row.name,
            words(row.title),
            follows.join(", "),
            row.waits_for.map(words).unwrap_or_default(),
            row.undo.unwrap_or_default(),
            if row.in_moves { "yes" } else { "" },
        ));
    }
    text.push_str(
        "
*leader* is the first new node, *replica* each other one. *upstream* is the old node that the new leader streams
\
         from: a replica, or the *old leader* when it has none.
",
    );
    crate::golden::check("docs/steps.md", &text);
}
