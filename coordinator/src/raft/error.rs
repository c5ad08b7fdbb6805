//! What can go wrong with the replicated log, and with what is written into it.

use std::path::PathBuf;

use pgleap_proto::raft::Member;
use tonic::Status;

use crate::state::Rejection;
use crate::state::RestoreError;
use crate::state::envelope::DecodeError;

/// What to do with a data directory that has forgotten something (decision 16): votes and starts that others remember.
pub const LOST_DISK: &str = "\
    treat its disk as lost: stop it, `pgleap members remove` it, add it again, empty the directory and start it with \
    --join. A coordinator without others has no copy to come back from: let it begin a new group in an empty directory, run \
    `pgleap-agent forget-group` on each host, and take back by hand what its operations have made";

/// The coordinator cannot start, or cannot go on: its log is not usable.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The data directory is not as it must be.
    #[error("data directory {path}: {why}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong and how to cure it.
        why: String,
    },
    /// Another process has the file.
    #[error("{path} is in use by another `pgleap serve`; stop that one, or give this one another --data-dir")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what this program wrote.
    #[error(
        "{path} is damaged: {why}; never restore it from a copy, {lost}",
        lost = LOST_DISK
    )]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file belongs to another member.
    #[error(
        "{path} belongs to member {found}, and this is member {asked}; use that member's own data directory"
    )]
    OtherMember {
        /// The file.
        path: PathBuf,
        /// Member that made it.
        found: u64,
        /// Member that was started.
        asked: u64,
    },
    /// The member was removed from its group.
    #[error(
        "member {member} was removed from its group, and this data directory with it; to let it in again, `pgleap \
         members add` it, empty the directory and start it with --join"
    )]
    Removed {
        /// Its number.
        member: u64,
    },
    /// Its snapshot holds no state.
    #[error("a snapshot cannot be read: {0}")]
    Image(String),
    /// The disk refused.
    #[error("{path}: {why}")]
    Store {
        /// The file.
        path: PathBuf,
        /// What the storage said.
        why: String,
    },
    /// A committed entry cannot be applied.
    #[error("log entry {index}: {source}")]
    Entry {
        /// Raft index.
        index: u64,
        /// Why.
        source: DecodeError,
    },
    /// A kind of change that this program never writes.
    #[error(
        "log entry {index} changes several members at once, which this pgleap never does; was it written by another program?"
    )]
    JointChange {
        /// Raft index.
        index: u64,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] RestoreError),
    /// The state cannot be written as a snapshot.
    #[error("the state cannot be written as a snapshot: {0}")]
    Encode(serde_json::Error),
    /// The consensus library refused.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    /// The thread that owns the log could not be started, or ended unexpectedly.
    #[error("the thread of the replicated log: {0}")]
    Thread(String),
}

/// A command was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member may not decide now. Nothing was done.
    #[error("this coordinator does not lead{}; ask the leader, or again in a moment", leader(.0))]
    NotLeader(Option<Leader>),
    /// It lost its leadership before the command was committed; it may or may not be.
    #[error(
        "this coordinator lost its leadership while the command was under way, which may still take effect; \
         see `pgleap status` whether it did, and give the command again if not"
    )]
    Lost,
    /// The group cannot be changed so. Nothing was done.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// It was committed and the state refused it. Nothing was changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Too many commands wait. Nothing was done.
    #[error("the coordinator is busy; try again in a moment")]
    Busy,
    /// The coordinator is going down.
    #[error("the coordinator is stopping; try again when it is back")]
    Stopping,
    /// The command cannot be written.
    #[error("the command cannot be written: {0}")]
    Unwritable(String),
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its number.
    pub member: u64,
    /// Where it is reached; empty when this member does not know.
    pub address: String,
}

fn leader(leader: &Option<Leader>) -> String {
    match leader {
        Some(Leader { member, address }) if address.is_empty() => format!(" (member {member} does)"),
        Some(Leader { member, address }) => format!(" (member {member} at {address} does)"),
        None => {
            " and knows of none that does (a majority of the members must be up and reach each other)".into()
        }
    }
}

/// Key of the metadata with which a coordinator answers that another must be asked: the leader's host:port, or nothing
/// when there is none just now. A request that was answered so can be sent again, with the same request id.
pub const LEADER_KEY: &str = "pgleap-leader";

impl ProposeError {
    /// Value of [`LEADER_KEY`] when the request should be sent again: an address, or empty for "in a moment".
    pub fn ask_instead(&self) -> Option<&str> {
        match self {
            ProposeError::NotLeader(Some(leader)) => Some(&leader.address),
            ProposeError::NotLeader(None)
            | ProposeError::Lost
            | ProposeError::Stopping
            | ProposeError::Membership(MembershipError::UnderWay) => Some(""),
            _ => None,
        }
    }
}

impl From<ProposeError> for Status {
    /// The code tells a program what to do, the message a person.
    fn from(error: ProposeError) -> Status {
        let message = error.to_string();
        let mut status = match &error {
            ProposeError::NotLeader(_)
            | ProposeError::Busy
            | ProposeError::Stopping
            | ProposeError::Membership(MembershipError::UnderWay) => Status::unavailable(message),
            ProposeError::Lost => Status::aborted(message),
            ProposeError::Rejected(rejection) if rejection.is_not_found() => Status::not_found(message),
            ProposeError::Rejected(_) | ProposeError::Membership(_) => Status::failed_precondition(message),
            ProposeError::Unwritable(_) => Status::internal(message),
        };
        // Not sent: tells the audit that the log has noted the refusal already.
        if let ProposeError::Rejected(rejection) = &error {
            status.set_source(std::sync::Arc::new(rejection.clone()));
        }
        if let Some(leader) = error.ask_instead()
            && let Ok(leader) = leader.parse()
        {
            status.metadata_mut().insert(LEADER_KEY, leader);
        }
        status
    }
}

/// The group cannot be changed so, or a member is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// No such number.
    #[error(
        "the group has no member {0}; `pgleap members list` shows those it has, `pgleap members add --member {0} \
         --address HOST:PORT` adds it"
    )]
    Unknown(u64),
    /// The number is taken.
    #[error(
        "the group has a member {} at {} already; take another number, or `pgleap members remove --member {}` first",
        .0.id, .0.address, .0.id
    )]
    Exists(Member),
    /// Another member is there.
    #[error("{} is the address of member {}; name the new member's own --address", .0.address, .0.id)]
    AddressTaken(Member),
    /// Numbers begin at 1.
    #[error("a member's number is 1 or more")]
    Number,
    /// Enough is enough.
    #[error(
        "the group has as many members as it can use; three survive the loss of one, five the loss of two"
    )]
    Full,
    /// A member that the new one cannot reach.
    #[error(
        "member {} tells others to reach it at {}, which means their own host; start it with --listen and --advertise \
         HOST:PORT as others reach it, then add the new member", .0.id, .0.address
    )]
    Hidden(Member),
    /// The number belongs to another data directory.
    #[error(
        "member {} of the group has another data directory than this; did it lose its disk? Its votes and entries \
         would be missing unnoticed: `pgleap members remove --member {}`, add it again, and start it with an empty \
         directory and --join", .0.id, .0.id
    )]
    LostDisk(Member),
    /// The data directory belongs to a removed member.
    #[error(
        "member {0} with this data directory was removed from the group; empty the directory, add it again and --join"
    )]
    Removed(u64),
    /// The stream is for somebody else.
    #[error(
        "this is member {member} with its own data directory, not the member {asked} that is expected here"
    )]
    NotMe {
        /// Expected.
        asked: u64,
        /// Found.
        member: u64,
    },
    /// The stream comes from another group.
    #[error("member {0} here belongs to another group, or has not joined yet")]
    OtherGroup(u64),
    /// The leader cannot go.
    #[error("member {0} leads; `pgleap members transfer --to MEMBER` first, then remove it")]
    RemovesLeader(u64),
    /// The rest could not decide.
    #[error(
        "without member {member}, only {up} of the other {all} voters are up, which is no majority; bring another one \
         up or replace the lost one first"
    )]
    NoMajority {
        /// To be removed.
        member: u64,
        /// Voters without it.
        all: usize,
        /// Of those, heard of lately.
        up: usize,
    },
    /// One change at a time.
    #[error("another change of the group is under way; try again in a moment")]
    UnderWay,
    /// Leadership cannot go there.
    #[error(
        "member {0} cannot lead now: it is not a voter that is up and caught up; see `pgleap members list`"
    )]
    CannotLead(u64),
}
