//! Random names. They are made before a command is proposed: the state never makes one.

/// Id of an operation: `CLUSTER-xxxxxx`.
pub fn new_id(cluster: &str) -> String {
    format!("{cluster}-{}", random_hex())
}

/// Prefix of everything pgleap makes inside PostgreSQL for one operation.
pub fn new_tag() -> String {
    format!("pgleap_{}", random_hex())
}

fn random_hex() -> String {
    let [a, b, c]: [u8; 3] = rand::random();
    format!("{a:02x}{b:02x}{c:02x}")
}
