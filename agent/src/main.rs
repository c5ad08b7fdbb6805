//! `pgleap-agent`: the command line of the daemon. Parses, sets up logging, and hands over.

use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use pgleap_agent::config::AgentConfig;
use pgleap_agent::server::{self, Server};
use pgleap_proto::service;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The pgleap daemon of one database host.
///
/// It does what the coordinator asks for on this host: it starts, stops and upgrades PostgreSQL in the directories
/// that its configuration allows. It runs as the operating system user that owns them, and talks mutual TLS only.
#[derive(Parser)]
#[command(name = "pgleap-agent", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until it gets SIGTERM or SIGINT.
    ///
    /// Programs under way (pg_basebackup, pg_upgrade, rsync, vacuumdb) go on when the agent ends, however it ends, and
    /// are joined by the next start. A service manager must therefore end the agent's own process only (systemd:
    /// KillMode=process).
    #[command(after_help = RUN_HELP)]
    Run {
        /// Configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/pgleap/agent.toml")]
        config: PathBuf,
        /// How log lines on standard error look. Text goes to the journal with its fields when standard error is the journal:
        /// `journalctl PGLEAP_OPERATION=NAME`, also PGLEAP_STEP and PGLEAP_CLUSTER.
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        log_format: LogFormat,
        /// What to log: error, warn, info, debug, trace, or a filter such as "info,pgleap_agent=debug".
        #[arg(long, value_name = "FILTER", env = "PGLEAP_LOG", default_value = "info")]
        log: String,
    },
    /// Lets another group of coordinators drive this host: the next one that gives orders.
    ///
    /// An agent obeys the first group of coordinators that has it do anything, and refuses every other. When that group is
    /// gone for good (all its members lost, or the host moved to another fleet), stop the agent, run this as the user it runs
    /// as, and start it again. Refused while the agent or a program of a step runs.
    #[command(after_help = FORGET_HELP)]
    ForgetGroup {
        /// Configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/pgleap/agent.toml")]
        config: PathBuf,
        /// Also when steps of the old group were cut off: nobody will take them up again.
        #[arg(long)]
        abandon_steps: bool,
    },
    /// Runs one long program and outlives the agent; only the agent starts it.
    #[command(hide = true)]
    ExecJob {
        /// The job's directory.
        directory: PathBuf,
        /// Become the program itself, as child of this supervisor.
        #[arg(long)]
        parent: Option<i32>,
    },
    /// Starts PostgreSQL in a service of its own; only systemd starts it, for a request on pgleap-postgres.socket.
    #[command(hide = true)]
    Launch,
    /// The remote shell of a relink's rsync; only rsync starts it.
    #[command(hide = true)]
    Rsh(pgleap_agent::relink::RshArguments),
}

const RUN_HELP: &str = "\
Configuration (unknown keys are refused):
  host = \"db1\"                        # this host's name in the fleet file and in the certificate
  listen = \"10.0.0.1:7432\"            # where coordinators and other agents reach it
  state_dir = \"/var/lib/pgleap/agent\" # journal and jobs; mode 0700, made when absent
  tls_dir = \"/etc/pgleap/tls\"         # ca.crt, tls.crt and tls.key, by `pgleap pki issue`
  roots = [\"/var/lib/postgresql\"]     # steps touch nothing outside these directories

  # Not needed:
  health_listen = \"10.0.0.1:8009\"     # HTTP /primary, /replica?lag=16MB&age=5s, /read-only, /health and /lag of the
                                      # nodes whose traffic is kept; with several, /NODE/replica and so on
  agent_check_listen = \"10.0.0.1:8010\" # HAProxy's agent-check; with several nodes, agent-send \"NODE\\n\"

  [[hook]]                            # an application that moves its own connections: docs/hooks.md
  name = \"shop\"
  exec = [\"/opt/shop/flip\"]         # or url = \"http://127.0.0.1:8080/pgleap\"

  [[patroni]]                         # how Patroni is reached, and started when a new node is handed over to it: docs/patroni.md
  user = \"admin\"                    # also scope, ca, cert, key
  password_file = \"/etc/pgleap/patroni-password\"
  config = \"/etc/patroni/ledger18.yml\"
  start = [\"/usr/bin/systemctl\", \"start\", \"patroni\"]
  stop = [\"/usr/bin/systemctl\", \"stop\", \"patroni\"]
  # [patroni.seed] with template, config, start, stop: a Patroni that makes the new node

Environment:
  PGLEAP_LAUNCH_SOCKET  socket of pgleap-postgres.socket: PostgreSQL is started through it, in a service of its own

Exit codes:
  0  ended by SIGTERM or SIGINT
  1  could not start, or could not go on; the reason is on standard error
  2  wrong command line";

const FORGET_HELP: &str = "\
The group is printed on standard output; nothing is, when there was none.

Exit codes:
  0  forgotten, or there was none
  1  refused; the reason is on standard error
  2  wrong command line";

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { config, log_format, log } => ended(run(&config, log_format, &log)),
        Command::ForgetGroup { config, abandon_steps } => ended(forget_group(&config, abandon_steps)),
        // Both without a runtime: they must stay single-threaded.
        Command::ExecJob { directory, parent: None } => pgleap_agent::jobs::supervise(directory),
        Command::ExecJob { directory, parent: Some(pid) } => {
            pgleap_agent::jobs::become_program(directory, pid)
        }
        Command::Launch => pgleap_agent::program::launch::serve(),
        Command::Rsh(arguments) => pgleap_agent::relink::rsh_main(arguments),
    }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "pgleap-agent: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

fn forget_group(config: &std::path::Path, abandon_steps: bool) -> anyhow::Result<()> {
    let forgotten = pgleap_agent::group::forget(&AgentConfig::load(config)?, abandon_steps)?;
    match forgotten {
        Some(group) => writeln!(io::stdout(), "{group}")?,
        None => writeln!(io::stderr(), "no group of coordinators has given orders to this agent yet")?,
    }
    Ok(())
}

/// The error and its causes, each said once: most messages carry their cause already.
fn told(error: &anyhow::Error) -> String {
    let causes = error.chain().skip(1).map(ToString::to_string);
    causes.fold(
        error.to_string(),
        |said, cause| if said.contains(&cause) { said } else { format!("{said}: {cause}") },
    )
}

fn run(config: &std::path::Path, format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    match format {
        LogFormat::Text => service::log(filter),
        LogFormat::Json => {
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).json().init();
        }
    }
    let ready = server::prepare(AgentConfig::load(config)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        // Before the port is taken: a signal from then on ends the agent cleanly.
        let ended = signalled()?;
        let server = Server::bind(ready, Arc::new(pgleap_agent::step::of))?;
        tracing::info!(address = %server.address(), version = env!("CARGO_PKG_VERSION"), "serving");
        service::ready(&format!("serving {}", server.address()));
        let runner = server.runner();
        let ended = async {
            ended.await;
            service::stopping();
        };
        tokio::select! {
            served = server.serve(ended) => anyhow::Ok(served?),
            never = service::keep_alive(|| {
                let runner = runner.clone();
                async move { runner.answers().await }
            }) => match never {},
        }
    });
    // Blocking work of abandoned steps is not waited for: it is read-only or short.
    runtime.shutdown_background();
    served
}

/// Resolves with the first SIGTERM or SIGINT.
fn signalled() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
