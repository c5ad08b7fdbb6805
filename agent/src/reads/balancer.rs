//! Keeps the share of reads in HAProxy: looks at its servers again and again and sets the weights that differ, so that a reload of
//! HAProxy or a restart of the agent changes nothing for long. Touches only the servers that its record lists.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use pgleap_proto::traffic::{self as wire, Balancer, RouteReadsReply, ServerState};
use tokio::sync::Mutex;

use super::haproxy::{Runtime, ServerStatus};
use super::lag::Side;
use super::record::{self, KeptBalancer};
use super::weights::{Guard, Server, weights};
use crate::error::{Result, StepError};

/// How often the weights are compared.
pub const TICK: Duration = Duration::from_millis(250);

/// Held while a balancer's record or weights change, by the keeper, the calls and the steps of this process alike; with what is
/// remembered of each (operation, name).
static KEPT: LazyLock<Mutex<HashMap<(String, String), Guard>>> = LazyLock::new(Mutex::default);

/// A listed server as it was found.
struct Listed {
    side: Side,
    status: ServerStatus,
}

/// The listed servers, old ones first.
async fn listed(balancer: &Balancer) -> Result<Vec<Listed>> {
    let found = Runtime(&balancer.socket).servers(&balancer.backend).await?;
    let old = balancer.old_servers.iter().map(|name| (Side::Old, name));
    let new = balancer.new_servers.iter().map(|name| (Side::New, name));
    let listed = old.chain(new).map(|(side, name)| {
        let status = found.iter().find(|status| status.name == *name).cloned().ok_or_else(|| {
            StepError::new(format!(
                "backend {} of HAProxy on {} has no server {name}, which balancer {} lists among the {} ones; give HAProxy a \
                 server of that name; if the fleet file is wrong, cancel, correct and apply it, start again",
                balancer.backend,
                balancer.socket,
                balancer.name,
                side.name()
            ))
        })?;
        Ok(Listed { side, status })
    });
    listed.collect()
}

/// Gives servers other weights where they differ. Raised before others are lowered: when nobody has a weight, be it for a moment,
/// HAProxy turns connections away.
async fn set_weights(balancer: &Balancer, mut wanted: Vec<(&mut ServerStatus, u32)>) -> Result<()> {
    wanted.retain(|(status, weight)| status.weight != *weight);
    wanted.sort_by_key(|(status, weight)| *weight < status.weight);
    for (status, weight) in wanted {
        Runtime(&balancer.socket).set_weight(&balancer.backend, &status.name, weight).await?;
        status.weight = weight;
    }
    Ok(())
}

/// Compares and corrects once.
async fn tick(kept: &KeptBalancer, guard: &mut Guard, in_turn: bool) -> Result<RouteReadsReply> {
    let balancer = &kept.balancer;
    let mut listed = listed(balancer).await?;
    let servers: Vec<Server> =
        listed.iter().map(|one| Server { side: one.side, up: one.status.up }).collect();
    let (percent, mut reason) = guard.look(&servers, kept.percent, in_turn);
    let wanted = weights(&servers, percent);
    set_weights(balancer, listed.iter_mut().map(|one| &mut one.status).zip(wanted).collect()).await?;
    let staying = listed.iter().filter(|one| one.status.weight == 0 && one.status.sessions > 0);
    let staying: Vec<String> =
        staying.map(|one| format!("{} on {}", one.status.sessions, one.status.name)).collect();
    if !staying.is_empty() {
        let separator = if reason.is_empty() { "" } else { "; " };
        reason.push_str(&format!(
            "{separator}sessions that began before stay until their clients end them: {}",
            staying.join(", ")
        ));
    }
    Ok(RouteReadsReply {
        servers: listed.into_iter().map(state).collect(),
        effective_percent: percent,
        reason,
    })
}

fn state(listed: Listed) -> ServerState {
    let side = wire::Side::from(listed.side);
    let ServerStatus { name, weight, up, check, sessions, sessions_total } = listed.status;
    ServerState { server: name, side: side.into(), weight, up, check, sessions, sessions_total }
}

/// Looks at a balancer, writes down the weights found and begins to keep it at 0 percent. What is kept already stays as it is.
///
/// # Errors
/// When HAProxy cannot be asked, lacks what is listed, or weights may not be set.
pub async fn stage(state_dir: &Path, operation: &str, balancer: &Balancer) -> Result<()> {
    let mut guards = KEPT.lock().await;
    let known: Option<KeptBalancer> = record::load(state_dir, operation, &balancer.name)?;
    let kept = match known.filter(|kept| !kept.ending) {
        Some(kept) if kept.balancer == *balancer => kept,
        Some(_) => return Err(other_definition(balancer)),
        None => {
            sensible(balancer)?;
            Runtime(&balancer.socket).require_admin().await?;
            let found: BTreeMap<String, u32> =
                listed(balancer).await?.into_iter().map(|one| (one.status.name, one.status.weight)).collect();
            let kept = KeptBalancer { balancer: balancer.clone(), percent: 0, found, ending: false };
            record::save(state_dir, operation, &balancer.name, &kept)?;
            kept
        }
    };
    let guard = guards.entry((operation.to_owned(), balancer.name.clone())).or_default();
    tick(&kept, guard, false).await.map(drop)
}

/// Whether this balancer is kept, and its HAProxy can be asked and has all that is listed.
///
/// # Errors
/// When it is kept and HAProxy cannot be asked or lacks something.
pub async fn is_staged(state_dir: &Path, operation: &str, balancer: &Balancer) -> Result<bool> {
    let kept: Option<KeptBalancer> = record::load(state_dir, operation, &balancer.name)?;
    if !kept.is_some_and(|kept| kept.balancer == *balancer && !kept.ending) {
        return Ok(false);
    }
    listed(balancer).await.map(|_| true)
}

/// Gives every server the weight that was found and ends the keeping. Idempotent. Returns what could not be given back because it
/// is not there any more.
///
/// # Errors
/// When HAProxy runs and refuses.
pub async fn unstage(
    state_dir: &Path,
    operation: &str,
    name: &str,
    weights_stay: bool,
) -> Result<Vec<String>> {
    let mut guards = KEPT.lock().await;
    let Some(mut kept): Option<KeptBalancer> = record::load(state_dir, operation, name)? else {
        return Ok(Vec::new());
    };
    // From here on no keeper changes anything, also when this is cut off before it is done.
    kept.ending = true;
    record::save(state_dir, operation, name, &kept)?;
    let mut notes = Vec::new();
    let runtime = Runtime(&kept.balancer.socket);
    if weights_stay {
        notes.push(format!(
            "the weights of backend {} stay as they are; they are in HAProxy's memory only: put them into its configuration",
            kept.balancer.backend
        ));
    } else if runtime.is_gone().await {
        notes.push(format!(
            "HAProxy does not run on {}: its next start takes the weights from its configuration",
            kept.balancer.socket
        ));
    } else {
        let mut present = runtime.servers(&kept.balancer.backend).await?;
        for server in kept.found.keys().filter(|name| present.iter().all(|status| status.name != **name)) {
            notes.push(format!("backend {} has no server {server} any more", kept.balancer.backend));
        }
        let found = present
            .iter_mut()
            .filter_map(|status| kept.found.get(&status.name).map(|weight| (status, *weight)));
        set_weights(&kept.balancer, found.collect()).await?;
    }
    record::remove::<KeptBalancer>(state_dir, operation, name)?;
    guards.remove(&(operation.to_owned(), name.to_owned()));
    Ok(notes)
}

/// Writes the share down and sets it at once.
///
/// # Errors
/// When the balancer is not staged, or HAProxy does not answer: then the share is written down and set once it does.
pub async fn route(
    state_dir: &Path,
    operation: &str,
    balancer: &Balancer,
    percent: u32,
) -> Result<RouteReadsReply> {
    if percent > 100 {
        return Err(StepError::new(format!("{percent} percent of reads: ask for 0 to 100")));
    }
    let mut guards = KEPT.lock().await;
    let known: Option<KeptBalancer> = record::load(state_dir, operation, &balancer.name)?;
    let Some(mut kept) = known.filter(|kept| !kept.ending) else {
        return Err(StepError::new(format!(
            "balancer {} is not staged for operation {operation} on this host: its step stage_balancer has to be done first",
            balancer.name
        )));
    };
    if kept.balancer != *balancer {
        return Err(other_definition(balancer));
    }
    if kept.percent != percent {
        kept.percent = percent;
        record::save(state_dir, operation, &balancer.name, &kept)?;
    }
    let guard = guards.entry((operation.to_owned(), balancer.name.clone())).or_default();
    tick(&kept, guard, false).await
}

/// Keeps one balancer until its record is gone; the keeper ends the task otherwise.
pub(super) async fn keep(state_dir: &Path, operation: &str, name: &str) {
    let mut told = String::new();
    loop {
        {
            let mut guards = KEPT.lock().await;
            let now = match record::load::<KeptBalancer>(state_dir, operation, name) {
                Ok(None) => return,
                Ok(Some(kept)) if kept.ending => Ok(String::new()),
                Ok(Some(kept)) => {
                    let guard = guards.entry((operation.to_owned(), name.to_owned())).or_default();
                    tick(&kept, guard, true).await.map(|reply| {
                        if reply.effective_percent == kept.percent { String::new() } else { reply.reason }
                    })
                }
                Err(error) => Err(error),
            };
            // Said when it changes, not four times a second.
            let now = now.unwrap_or_else(|error| error.message);
            if now != told {
                if now.is_empty() {
                    tracing::info!(balancer = name, "reads are shared as asked");
                } else {
                    tracing::warn!(balancer = name, reason = now, "reads are not shared as asked");
                }
                told = now;
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

fn other_definition(balancer: &Balancer) -> StepError {
    StepError::new(format!(
        "balancer {} was staged with another socket, backend or list of servers than it is asked for now; cancel or finish the \
         operation that staged it",
        balancer.name
    ))
}

/// Refuses a definition by which nothing could be shared.
fn sensible(balancer: &Balancer) -> Result<()> {
    let Balancer { name, socket, old_servers, new_servers, .. } = balancer;
    let problem = if !Path::new(socket).is_absolute() {
        format!("its socket \"{socket}\" is no absolute path")
    } else if old_servers.is_empty() || new_servers.is_empty() {
        "it needs servers on both sides".to_owned()
    } else if let Some(twice) = old_servers.iter().find(|server| new_servers.contains(server)) {
        format!("server {twice} is listed on both sides")
    } else {
        return Ok(());
    };
    Err(StepError::new(format!(
        "balancer {name}: {problem}; cancel, correct the fleet file and apply it, start again"
    )))
}
