//! The operator's command line: one file per verb.
//!
//! Data goes to stdout, talk to stderr (`output`). It decides nothing: every verb is one question to the
//! coordinator, but for `serve`, `pki` and `fleet import`.

mod abandon;
mod audit;
mod cancel;
mod check;
mod client;
mod completions;
mod events;
mod finish;
mod fleet;
pub(crate) mod follow;
mod format;
mod hold;
mod import;
mod members;
mod output;
mod pki;
mod plan;
mod retry;
mod serve;
mod start;
mod status;
mod summary;
mod switch_reads;
mod switchover;
mod traffic;
mod watch;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use output::Out;
use pgleap_proto::traffic::Side;

/// How a verb ended, when it did not simply succeed. Each is an exit code, listed in `--help`.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1: it was refused or failed; the message says what, where, why and what to do.
    Refused(String),
    /// Exit code 3: the check found errors.
    CheckFailed,
    /// Exit code 4: no coordinator could be reached.
    Unreachable(String),
    /// Exit code 5: the operation stopped and waits for the operator.
    Stopped,
    /// Exit code 6: the switchover was tried and taken back; clients are where they were.
    TakenBack,
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Refused(_) => 1,
            Failure::CheckFailed => 3,
            Failure::Unreachable(_) => 4,
            Failure::Stopped => 5,
            Failure::TakenBack => 6,
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::Unavailable => Failure::Unreachable(format!(
                "the coordinator went away: {}; the operation goes on without this terminal, ask again",
                status.message()
            )),
            _ => Failure::Refused(status.message().to_owned()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Refused(format!("writing output: {error}"))
    }
}

/// How a verb ends.
pub type Outcome = Result<(), Failure>;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed; stderr says what, where, why and what to do
  2  wrong usage
  3  `check` found errors
  4  no coordinator could be reached
  5  the operation stopped and waits for you (`watch`, `cancel --wait`, `finish`)
  6  `switchover` or `reverse` was tried and taken back; clients are where they were

Environment:
  PGLEAP_COORDINATOR  host:port of the coordinators, separated by commas
  PGLEAP_TLS_DIR      directory with ca.crt, tls.crt and tls.key of an operator or viewer
  PGLEAP_PATRONI_PASSWORD  password of `fleet import --user`
  NO_COLOR            no colours";

/// Upgrades PostgreSQL clusters across major versions while they serve traffic, and can take every step back.
#[derive(Debug, Parser)]
#[command(name = "pgleap", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    connection: Connection,

    /// Print data as JSON on stdout (one object; one a line for streams)
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

/// Where the coordinator is and who asks.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// Coordinators: host:port, separated by commas; any member of the group leads to its leader
    #[arg(
        long,
        global = true,
        env = "PGLEAP_COORDINATOR",
        default_value = "127.0.0.1:7430",
        value_name = "ADDR"
    )]
    coordinator: String,

    /// Directory with ca.crt, tls.crt and tls.key [default: ~/.config/pgleap/tls]
    #[arg(long, global = true, env = "PGLEAP_TLS_DIR", value_name = "DIR")]
    tls_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a coordinator
    Serve(serve::Serve),
    /// Make the fleet's CA and certificates
    Pki(pki::Pki),
    /// Tell the coordinator what hosts and clusters there are, or show it
    Fleet(fleet::Fleet),
    /// Look at every precondition of a cluster's upgrade; changes nothing
    Check(check::Check),
    /// Print every step of a cluster's upgrade: commands, where each runs, how it is taken back; changes nothing
    Plan(plan::Plan),
    /// Start a cluster's upgrade, or a rollout of many; what may not begin yet is queued and begins by itself
    Start(start::Start),
    /// Show what operations do, what they wait for, and the next command to type
    Status(status::Status),
    /// Follow an operation on the screen
    Watch(watch::Watch),
    /// List what happened, by whom
    Events(events::Events),
    /// List who asked for what, and what was refused
    Audit(audit::Audit),
    /// Let the new side serve a share of the reads
    SwitchReads(switch_reads::SwitchReads),
    /// Move the writes to the new cluster; the old one follows it from then on
    Switchover(switchover::Switchover),
    /// Move the writes back to the old cluster, losing nothing
    Reverse(switchover::Switchover),
    /// Give up the way back: the side that takes the writes stays
    Finish(finish::Finish),
    /// Take an operation back: the old cluster is left as it was found. While a switchover waits for its next try, only that is given up;
    /// of a rollout, what has not begun is given up
    Cancel(cancel::Cancel),
    /// Try the step at which an operation stopped again
    Retry(retry::Retry),
    /// While it is cancelled or finished: take nothing back any more on a host that never comes back
    Abandon(abandon::Abandon),
    /// Begin nothing further of an operation or a rollout; what is under way goes on to its end
    Hold(hold::Hold),
    /// Let a held operation or rollout go on, or a rollout in spite of what failed in it
    Proceed(hold::Proceed),
    /// The group of coordinators: list, add, remove, move leadership
    Members(members::Members),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

/// Parses the command line and runs the verb.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out::new(cli.json);
    let outcome = run(cli.verb, &cli.connection, &mut out).await;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Failure::Refused(message) | Failure::Unreachable(message) = &failure {
                out.error(message);
            }
            ExitCode::from(failure.code())
        }
    }
}

async fn run(verb: Verb, connection: &Connection, out: &mut Out) -> Outcome {
    match verb {
        Verb::Serve(verb) => verb.run(connection).await,
        Verb::Pki(verb) => verb.run(out),
        Verb::Fleet(verb) => verb.run(connection, out).await,
        Verb::Check(verb) => verb.run(connection, out).await,
        Verb::Plan(verb) => verb.run(connection, out).await,
        Verb::Start(verb) => verb.run(connection, out).await,
        Verb::Status(verb) => verb.run(connection, out).await,
        Verb::Watch(verb) => verb.run(connection, out).await,
        Verb::Events(verb) => verb.run(connection, out).await,
        Verb::Audit(verb) => verb.run(connection, out).await,
        Verb::Cancel(verb) => verb.run(connection, out).await,
        Verb::SwitchReads(verb) => verb.run(connection, out).await,
        Verb::Switchover(verb) => verb.run(connection, out, Side::New).await,
        Verb::Reverse(verb) => verb.run(connection, out, Side::Old).await,
        Verb::Finish(verb) => verb.run(connection, out).await,
        Verb::Retry(verb) => verb.run(connection, out).await,
        Verb::Abandon(verb) => verb.run(connection, out).await,
        Verb::Hold(verb) => verb.run(connection, out).await,
        Verb::Proceed(verb) => verb.run(connection, out).await,
        Verb::Members(verb) => verb.run(connection, out).await,
        Verb::Completions(verb) => verb.run(out),
    }
}
