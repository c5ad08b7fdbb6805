//! WAL archiving: the old cluster's archive is left to the old cluster.
//!
//! pgleap starts whatever is new with `archive_mode` off, but what a Patroni starts has that Patroni's settings.

use std::collections::HashMap;

use pgleap_proto::agent::ServerFacts;

use super::{Check, Problem, Verdict, View, setting};

pub(super) const CHECK: Check = Check {
    name: "archiving",
    why: "After pg_upgrade the new leader writes WAL on timeline 1 again, under names the old archive may hold already; after a \
          move, on a timeline that the old cluster takes too when it fails over. Two clusters in one archive: neither can be restored \
          from it.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mode = setting(server, "archive_mode");
    if mode.is_empty() || is_off(mode) {
        return Some(Vec::new());
    }
    let mut problems = Vec::new();
    let mut own = false;
    if view.cluster.new.patroni.is_some() {
        // The leader's file is the one that makes the dynamic configuration.
        let first = &view.new.first()?.node?.patroni_to_come.as_ref()?.parameters;
        for (index, node) in view.new.iter().enumerate() {
            let facts = node.node?.patroni_to_come.as_ref()?;
            let set = Set { own: &facts.own_parameters, first };
            if set.get("archive_mode").is_none_or(is_off) {
                continue;
            }
            own = true;
            // What the leader's file says is its fault alone.
            let is_told = index > 0 && !set.own.keys().any(|name| name.starts_with("archive_"));
            if !is_told && set.is_same_archive(server) {
                problems.push(Problem::error(
                    format!("node {} on {}", node.spec.name, node.spec.host),
                    format!(
                        "Patroni would have the new cluster archive as the old one does (archive_mode = {}, archive_command = {})",
                        set.get("archive_mode").unwrap_or_default(),
                        set.get("archive_command").unwrap_or("the old cluster's, which comes along")
                    ),
                    format!(
                        "remove archive_mode from {} and set it after finish, or write an archive_command of the new cluster's own there: \
                         another stanza, server or prefix",
                        facts.config
                    ),
                ));
            }
        }
    }
    if !problems.is_empty() {
        return Some(problems);
    }
    let subject = format!("cluster {}", view.cluster.name);
    Some(vec![if own {
        Problem::note(
            subject,
            format!(
                "archive_mode is {mode}; the new cluster starts with it off, and archives in its own way from the hand-over to Patroni on"
            ),
            "make its archive (another prefix or stanza) when the operation waits at the gate, and take a base backup there: until then the \
             new leader keeps its WAL",
        )
    } else {
        Problem::note(
            subject,
            format!("archive_mode is {mode}; the new cluster starts with it off and has no archive"),
            "set up an archive of its own for the new cluster (another prefix or stanza) and take a base backup there \
             once it has caught up",
        )
    }])
}

/// As PostgreSQL and YAML spell it.
fn is_off(mode: &str) -> bool {
    ["off", "false", "no", "0"].contains(&mode.to_lowercase().as_str())
}

/// What Patroni would give a member.
struct Set<'v> {
    own: &'v HashMap<String, String>,
    first: &'v HashMap<String, String>,
}

impl Set<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.own.get(name).or(self.first.get(name)).map(String::as_str)
    }

    /// What is not set comes from the old cluster's configuration. A library has settings of its own.
    fn is_same_archive(&self, old: &ServerFacts) -> bool {
        let library = setting(old, "archive_library");
        let of_library = old.settings.keys().filter(|name| {
            name.strip_prefix(library).is_some_and(|rest| !library.is_empty() && rest.starts_with('.'))
        });
        let names = ["archive_command", "archive_library"].into_iter().chain(of_library.map(String::as_str));
        names.into_iter().all(|name| self.get(name).is_none_or(|set| set.trim() == setting(old, name).trim()))
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testing::{Case, healthy};
    use pgleap_proto::fleet::finding::Severity::{Error, Note};

    #[test]
    fn an_archive_is_noted() {
        let mut case = healthy();
        case.set(0, "archive_mode", "on");
        case.expect("archiving", Note, "starts with it off and has no archive");
        healthy().expect_none("archiving");
    }

    /// The old cluster archives, and each new node's Patroni has these settings, those for itself behind the bar.
    fn archives(first: &[(&str, &str)], own: &[(&str, &str)]) -> Case {
        let mut case = healthy().handed_to_patroni();
        case.set(0, "archive_mode", "on");
        case.set(0, "archive_command", "push %p");
        for (name, value) in first {
            case.patroni_to_come(0).parameters.insert((*name).into(), (*value).into());
        }
        for (name, value) in own {
            case.patroni_to_come(1).own_parameters.insert((*name).into(), (*value).into());
        }
        case
    }

    #[test]
    fn the_old_ones_archive_is_nobody_elses() {
        for same in [
            [("archive_mode", "on"), ("archive_command", "push %p ")].as_slice(),
            &[("archive_mode", "always")],
        ] {
            archives(same, &[]).expect("archiving", Error, "node ledger-new-1 on db3: Patroni would have");
        }
        archives(&[], &[("archive_mode", "on")]).expect("archiving", Error, "node ledger-new-2 on db4");
        let own = [("archive_mode", "true"), ("archive_command", "push18 %p")];
        archives(&own, &[]).expect("archiving", Note, "archives in its own way");
        archives(&own, &[("archive_command", "push %p")]).expect(
            "archiving",
            Error,
            "node ledger-new-2 on db4",
        );
        for off in ["off", "false", "no"] {
            archives(&[("archive_mode", off), ("archive_command", "push %p")], &[]).expect(
                "archiving",
                Note,
                "has no archive",
            );
        }
    }

    #[test]
    fn a_library_is_another_archive_by_its_settings() {
        let library = |directory: &str| {
            let set = [
                ("archive_mode", "on"),
                ("archive_library", "basic_archive"),
                ("basic_archive.archive_directory", directory),
            ];
            let mut case = archives(&set, &[]);
            case.set(0, "archive_command", "");
            case.set(0, "archive_library", "basic_archive");
            case.set(0, "basic_archive.archive_directory", "/archive/15");
            case
        };
        library("/archive/15").expect("archiving", Error, "as the old one does");
        library("/archive/18").expect("archiving", Note, "archives in its own way");
    }
}
