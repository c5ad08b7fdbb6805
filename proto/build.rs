//! Generates the Rust of the `.proto` files with protox, so that no protoc is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["node", "traffic", "step", "agent", "raft", "many", "fleet"]
        .map(|name| format!("proto/pgleap/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure()
        // The coordinator stores actions and outputs in its log, and `--json` prints replies.
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]")
        .compile_fds(descriptors)?;
    Ok(())
}
