//! Poolers of this host: paused, repointed and resumed for a switchover, one call for one pooler.
//!
//! | file | what |
//! | --- | --- |
//! | `driver.rs` | the seam behind which the kinds of poolers are |
//! | `pgbouncer/`, `hook/` | the kinds |
//! | `hold.rs` | the end of a pause that nobody ended |
//! | `state.rs` | what outlives the agent |
//!
//! It never decides which side takes writes: a coordinator says so, or, when none does in time, the leaders themselves.
//! Work goes on when the caller goes away: a pause is never cut off amid its acquisition.

mod driver;
mod hold;
mod hook;
mod pgbouncer;
mod state;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pgleap_proto::failpoint;
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::{
    ArmPoolerReply, ArmPoolerRequest, InUseReply, InUseRequest, PauseReply, PauseRequest, ResumeReply,
    ResumeRequest, Side,
};
use tokio::time::Instant;

use self::driver::{Armed, Pause, Resumed};
use self::hold::End;
use self::state::Owed;
use crate::config::AgentConfig;
use crate::error::{Doing, Result, StepError};
use crate::step::given;
use crate::tickets::Admitted;

pub(crate) use self::driver::{Driver, Ends, of};
pub(crate) use self::state::{Owed as OwedPause, Spared};

/// Operation, and name of the pooler.
type Key = (String, String);

/// What this agent holds of its poolers.
#[derive(Debug)]
pub struct Poolers {
    config: Arc<AgentConfig>,
    tls: TlsIdentity,
    slots: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Slot>>>>,
    /// For tasks that outlive a call, but not the agent.
    own: Weak<Poolers>,
}

/// One pooler of one operation. Locked for as long as something is done to it.
#[derive(Debug, Default)]
struct Slot {
    ready: Option<Ready>,
    owed: Option<Owed>,
}

/// Armed, under this ticket.
#[derive(Debug)]
struct Ready {
    ticket: Admitted,
    request: ArmPoolerRequest,
    driver: Box<dyn Driver>,
}

impl Poolers {
    /// None armed yet; pauses that an earlier agent owes an end are taken over.
    pub fn new(config: Arc<AgentConfig>, tls: TlsIdentity) -> Arc<Poolers> {
        let owed = Owed::all(&config.state_dir);
        let poolers =
            Arc::new_cyclic(|own| Poolers { config, tls, slots: Mutex::default(), own: own.clone() });
        for owed in owed {
            poolers.take_over(owed);
        }
        poolers
    }

    /// The coordinator may be amid the switchover for which the pause was made, so the rest of its time is waited for:
    /// by the clock of the host, whose jumps must not make it longer than it was to be.
    fn take_over(self: &Arc<Self>, owed: Owed) {
        let Some(armed) = &owed.armed else { return };
        let (Some(ticket), Some(pooler)) = (&armed.ticket, &armed.pooler) else { return };
        let key = (ticket.operation.clone(), pooler.name.clone());
        let left = u64::try_from(owed.deadline_us.saturating_sub(now_us())).unwrap_or(0);
        let left = Duration::from_micros(left).min(Duration::from_millis(owed.hold_ms));
        tracing::warn!(
            operation = key.0,
            pooler = key.1,
            ?left,
            "an earlier agent paused it: resuming at its deadline"
        );
        let slot = Slot { ready: None, owed: Some(owed.clone()) };
        self.slots().insert(key.clone(), Arc::new(tokio::sync::Mutex::new(slot)));
        self.watch(key, owed, left);
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<tokio::sync::Mutex<Slot>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, key: &Key) -> Arc<tokio::sync::Mutex<Slot>> {
        self.slots().entry(key.clone()).or_default().clone()
    }

    fn watch(&self, key: Key, owed: Owed, left: Duration) {
        tokio::spawn(hold::keep(self.own.clone(), key, owed, Instant::now() + left));
    }

    pub(crate) async fn arm(&self, ticket: Admitted, request: ArmPoolerRequest) -> Result<ArmPoolerReply> {
        let name = given(&request.pooler, "pooler")?.name.clone();
        let key = (ticket.operation.clone(), name);
        self.detached(key, move |poolers, key, mut slot| async move {
            if slot.owed.as_ref().is_some_and(|_| poolers.is_saved(&key)) {
                return Err(StepError::new(format!(
                    "pooler {} on host {} is still paused by an earlier try, or was not reached when that ended; it is \
                     resumed first",
                    key.1, poolers.config.host
                )));
            }
            slot.ready = None;
            let ends = ends(&request, End::Target)?;
            let mut driver = of(&poolers.config, &key.0, given(&request.pooler, "pooler")?)?;
            let Armed { aliases, notes } = driver.arm(&ends, request.refuse_session_pools).await?;
            slot.ready = Some(Ready { ticket, request, driver });
            Ok(ArmPoolerReply { aliases, notes })
        })
        .await
    }

    /// What would hold up a pause now. Clients notice nothing of it.
    pub(crate) async fn in_use(&self, ticket: Admitted, request: InUseRequest) -> Result<InUseReply> {
        let key = (ticket.operation.clone(), request.pooler);
        self.detached(key, move |poolers, key, mut slot| async move {
            let ready = poolers.armed(&mut slot.ready, &ticket, &key)?;
            let ends = ends(&ready.request, End::Target)?;
            Ok(InUseReply { pids: ready.driver.in_use(&ends).await? })
        })
        .await
    }

    /// What was armed under this very ticket.
    fn armed<'s>(&self, ready: &'s mut Option<Ready>, ticket: &Admitted, key: &Key) -> Result<&'s mut Ready> {
        ready.as_mut().filter(|ready| ready.ticket == *ticket).ok_or_else(|| {
            StepError::new(format!(
                "pooler {} on host {} is not armed for this try (the agent may have been restarted); arm it again",
                key.1, self.config.host
            ))
        })
    }

    pub(crate) async fn pause(&self, ticket: Admitted, request: PauseRequest) -> Result<PauseReply> {
        let key = (ticket.operation.clone(), request.pooler.clone());
        self.detached(key, move |poolers, key, mut slot| async move {
            let Slot { ready, owed } = &mut *slot;
            let ready = poolers.armed(ready, &ticket, &key)?;
            let ends = ends(&ready.request, End::Target)?;
            let aliases = ready.driver.aliases(&ends).await?;
            // Before anything is paused: whatever happens from here on, the pause has an end.
            let promise = poolers.promise(&key, &ready.request, aliases.clone(), request.hold_ms).await?;
            *owed = Some(promise.clone());
            poolers.watch(key.clone(), promise, Duration::from_millis(request.hold_ms));
            let limit = Duration::from_millis(request.acquire_ms);
            // Clients wait from here on, and not before.
            let begun = Instant::now();
            let paused = ready.driver.pause(&ends, &aliases, limit).await?;
            let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let reply = match paused {
                Pause::Acquired => PauseReply { paused: true, took_us, ..PauseReply::default() },
                Pause::Busy { pids, reason } => {
                    *owed = None;
                    poolers.redeemed(&key).await;
                    PauseReply { paused: false, blocking_pids: pids, reason, took_us }
                }
            };
            failpoint::reach("pooler.paused").await.doing(|| "pausing")?;
            Ok(reply)
        })
        .await
    }

    pub(crate) async fn resume(&self, ticket: Admitted, request: ResumeRequest) -> Result<ResumeReply> {
        let key = (ticket.operation.clone(), request.pooler.clone());
        self.detached(key, move |poolers, key, mut slot| async move {
            let old = given(&request.old_leader, "old_leader")?.clone();
            let new = given(&request.new_leader, "new_leader")?.clone();
            let (source, target) = match request.to() {
                Side::Old => (new, old),
                Side::New => (old, new),
                Side::Unspecified => return Err(StepError::new("the request does not say to which side")),
            };
            let armed = ArmPoolerRequest {
                ticket: request.ticket.clone(),
                pooler: Some(given(&request.definition, "definition")?.clone()),
                source: Some(source),
                target: Some(target),
                refuse_session_pools: false,
            };
            let resumed = poolers.let_go(&key, &mut slot, &armed, End::Target).await?;
            if resumed.absent {
                // It may have read the configuration just before that was changed: looked at again until it runs.
                let promise = poolers.promise(&key, &armed, Vec::new(), 0).await?;
                slot.owed = Some(promise.clone());
                poolers.watch(key.clone(), promise, Duration::ZERO);
            }
            failpoint::reach("pooler.resumed").await.doing(|| "resuming")?;
            Ok(ResumeReply { notes: resumed.notes })
        })
        .await
    }

    /// Points to one end and resumes. Afterwards nothing is owed, unless the process does not run.
    async fn let_go(
        &self,
        key: &Key,
        slot: &mut Slot,
        armed: &ArmPoolerRequest,
        end: End,
    ) -> Result<Resumed> {
        let ends = ends(armed, end)?;
        let aliases = slot.owed.as_ref().map(|owed| owed.aliases.clone()).unwrap_or_default();
        let pooler = given(&armed.pooler, "pooler")?;
        let resumed = match &mut slot.ready {
            Some(ready) if ready.request.pooler.as_ref() == Some(pooler) => {
                ready.driver.resume(&ends, &aliases).await?
            }
            _ => of(&self.config, &key.0, pooler)?.resume(&ends, &aliases).await?,
        };
        slot.ready = None;
        if !resumed.absent {
            slot.owed = None;
            self.redeemed(key).await;
        }
        Ok(resumed)
    }

    /// Makes a pause's end durable.
    async fn promise(
        &self,
        key: &Key,
        armed: &ArmPoolerRequest,
        aliases: Vec<String>,
        hold_ms: u64,
    ) -> Result<Owed> {
        let hold_us = i64::try_from(hold_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
        let owed = Owed {
            armed: Some(armed.clone()),
            deadline_us: now_us().saturating_add(hold_us),
            aliases,
            id: uuid::Uuid::new_v4().to_string(),
            hold_ms,
        };
        let (state_dir, (operation, pooler), record) =
            (self.config.state_dir.clone(), key.clone(), owed.clone());
        let saving = tokio::task::spawn_blocking(move || record.save(&state_dir, &operation, &pooler)).await;
        saving.doing(|| "writing down a pause")??;
        Ok(owed)
    }

    /// Removes the record of a pause that has ended. When that fails, a later agent looks once more and finds nothing to do.
    async fn redeemed(&self, key: &Key) {
        let (state_dir, (operation, pooler)) = (self.config.state_dir.clone(), key.clone());
        let removing =
            tokio::task::spawn_blocking(move || Owed::remove(&state_dir, &operation, &pooler)).await;
        if let Ok(Err(error)) = removing {
            tracing::warn!(%error, "the record of a pause that has ended stays");
        }
    }

    fn is_saved(&self, key: &Key) -> bool {
        Owed::is_saved(&self.config.state_dir, &key.0, &key.1)
    }

    /// Whether this very pause is still to be ended.
    async fn is_owed(&self, key: &Key, id: &str) -> bool {
        let slot = self.slot(key);
        let same = slot.lock().await.owed.as_ref().is_some_and(|owed| owed.id == id);
        // An undo removes the record.
        same && self.is_saved(key)
    }

    /// Ends a pause whose time is over. False when its process does not run.
    async fn redeem(self: &Arc<Self>, key: &Key, owed: &Owed, end: End) -> Result<bool> {
        let (id, armed) = (owed.id.clone(), given(&owed.armed, "armed")?.clone());
        self.detached(key.clone(), move |poolers, key, mut slot| async move {
            let same = slot.owed.as_ref().is_some_and(|owed| owed.id == id);
            if !same || !poolers.is_saved(&key) {
                return Ok(true);
            }
            let resumed = poolers.let_go(&key, &mut slot, &armed, end).await?;
            if !resumed.absent {
                tracing::warn!(operation = key.0, pooler = key.1, ?end, notes = ?resumed.notes, "resumed at the deadline");
            }
            Ok(!resumed.absent)
        })
        .await
    }

    /// Does something to a pooler in a task of its own: a caller that goes away does not leave it half done.
    async fn detached<T, F, W>(&self, key: Key, work: W) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
        W: FnOnce(Arc<Poolers>, Key, tokio::sync::OwnedMutexGuard<Slot>) -> F + Send + 'static,
    {
        let poolers = self.own.upgrade().ok_or_else(|| StepError::new("the agent is ending"))?;
        let slot = self.slot(&key);
        let task = tokio::spawn(async move {
            let slot = slot.lock_owned().await;
            work(poolers, key, slot).await
        });
        task.await.doing(|| "working on a pooler")?
    }
}

/// From the other end to this one.
fn ends(armed: &ArmPoolerRequest, end: End) -> Result<Ends> {
    let source = given(&given(&armed.source, "source")?.node, "source.node")?.clone();
    let target = given(&given(&armed.target, "target")?.node, "target.node")?.clone();
    Ok(match end {
        End::Target => Ends { from: source, to: target },
        End::Source => Ends { from: target, to: source },
    })
}

/// Microseconds since 1970 by this host's clock.
fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
