//! The leader's side of a relink: a read-only rsync sender for a replica's agent, its standard input and output carried
//! over the agents' own connection.
//!
//! The sender is started without a shell, with an empty environment and with arguments written from the offer
//! ([`Offer::sender_arguments`]); `--sender` makes it read only. It ends with the call. What the client sends on
//! its standard input is rsync's own protocol; the filter rules in it are passed on only when they do no more than
//! leave files out ([`Gate`]).

use std::pin::Pin;
use std::process::{ExitStatus, Stdio};

use futures::{Stream, StreamExt as _};
use pgleap_proto::agent::{RsyncFrame, RsyncOpen, rsync_frame};
use pgleap_proto::tls::Peer;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::arguments;
use super::filters::Gate;
use super::offer::{self, Offer};
use crate::config::AgentConfig;

/// Bytes of one frame.
pub const FRAME: usize = 128 * 1024;
/// Frames waiting to be sent: with [`FRAME`] the bound on memory, two megabytes for each call.
pub const FRAMES: usize = 16;
/// Longest line of the sender's standard error that is passed on, in bytes.
const STDERR_LINE: u64 = 4096;

/// What `Peer.Rsync` answers with.
pub type RsyncStream = Pin<Box<dyn Stream<Item = Result<RsyncFrame, Status>> + Send>>;

/// Answers `Peer.Rsync`: starts the sender that the first frame asks for, and carries its input and output.
///
/// # Errors
/// As [`offer::find`]; `invalid_argument` for anything but the arguments of our own client; `permission_denied` for
/// a path that is not offered.
pub async fn serve_rsync<S>(config: &AgentConfig, peer: &Peer, mut input: S) -> Result<RsyncStream, Status>
where
    S: Stream<Item = Result<RsyncFrame, Status>> + Send + Unpin + 'static,
{
    let first = input.next().await.transpose()?.and_then(|frame| frame.kind);
    let Some(rsync_frame::Kind::Open(open)) = first else {
        return Err(Status::invalid_argument("the first frame has to say what is asked for"));
    };
    let (offer, arguments) = admit(config, peer, open).await?;
    tracing::info!(%peer, operation = offer.operation, ?arguments, "serving rsync");
    let mut child = start(&arguments)?;
    let (sender, receiver) = mpsc::channel(FRAMES);
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Status::internal("rsync was started without pipes"));
    };
    tokio::spawn(carry(offer, child, Pipes { stdin, stdout, stderr }, input, sender));
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Who asks, for which offer, for which of its directories.
async fn admit(config: &AgentConfig, peer: &Peer, open: RsyncOpen) -> Result<(Offer, Vec<String>), Status> {
    let (state_dir, peer) = (config.state_dir.clone(), peer.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let offer = offer::find(&state_dir, &peer, &open.operation)?;
        let refused = |why: String| format!("rsync was refused: {why}");
        let request =
            arguments::parse(&open.arguments).map_err(|why| Status::invalid_argument(refused(why)))?;
        let arguments =
            offer.sender_arguments(&request).map_err(|why| Status::permission_denied(refused(why)))?;
        Ok((offer, arguments))
    });
    looked.await.map_err(|error| Status::internal(error.to_string()))?
}

fn start(arguments: &[String]) -> Result<Child, Status> {
    let mut command = tokio::process::Command::new("rsync");
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin:/usr/local/bin").env("LC_ALL", "C");
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command.spawn().map_err(|error| {
        Status::failed_precondition(format!(
            "rsync cannot be started on the leader's host ({error}); install it"
        ))
    })
}

struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

type Frames = mpsc::Sender<Result<RsyncFrame, Status>>;

/// Carries everything until the sender has ended or the client is gone; dropping the child kills it.
async fn carry<S>(offer: Offer, mut child: Child, pipes: Pipes, input: S, frames: Frames)
where
    S: Stream<Item = Result<RsyncFrame, Status>> + Send + Unpin + 'static,
{
    let feeding = feed(input, pipes.stdin);
    let output =
        async { tokio::join!(read_output(pipes.stdout, &frames), read_errors(pipes.stderr, &frames)) };
    // A client that breaks off ends `feed` with an error, and closes `frames`.
    let mut feeding = std::pin::pin!(feeding);
    let mut output = std::pin::pin!(output);
    let mut fed = false;
    loop {
        tokio::select! {
            result = &mut feeding, if !fed => match result {
                Ok(()) => fed = true,
                Err(error) => {
                    tracing::warn!(operation = offer.operation, %error, "rsync client is gone, or was refused");
                    // Nobody reads it when the client is gone.
                    let _ = frames.try_send(Err(error));
                    return;
                }
            },
            _ = &mut output => break,
            () = frames.closed() => {
                return tracing::warn!(operation = offer.operation, "rsync client is gone");
            }
        }
    }
    let last = match child.wait().await {
        Ok(status) => last_frame(offer, status).await,
        Err(error) => Err(Status::internal(format!("waiting for rsync: {error}"))),
    };
    let _ = frames.send(last).await;
}

/// The exit code; an error instead when a server was started while files were copied.
async fn last_frame(offer: Offer, status: ExitStatus) -> Result<RsyncFrame, Status> {
    let stale = tokio::task::spawn_blocking(move || offer.stale()).await;
    if let Some(why) = stale.map_err(|error| Status::internal(error.to_string()))? {
        return Err(Status::failed_precondition(why));
    }
    // 20 is rsync's own code for a signal (errcode.h, RERR_SIGNAL).
    Ok(RsyncFrame { kind: Some(rsync_frame::Kind::ExitCode(status.code().unwrap_or(20))) })
}

/// Frames to the sender's standard input. Ends well when the client says so or the sender has closed it; the client's
/// end without a word is an error.
async fn feed<S>(mut input: S, mut stdin: ChildStdin) -> Result<(), Status>
where
    S: Stream<Item = Result<RsyncFrame, Status>> + Send + Unpin,
{
    let mut open = true;
    let mut gate = Gate::default();
    while let Some(frame) = input.next().await {
        match frame?.kind {
            Some(rsync_frame::Kind::Data(bytes)) if open => {
                let refused = |why| Status::permission_denied(format!("rsync was refused: {why}"));
                let bytes = gate.pass(bytes).map_err(refused)?;
                open = stdin.write_all(&bytes).await.is_ok();
            }
            Some(rsync_frame::Kind::Data(_)) => {}
            Some(rsync_frame::Kind::Eof(true)) => return Ok(()),
            _ => return Err(Status::invalid_argument("unexpected frame")),
        }
    }
    Err(Status::aborted("the client's stream ended without an end of input"))
}

async fn read_output(mut stdout: ChildStdout, frames: &Frames) {
    let mut buffer = vec![0; FRAME];
    // A failed read means that the sender is gone; its exit status tells.
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        let data = rsync_frame::Kind::Data(buffer[..count].to_vec());
        if frames.send(Ok(RsyncFrame { kind: Some(data) })).await.is_err() {
            return;
        }
    }
}

async fn read_errors(stderr: ChildStderr, frames: &Frames) {
    let mut stderr = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut stderr).take(STDERR_LINE);
        if !matches!(limited.read_until(b'\n', &mut line).await, Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        if frames.send(Ok(RsyncFrame { kind: Some(rsync_frame::Kind::Stderr(text)) })).await.is_err() {
            return;
        }
    }
}
