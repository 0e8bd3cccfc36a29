//! Hosts, and which of them has room.

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) endpoint: String,
    pub(crate) host_id: Option<String>,
    pub(crate) up: bool,
    pub(crate) draining: bool,
    pub(crate) version: String,
    pub(crate) vcpus: i32,
    pub(crate) memory_mib: i64,
    pub(crate) available_mib: i64,
    pub(crate) disk_free_bytes: i64,
    pub(crate) images: Vec<String>,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) last_seen_at: Option<OffsetDateTime>,
}

/// What a host says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Heartbeat<'a> {
    pub(crate) host_id: &'a str,
    pub(crate) version: &'a str,
    pub(crate) vcpus: i32,
    pub(crate) memory_mib: i64,
    pub(crate) available_mib: i64,
    pub(crate) disk_free_bytes: i64,
    pub(crate) images: &'a [String],
}

/// A query for whole rows: what comes before the columns, and what after.
macro_rules! hosts {
    ($before:literal, $after:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Host,
            $before
                + " name, endpoint, host_id, up, draining, version, vcpus, memory_mib, available_mib, disk_free_bytes,
                    images, created_at, last_seen_at "
                + $after
            $(, $argument)*
        )
    };
}

/// Enters a host, or moves one that is known to another address.
pub(crate) async fn register(
    executor: impl PgExecutor<'_>,
    name: &str,
    endpoint: &str,
) -> sqlx::Result<Host> {
    hosts!(
        "INSERT INTO hosts (name, endpoint) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET endpoint = $2 RETURNING",
        "",
        name,
        endpoint,
    )
    .fetch_one(executor)
    .await
}

/// Enters a host, or moves one that is known to another address; whether anything changed by that.
pub(crate) async fn announce(
    executor: impl PgExecutor<'_>,
    name: &str,
    endpoint: &str,
) -> sqlx::Result<bool> {
    let changed = sqlx::query!(
        "INSERT INTO hosts (name, endpoint) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET endpoint = $2 WHERE hosts.endpoint <> $2",
        name,
        endpoint,
    )
    .execute(executor)
    .await?;
    Ok(changed.rows_affected() > 0)
}

pub(crate) async fn all(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Host>> {
    hosts!("SELECT", "FROM hosts ORDER BY name").fetch_all(executor).await
}

pub(crate) async fn find(executor: impl PgExecutor<'_>, name: &str) -> sqlx::Result<Option<Host>> {
    hosts!("SELECT", "FROM hosts WHERE name = $1", name).fetch_optional(executor).await
}

/// Begins or ends draining a host; `None` if there is no such host.
pub(crate) async fn drain(
    executor: impl PgExecutor<'_>,
    name: &str,
    draining: bool,
) -> sqlx::Result<Option<Host>> {
    hosts!("UPDATE hosts SET draining = $2 WHERE name = $1 RETURNING", "", name, draining)
        .fetch_optional(executor)
        .await
}

/// Forgets a host that nothing refers to; whether it did.
pub(crate) async fn remove(executor: impl PgExecutor<'_>, name: &str) -> sqlx::Result<bool> {
    let gone = sqlx::query!(
        "DELETE FROM hosts h WHERE name = $1
            AND NOT EXISTS (SELECT FROM sandboxes WHERE host = h.name)
            AND NOT EXISTS (SELECT FROM snapshots WHERE host = h.name)",
        name,
    )
    .execute(executor)
    .await?;
    Ok(gone.rows_affected() > 0)
}

/// Notes that a host answered. `false`, and nothing is noted, where it is not the host that it was: its data directory is
/// another, so what it has and lacks says nothing about the sandboxes of this one.
pub(crate) async fn beat(
    executor: impl PgExecutor<'_>,
    name: &str,
    heartbeat: &Heartbeat<'_>,
) -> sqlx::Result<bool> {
    let noted = sqlx::query!(
        "UPDATE hosts SET up = true, last_seen_at = now(), host_id = $2, version = $3, vcpus = $4, memory_mib = $5,
                available_mib = $6, disk_free_bytes = $7, images = $8
         WHERE name = $1 AND (host_id IS NULL OR host_id = $2)",
        name,
        heartbeat.host_id,
        heartbeat.version,
        heartbeat.vcpus,
        heartbeat.memory_mib,
        heartbeat.available_mib,
        heartbeat.disk_free_bytes,
        heartbeat.images,
    )
    .execute(executor)
    .await?;
    Ok(noted.rows_affected() > 0)
}

/// Notes that a host did not answer; whether nobody has heard of it for so long, not even another control plane.
pub(crate) async fn miss(
    executor: impl PgExecutor<'_>,
    name: &str,
    silence_seconds: f64,
) -> sqlx::Result<bool> {
    let missed = sqlx::query!(
        "UPDATE hosts SET up = false
         WHERE name = $1 AND (last_seen_at IS NULL OR last_seen_at < now() - make_interval(secs => $2))",
        name,
        silence_seconds,
    )
    .execute(executor)
    .await?;
    Ok(missed.rows_affected() > 0)
}

/// What a sandbox needs of a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need<'a> {
    pub(crate) image: &'a str,
    pub(crate) memory_mib: i64,
    /// Not on these.
    pub(crate) except: &'a [String],
}

/// The host with the most free memory, and of equals with the fewest vCPUs committed, that has the image and is not
/// draining. To be called in the transaction that enters the sandbox: until its end nobody else chooses.
pub(crate) async fn choose(connection: &mut PgConnection, need: Need<'_>) -> sqlx::Result<Option<String>> {
    // An arbitrary number that is this lock's name.
    sqlx::query!("SELECT pg_advisory_xact_lock(7236870001)").execute(&mut *connection).await?;
    sqlx::query_scalar!(
        "SELECT h.name FROM hosts h
         CROSS JOIN LATERAL (
             SELECT coalesce(sum(memory_mib), 0) AS memory, coalesce(sum(vcpus), 0) AS vcpus FROM sandboxes
             WHERE host = h.name AND state IN ('creating', 'running', 'pausing', 'resuming', 'destroying', 'missing')
         ) used
         WHERE h.up AND NOT h.draining AND $1 = ANY(h.images) AND h.name <> ALL($3)
           AND h.memory_mib - used.memory >= $2 AND h.available_mib >= $2
         ORDER BY least(h.memory_mib - used.memory, h.available_mib) DESC, used.vcpus::float8 / greatest(h.vcpus, 1), h.name
         LIMIT 1",
        need.image,
        need.memory_mib,
        need.except,
    )
    .fetch_optional(connection)
    .await
}

/// Whether any host has an image, whether or not it has room.
pub(crate) async fn have_image(executor: impl PgExecutor<'_>, image: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM hosts WHERE $1 = ANY(images)) AS "there!""#, image)
        .fetch_one(executor)
        .await
}
