//! Everything of pgleap that crosses a wire: generated messages, the value types used in them, mutual TLS, how names
//! and values are quoted in what both sides write, and how both daemons talk to the service manager.
//!
//! It holds no behaviour of the coordinator or of the agent.

pub mod bounds;
pub mod caller;
pub mod failpoint;
pub mod fence;
pub mod lsn;
pub mod patroni;
pub mod quote;
pub mod service;
pub mod tls;

pub use bounds::MAX_MESSAGE_BYTES;
pub use lsn::Lsn;

/// Generated from `proto/pgleap/*.proto`; the documentation is there.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    pub mod pgleap {
        pub mod node {
            pub mod v1 {
                tonic::include_proto!("pgleap.node.v1");
            }
        }
        pub mod step {
            pub mod v1 {
                tonic::include_proto!("pgleap.step.v1");
            }
        }
        pub mod agent {
            pub mod v1 {
                tonic::include_proto!("pgleap.agent.v1");
            }
        }
        pub mod fleet {
            pub mod v1 {
                tonic::include_proto!("pgleap.fleet.v1");
            }
        }
        pub mod traffic {
            pub mod v1 {
                tonic::include_proto!("pgleap.traffic.v1");
            }
        }
        pub mod raft {
            pub mod v1 {
                tonic::include_proto!("pgleap.raft.v1");
            }
        }
    }
}

pub use generated::pgleap::agent::v1 as agent;
pub use generated::pgleap::fleet::v1 as fleet;
pub use generated::pgleap::node::v1 as node;
pub use generated::pgleap::raft::v1 as raft;
pub use generated::pgleap::step::v1 as step;
pub use generated::pgleap::traffic::v1 as traffic;
