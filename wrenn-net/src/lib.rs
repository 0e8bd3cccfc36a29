//! Network slots: namespace, veth, TAP and NAT for one sandbox.
