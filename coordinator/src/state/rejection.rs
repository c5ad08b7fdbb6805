//! Why a command was refused. A refused command changes nothing.

/// One clear reason each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Another fleet file was applied in between.
    #[error(
        "the fleet file was changed by someone else meanwhile (generation {current} now); \
         look at it with `pgleap fleet show` and apply yours again"
    )]
    FleetChanged {
        /// Generation that is in force.
        current: u64,
    },
    /// The fleet file changes or lacks a cluster that is being upgraded.
    #[error(
        "cluster {cluster} is in operation {operation}, and the fleet file changes it or leaves it out; \
         leave it as it is, or cancel the operation first: `pgleap cancel {operation}`"
    )]
    ClusterInUse {
        /// The cluster.
        cluster: String,
        /// Its operation.
        operation: String,
    },
    /// A cluster has one operation at a time.
    #[error("cluster {cluster} is in operation {operation} already; look with `pgleap status {cluster}`")]
    ClusterBusy {
        /// The cluster.
        cluster: String,
        /// Its operation.
        operation: String,
    },
    /// A host serves one operation at a time.
    #[error(
        "host {host} is used by operation {operation}; wait for it, or cancel it with `pgleap cancel {operation}`"
    )]
    HostBusy {
        /// The host.
        host: String,
        /// The operation on it.
        operation: String,
    },
    /// It may begin later.
    #[error("cluster {cluster} cannot go on now: {why}")]
    NotNow {
        /// The cluster.
        cluster: String,
        /// What keeps it, and until when where that is known.
        why: String,
    },
    /// A rollout cannot do that.
    #[error("rollout {rollout}: {why}")]
    Rollout {
        /// The rollout.
        rollout: String,
        /// Why.
        why: String,
    },
    /// The agent was greeted as another one than is known by now.
    #[error("the agent of host {host} was greeted by another coordinator meanwhile; it is greeted again")]
    OtherAgentKnown {
        /// The host.
        host: String,
    },
    /// The id is taken.
    #[error("there is an operation {0} already")]
    OperationExists(String),
    /// A plan that could not be run in its own order.
    #[error("the plan is not usable: {0}; this is a defect of pgleap, please report it")]
    BadPlan(String),
    /// No such operation.
    #[error("there is no operation {0}; see `pgleap status`")]
    UnknownOperation(String),
    /// No such step.
    #[error("operation {operation} has no step {step}")]
    UnknownStep {
        /// The operation.
        operation: String,
        /// The step.
        step: String,
    },
    /// Not in this status.
    #[error("operation {operation} is {status}: {why}")]
    Illegal {
        /// The operation.
        operation: String,
        /// Its status.
        status: &'static str,
        /// What was asked, and when it would be legal.
        why: String,
    },
    /// The answer belongs to a start that is no longer the current one.
    #[error("step {step}: attempt {attempt} is not the current one; its answer is ignored")]
    StaleAttempt {
        /// The step.
        step: String,
        /// The attempt answered.
        attempt: u64,
    },
    /// The request id was used before, for something else.
    #[error("request id {0} was used before for another request; use a new one")]
    RequestReused(String),
}

impl Rejection {
    /// Whether it may be otherwise later, without anybody's doing: what was refused can be queued.
    pub fn is_for_now(&self) -> bool {
        matches!(self, Rejection::NotNow { .. } | Rejection::HostBusy { .. })
    }

    /// Whether the thing named does not exist at all.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Rejection::UnknownOperation(_) | Rejection::UnknownStep { .. })
    }
}
