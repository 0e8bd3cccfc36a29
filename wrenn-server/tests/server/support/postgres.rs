//! A database for each test, of one PostgreSQL for all that run at a time; in the lab, of a PostgreSQL of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

/// A database that nobody else uses, gone with this value. The last one stops PostgreSQL.
pub(crate) struct Database {
    pub(crate) url: String,
    /// What there is to remove; nothing where it is another's.
    owned: Option<Owned>,
}

struct Owned {
    name: String,
    admin_url: String,
    /// Held shared by whoever uses PostgreSQL: in other processes too, and let go by the kernel if one is killed.
    users: File,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres")
}

fn in_lab() -> bool {
    std::env::var_os("WRENN_IN_LAB").is_some()
}

/// In the lab the machine's files cannot be written, and what a test started ends with it: others cannot share it.
fn directory() -> PathBuf {
    if in_lab() {
        return std::env::temp_dir().join(format!("wrenn-server-postgres-{}", std::process::id()));
    }
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrenn-server-postgres")
}

#[expect(clippy::disallowed_methods, reason = "PostgreSQL is a program of its own")]
fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program:?}: {error}"))
}

impl Database {
    pub(crate) async fn create() -> Self {
        tokio::task::spawn_blocking(Self::create_now).await.unwrap()
    }

    fn create_now() -> Self {
        let users = File::create(directory().with_extension("users")).unwrap();
        flock(&users, FlockOperation::LockShared).unwrap();
        let up = run(&script(), &["up", directory().to_str().unwrap(), "--fast"]);
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        let admin_url = String::from_utf8(up.stdout).unwrap().trim().to_owned();
        let name = format!("test_{}", Uuid::new_v4().simple());
        let url = admin_url.replacen("/postgres?", &format!("/{name}?"), 1);
        let owned = Owned { name, admin_url, users };
        owned.administer(&format!("CREATE DATABASE {}", owned.name));
        Self { url, owned: Some(owned) }
    }

    /// The database of another test server, which removes it.
    pub(crate) fn shared(url: &str) -> Self {
        Self { url: url.to_owned(), owned: None }
    }

    /// Makes the database unreachable: nobody may connect, and whoever is connected no longer is.
    pub(crate) fn take_away(&self) {
        let owned = self.owned.as_ref().unwrap();
        owned.administer(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", owned.name));
        owned.administer(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
            owned.name
        ));
    }

    pub(crate) fn give_back(&self) {
        let owned = self.owned.as_ref().unwrap();
        owned.administer(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", owned.name));
    }

    /// The first column of what a query in the database finds, as text.
    pub(crate) fn query(&self, query: &str) -> Vec<String> {
        let found = run(Path::new("psql"), &["-X", "-A", "-t", "-c", query, &self.url]);
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        String::from_utf8(found.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
    }
}

impl Owned {
    /// Runs a statement as the administrator, outside of the database.
    fn administer(&self, statement: &str) {
        let done = run(Path::new("psql"), &["-X", "-q", "-c", statement, &self.admin_url]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        run(Path::new("psql"), &["-X", "-q", "-c", &statement, &self.admin_url]);
        if flock(&self.users, FlockOperation::NonBlockingLockExclusive).is_ok() {
            run(&script(), &["down", directory().to_str().unwrap()]);
            if in_lab() {
                let _ = std::fs::remove_dir_all(directory());
                let _ = std::fs::remove_file(directory().with_extension("users"));
            }
        }
    }
}
