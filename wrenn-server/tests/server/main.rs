//! The server over real connections, with a real PostgreSQL.

mod accounts;
mod e2b;
mod errors;
mod faults;
mod hosts;
mod keys;
mod placing;
mod program;
mod registering;
mod routes;
mod sandboxes;
mod support;
mod table;
mod teams;
mod web;
