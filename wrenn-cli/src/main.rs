//! The `wrenn` command.
fn main() {}
