//! The guest agent's protobuf contract, its generated code and its client.
