//! `pgleap-agent rsh`: the remote shell that rsync starts on the replica. It opens `Peer.Rsync` to the leader's agent
//! and carries standard input, output and error; it ends with the sender's exit code.
//!
//! Standard input and output are read and written by threads of their own, with a few frames between them and the
//! connection: memory stays bounded, and a slow side slows the other down.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use futures::StreamExt as _;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pgleap_proto::agent::{RsyncFrame, RsyncOpen, rsync_frame};
use pgleap_proto::tls::TlsFiles;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::serve::{FRAME, FRAMES};
use crate::error::{Doing, Result, StepError};
use crate::peer_client;

/// Exit code when the connection failed, as ssh has it; rsync then says that the connection was closed.
const FAILED: u8 = 255;

/// What rsync is told to start; see [`super::command::Shell`].
#[derive(Debug, Clone, clap::Args)]
pub struct RshArguments {
    /// Directory with ca.crt, tls.crt and tls.key.
    #[arg(long)]
    pub tls_dir: PathBuf,
    /// Address of the leader's agent.
    #[arg(long)]
    pub agent: String,
    /// Name of the leader's host.
    #[arg(long)]
    pub host: String,
    /// The operation whose files are offered.
    #[arg(long)]
    pub operation: String,
    /// What rsync adds: a host name, then the command for the other side.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
}

/// Runs to the end of the transfer.
pub fn rsh_main(arguments: RshArguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return said(format!("starting: {error}")),
    };
    let result = runtime.block_on(transfer(arguments));
    // Not waited for: a thread may be blocked in reading standard input, and ends with the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => said(error.message),
    }
}

fn said(message: String) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "pgleap-agent rsh: {message}");
    ExitCode::from(FAILED)
}

/// rsync hands its remote shell pipes that do not block (pipe.c, `piped_child`); the threads here rely on blocking.
fn make_blocking(fd: impl AsFd) -> Result<()> {
    let doing = || "preparing standard input and output";
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).doing(doing)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).doing(doing)?;
    Ok(())
}

async fn transfer(arguments: RshArguments) -> Result<u8> {
    make_blocking(std::io::stdin())?;
    make_blocking(std::io::stdout())?;
    let RshArguments { tls_dir, agent, host, operation, command } = arguments;
    let tls = TlsFiles::in_directory(&tls_dir).load().doing(|| "reading the agent's certificate")?;
    let mut client = peer_client::connect(&agent, &host, &tls).await?;
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let open = RsyncOpen { operation, arguments: command.into_iter().skip(1).collect() };
    let open = RsyncFrame { kind: Some(rsync_frame::Kind::Open(open)) };
    frames.send(open).await.doing(|| "opening the transfer")?;
    let answer = client.rsync(ReceiverStream::new(outgoing)).await;
    let mut incoming =
        answer.map_err(|status| peer_client::refused(&host, "reading files", &status))?.into_inner();
    std::thread::spawn(move || read_input(&frames));
    let (to_output, output) = mpsc::channel::<Vec<u8>>(FRAMES);
    let writing = tokio::task::spawn_blocking(move || write_output(output));
    let mut exit_code = None;
    while let Some(frame) = incoming.next().await {
        let frame = frame.map_err(|status| peer_client::refused(&host, "reading files", &status))?;
        match frame.kind {
            Some(rsync_frame::Kind::Data(bytes)) => {
                if to_output.send(bytes).await.is_err() {
                    break; // rsync has closed its end; it says why itself.
                }
            }
            Some(rsync_frame::Kind::Stderr(text)) => {
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            Some(rsync_frame::Kind::ExitCode(code)) => exit_code = Some(code),
            _ => return Err(StepError::new(format!("host {host} sent a frame of an unknown kind"))),
        }
    }
    drop(to_output);
    writing.await.doing(|| "writing to rsync")?.doing(|| "writing to rsync")?;
    let code = exit_code.ok_or_else(|| StepError::new(format!("host {host} broke the transfer off")))?;
    Ok(u8::try_from(code).unwrap_or(FAILED))
}

fn read_input(frames: &mpsc::Sender<RsyncFrame>) {
    let mut input = std::io::stdin().lock();
    let mut buffer = vec![0; FRAME];
    loop {
        let kind = match input.read(&mut buffer) {
            Ok(0) => rsync_frame::Kind::Eof(true),
            Ok(count) => rsync_frame::Kind::Data(buffer[..count].to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // Without a word: the other side takes it for a client that is gone, and kills its sender.
            Err(_) => return,
        };
        let end = matches!(kind, rsync_frame::Kind::Eof(_));
        if frames.blocking_send(RsyncFrame { kind: Some(kind) }).is_err() || end {
            return;
        }
    }
}

fn write_output(mut bytes: mpsc::Receiver<Vec<u8>>) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    while let Some(piece) = bytes.blocking_recv() {
        output.write_all(&piece)?;
        output.flush()?;
    }
    Ok(())
}
