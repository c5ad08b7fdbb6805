//! `pgleap members`: the group of coordinators.

use clap::{Args, Subcommand};
use pgleap_proto::fleet::CoordinatorStatus;
use pgleap_proto::raft::{
    AddRequest, ChangeReply, ListReply, ListRequest, MemberStatus, RemoveRequest, TransferRequest,
};

use super::client::request_id;
use super::output::{Out, Tone};
use super::{Connection, Outcome, format};

/// A member that was not heard of for longer than this is worth a word.
const SILENT_SECONDS: f64 = 2.0;

#[derive(Debug, Args)]
pub struct Members {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the members, who leads and how the others keep up; any member answers
    List,
    /// Expect a new member; then start it there: pgleap serve --member N --join HOST:PORT
    Add {
        /// Its number: one that no member has
        #[arg(long)]
        member: u64,
        /// Address at which the other members and the command line will reach it
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
    },
    /// Let a member go; with its data directory it is never let in again
    Remove {
        /// Its number
        #[arg(long)]
        member: u64,
    },
    /// Give leadership to another member, before maintenance of the leader's host
    Transfer {
        /// Number of the member that is to lead
        #[arg(long)]
        to: u64,
    },
}

impl Members {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let mut client = connection.members().await?;
        let (reply, next) = match self.verb.unwrap_or(Verb::List) {
            Verb::List => return list(connection, out).await,
            Verb::Add { member, address } => {
                let next = format!(
                    "next, on its host: pgleap serve --member {member} --advertise {address} --join {}",
                    connection.coordinator
                );
                let request = AddRequest { member, address, request_id: request_id() };
                (client.add(request).await?.into_inner(), next)
            }
            Verb::Remove { member } => {
                let request = RemoveRequest { member, request_id: request_id() };
                let next =
                    format!("member {member} is no more part of the group; stop it and empty its directory");
                (client.remove(request).await?.into_inner(), next)
            }
            Verb::Transfer { to } => {
                let request = TransferRequest { to, request_id: request_id() };
                (client.transfer(request).await?.into_inner(), format!("member {to} leads"))
            }
        };
        changed(out, &reply)?;
        out.talk(&next);
        Ok(())
    }
}

async fn list(connection: &Connection, out: &mut Out) -> Outcome {
    let mut reply = connection.members().await?.list(ListRequest {}).await?.into_inner();
    // The leader knows more; whoever answers is good enough when it does not.
    if reply.leader != reply.member
        && !reply.leader_address.is_empty()
        && let Ok(mut leader) = connection.member_at(&reply.leader_address).await
        && let Ok(better) = leader.list(ListRequest {}).await
    {
        reply = better.into_inner();
    }
    if out.json {
        return Ok(out.value(&reply)?);
    }
    let text = render(out, &reply);
    Ok(out.line(&text)?)
}

fn changed(out: &mut Out, reply: &ChangeReply) -> std::io::Result<()> {
    if out.json {
        return out.value(reply);
    }
    for member in &reply.members {
        let role = match (member.voter, member.identity.is_empty()) {
            (true, _) => "voter",
            (false, true) => "added",
            (false, false) => "learner",
        };
        out.line(&format!("{:<4} {role:<8} {}", member.id, member.address))?;
    }
    Ok(())
}

fn render(out: &Out, reply: &ListReply) -> String {
    let mut lines: Vec<String> = reply.members.iter().map(|member| line(out, member)).collect();
    let voters = reply.members.iter().filter(|m| matches!(m.role.as_str(), "leader" | "voter")).count();
    lines.push(match reply.leader {
        0 => out.paint(
            Tone::Bad,
            "no member leads: a majority of the voters must be up and reach each other; nothing new is started",
        ),
        leader => format!("member {leader} leads in term {}", reply.term),
    });
    if voters > 1 && voters % 2 == 0 {
        lines.push(format!("{voters} voters survive no more losses than {}; add one", voters - 1));
    }
    lines.join("\n")
}

fn line(out: &Out, member: &MemberStatus) -> String {
    let heard = match member.seconds_since_contact {
        ..0.0 => String::new(),
        seconds if seconds < SILENT_SECONDS => "in contact".to_owned(),
        seconds => out.paint(Tone::Warn, &format!("silent for {}", format::seconds(seconds))),
    };
    let matched = if member.matched > 0 { format!("entry {}", member.matched) } else { String::new() };
    let mut line =
        format!("{:<4} {:<8} {:<22} {matched:<12} {heard}", member.id, member.role, member.address);
    if !member.problem.is_empty() {
        line.push_str(&format!("\n     {}", out.paint(Tone::Warn, &member.problem)));
    }
    line.trim_end().to_owned()
}

/// The line of `status` about the coordinators, when there are several.
pub(super) fn summary(out: &Out, status: Option<&CoordinatorStatus>) -> Option<String> {
    let status = status.filter(|status| status.members.len() > 1)?;
    let others = status.members.iter().filter(|member| member.id != status.leader);
    let others: Vec<String> = others
        .map(|member| match member.seconds_since_contact {
            seconds if (0.0..SILENT_SECONDS).contains(&seconds) => format!("{} {}", member.id, member.role),
            ..0.0 => out.paint(Tone::Warn, &format!("{} {}, never heard of", member.id, member.role)),
            seconds => {
                out.paint(Tone::Warn, &format!("{} silent for {}", member.id, format::seconds(seconds)))
            }
        })
        .collect();
    Some(format!("coordinators: {} leads (term {}), {}", status.leader, status.term, others.join(", ")))
}
