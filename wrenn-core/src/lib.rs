//! Host, Sandbox and PausedSandbox: the public API of Wrenn.
