//! The part of the scripted agent that moves traffic: it keeps the order of calls and of tickets, and fails as told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pgleap_proto::tls::{Peer, Role};
use pgleap_proto::traffic::traffic_server::Traffic;
use pgleap_proto::traffic::*;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::agent::FakeAgent;

/// Orders the calls of all agents of a process.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// What the next call of a kind does.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Fail(&'static str),
    /// As if the agent were not there.
    Away,
    /// A pause that these processes hold up, or would.
    Blocked(Vec<i32>),
    /// Done, with something to tell.
    Notes(&'static str),
    /// Answers when the sender says true, or is gone.
    Hold(watch::Receiver<bool>),
}

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Moved {
    pub(crate) at: u64,
    pub(crate) host: String,
    pub(crate) call: &'static str,
    /// Pooler, balancer, or side.
    pub(crate) what: String,
    pub(crate) ticket: (u64, u64),
}

/// Kept by each agent.
#[derive(Debug, Default)]
pub(crate) struct Traffics {
    moved: Mutex<Vec<Moved>>,
    script: Mutex<HashMap<&'static str, VecDeque<Answer>>>,
    newest: Mutex<BTreeMap<String, (u64, u64)>>,
    standby: Mutex<bool>,
    open: Mutex<bool>,
    fenced: Mutex<bool>,
    writer: Mutex<i32>,
    reads_stay: Mutex<bool>,
}

impl FakeAgent {
    /// The next calls of this kind.
    pub(crate) fn answer(&self, call: &'static str, answers: impl IntoIterator<Item = Answer>) {
        self.traffics().script.lock().unwrap().entry(call).or_default().extend(answers);
    }

    pub(crate) fn moved(&self) -> Vec<Moved> {
        self.traffics().moved.lock().unwrap().clone()
    }

    /// As if a coordinator of a later term had been here.
    pub(crate) fn remember_ticket(&self, operation: &str, ticket: (u64, u64)) {
        self.traffics().newest.lock().unwrap().insert(operation.to_owned(), ticket);
    }

    /// Every server of this host says that it is in recovery.
    pub(crate) fn demote(&self) {
        *self.traffics().standby.lock().unwrap() = true;
    }

    /// Every server of this host lets clients in, as far as its agent can see.
    pub(crate) fn let_in(&self) {
        *self.traffics().open.lock().unwrap() = true;
    }

    /// No server of this host lets clients in.
    pub(crate) fn keep_out(&self) {
        *self.traffics().fenced.lock().unwrap() = true;
    }

    /// The side that this agent finds open.
    pub(crate) fn sees_writer(&self, side: i32) {
        *self.traffics().writer.lock().unwrap() = side;
    }

    /// The balancer of this host has no server of the new side that could have reads.
    pub(crate) fn keep_reads(&self) {
        *self.traffics().reads_stay.lock().unwrap() = true;
    }

    async fn admit(
        &self,
        peer: Result<Peer, Status>,
        call: &'static str,
        what: String,
        ticket: Option<&Ticket>,
    ) -> Result<Option<Answer>, Status> {
        peer?.require(&[Role::Coordinator], call)?;
        let Ticket { operation, term, attempt } =
            ticket.cloned().ok_or_else(|| Status::invalid_argument("no ticket"))?;
        let traffics = self.traffics();
        let newest = {
            let mut newest = traffics.newest.lock().unwrap();
            let newest = newest.entry(operation).or_default();
            *newest = (*newest).max((term, attempt));
            *newest
        };
        let at = CLOCK.fetch_add(1, Ordering::SeqCst);
        let (host, ticket) = (self.host().to_owned(), (term, attempt));
        if ticket < newest {
            return Err(Status::aborted("the ticket is old"));
        }
        traffics.moved.lock().unwrap().push(Moved { at, host, call, what, ticket });
        if call == "route_reads" && *traffics.reads_stay.lock().unwrap() {
            return Ok(Some(Answer::Notes("nobody is up there")));
        }
        let answer = traffics.script.lock().unwrap().get_mut(call).and_then(VecDeque::pop_front);
        match answer {
            Some(Answer::Fail(why)) => Err(Status::failed_precondition(why)),
            Some(Answer::Away) => Err(Status::unavailable("nobody is there")),
            Some(Answer::Hold(mut go)) => {
                let _ = go.wait_for(|go| *go).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

fn side(side: i32) -> String {
    Side::try_from(side).unwrap().as_str_name().to_lowercase()
}

fn notes(answer: Option<Answer>) -> Vec<String> {
    match answer {
        Some(Answer::Notes(note)) => vec![note.to_owned()],
        _ => Vec::new(),
    }
}

fn pooler(pooler: &Option<Pooler>) -> String {
    pooler.as_ref().unwrap().name.clone()
}

/// Each method lets in, notes the call and answers.
macro_rules! calls {
    ($($name:ident($request:ty) -> $reply:ty: |$r:ident| $what:expr, |$answer:ident| $make:expr;)*) => {
        #[tonic::async_trait]
        impl Traffic for FakeAgent {
            $(async fn $name(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                let peer = Peer::of(&request);
                self.is_meant(&request)?;
                let $r = request.into_inner();
                let what: String = $what;
                let $answer = self.admit(peer, stringify!($name), what, $r.ticket.as_ref()).await?;
                Ok(Response::new($make))
            })*

            async fn observe(&self, request: Request<ObserveRequest>) -> Result<Response<ObserveReply>, Status> {
                self.is_meant(&request)?;
                let in_recovery = *self.traffics().standby.lock().unwrap();
                Ok(Response::new(ObserveReply {
                    running: true,
                    in_recovery,
                    open: *self.traffics().open.lock().unwrap(),
                    fenced: *self.traffics().fenced.lock().unwrap(),
                    timeline: 1,
                    system_identifier: 7,
                    lag_bytes: 10,
                    writer: *self.traffics().writer.lock().unwrap(),
                    ..ObserveReply::default()
                }))
            }
        }
    };
}

calls! {
    arm_pooler(ArmPoolerRequest) -> ArmPoolerReply: |r| pooler(&r.pooler), |a| ArmPoolerReply { notes: notes(a), ..ArmPoolerReply::default() };
    in_use(InUseRequest) -> InUseReply: |r| r.pooler.clone(), |a| match a {
        Some(Answer::Blocked(pids)) => InUseReply { pids },
        _ => InUseReply::default(),
    };
    pause(PauseRequest) -> PauseReply: |r| r.pooler.clone(), |a| match a {
        Some(Answer::Blocked(blocking_pids)) => PauseReply { blocking_pids, reason: "in use".into(), ..PauseReply::default() },
        _ => PauseReply { paused: true, ..PauseReply::default() },
    };
    resume(ResumeRequest) -> ResumeReply: |r| format!("{} to {}", r.pooler, side(r.to)), |_a| ResumeReply::default();
    arm_source(ArmSourceRequest) -> ArmSourceReply: |r| side(r.side), |a| ArmSourceReply {
        notes: notes(a),
        sequences: vec![SequenceState { name: "s".into(), ..SequenceState::default() }],
        ..ArmSourceReply::default()
    };
    arm_target(ArmTargetRequest) -> ArmTargetReply: |r| format!("{} with {}", side(r.side), r.sequences.len()), |a| ArmTargetReply {
        notes: notes(a),
        ..ArmTargetReply::default()
    };
    fence(FenceRequest) -> FenceReply: |_r| String::new(), |_a| FenceReply {
        lsn: 500,
        mark: 42,
        timings: vec![Timing { name: "clients".into(), us: 3 }],
        ..FenceReply::default()
    };
    settle(SettleRequest) -> SettleReply: |r| format!("{} at {}", r.mark, r.lsn), |_a| SettleReply {
        positions: vec![SlotAt { database: "app".into(), slot: "slot".into(), lsn: 900 }],
        ..SettleReply::default()
    };
    seal(SealRequest) -> SealReply: |r| r.lsn.to_string(), |_a| SealReply::default();
    lead(LeadRequest) -> LeadReply: |r| side(r.side), |_a| LeadReply::default();
    follow(FollowRequest) -> FollowReply: |r| format!("{} from {}", side(r.side), r.positions[0].lsn), |_a| FollowReply::default();
    abort(AbortRequest) -> AbortReply: |r| {
        let unopened = if r.unopened { ", unopened" } else { "" };
        format!("{} for {}{unopened}", side(r.side), side(r.writer))
    }, |_a| AbortReply { unopened: r.unopened, ..AbortReply::default() };
    blockers(BlockersRequest) -> BlockersReply: |r| format!("{:?}", r.pids), |_a| BlockersReply {
        blockers: vec![Blocker { pid: 77, database: "app".into(), user: "u".into(), age_ms: 60_000, query: "SELECT pg_sleep(60)".into(), ..Blocker::default() }],
    };
    route_reads(RouteReadsRequest) -> RouteReadsReply: |r| r.percent.to_string(), |a| match a {
        Some(Answer::Notes(why)) => RouteReadsReply { reason: why.into(), ..RouteReadsReply::default() },
        _ => RouteReadsReply { effective_percent: r.percent, ..RouteReadsReply::default() },
    };
}
