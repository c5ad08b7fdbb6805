//! A group of three real coordinators before a thousand simulated agents: what the group costs, and that it loses nothing.
//!
//! The coordinators are real processes with real files and real mutual TLS; so is the network to the agents. Only what the
//! agents do is made up: a step is a wait of a known length (`agent`), remembered as a host's disk would (`book`). What must
//! hold afterwards, whatever was killed meanwhile, is in `verify`; what was measured is printed by `report`.

mod agent;
pub mod arena;
pub mod bench;
pub mod book;
pub mod disk;
mod facts;
pub mod failover;
pub mod figures;
pub mod files;
pub mod group;
pub mod layout;
pub mod load;
pub mod operator;
mod outputs;
pub mod probe;
pub mod report;
pub mod serve;
mod traffic;
pub mod verify;

pub use arena::Arena;
pub use book::Book;
pub use group::Group;
pub use layout::Layout;
pub use load::Load;
pub use operator::Operator;
pub use serve::Swarm;
