//! The server over real connections, with a real PostgreSQL.

mod accounts;
mod errors;
mod faults;
mod keys;
mod routes;
mod sandboxes;
mod support;
mod teams;
mod web;
