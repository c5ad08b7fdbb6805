//! HAProxy's `agent-check`: one line a connection, from the same judgement as `/replica`.
//!
//! | node | line |
//! | --- | --- |
//! | within its bounds | `up 100%` |
//! | runs, but is behind or of unknown lag | `up 0%`: its sessions go on, it gets no new ones |
//! | does not run, or is not known to | `down` |
//!
//! Not HAProxy's word `drain`: only `ready` takes that back, which would also take back what an operator ordered. A host that keeps
//! several nodes needs `agent-send "NODE\n"`. These weights are percents of the configured one, so a server whose weights a
//! balancer's keeper sets should have HTTP checks instead: each would undo the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::http::ask;
use super::judge::{Question, Verdict};
use super::keeper::Keeper;

/// Connections at the same time.
const CONNECTIONS: usize = 64;
/// Time for the whole exchange.
const LIFE: Duration = Duration::from_secs(2);
/// Longest name that is read.
const LONGEST: u64 = 256;

/// Answers until it is cancelled.
pub async fn serve(listener: TcpListener, keeper: Arc<Keeper>, ended: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ended.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let keeper = keeper.clone();
        tokio::spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(LIFE, answer(stream, &keeper)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, keeper: &Keeper) -> std::io::Result<()> {
    let nodes = keeper.nodes();
    let kept = match nodes.as_slice() {
        [] => None,
        [only] => Some(only),
        several => {
            // Whoever says no name gets an answer too: that no node of no name is up.
            let name =
                tokio::time::timeout(LIFE / 2, line(&mut stream)).await.unwrap_or(Ok(String::new()))?;
            several.iter().find(|kept| kept.name() == name.trim())
        }
    };
    let said = kept.map_or("down\n", |kept| word(&ask(kept, Question::Replica, kept.bounds())));
    stream.write_all(said.as_bytes()).await?;
    stream.shutdown().await
}

/// The first line that the balancer sends.
async fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut read = Vec::new();
    let mut limited = stream.take(LONGEST);
    while !read.contains(&b'\n') && limited.read_buf(&mut read).await? > 0 {}
    Ok(String::from_utf8_lossy(&read).lines().next().unwrap_or_default().to_owned())
}

fn word(verdict: &Verdict) -> &'static str {
    match (verdict.fine, verdict.alive) {
        (true, _) => "up 100%\n",
        (false, true) => "up 0%\n",
        (false, false) => "down\n",
    }
}
