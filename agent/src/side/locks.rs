//! One lock for each node: whoever opens, fences, or moves the slots of a node excludes everybody else who does. The work
//! between switchovers and the switchover itself meet here.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use pgleap_proto::node::Node;
use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

static LOCKS: LazyLock<Mutex<HashMap<String, Lock>>> = LazyLock::new(Mutex::default);

/// Waits until nobody else holds the node.
pub(crate) async fn hold(node: &Node) -> OwnedMutexGuard<()> {
    let lock = {
        let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(node.data_dir.clone()).or_default().clone()
    };
    lock.lock_owned().await
}
