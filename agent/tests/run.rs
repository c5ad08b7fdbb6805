//! The runner with a step that does what the test tells it to.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail them")]

mod fake;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fake::{Behaviour, Fake, World, request, until};
use pgleap_agent::journal::{Journal, JournalError, State};
use pgleap_agent::run::{RunError, Runner, Watch};
use pgleap_proto::agent::{Finished, Verb, finished::Outcome};

fn runner(state_dir: &Path, world: &Arc<World>) -> Arc<Runner> {
    let journal = Arc::new(Journal::open(state_dir).unwrap());
    runner_on(state_dir, world, journal)
}

fn runner_on(state_dir: &Path, world: &Arc<World>, journal: Arc<Journal>) -> Arc<Runner> {
    let supervisor = env!("CARGO_BIN_EXE_pgleap-agent").into();
    let config = Arc::new(fake::config(state_dir, "db1"));
    Runner::with_supervisor(config, fake::no_tls(state_dir), journal, Fake::table(world), supervisor)
}

async fn outcome(mut watch: Watch) -> Outcome {
    let ended = watch.finished.wait_for(Option::is_some);
    let Finished { outcome } =
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap().unwrap().clone().unwrap();
    outcome.unwrap()
}

async fn run(runner: &Arc<Runner>, attempt: u64, verb: Verb) -> Outcome {
    outcome(runner.run(request("s", 1, attempt, verb)).await.unwrap()).await
}

fn already(outcome: &Outcome) -> bool {
    let Outcome::Done(done) = outcome else { panic!("not done: {outcome:?}") };
    done.already
}

fn failure(outcome: Outcome) -> String {
    let Outcome::Failed(failed) = outcome else { panic!("not failed: {outcome:?}") };
    failed.message
}

#[tokio::test]
async fn done_twice_and_undone_twice() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Plain);
    let runner = runner(directory.path(), &world);
    assert!(!already(&run(&runner, 1, Verb::Do).await));
    assert!(!already(&run(&runner, 1, Verb::Do).await), "the same start gets the outcome of before");
    assert_eq!(world.calls(), ["probe", "act", "verify"]);
    assert!(already(&run(&runner, 2, Verb::Do).await), "a newer start looks, and finds it done");
    run(&runner, 3, Verb::Undo).await;
    run(&runner, 4, Verb::Undo).await;
    assert!(!already(&run(&runner, 5, Verb::Do).await));
    let expected = ["probe", "act", "verify", "probe", "undo", "undo", "probe", "act", "verify"];
    assert_eq!(world.calls(), expected);
}

#[tokio::test]
async fn a_wrong_request_is_refused_and_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Plain);
    let journal = Arc::new(Journal::open(directory.path()).unwrap());
    let runner = runner_on(directory.path(), &world, journal.clone());
    let good = request("s", 1, 1, Verb::Do);
    let mut wrong = vec![good.clone(); 7];
    wrong[0].operation = "../x".into();
    wrong[1].step = String::new();
    wrong[2].fence = None;
    wrong[3].verb = 0;
    wrong[4].action = None;
    wrong[5].action = Some(Default::default());
    wrong[6].operation = "rehearsal".into();
    for request in wrong {
        assert!(matches!(runner.run(request).await.unwrap_err(), RunError::Invalid(_)));
    }
    assert_eq!(journal.step("c-000001", "s").unwrap(), None);
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn a_stale_fence_is_refused_also_by_the_next_agent() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Plain);
    let first = runner(directory.path(), &world);
    outcome(first.run(request("s", 2, 5, Verb::Do)).await.unwrap()).await;
    first.shut_down().await;
    drop(first);
    let next = runner(directory.path(), &world);
    let before = world.calls();
    for (term, attempt) in [(1, 9), (2, 4)] {
        let error = next.run(request("s", term, attempt, Verb::Do)).await.unwrap_err();
        assert!(matches!(error, RunError::Journal(JournalError::Refused(_))), "{error}");
    }
    assert!(already(&outcome(next.run(request("s", 3, 5, Verb::Do)).await.unwrap()).await));
    assert_eq!(world.calls().len(), before.len() + 1);
}

#[tokio::test]
async fn not_now_is_told_and_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Blocked);
    let runner = runner(directory.path(), &world);
    let Outcome::Blocked(blocked) = run(&runner, 1, Verb::Do).await else { panic!("not blocked") };
    assert_eq!(blocked.reason, "not now");
    world.behave(Behaviour::Plain);
    assert!(!already(&run(&runner, 1, Verb::Do).await));
}

#[tokio::test]
async fn a_panic_fails_the_step_and_the_agent_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Panic);
    let journal = Arc::new(Journal::open(directory.path()).unwrap());
    let runner = runner_on(directory.path(), &world, journal.clone());
    let message = failure(run(&runner, 1, Verb::Do).await);
    assert!(message.contains("the fake panics") && message.contains("step s"), "{message}");
    assert_eq!(journal.step("c-000001", "s").unwrap().unwrap().state, State::Failed);
    assert!(failure(run(&runner, 1, Verb::Do).await).contains("the fake panics"), "journaled");
    world.behave(Behaviour::Plain);
    assert!(!already(&run(&runner, 2, Verb::Do).await));
}

#[tokio::test]
async fn a_failure_carries_the_last_lines() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Fail);
    let runner = runner(directory.path(), &world);
    let Outcome::Failed(failed) = run(&runner, 1, Verb::Do).await else { panic!("not failed") };
    assert_eq!(
        (failed.message.as_str(), failed.evidence),
        ("the fake fails", vec!["fake: acting".to_owned()])
    );
}

#[tokio::test]
async fn a_second_caller_joins_and_a_dropped_one_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Hold);
    let runner = runner(directory.path(), &world);
    drop(runner.run(request("s", 1, 1, Verb::Do)).await.unwrap());
    until("the step acts", || world.calls().contains(&"act")).await;
    let same = runner.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    let newer = runner.run(request("s", 2, 2, Verb::Do)).await.unwrap();
    assert!(!newer.recent.is_empty(), "a late watcher sees what was said before");
    // The newer fence counts from now on.
    assert!(runner.run(request("s", 1, 2, Verb::Do)).await.is_err());
    world.release();
    assert!(!already(&outcome(same).await));
    assert!(!already(&outcome(newer).await));
    assert_eq!(world.calls(), ["probe", "act", "verify"]);
}

#[tokio::test]
async fn an_undo_cuts_the_do_off_and_a_do_waits_for_the_undo() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Hold);
    let journal = Arc::new(Journal::open(directory.path()).unwrap());
    let runner = runner_on(directory.path(), &world, journal.clone());
    let doing = runner.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    until("the step acts", || world.calls().contains(&"act")).await;
    let undoing = runner.run(request("s", 1, 2, Verb::Undo)).await.unwrap();
    assert!(failure(outcome(doing).await).contains("cut off"));
    until("the undo is held", || world.calls().contains(&"undo")).await;
    let error = runner.run(request("s", 1, 3, Verb::Do)).await.unwrap_err();
    assert!(matches!(&error, RunError::Busy(m) if m.contains("still being undone")), "{error}");
    world.release();
    assert!(matches!(outcome(undoing).await, Outcome::Done(_)));
    assert_eq!(world.calls(), ["probe", "act", "undo"], "the act did not come to its end");
    assert_eq!(journal.step("c-000001", "s").unwrap().unwrap().state, State::Undone);
    assert!(!already(&run(&runner, 3, Verb::Do).await), "the refused fence was not used up");
}

#[tokio::test]
async fn an_undo_waits_for_the_short_program_of_the_do() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Program);
    let runner = runner(directory.path(), &world);
    let _doing = runner.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    let mark = directory.path().join("program");
    until("the program runs", || mark.with_extension("begun").exists()).await;
    let undoing = runner.run(request("s", 1, 2, Verb::Undo)).await.unwrap();
    std::fs::write(mark.with_extension("release"), "").unwrap();
    assert!(matches!(outcome(undoing).await, Outcome::Done(_)));
    assert_eq!(world.calls(), ["probe", "act", "undo after the program"]);
}

#[tokio::test]
async fn an_undo_stops_the_job_of_the_do_also_one_of_an_earlier_agent() {
    for restart in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let world = World::new(Behaviour::Job);
        let mut runner = runner(directory.path(), &world);
        let _doing = runner.run(request("s", 1, 1, Verb::Do)).await.unwrap();
        let mark = directory.path().join("job.begun");
        until("the job runs", || mark.exists()).await;
        if restart {
            runner.shut_down().await;
            assert!(matches!(
                runner.run(request("s", 1, 1, Verb::Do)).await.unwrap_err(),
                RunError::ShuttingDown
            ));
            drop(runner);
            runner = self::runner(directory.path(), &world);
        }
        assert!(matches!(run(&runner, 2, Verb::Undo).await, Outcome::Done(_)));
        assert!(world.calls().contains(&"undo after the job"), "{:?}", world.calls());
        assert!(!directory.path().join("jobs/c-000001/s").exists(), "the records of a finished step go");
    }
}

#[tokio::test]
async fn a_job_is_joined_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Job);
    let first = runner(directory.path(), &world);
    let watch = first.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    until("the job runs", || directory.path().join("job.begun").exists()).await;
    first.shut_down().await;
    let mut finished = watch.finished;
    assert!(finished.wait_for(Option::is_some).await.is_err(), "an abandoned run has no outcome");
    drop(first);

    let next = runner(directory.path(), &world);
    let watch = next.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    std::fs::write(directory.path().join("job.release"), "").unwrap();
    assert!(!already(&outcome(watch).await));
    let runs = std::fs::read_to_string(directory.path().join("job.begun")).unwrap();
    assert_eq!(runs.lines().count(), 1);
}

#[tokio::test]
async fn rehearsals_are_joined_and_not_journaled() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Behaviour::Hold);
    let journal = Arc::new(Journal::open(directory.path()).unwrap());
    let runner = runner_on(directory.path(), &world, journal.clone());
    let first = runner.rehearse(fake::rehearsal("n1")).await.unwrap();
    until("it acts", || world.calls().contains(&"act")).await;
    let second = runner.rehearse(fake::rehearsal("n1")).await.unwrap();
    world.release();
    assert!(!already(&outcome(first).await));
    assert!(!already(&outcome(second).await));
    assert_eq!(world.calls(), ["probe", "act", "verify"]);
    assert_eq!(journal.step("rehearsal", "n1").unwrap(), None);
}
