//! `pgleap-agent launch`, as systemd starts it for a request: with a connection as standard input and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail them")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_agent::program::Program;

/// A `pg_ctl` whose "server" leaves it as a postmaster does, says in `ended` that SIGINT ended it, and then ends. Whoever runs tests in
/// the background may have them ignore SIGINT, and a shell cannot trap what was ignored when it began, as a postmaster can: hence `env`.
const PG_CTL: &str = r#"#!/bin/sh
setsid --fork env --default-signal=INT sh -c 'trap "echo fast > $0/ended; exit 0" INT; echo $$ > $0/pid; while :; do sleep 0.05; done' "$2" >/dev/null 2>&1
while [ ! -s "$2/pid" ]; do sleep 0.01; done
echo "server started"
"#;

fn launch(program: &Program) -> (Child, String) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgleap-agent"));
    let child = command.arg("launch").stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
    drop(command);
    ours.write_all(&serde_json::to_vec(program).unwrap()).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    ours.read_to_string(&mut answer).unwrap();
    (child, answer)
}

fn fake(directory: &Path, name: &str) -> Program {
    let path = directory.join(name);
    std::fs::write(&path, PG_CTL).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Program::new(path).args(["start", directory.to_str().unwrap()])
}

#[test]
fn it_answers_stays_with_the_server_and_has_it_shut_down_fast() {
    let directory = tempfile::tempdir().unwrap();
    let (mut service, answer) = launch(&fake(directory.path(), "pg_ctl"));
    assert!(answer.contains("server started"), "{answer}");
    let server: i32 = std::fs::read_to_string(directory.path().join("pid")).unwrap().trim().parse().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
    let parent = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap();
    assert_eq!(parent, service.id().to_string(), "the server is not the service's child");
    assert!(service.try_wait().unwrap().is_none(), "the service ended before its server");

    kill(Pid::from_raw(service.id() as i32), Signal::SIGTERM).unwrap();
    assert!(service.wait().unwrap().success());
    let how = std::fs::read_to_string(directory.path().join("ended")).unwrap();
    assert_eq!(how, "fast\n", "the service ended, and the server had not been told to");
}

#[test]
fn nothing_but_pg_ctl_start_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let other = fake(directory.path(), "initdb");
    let stop = Program::new(directory.path().join("pg_ctl")).args(["stop"]);
    for program in [other, stop] {
        let (mut service, answer) = launch(&program);
        assert!(answer.contains("only `pg_ctl start`"), "{answer}");
        assert!(service.wait().unwrap().success());
        assert!(!directory.path().join("pid").exists());
    }
}
