//! Refusals as gRPC statuses: the code tells a program what to do, the message a person.

use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

use crate::fleet::{self, ClusterSpec, FleetError, FleetSpec};
use crate::raft::ProposeError;
use crate::state::{Operation, Rejection, Reply, State};

/// A refusal of the log or of the state.
pub(super) fn refused(error: ProposeError) -> Status {
    error.into()
}

/// The operation a reply names. A reply of another kind means that the request id served another request before.
pub(super) fn operation_of(reply: Reply, request_id: &str) -> Result<String, Status> {
    match reply {
        Reply::Operation { id } => Ok(id),
        _ => Err(reused(request_id)),
    }
}

/// The request id served another request before.
pub(super) fn reused(request_id: &str) -> Status {
    Status::invalid_argument(Rejection::RequestReused(request_id.to_owned()).to_string())
}

/// A request id that was given; an empty one is none.
pub(super) fn given(request_id: &str) -> Option<String> {
    (!request_id.is_empty()).then(|| request_id.to_owned())
}

/// The operation of this id, or the newest of the cluster of this name.
pub(super) fn find<'s>(state: &'s State, name: &str) -> Result<&'s Arc<Operation>, Status> {
    state.find(name).ok_or_else(|| {
        Status::not_found(format!(
            "there is no operation {name}, and none of a cluster called so; see `pgleap status` for all"
        ))
    })
}

/// The fleet file in force.
pub(super) fn spec(state: &State) -> Result<Arc<FleetSpec>, Status> {
    let fleet = state.fleet.as_ref().ok_or_else(|| {
        Status::failed_precondition("there is no fleet file yet; write one and `pgleap fleet apply FILE`")
    })?;
    LAST.read(&fleet.toml).map_err(|error| {
        Status::failed_precondition(format!(
            "{error}\nThis version of pgleap cannot use it; apply a corrected one"
        ))
    })
}

/// The fleet file that was read last. A file of a thousand hosts takes a tenth of a second, and hundreds of `start` at once
/// would keep the runtime so busy with it that the leader hears no follower and steps down.
static LAST: LastRead = LastRead(Mutex::new(None));

/// A text and what it says.
struct LastRead(Mutex<Option<(Arc<str>, Arc<FleetSpec>)>>);

impl LastRead {
    fn read(&self, toml: &Arc<str>) -> Result<Arc<FleetSpec>, FleetError> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((text, spec)) = last.as_ref()
            && text == toml
        {
            return Ok(spec.clone());
        }
        // Under the lock, so that those who wait for the same text do not read it, too.
        let spec = Arc::new(fleet::parse(toml, "the fleet file in force")?);
        *last = Some((toml.clone(), spec.clone()));
        Ok(spec)
    }
}

/// One of its clusters.
pub(super) fn cluster<'f>(fleet: &'f FleetSpec, name: &str) -> Result<&'f ClusterSpec, Status> {
    fleet.cluster(name).ok_or_else(|| {
        let known: Vec<&str> = fleet.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        Status::not_found(format!("the fleet file has no cluster \"{name}\"; it has: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_once_and_another_one_anew() {
        let last = LastRead(Mutex::new(None));
        let text: Arc<str> = crate::fleet::samples::LEDGER.into();
        let other: Arc<str> = text.replace("production", "staging").into();
        let first = last.read(&text).unwrap();
        // Another copy of the same text, as after a snapshot.
        assert!(Arc::ptr_eq(&first, &last.read(&Arc::from(&*text)).unwrap()));
        assert_eq!(last.read(&other).unwrap().name, "staging");
        assert!(last.read(&"[fleet".into()).is_err());
        assert_eq!(last.read(&text).unwrap().name, "production");
    }
}
