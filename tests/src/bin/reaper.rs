//! Ends a fleet whose test was killed: waits until its standard input closes, which the kernel sees to however the
//! test ended, then ends the fleet's processes and removes its directory. Started by the harness, never by hand.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use pgleap_tests::harness::network::remove_namespaces;
use pgleap_tests::harness::reap::reap;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(base) = arguments.next().map(PathBuf::from) else { return ExitCode::FAILURE };
    let keep = arguments.next().is_some_and(|a| a == "keep");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let left = reap(&base);
    remove_namespaces(&base);
    if !keep && left.is_empty() && std::fs::remove_dir_all(&base).is_err() && base.exists() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
