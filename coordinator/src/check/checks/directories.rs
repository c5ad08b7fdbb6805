//! The directories of new nodes may be touched, can be written, and are empty or absent where they will be filled.

use super::{Check, Fills, Problem, Verdict, View, new_directories, seed_key};

pub(super) const CHECK: Check = Check {
    name: "directories",
    why: "pgleap never overwrites files that it did not make, and an agent touches only its allowed roots.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let directories = new_directories(view);
    if directories.is_empty() {
        return None;
    }
    let mut problems = Vec::new();
    for (node, what, directory) in directories {
        let key = match what {
            Fills::Seed => seed_key(view),
            Fills::New => "data_dir",
            Fills::Tablespace => "tablespace directory",
        };
        let subject = format!("{key} {} of {node}", directory.path);
        if !directory.allowed {
            problems.push(Problem::error(
                subject,
                "it lies outside the directories its agent may touch",
                "correct the path, or add its parent to `roots` in that host's agent.toml and restart the agent",
            ));
        } else if !directory.writable {
            problems.push(Problem::error(
                subject,
                "the agent's user cannot write there",
                "give the directory, or its nearest existing parent, to the user that runs the agent",
            ));
        } else if what == Fills::New && directory.exists && !directory.empty {
            problems.push(Problem::error(
                subject,
                "it is not empty",
                "name a directory that is empty or does not exist yet, or move its content away",
            ));
        } else if what == Fills::Tablespace && directory.exists && !directory.empty && !is_adopted(view, node)
        {
            problems.push(Problem::error(
                subject,
                "it is not empty",
                "name an empty directory, or adopt the standby it belongs to by naming that one's directory",
            ));
        }
    }
    Some(problems)
}

fn is_adopted(view: &View<'_>, node: &str) -> bool {
    view.new.iter().any(|new| new.spec.name == node && new.seed_server().is_some())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn directories_that_cannot_be_used() {
        let mut case = healthy();
        case.seed(0).data_dir.as_mut().unwrap().allowed = false;
        case.expect(
            "directories",
            Error,
            "seed_dir /var/lib/postgresql/15/ledger of ledger-new-1: it lies outside",
        );

        let mut case = healthy();
        case.node(1).data_dir.as_mut().unwrap().writable = false;
        case.expect("directories", Error, "cannot write there");

        let mut case = healthy();
        case.node(1).data_dir.as_mut().unwrap().exists = true;
        case.expect(
            "directories",
            Error,
            "data_dir /var/lib/postgresql/18/ledger of ledger-new-2: it is not empty",
        );
        case.node(1).data_dir.as_mut().unwrap().empty = true;
        case.expect_none("directories");
    }

    #[test]
    fn tablespaces_may_be_full_only_for_adopted_standbys() {
        let mut case = healthy();
        case.seed(0).tablespace_dirs.first_mut().unwrap().exists = true;
        case.expect("directories", Error, "tablespace directory /srv/fast of ledger-new-1");
        case.adopt(0, 1);
        case.expect_none("directories");
    }
}
