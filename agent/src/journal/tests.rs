//! The journal's promises: fences never go back, also across a reopen; outcomes are kept.

use pgleap_proto::agent::{Blocked, Done, Failed, Fence, finished};
use proptest::prelude::*;

use super::*;

fn start(step: &str, term: u64, attempt: u64, undo: bool) -> Start<'_> {
    Start { operation: "c-000001", step, fence: Fence { term, attempt }, undo }
}

fn done() -> Finished {
    Finished { outcome: Some(finished::Outcome::Done(Done { output: None, already: true })) }
}

#[test]
fn the_first_open_makes_a_private_file_with_an_id_that_stays() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    let id = journal.identity().journal;
    assert_eq!(id.len(), 36);
    let mode = std::fs::metadata(directory.path().join("journal.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let second = Journal::open(directory.path()).unwrap_err();
    assert!(matches!(second, JournalError::InUse(_)), "{second}");
    assert!(second.to_string().contains("another pgleap-agent"), "{second}");
    drop(journal);
    assert_eq!(Journal::open(directory.path()).unwrap().identity().journal, id);
}

#[test]
fn a_file_that_is_no_journal_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("journal.redb"), "not a database, but long enough to look at")
        .unwrap();
    let error = Journal::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("journal.redb"), "{error}");
}

#[test]
fn the_same_start_gets_its_outcome_and_a_newer_one_runs_again() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    assert_eq!(journal.accept(start("s", 1, 1, false)).unwrap(), Accepted::Run);
    // Cut off before an outcome: the same start runs again.
    assert_eq!(journal.accept(start("s", 1, 1, false)).unwrap(), Accepted::Run);
    journal.finish("c-000001", "s", &done()).unwrap();
    assert_eq!(journal.step("c-000001", "s").unwrap().unwrap().state, State::Done);
    assert_eq!(journal.accept(start("s", 1, 1, false)).unwrap(), Accepted::Ended(Box::new(done())));
    assert_eq!(journal.accept(start("s", 1, 2, false)).unwrap(), Accepted::Run);
    assert_eq!(journal.step("c-000001", "s").unwrap().unwrap().outcome, None);
    journal.finish("c-000001", "s", &done()).unwrap();
    assert_eq!(journal.accept(start("s", 2, 2, false)).unwrap(), Accepted::Run, "a newer leader asks anew");

    assert_eq!(journal.accept(start("s", 2, 3, true)).unwrap(), Accepted::Run);
    journal.finish("c-000001", "s", &done()).unwrap();
    assert_eq!(journal.step("c-000001", "s").unwrap().unwrap().state, State::Undone);
}

#[test]
fn a_failure_is_remembered_and_not_now_is_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    let failed = Failed { message: "disk full".into(), evidence: vec!["df".into()] };
    let failed = Finished { outcome: Some(finished::Outcome::Failed(failed)) };
    let blocked = Finished { outcome: Some(finished::Outcome::Blocked(Blocked { reason: "busy".into() })) };
    journal.accept(start("s", 1, 1, false)).unwrap();
    journal.finish("c-000001", "s", &failed).unwrap();
    assert_eq!(journal.accept(start("s", 1, 1, false)).unwrap(), Accepted::Ended(Box::new(failed)));
    journal.accept(start("s", 1, 2, false)).unwrap();
    journal.finish("c-000001", "s", &blocked).unwrap();
    assert_eq!(journal.accept(start("s", 1, 2, false)).unwrap(), Accepted::Run);
}

#[test]
fn one_start_is_not_both_do_and_undo() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    journal.accept(start("s", 1, 1, false)).unwrap();
    let error = journal.accept(start("s", 2, 1, true)).unwrap_err();
    assert!(matches!(error, JournalError::Refused(Refused::OtherVerb { .. })), "{error}");
}

#[test]
fn terms_belong_to_the_host_and_attempts_to_the_step() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    journal.accept(start("a", 3, 9, false)).unwrap();
    let error = journal.accept(start("b", 2, 10, false)).unwrap_err();
    assert!(error.to_string().contains("no longer the leader"), "{error}");
    journal.accept(start("b", 3, 4, false)).unwrap();
    // Who was overtaken without knowing it begins nothing of another operation either.
    let other = Start { operation: "d-000002", ..start("b", 2, 1, false) };
    let error = journal.accept(other).unwrap_err();
    assert!(error.to_string().contains("no longer the leader"), "{error}");
    // Another group counts from the beginning.
    assert!(journal.obey("group").unwrap().is_ok());
    journal.forget_group().unwrap();
    journal.accept(other).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is asked in whatever order, and however often the agent restarts in between: what was accepted never
    /// has an older term than anything accepted for the operation before, nor an older attempt than for the step.
    #[test]
    fn accepted_fences_never_go_back(
        asked in prop::collection::vec((0usize..3, 0u64..5, 0u64..6, any::<bool>(), any::<bool>(), any::<bool>()), 1..40)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Some(Journal::open(directory.path()).unwrap());
        let (mut term, mut attempts) = (0, [0u64; 3]);
        for (index, asked_term, attempt, undo, finish, reopen) in asked {
            if reopen {
                drop(journal.take());
                journal = Some(Journal::open(directory.path()).unwrap());
            }
            let journal = journal.as_ref().unwrap();
            let step = ["a", "b", "c"][index];
            let start = start(step, asked_term, attempt, undo);
            let foretold = journal.check(start);
            match journal.accept(start) {
                Ok(accepted) => {
                    prop_assert_eq!(foretold.unwrap(), accepted);
                    prop_assert!(asked_term >= term && attempt >= attempts[index]);
                    term = asked_term;
                    attempts[index] = attempt;
                    if finish {
                        journal.finish("c-000001", step, &done()).unwrap();
                    }
                }
                Err(JournalError::Refused(refused)) => {
                    prop_assert!(foretold.is_err());
                    let old = asked_term < term || attempt < attempts[index];
                    prop_assert!(old || matches!(refused, Refused::OtherVerb { .. }), "{}", refused);
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
