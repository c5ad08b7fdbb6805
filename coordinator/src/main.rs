//! `pgleap`: the coordinator and every operator verb.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    pgleap_coordinator::cli::main().await
}
