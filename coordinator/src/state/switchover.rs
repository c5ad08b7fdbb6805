//! PURE: what each happening does to the traffic of an operation. Which of them is legal when is for the `match` of `transition`.

use pgleap_proto::traffic::{SlotAt, Timing};

use super::Reply;
use super::operation::{Operation, Status};
use super::rejection::Rejection;
use super::traffic::{FinishOrder, LastSwitchover, Side, Stage, Switchover, Ticket};
use super::transition::{Occasion, enter, note};

/// Accepted with a switchover: reads stay where they are as long as no server of the side that takes the writes can have them.
pub const READS: &str = "reads";

/// What may be asked of the traffic of an operation, or has come of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Move<'a> {
    SetReads { percent: u8 },
    NewTicket,
    Begin { to: Side, accepted: &'a [String] },
    Started,
    Decide { attempt: u64, positions: &'a [SlotAt] },
    Failed { attempt: u64, reason: &'a str, evidence: &'a [String], again: bool },
    Undone { attempt: u64 },
    Noted { attempt: u64, notes: &'a [String] },
    Led { attempt: u64 },
    TakeBack { attempt: u64, evidence: &'a [String] },
    Served { attempt: u64 },
    Done { attempt: u64, pause_us: Option<u64>, timings: &'a [Timing] },
    Finish { decommission: bool },
    Disturbed { reason: &'a str, evidence: &'a [String], failover: bool },
}

/// Another share of reads. It takes a ticket, so that nothing sent before can come after it.
pub(super) fn set_reads(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    percent: u8,
) -> Result<Reply, Rejection> {
    let balancers = operation.plan.moving().map_or(0, |moving| moving.balancers.len());
    if balancers == 0 {
        return Err(refused(
            operation,
            "the plan has no [[cluster.balancer]], so there are no reads to move",
        ));
    }
    if percent > 100 {
        return Err(refused(operation, "the share of reads is a percentage from 0 to 100"));
    }
    let before = operation.traffic.reads;
    operation.traffic.reads = percent;
    new_ticket(operation, occasion);
    note(operation, occasion, "", "reads", &format!("{before} % -> {percent} % on the new side"));
    Ok(Reply::Operation { id: operation.id.clone() })
}

/// A ticket of this leader for calls outside a switchover.
pub(super) fn take_ticket(operation: &mut Operation, occasion: Occasion<'_>) -> Reply {
    let Ticket { term, attempt } = new_ticket(operation, occasion);
    Reply::Started { attempt, term }
}

pub(super) fn begin(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    to: Side,
    accepted: &[String],
) -> Result<Reply, Rejection> {
    let Some(moving) = operation.plan.moving() else {
        return Err(refused(operation, "its plan was made by an older pgleap, which could not move traffic"));
    };
    if operation.traffic.writer == to {
        let why = format!("the {to} cluster takes the writes already");
        return Err(refused(operation, &why));
    }
    if let Some(at) = [&moving.old, &moving.new].into_iter().find(|at| operation.abandoned.contains(&at.host))
    {
        let why = format!(
            "host {} of {} was given up (`pgleap abandon`), so nothing can be moved between the two clusters any more: {}",
            at.host,
            at.what.name,
            if operation.traffic.writer == Side::Old {
                "`pgleap cancel`, then start again"
            } else {
                "`pgleap finish`"
            }
        );
        return Err(refused(operation, &why));
    }
    let reads_before = operation.traffic.reads;
    if !moving.balancers.is_empty() {
        operation.traffic.reads = if to == Side::New { 100 } else { 0 };
    }
    operation.traffic.switchover = Some(Switchover {
        to,
        stage: Stage::Waiting,
        tries: 0,
        most: operation.plan.traffic.tries.max(1),
        ticket: Ticket::default(),
        by: occasion.by.to_owned(),
        at: occasion.at,
        reason: String::new(),
        evidence: Vec::new(),
        again: false,
        positions: Vec::new(),
        led: false,
        notes: Vec::new(),
        served: false,
        reads_before,
        reads_may_stay: accepted.iter().any(|name| name == READS),
    });
    enter(operation, occasion, Status::Switching);
    let accepted =
        if accepted.is_empty() { String::new() } else { format!("; accepted: {}", accepted.join(", ")) };
    note(operation, occasion, "", "switchover", &format!("writes are to go to the {to} cluster{accepted}"));
    Ok(Reply::Operation { id: operation.id.clone() })
}

/// A coordinator takes the switchover in hand: the next try, or what another one left.
pub(super) fn started(operation: &mut Operation, occasion: Occasion<'_>) -> Result<Reply, Rejection> {
    under_way(operation)?;
    let ticket = new_ticket(operation, occasion);
    let switchover = under_way(operation)?;
    switchover.ticket = ticket;
    let said = match switchover.stage {
        Stage::Waiting => {
            switchover.stage = Stage::Trying;
            switchover.tries += 1;
            Some(("try", format!("try {} of {}", switchover.tries, switchover.most)))
        }
        // Whether its calls arrived is unknown, and who would decide is gone: from here on nobody can decide it.
        Stage::Trying => {
            switchover.stage = Stage::Undoing;
            switchover.again = false;
            switchover.reason =
                "the coordinator that led the try ended before it was decided, so it is taken back"
                    .to_owned();
            switchover.evidence.clear();
            Some(("try-failed", switchover.reason.clone()))
        }
        Stage::Undoing | Stage::Decided => None,
    };
    if let Some((kind, message)) = said {
        note(operation, occasion, "", kind, &message);
    }
    Ok(Reply::Started { attempt: ticket.attempt, term: ticket.term })
}

/// The register moves: here, and back in `take_back.rs` by an operator's consent, and nowhere else.
pub(super) fn decide(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    attempt: u64,
    positions: &[SlotAt],
) -> Result<Reply, Rejection> {
    let term = occasion.position.term;
    let switchover = current(operation, Stage::Trying, attempt)?;
    if switchover.ticket.term != term {
        let began = switchover.ticket.term;
        let why =
            format!("the try began in term {began}, and this is term {term}: it cannot be decided any more");
        return Err(refused(operation, &why));
    }
    switchover.stage = Stage::Decided;
    switchover.positions = positions.to_vec();
    let (to, by) = (switchover.to, switchover.by.clone());
    operation.traffic.writer = to;
    operation.traffic.count += 1;
    note(
        operation,
        occasion,
        "",
        "decided",
        &format!("the {to} cluster takes the writes, asked for by {by}"),
    );
    Ok(Reply::Accepted)
}

pub(super) fn failed(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    attempt: u64,
    (reason, evidence, again): (&str, &[String], bool),
) -> Result<Reply, Rejection> {
    let switchover = current(operation, Stage::Trying, attempt)?;
    switchover.stage = Stage::Undoing;
    switchover.reason = reason.to_owned();
    switchover.evidence = evidence.to_vec();
    switchover.again = again;
    let message = std::iter::once(reason).chain(evidence.iter().map(String::as_str)).collect::<Vec<_>>();
    note(operation, occasion, "", "try-failed", &message.join("\n"));
    Ok(Reply::Accepted)
}

pub(super) fn undone(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    attempt: u64,
) -> Result<Reply, Rejection> {
    let held = operation.place.hold.is_some();
    let switchover = current(operation, Stage::Undoing, attempt)?;
    if switchover.again && !held && switchover.tries < switchover.most {
        switchover.stage = Stage::Waiting;
        let message = format!("try {} is taken back; another follows", switchover.tries);
        note(operation, occasion, "", "try-undone", &message);
    } else {
        end(operation, occasion, None);
    }
    Ok(Reply::Accepted)
}

/// Agents noted something while they got ready: each of it is told once, however many tries there are.
pub(super) fn noted(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    attempt: u64,
    notes: &[String],
) -> Result<Reply, Rejection> {
    let switchover = current(operation, Stage::Trying, attempt)?;
    let mut news: Vec<String> = Vec::new();
    for told in notes {
        if !switchover.notes.contains(told) {
            switchover.notes.push(told.clone());
            news.push(told.clone());
        }
    }
    for told in news {
        note(operation, occasion, "", "note", &told);
    }
    Ok(Reply::Accepted)
}

/// From here on clients may have written on the target: its decision stands for good.
pub(super) fn led(operation: &mut Operation, attempt: u64) -> Result<Reply, Rejection> {
    current(operation, Stage::Decided, attempt)?.led = true;
    Ok(Reply::Accepted)
}

/// Clients have what they waited for. Should the other side never follow any more, there is a way on now: `finish`.
pub(super) fn served(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    attempt: u64,
) -> Result<Reply, Rejection> {
    let switchover = current(operation, Stage::Decided, attempt)?;
    let news = !std::mem::replace(&mut switchover.served, true);
    let to = switchover.to;
    if news {
        let message = format!("clients are served by the {to} cluster; the other one does not follow yet");
        note(operation, occasion, "", "served", &message);
    }
    Ok(Reply::Accepted)
}

pub(super) fn done(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    attempt: u64,
    measured: (Option<u64>, &[Timing]),
) -> Result<Reply, Rejection> {
    current(operation, Stage::Decided, attempt)?;
    end(operation, occasion, Some(measured));
    Ok(Reply::Accepted)
}

/// `cancel` while a switchover is under way ends the switchover, never the operation.
pub(super) fn give_up(operation: &mut Operation, occasion: Occasion<'_>) -> Result<Reply, Rejection> {
    let id = operation.id.clone();
    let switchover = under_way(operation)?;
    match switchover.stage {
        Stage::Waiting => {
            let reason = std::mem::take(&mut switchover.reason);
            let after = if reason.is_empty() { String::new() } else { format!("; the latest try: {reason}") };
            switchover.reason = format!("given up by {}{after}", occasion.by);
            end(operation, occasion, None);
        }
        Stage::Undoing => {
            switchover.again = false;
            note(operation, occasion, "", "given-up", "no other try follows");
        }
        Stage::Trying | Stage::Decided => {
            let why = match switchover.stage {
                Stage::Decided => {
                    "the switchover is decided and is being completed; `pgleap reverse` leads back"
                }
                _ => {
                    "a try of the switchover is under way and ends by itself in seconds; \
                     `pgleap cancel` between two tries gives it up"
                }
            };
            return Err(refused(operation, why));
        }
    }
    Ok(Reply::Operation { id })
}

/// An agent that takes part is not the one known: nothing is decided any more. What is decided, or being taken back, goes on.
pub(super) fn doubted(operation: &mut Operation, occasion: Occasion<'_>, reason: &str, evidence: &[String]) {
    let Ok(switchover) = under_way(operation) else { return };
    let stage = switchover.stage;
    match stage {
        Stage::Waiting | Stage::Trying => {
            switchover.reason = reason.to_owned();
            switchover.evidence = evidence.to_vec();
            switchover.again = false;
            switchover.stage = Stage::Undoing;
        }
        Stage::Undoing => switchover.again = false,
        Stage::Decided => {}
    }
    if stage == Stage::Waiting {
        end(operation, occasion, None);
    }
}

pub(super) fn finish(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    decommission: bool,
) -> Result<Reply, Rejection> {
    if operation.plan.moving().is_none() {
        return Err(refused(operation, "its plan was made by an older pgleap, which could not finish"));
    }
    if operation.traffic.switchover.as_ref().is_some_and(|switchover| switchover.served) {
        end(operation, occasion, Some((None, &[])));
    }
    operation.traffic.finish = Some(FinishOrder { decommission, by: occasion.by.to_owned() });
    let writer = operation.traffic.writer;
    enter(operation, occasion, Status::Finishing);
    let message = format!("the {writer} cluster stays; there is no way back to the {} one", writer.other());
    note(operation, occasion, "", "finishing", &message);
    Ok(Reply::Operation { id: operation.id.clone() })
}

/// Back to the gate. `measured` when it was decided.
fn end(operation: &mut Operation, occasion: Occasion<'_>, measured: Option<(Option<u64>, &[Timing])>) {
    let Some(switchover) = operation.traffic.switchover.take() else { return };
    let decided = measured.is_some();
    let (pause_us, timings) = measured.unwrap_or_default();
    let Switchover { to, tries, by, reason, evidence, reads_before, .. } = switchover;
    if !decided {
        operation.traffic.reads = reads_before;
    }
    let (kind, message) = match (decided, pause_us) {
        (true, Some(us)) => {
            ("switched", format!("writes go to the {to} cluster; clients waited {} ms", us / 1000))
        }
        (true, None) => ("switched", format!("writes go to the {to} cluster")),
        (false, _) => ("switchover-undone", format!("everything is taken back: {reason}")),
    };
    operation.traffic.last = Some(LastSwitchover {
        to,
        decided,
        at: occasion.at,
        by,
        tries,
        reason,
        evidence,
        pause_us,
        timings: timings.to_vec(),
    });
    enter(operation, occasion, Status::AtGate);
    note(operation, occasion, "", kind, &message);
}

pub(super) fn new_ticket(operation: &mut Operation, occasion: Occasion<'_>) -> Ticket {
    let ticket = Ticket { term: occasion.position.term, attempt: operation.next_attempt };
    operation.next_attempt += 1;
    operation.traffic.ticket = ticket;
    ticket
}

pub(super) fn under_way(operation: &mut Operation) -> Result<&mut Switchover, Rejection> {
    let missing = refused(operation, "no switchover is under way");
    operation.traffic.switchover.as_mut().ok_or(missing)
}

pub(super) fn current(
    operation: &mut Operation,
    stage: Stage,
    attempt: u64,
) -> Result<&mut Switchover, Rejection> {
    let found = operation.traffic.switchover.as_ref().map(|found| (found.stage, found.ticket.attempt));
    if found == Some((stage, attempt)) {
        return under_way(operation);
    }
    let stands = match found {
        Some((stage, attempt)) => format!("attempt {attempt} is {}", stage.name()),
        None => "none is under way".to_owned(),
    };
    let why = format!("attempt {attempt} of the switchover is not {}: {stands}", stage.name());
    Err(refused(operation, &why))
}

pub(super) fn refused(operation: &Operation, why: &str) -> Rejection {
    Rejection::Illegal {
        operation: operation.id.clone(),
        status: operation.status_name(),
        why: why.to_owned(),
    }
}
