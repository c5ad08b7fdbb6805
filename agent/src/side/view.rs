//! A cluster as one of its two leaders sees it: which publication, subscription, slots and login are its own.

use pgleap_proto::node::Node;
use pgleap_proto::traffic::{Cluster, Leader, Side, SideDatabase};

use crate::config::AgentConfig;
use crate::error::{Result, StepError};

/// One side of a cluster, whose leader is on this host.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub cluster: Cluster,
    pub side: Side,
    node: Node,
    other: Leader,
}

fn lacks(what: &str) -> StepError {
    StepError::new(format!(
        "the request lacks {what}: coordinator and agent are of different versions; install the same on both"
    ))
}

impl View {
    /// Of a request; its node must be this host's, and below the agent's roots.
    pub fn of(config: &AgentConfig, cluster: Option<Cluster>, side: i32) -> Result<View> {
        let view = View::new(cluster.ok_or_else(|| lacks("the cluster"))?, side)?;
        let node = view.node();
        if node.host != config.host {
            return Err(StepError::new(format!(
                "node {} is on host {}, but this is the agent of host {}; this is a defect of pgleap",
                node.name, node.host, config.host
            )));
        }
        if !config.allows(std::path::Path::new(&node.data_dir)) {
            return Err(StepError::new(format!(
                "{} of node {} lies outside the directories that the agent of host {} may touch; add its parent to `roots` in \
                 agent.toml and restart the agent, then try again",
                node.data_dir, node.name, config.host
            )));
        }
        Ok(view)
    }

    pub fn new(cluster: Cluster, side: i32) -> Result<View> {
        let side = Side::try_from(side).ok().filter(|side| *side != Side::Unspecified);
        let side = side.ok_or_else(|| lacks("the side"))?;
        let leader = |leader: &Option<Leader>| leader.clone().ok_or_else(|| lacks("a leader"));
        let (old, new) = (leader(&cluster.old_leader)?, leader(&cluster.new_leader)?);
        if cluster.databases.is_empty() || cluster.tag.is_empty() || cluster.reverse_tag.is_empty() {
            return Err(lacks("the databases or the names of the cluster"));
        }
        let (own, other) = if side == Side::Old { (old, new) } else { (new, old) };
        Ok(View { cluster, side, node: own.node.ok_or_else(|| lacks("the leader's node"))?, other })
    }

    /// This side's leader.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The other side's.
    pub fn other(&self) -> &Leader {
        &self.other
    }

    fn pick<'a>(&self, old: &'a str, new: &'a str) -> &'a str {
        if self.side == Side::Old { old } else { new }
    }

    /// Name of this side's row in the marker table.
    pub fn row(&self) -> &'static str {
        self.pick("old", "new")
    }

    /// Name of the other side's row.
    pub fn other_row(&self) -> &'static str {
        self.pick("new", "old")
    }

    /// What this side publishes.
    pub fn publication(&self) -> &str {
        self.pick(&self.cluster.tag, &self.cluster.reverse_tag)
    }

    /// By which this side follows the other.
    pub fn subscription(&self) -> &str {
        self.pick(&self.cluster.reverse_tag, &self.cluster.tag)
    }

    /// On this leader: the other side follows from it.
    pub fn own_slot<'a>(&self, database: &'a SideDatabase) -> &'a str {
        self.pick(&database.forward_slot, &database.reverse_slot)
    }

    /// On the other leader: this side follows from it.
    pub fn upstream_slot<'a>(&self, database: &'a SideDatabase) -> &'a str {
        self.pick(&database.reverse_slot, &database.forward_slot)
    }

    /// The role by which the other side's subscriptions reach this leader.
    pub fn logins(&self) -> Vec<String> {
        vec![self.pick(&self.cluster.new_login, &self.cluster.old_login).to_owned()]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn cluster() -> Cluster {
        let leader = |name: &str| {
            Some(Leader { node: Some(Node { name: name.into(), ..Node::default() }), agent: "a:1".into() })
        };
        Cluster {
            operation: "app-1".into(),
            tag: "t".into(),
            reverse_tag: "t_r".into(),
            databases: vec![SideDatabase {
                database: "app".into(),
                forward_slot: "t_5".into(),
                reverse_slot: "t_r_5".into(),
            }],
            old_leader: leader("old"),
            new_leader: leader("new"),
            old_login: "old_in".into(),
            new_login: "new_in".into(),
        }
    }

    #[test]
    fn each_side_has_its_own_names() {
        let old = View::new(cluster(), Side::Old.into()).unwrap();
        let new = View::new(cluster(), Side::New.into()).unwrap();
        let database = &cluster().databases[0];
        assert_eq!((old.node().name.as_str(), new.node().name.as_str()), ("old", "new"));
        assert_eq!((old.publication(), old.subscription()), ("t", "t_r"));
        assert_eq!((new.publication(), new.subscription()), ("t_r", "t"));
        assert_eq!((old.own_slot(database), old.upstream_slot(database)), ("t_5", "t_r_5"));
        assert_eq!((new.own_slot(database), new.upstream_slot(database)), ("t_r_5", "t_5"));
        assert_eq!((old.logins(), new.logins()), (vec!["new_in".to_owned()], vec!["old_in".to_owned()]));
        assert!(View::new(cluster(), 0).is_err());
        assert!(View::new(Cluster { databases: vec![], ..cluster() }, 1).is_err());
    }
}
