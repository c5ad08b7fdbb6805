//! `pgleap-agent`: the command line of the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The pgleap daemon of one database host.
#[derive(Parser)]
#[command(name = "pgleap-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one long program and outlives the agent; only the agent starts it.
    #[command(hide = true)]
    ExecJob {
        /// The job's directory.
        directory: PathBuf,
        /// Become the program itself, as child of this supervisor.
        #[arg(long)]
        parent: Option<i32>,
    },
    /// The remote shell of a relink's rsync; only rsync starts it.
    #[command(hide = true)]
    Rsh(pgleap_agent::relink::RshArguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::ExecJob { directory, parent: None } => pgleap_agent::jobs::supervise(directory),
        Command::ExecJob { directory, parent: Some(pid) } => {
            pgleap_agent::jobs::become_program(directory, pid)
        }
        Command::Rsh(arguments) => pgleap_agent::relink::rsh_main(arguments),
    }
}
