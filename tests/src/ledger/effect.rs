//! What a transaction does, and what the client knows of its end.

use std::time::Duration;

/// One change, with everything needed to repeat it on paper. Changes are absolute, so that replaying those of one
/// worker in order gives the final rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// An item has this version and body now.
    Item {
        /// Key, from an identity column.
        id: i64,
        /// Whether it came to be.
        new: bool,
        /// What the row says.
        body: String,
    },
    /// An item is gone.
    ItemGone {
        /// Key.
        id: i64,
    },
    /// Money moved between two accounts of the worker.
    Transfer {
        /// Account.
        from: i32,
        /// Account.
        to: i32,
        /// How much.
        amount: i64,
    },
    /// The row that all workers share went up.
    Bump {
        /// By how much.
        by: i64,
    },
    /// A large value was written; none for an update of another column, which leaves it untouched.
    Blob {
        /// Key, from a serial column.
        id: i64,
        /// SHA-256 of the value.
        digest: Option<String>,
    },
    /// A large value is gone.
    BlobGone {
        /// Key.
        id: i64,
    },
    /// Rows of the table without a key; `copies` of them are identical.
    Plain {
        /// Not unique.
        key: i64,
        /// What the rows say.
        value: String,
        /// How many; none for an update of those there are.
        copies: Option<u64>,
    },
    /// All rows with that value of the table without a key are gone.
    PlainGone {
        /// Not unique.
        key: i64,
    },
    /// An event lies in this partition now.
    Event {
        /// Key, from a sequence.
        id: i64,
        /// Partition.
        bucket: i32,
    },
    /// An event is gone.
    EventGone {
        /// Key.
        id: i64,
    },
}

impl Effect {
    /// Rows it touched, the trigger's included; of an update of identical rows, at least one.
    pub(super) fn rows(&self) -> u64 {
        match self {
            Effect::Item { .. } | Effect::ItemGone { .. } | Effect::Transfer { .. } => 2,
            Effect::Plain { copies: Some(copies), .. } => *copies,
            _ => 1,
        }
    }
}

/// How a transaction ended, as far as the client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// COMMIT was acknowledged.
    Acknowledged,
    /// The client rolled it back, as planned.
    RolledBack,
    /// It failed before COMMIT was sent, or the server refused COMMIT: it must not be there.
    Failed(String),
    /// COMMIT was sent and no answer came: it may be there or not.
    Unknown(String),
}

/// One transaction in the books.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Unique for the worker, rising.
    pub counter: i64,
    /// What it did, in order.
    pub effects: Vec<Effect>,
    /// How it ended.
    pub outcome: Outcome,
    /// When that was known, since the load began.
    pub at: Duration,
}
