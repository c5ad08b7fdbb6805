//! What a coordinator's call says of itself, beside its message: which group of coordinators asks, and which agent is meant.
//!
//! It travels as metadata, so that every call carries it in the same way. What an agent makes of it is the agent's.

use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use crate::agent::AgentIdentity;

const GROUP: &str = "pgleap-group";
const JOURNAL: &str = "pgleap-journal";
const INCARNATION: &str = "pgleap-incarnation";

/// What an agent answers when another one is meant: greet it, and ask again. Nothing else of an agent's service says so.
pub const NOT_MEANT: Code = Code::NotFound;

/// Which agent a call is meant for: one that was restarted since, restored, or replaced by a copy is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// Of its journal.
    pub journal: String,
    /// Of its present start.
    pub incarnation: String,
}

impl From<&AgentIdentity> for Meant {
    fn from(identity: &AgentIdentity) -> Meant {
        Meant { journal: identity.journal.clone(), incarnation: identity.incarnation.clone() }
    }
}

/// Who asks, and whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// The group of coordinators; empty when the call does not say.
    pub group: String,
    /// Needed by calls that act.
    pub meant: Option<Meant>,
}

impl Caller {
    /// What a call says.
    pub fn of<T>(request: &Request<T>) -> Caller {
        let said = |key| request.metadata().get(key).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let meant = said(JOURNAL).zip(said(INCARNATION));
        Caller {
            group: said(GROUP).unwrap_or_default(),
            meant: meant.map(|(journal, incarnation)| Meant { journal, incarnation }),
        }
    }

    /// Says it with a call.
    ///
    /// # Errors
    /// When it cannot be said in metadata: then it was not made by pgleap.
    pub fn stamp(&self, metadata: &mut MetadataMap) -> Result<(), Status> {
        let mut say = |key: &'static str, what: &str| {
            let value = what.parse::<AsciiMetadataValue>();
            let value = value.map_err(|_| Status::internal(format!("{key}: \"{what}\" cannot be sent")))?;
            metadata.insert(key, value);
            Ok::<(), Status>(())
        };
        if !self.group.is_empty() {
            say(GROUP, &self.group)?;
        }
        if let Some(Meant { journal, incarnation }) = &self.meant {
            say(JOURNAL, journal)?;
            say(INCARNATION, incarnation)?;
        }
        Ok(())
    }
}

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.stamp(request.metadata_mut())?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stamped_is_read() {
        let meant = Meant { journal: "j".into(), incarnation: "i".into() };
        for caller in [
            Caller::default(),
            Caller { group: "g".into(), meant: None },
            Caller { group: "g".into(), meant: Some(meant) },
        ] {
            let request = caller.clone().call(Request::new(())).unwrap();
            assert_eq!(Caller::of(&request), caller);
        }
        let odd = Caller { group: "a\nb".into(), meant: None };
        assert_eq!(odd.clone().call(Request::new(())).unwrap_err().code(), Code::Internal);
    }
}
