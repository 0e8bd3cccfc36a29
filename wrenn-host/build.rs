//! Turns `proto/host.proto` into messages, the server trait and the client. Needs `protoc` (Debian: protobuf-compiler).

use buffa_codegen::BytesRepr;
use connectrpc_build::{CodeGenConfig, Config};

fn main() {
    let mut messages = CodeGenConfig::default();
    messages.generate_json = true;
    // What a peer of another version adds is not ours to carry around.
    messages.preserve_unknown_fields = false;
    messages.bytes_fields.push((".".into(), BytesRepr::Bytes));
    let result = Config::new()
        .buffa_config(messages)
        .gate_client_feature(true)
        .files(&["proto/host.proto"])
        .includes(&["proto"])
        .include_file("_connectrpc.rs")
        .compile();
    if let Err(error) = result {
        println!("cargo::error=cannot generate code from proto/host.proto: {error:#}");
    }
}
