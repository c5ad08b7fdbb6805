//! What keeps the daemon from starting, and how it ends.

use super::*;

fn start_error(state_dir: &Path, host: &str) -> String {
    prepare(fake::config(state_dir, host)).unwrap_err().to_string()
}

#[test]
fn a_start_is_refused_with_the_cure() {
    let directory = directory();
    let path = directory.path();
    assert!(start_error(path, "db1").contains("pgleap pki issue"), "no certificate");

    let authority = Authority::new();
    authority.issue(&path.join("tls"), Role::Agent, "db2");
    let error = start_error(path, "db1");
    assert!(error.contains("agent db2") && error.contains("host db1"), "{error}");
    authority.issue(&path.join("tls"), Role::Coordinator, "db1");
    assert!(start_error(path, "db1").contains("coordinator db1"));

    authority.issue(&path.join("tls"), Role::Agent, "db1");
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(&path.join("tls/tls.key"), 0o644);
    assert!(start_error(path, "db1").contains("chmod 600"));
    mode(&path.join("tls/tls.key"), 0o600);
    mode(path, 0o750);
    assert!(start_error(path, "db1").contains("chmod 700"));
    mode(path, 0o700);

    let ready = prepare(fake::config(path, "db1")).unwrap();
    assert!(start_error(path, "db1").contains("another pgleap-agent"));
    drop(ready);
    prepare(fake::config(path, "db1")).unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let agent = Agent::start(Behaviour::Plain).await;
    let directory = directory();
    agent.authority.issue(&directory.path().join("tls"), Role::Agent, "db1");
    let mut config = fake::config(directory.path(), "db1");
    config.listen = agent.address;
    let Err(error) = Server::bind(prepare(config).unwrap(), Fake::table(&agent.world)) else {
        panic!("two agents on one port")
    };
    assert!(error.to_string().contains(&agent.address.to_string()), "{error}");
}

#[test]
fn the_daemon_ends_cleanly_on_sigterm_and_says_why_it_cannot_start() {
    let directory = directory();
    let path = directory.path();
    let text = format!(
        "host = 'db1'\nlisten = '127.0.0.1:0'\nstate_dir = '{0}/state'\ntls_dir = '{0}/tls'\nroots = ['{0}/data']\n",
        path.display()
    );
    std::fs::write(path.join("agent.toml"), text).unwrap();
    let daemon = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgleap-agent"));
        command.args(["run", "--log-format", "json", "--config"]).arg(path.join("agent.toml"));
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let refused = daemon().wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("tls/ca.crt"), "{refused:?}");

    Authority::new().issue(&path.join("tls"), Role::Agent, "db1");
    let mut running = daemon();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines().map(Result::unwrap);
    let serving = lines.find(|line| line.contains("serving")).unwrap();
    let serving: serde_json::Value = serde_json::from_str(&serving).unwrap();
    assert!(serving["fields"]["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{serving}");
    kill(Pid::from_raw(running.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
    let mode = std::fs::metadata(path.join("state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
