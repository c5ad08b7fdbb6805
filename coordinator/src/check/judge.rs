//! What a check is, and how its verdict becomes findings.

use pgleap_proto::fleet::Finding;
use pgleap_proto::fleet::finding::Severity;

use super::checks::{OF_PG_UPGRADE, TABLE};
use super::facts::{Facts, View};
use crate::fleet::ClusterSpec;

/// One precondition.
pub struct Check {
    /// In kebab case; unique.
    pub name: &'static str,
    /// Why it matters, in one sentence.
    pub why: &'static str,
    /// Looks at the facts.
    pub run: fn(&View<'_>) -> Verdict,
}

/// What a check says: nothing when the facts it needs are missing (another check tells why), else what it dislikes.
pub type Verdict = Option<Vec<Problem>>;

/// One thing a check dislikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    severity: Severity,
    subject: String,
    message: String,
    cure: String,
}

impl Problem {
    /// The upgrade would fail or lose something.
    pub fn error(subject: impl Into<String>, message: impl Into<String>, cure: impl Into<String>) -> Problem {
        Problem::of(Severity::Error, subject, message, cure)
    }

    /// A person has to decide.
    pub fn warning(
        subject: impl Into<String>,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Problem {
        Problem::of(Severity::Warning, subject, message, cure)
    }

    /// Good to know.
    pub fn note(subject: impl Into<String>, message: impl Into<String>, cure: impl Into<String>) -> Problem {
        Problem::of(Severity::Note, subject, message, cure)
    }

    fn of(
        severity: Severity,
        subject: impl Into<String>,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Problem {
        Problem { severity, subject: subject.into(), message: message.into(), cure: cure.into() }
    }
}

/// Name of the one finding that lists the checks which could not be made.
pub(crate) const NOT_CHECKED: &str = "not-checked";

/// Every check of [`TABLE`] that matters to the cluster, in its order. Each gives at least one finding; those whose facts are missing share the last.
pub fn run(cluster: &ClusterSpec, facts: &Facts) -> Vec<Finding> {
    let view = View::new(cluster, facts);
    let mut findings = Vec::new();
    let mut unjudged = Vec::new();
    let applies = |check: &&Check| !cluster.is_move() || !OF_PG_UPGRADE.contains(&check.name);
    for check in TABLE.iter().filter(applies) {
        match (check.run)(&view) {
            None => unjudged.push(check.name),
            Some(problems) if problems.is_empty() => {
                let fine = Problem::of(Severity::Ok, &cluster.name, "", "");
                findings.push(finding(check.name, check.why, fine));
            }
            Some(problems) => {
                findings.extend(problems.into_iter().map(|problem| finding(check.name, check.why, problem)));
            }
        }
    }
    if !unjudged.is_empty() {
        let missing = Problem::note(
            &cluster.name,
            format!("facts are missing for: {}", unjudged.join(", ")),
            "cure the errors of the other checks and check again",
        );
        findings.push(finding(NOT_CHECKED, "What could not be looked at may still be wrong.", missing));
    }
    findings
}

fn finding(check: &str, why: &str, problem: Problem) -> Finding {
    let Problem { severity, subject, message, cure } = problem;
    Finding {
        check: check.to_owned(),
        severity: severity.into(),
        subject,
        message,
        why: why.to_owned(),
        cure,
    }
}

/// `12.3 GiB`, for messages.
pub(super) fn bytes(amount: u64) -> String {
    let mut value = amount as f64;
    let mut unit = "bytes";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "bytes" { format!("{amount} bytes") } else { format!("{value:.1} {unit}") }
}

/// The first few of a list, for messages.
pub(super) fn few<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(3 * 1024 * 1024 * 1024 / 2), "1.5 GiB");
        assert_eq!(few(&["a", "b"]), "a, b");
        assert_eq!(few(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }

    #[test]
    fn names_are_unique_and_everything_has_a_why() {
        let mut names: Vec<_> = TABLE.iter().map(|check| check.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for check in TABLE {
            assert!(check.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", check.name);
            assert!(check.why.ends_with('.') || check.why.ends_with('?'), "{}: {}", check.name, check.why);
        }
    }

    /// What is not well. That a failover of 15 means to start again is told of every cluster with standbys: nothing is healthier.
    fn bad(case: &crate::check::testing::Case) -> Vec<Finding> {
        let findings = run(&case.cluster, &case.facts).into_iter();
        findings.filter(|f| f.severity() != Severity::Ok && f.check != "failover-slots").collect()
    }

    #[test]
    fn a_healthy_cluster_is_all_ok() {
        let case = crate::check::testing::healthy();
        assert_eq!(bad(&case), Vec::new());
    }

    #[test]
    fn a_move_minds_nothing_of_pg_upgrade() {
        use crate::check::testing::{healthy, of, of_a_move};
        assert!(OF_PG_UPGRADE.iter().all(|name| TABLE.iter().any(|check| check.name == *name)));
        let mut case = of(of_a_move(healthy().cluster));
        for host in ["db3", "db4"] {
            case.host(host).rsync_version.clear();
        }
        case.database("app").refused_columns = vec!["public.t.a (regproc)".into()];
        // What is adopted fills the one directory of its node.
        case.adopt(0, 1);
        let server = case.seed(0).clone();
        *case.node(0) = server;
        assert_eq!(bad(&case), Vec::new());
        // And what is missing there is told once, by the one name it has.
        case.node(1).binaries.as_mut().unwrap().missing = vec!["pg_ctl".into()];
        case.seed(1).binaries.as_mut().unwrap().missing = vec!["pg_ctl".into()];
        case.expect("binaries", Severity::Error, "or correct cluster.new.bin_dir");
    }

    #[test]
    fn without_facts_nothing_is_called_ok_that_needs_them() {
        let case = crate::check::testing::healthy();
        let facts = Facts {
            unreachable: case
                .cluster
                .agents()
                .into_keys()
                .map(|host| (host, "timed out".to_owned()))
                .collect(),
            ..Facts::default()
        };
        let findings = run(&case.cluster, &facts);
        let ok: Vec<_> = findings.iter().filter(|f| f.severity() == Severity::Ok).map(|f| &f.check).collect();
        assert_eq!(ok, Vec::<&String>::new());
        // One error for each lost agent, and one note for all the rest.
        assert_eq!(findings.len(), case.cluster.agents().len() + 1, "{findings:#?}");
    }
}
