//! Jobs with real processes: they outlive whoever started them, run once, and end wholly when stopped.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail them")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_agent::jobs::{JobStatus, Jobs};
use pgleap_agent::program::Program;
use pgleap_agent::report::Reporter;

const AGENT: &str = env!("CARGO_BIN_EXE_pgleap-agent");
/// Names the directory in which the helper process (this test binary, started again) starts a job.
const HELPER: &str = "PGLEAP_TEST_JOB_HELPER";

fn jobs(directory: &Path) -> Jobs {
    Jobs::new(directory.join("jobs"), Reporter::default()).with_supervisor(AGENT)
}

/// A shell script as a program: tests only; the product never runs one.
fn script(text: &str) -> Program {
    Program::new("/bin/sh").args(["-c", text])
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    assert!(done.is_ok(), "never happened: {what}");
}

/// A job that counts its runs, then waits until it is released by a file.
fn held_job(directory: &Path) -> Program {
    let directory = directory.display();
    script(&format!(
        "echo run >> {directory}/runs; echo $$ > {directory}/pid; echo begun; \
         until [ -e {directory}/release ]; do sleep 0.02; done; printf 'ended'"
    ))
}

fn runs(directory: &Path) -> usize {
    fs::read_to_string(directory.join("runs")).unwrap_or_default().lines().count()
}

fn pid_in(path: PathBuf) -> Option<Pid> {
    fs::read_to_string(path).ok()?.trim().parse().ok().map(Pid::from_raw)
}

fn alive(pid: Pid) -> bool {
    // A zombie is dead: its parent only has not asked yet.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

#[tokio::test]
async fn output_is_reported_and_the_exit_code_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let report = Reporter::default();
    let jobs = Jobs::new(directory.path().join("jobs"), report.clone()).with_supervisor(AGENT);
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::None);

    let mut seen = Vec::new();
    let program = script(r#"printf '1%%\r2%%\rdone\n'; echo "lang $LC_ALL" >&2"#);
    jobs.run_observed("tool", &program, &mut |line| seen.push(line.to_owned())).await.unwrap();
    assert_eq!(seen, ["1%", "2%", "done", "lang C"]);
    assert!(report.last_lines(10).contains(&"sh: lang C".to_owned()), "{:?}", report.last_lines(10));
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Exited(0));

    let error = jobs.run("tool", &script("echo first; echo broken; exit 7")).await.unwrap_err();
    assert_eq!(error.message, "/bin/sh failed (exit code 7): broken");
    assert_eq!(error.evidence, ["first", "broken"]);
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Exited(7));

    // An exit code that shells would write for a signal is none.
    for code in [137, 255] {
        let error = jobs.run("tool", &script(&format!("exit {code}"))).await.unwrap_err();
        assert_eq!(error.message, format!("/bin/sh failed (exit code {code}): it printed nothing"));
        assert_eq!(jobs.status("tool").unwrap(), JobStatus::Exited(code));
    }

    let error = jobs.run("tool", &script("kill -TERM $$")).await.unwrap_err();
    assert_eq!(error.message, "/bin/sh failed (signal 15): it printed nothing");
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Killed(15));

    jobs.remove_all().unwrap();
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::None);
    assert!(!directory.path().join("jobs").exists());
}

#[tokio::test]
async fn a_program_that_cannot_run_is_refused_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let jobs = jobs(directory.path());
    let error = jobs.run("tool", &Program::new("/nonexistent/pg_upgrade")).await.unwrap_err();
    assert!(error.message.contains("/nonexistent/pg_upgrade"), "{error}");
    let error = jobs.run("tool", &Program::new("/etc/passwd")).await.unwrap_err();
    assert!(error.message.contains("not an executable file"), "{error}");
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::None);

    // Executable by its mode, but its interpreter is missing: known only after the start.
    let nonsense = directory.path().join("nonsense");
    fs::write(&nonsense, "#!/nonexistent/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&nonsense, mode).unwrap();
    let error = jobs.run("tool", &Program::new(&nonsense)).await.unwrap_err();
    assert!(error.message.contains("exit code 127") && error.message.contains("starting"), "{error}");
}

#[tokio::test]
async fn a_supervisor_that_is_none_is_an_error_and_not_a_hang() {
    let directory = tempfile::tempdir().unwrap();
    let jobs = Jobs::new(directory.path().join("jobs"), Reporter::default()).with_supervisor("/bin/false");
    let error = jobs.run("tool", &script("true")).await.unwrap_err();
    assert!(error.message.contains("could not be started by its supervisor"), "{error}");
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::None);
}

#[tokio::test]
async fn callers_at_the_same_time_join_one_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let report = Reporter::default();
    let jobs = Jobs::new(path.join("jobs"), report.clone()).with_supervisor(AGENT);
    let program = held_job(path);
    let started: Vec<_> = (0..8)
        .map(|_| {
            let (jobs, program) = (jobs.clone(), program.clone());
            tokio::spawn(async move { jobs.run("tool", &program).await })
        })
        .collect();
    let joined = || report.last_lines(99).iter().filter(|line| line.contains("joined")).count();
    until("one runs and the others have joined", || path.join("pid").exists() && joined() == 7).await;
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Running);
    assert!(jobs.remove_all().is_err(), "a running job's record must stay");
    fs::write(path.join("release"), "").unwrap();
    for run in started {
        run.await.unwrap().unwrap();
    }
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Exited(0));
    assert_eq!(runs(path), 1);
}

/// Not a test: the process that starts a job and is then killed.
#[tokio::test]
async fn helper_process() {
    if let Some(directory) = std::env::var_os(HELPER) {
        let directory = PathBuf::from(directory);
        let short = directory.join("short").exists();
        let program = if short { exclusive_job(&directory) } else { held_job(&directory) };
        jobs(&directory).run("tool", &program).await.unwrap();
    }
}

fn helper(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_process", "--nocapture"])
        .env(HELPER, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A job that finds out whether another of its kind runs.
fn exclusive_job(directory: &Path) -> Program {
    let directory = directory.display();
    script(&format!(
        "echo run >> {directory}/runs; mkdir {directory}/busy || echo overlap >> {directory}/overlaps; \
         sleep 0.03; rmdir {directory}/busy"
    ))
}

#[tokio::test]
async fn starters_killed_at_any_moment_never_make_two_run_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("short"), "").unwrap();
    for step in 0..40 {
        let mut first = helper(path);
        let mut second = helper(path);
        // From before the start to after the end of the job.
        tokio::time::sleep(Duration::from_millis(5 * step)).await;
        for starter in [&mut first, &mut second] {
            kill(Pid::from_raw(starter.id() as i32), Signal::SIGKILL).unwrap();
            starter.wait().unwrap();
        }
        assert_ne!(jobs(path).status("tool").unwrap(), JobStatus::Lost, "only starters were killed");
    }
    jobs(path).run("tool", &exclusive_job(path)).await.unwrap();
    assert!(!path.join("overlaps").exists());
    assert!(runs(path) > 3, "hardly any job was started: {}", runs(path));
}

#[tokio::test]
async fn a_job_outlives_its_killed_starter_and_is_joined() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut helper = helper(path);
    until("the job runs", || path.join("pid").exists()).await;
    kill(Pid::from_raw(helper.id() as i32), Signal::SIGKILL).unwrap();
    helper.wait().unwrap();

    let report = Reporter::default();
    let jobs = Jobs::new(path.join("jobs"), report.clone()).with_supervisor(AGENT);
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Running);
    let joined = tokio::spawn({
        let (jobs, program) = (jobs.clone(), held_job(path));
        async move { jobs.run("tool", &program).await }
    });
    until("the output of before is read", || report.last_lines(9).contains(&"sh: begun".to_owned())).await;
    fs::write(path.join("release"), "").unwrap();
    joined.await.unwrap().unwrap();
    assert_eq!(runs(path), 1);
    assert_eq!(report.last_lines(1), ["sh: ended"]);
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Exited(0));
}

#[tokio::test]
async fn a_killed_supervisor_takes_the_program_along_and_the_job_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let jobs = jobs(path);
    let run = tokio::spawn({
        let (jobs, program) = (jobs.clone(), held_job(path));
        async move { jobs.run("tool", &program).await }
    });
    until("the job runs", || pid_in(path.join("pid")).is_some()).await;
    let supervisor = pid_in(path.join("jobs/tool/lock")).unwrap();
    kill(supervisor, Signal::SIGKILL).unwrap();
    let error = run.await.unwrap().unwrap_err();
    assert!(error.message.contains("ended without a status"), "{error}");
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Lost);
    let program = pid_in(path.join("pid")).unwrap();
    until("the program is dead", || !alive(program)).await;

    // The next run replaces the lost one.
    fs::write(path.join("release"), "").unwrap();
    jobs.run("tool", &held_job(path)).await.unwrap();
    assert_eq!(runs(path), 2);
}

#[tokio::test]
async fn while_anything_of_the_job_lives_it_is_not_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let jobs = jobs(path);
    // The grandchild leaves process group and session, ignores SIGTERM, and survives its parent.
    let text = format!(
        "setsid sh -c 'trap \"\" TERM; echo $$ > {0}/stray; while :; do sleep 0.05; done' & \
         echo $$ > {0}/pid; while :; do sleep 0.05; done",
        path.display()
    );
    let run = tokio::spawn({
        let (jobs, text) = (jobs.clone(), text);
        async move { jobs.run("tool", &script(&text)).await }
    });
    until("all of it runs", || {
        ["stray", "pid", "jobs/tool/lock"].iter().all(|f| pid_in(path.join(f)).is_some())
    })
    .await;
    // As if the agent had died, too: nobody follows the job.
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    let stray = pid_in(path.join("stray")).unwrap();
    kill(pid_in(path.join("jobs/tool/lock")).unwrap(), Signal::SIGKILL).unwrap();
    until("the program is dead", || !alive(pid_in(path.join("pid")).unwrap())).await;
    assert!(alive(stray));
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Running, "a process of it still acts on the files");

    jobs.stop("tool").await.unwrap();
    assert!(!alive(stray));
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Lost);
}

#[tokio::test]
async fn what_a_killed_supervisor_leaves_is_ended_and_told_by_who_follows_the_job() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let report = Reporter::default();
    let jobs = Jobs::new(path.join("jobs"), report.clone()).with_supervisor(AGENT);
    // As pg_upgrade's servers: a group and session of their own, and no death with their parent.
    let text = format!(
        "setsid sh -c 'echo $$ > {0}/stray; while :; do sleep 0.05; done' & \
         echo $$ > {0}/pid; while :; do sleep 0.05; done",
        path.display()
    );
    let run = tokio::spawn({
        let (jobs, text) = (jobs.clone(), text);
        async move { jobs.run("tool", &script(&text)).await }
    });
    until("all of it runs", || {
        ["stray", "pid", "jobs/tool/lock"].iter().all(|f| pid_in(path.join(f)).is_some())
    })
    .await;
    kill(pid_in(path.join("jobs/tool/lock")).unwrap(), Signal::SIGKILL).unwrap();
    let error = run.await.unwrap().unwrap_err();
    assert!(error.message.contains("supervisor was killed"), "{error}");
    assert!(!alive(pid_in(path.join("stray")).unwrap()) && !alive(pid_in(path.join("pid")).unwrap()));
    let told = report.last_lines(9);
    assert!(told.iter().any(|line| line.contains("what it left is ended")), "{told:?}");
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Lost);
}

/// After a restart of the host there is a record and no process; the process id in it may be anybody's.
#[tokio::test]
async fn a_record_from_before_a_restart_of_the_host_stops_nobody_and_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let jobs = jobs(path);
    let mut bystander = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let record = path.join("jobs/tool");
    fs::create_dir_all(&record).unwrap();
    fs::write(record.join("lock"), bystander.id().to_string()).unwrap();
    fs::write(record.join("program.json"), serde_json::to_vec(&held_job(path)).unwrap()).unwrap();
    fs::write(record.join("output.log"), "begun\nhalf a li").unwrap();
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Lost);
    jobs.stop_all().await.unwrap();
    assert!(alive(Pid::from_raw(bystander.id() as i32)));
    fs::write(path.join("release"), "").unwrap();
    jobs.run("tool", &held_job(path)).await.unwrap();
    assert_eq!((runs(path), jobs.status("tool").unwrap()), (1, JobStatus::Exited(0)));
    assert!(alive(Pid::from_raw(bystander.id() as i32)));
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn a_stopped_job_ends_with_its_signal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let jobs = jobs(path);
    jobs.stop("tool").await.unwrap();
    let run = tokio::spawn({
        let (jobs, program) = (jobs.clone(), held_job(path));
        async move { jobs.run("tool", &program).await }
    });
    until("the job runs", || pid_in(path.join("pid")).is_some()).await;
    jobs.stop_all().await.unwrap();
    assert_eq!(jobs.status("tool").unwrap(), JobStatus::Killed(Signal::SIGTERM as i32));
    assert!(run.await.unwrap().unwrap_err().message.contains("signal 15"));
    jobs.stop("tool").await.unwrap();
}

#[test]
fn a_prepared_run_is_not_made_twice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let count = path.join("runs");
    let program = script(&format!("echo run >> {}", count.display()));
    fs::write(path.join("program.json"), serde_json::to_vec(&program).unwrap()).unwrap();
    fs::write(path.join("lock"), "").unwrap();
    let supervise = || Command::new(AGENT).arg("exec-job").arg(path).stdin(Stdio::null()).output().unwrap();
    assert!(supervise().status.success());
    let second = supervise();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("never made twice"), "{said}");
    assert_eq!(runs(path), 1);
    assert!(fs::read_to_string(path.join("status.json")).unwrap().contains("\"code\":0"));
}
