//! What a step is for, and how a row of the table makes something for it.

use super::draft::Draft;
use crate::fleet::{BalancerSpec, NewNodeSpec, OldNodeSpec, PoolerSpec};

/// The thing one step is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    New(&'a NewNodeSpec),
    Old(&'a OldNodeSpec),
    Pooler(&'a PoolerSpec),
    Balancer(&'a BalancerSpec),
}

impl<'a> Subject<'a> {
    pub(super) fn name(self) -> &'a str {
        match self {
            Subject::New(node) => &node.name,
            Subject::Old(node) => &node.name,
            Subject::Pooler(pooler) => &pooler.name,
            Subject::Balancer(balancer) => &balancer.name,
        }
    }

    /// Its host and that host's agent.
    pub(super) fn place(self) -> (&'a String, &'a String) {
        match self {
            Subject::New(node) => (&node.host, &node.agent),
            Subject::Old(node) => (&node.host, &node.agent),
            Subject::Pooler(pooler) => (&pooler.host, &pooler.agent),
            Subject::Balancer(balancer) => (&balancer.host, &balancer.agent),
        }
    }
}

/// Makes an action, or the commands that show it, for one kind of subject.
pub(super) enum Make<T> {
    New(fn(&Draft<'_>, &NewNodeSpec) -> T),
    Old(fn(&Draft<'_>, &OldNodeSpec) -> T),
    Pooler(fn(&Draft<'_>, &PoolerSpec) -> T),
    Balancer(fn(&Draft<'_>, &BalancerSpec) -> T),
}

impl<T> Make<T> {
    /// None for a subject of another kind.
    pub(super) fn of(&self, draft: &Draft<'_>, subject: Subject<'_>) -> Option<T> {
        match (self, subject) {
            (Make::New(make), Subject::New(node)) => Some(make(draft, node)),
            (Make::Old(make), Subject::Old(node)) => Some(make(draft, node)),
            (Make::Pooler(make), Subject::Pooler(pooler)) => Some(make(draft, pooler)),
            (Make::Balancer(make), Subject::Balancer(balancer)) => Some(make(draft, balancer)),
            _ => None,
        }
    }
}
