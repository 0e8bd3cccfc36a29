//! The control plane of Wrenn: a multi-tenant HTTP API over hosts of sandboxes, with its state in PostgreSQL.
//!
//! ```text
//!   clients ──HTTP──> api ──────> auth, db ──> PostgreSQL
//!               '──> preview      |     ^
//!                       |      sandboxes, reconcile
//!                       '────────────────> hosts ──Connect RPC──> hosts of sandboxes
//! ```
//!
//! [`Settings`] say what a server is told and how; [`Settings::resolve`] makes a [`Config`] of them, [`Server::open`] a
//! server, and [`Server::serve`] serves it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use wrenn_server::{Server, Settings};
//!
//! let settings = Settings { database_url: Some("postgres://localhost/wrenn".into()), dev: Some(true), ..Default::default() };
//! let server = Server::open(settings.resolve()?).await?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! server.serve(listener, std::future::pending()).await?;
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod api;
mod app;
mod auth;
mod config;
mod db;
mod e2b;
mod hosts;
mod http;
mod preview;
pub mod program;
mod reconcile;
mod sandboxes;
mod server;
mod web;

pub use secrecy::SecretString;

pub use self::config::{Config, ConfigError, Settings, SignUp, WeakSecret};
pub use self::db::DatabaseError;
pub use self::server::{Server, ServerError};
