-- Hosts, the sandboxes on them, and what was made of sandboxes.

CREATE TABLE hosts (
    -- What tokens for the host name as their audience.
    name             text        PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    -- http://…, https://… or unix:…; `local` for the one in the server's own process.
    endpoint         text        NOT NULL,
    -- The identity of its data directory, once it was reached. Another one at the same address is another host.
    host_id          text,
    -- Whether it answered when it was last asked.
    up               boolean     NOT NULL DEFAULT false,
    draining         boolean     NOT NULL DEFAULT false,
    version          text        NOT NULL DEFAULT '',
    vcpus            integer     NOT NULL DEFAULT 0,
    memory_mib       bigint      NOT NULL DEFAULT 0,
    -- What its system says is free.
    available_mib    bigint      NOT NULL DEFAULT 0,
    disk_free_bytes  bigint      NOT NULL DEFAULT 0,
    images           text[]      NOT NULL DEFAULT '{}',
    created_at       timestamptz NOT NULL DEFAULT now(),
    last_seen_at     timestamptz
);

CREATE TABLE sandboxes (
    id            text        PRIMARY KEY CHECK (id ~ '^[a-z0-9]{16}$'),
    team_id       uuid        NOT NULL REFERENCES teams,
    host          text        NOT NULL REFERENCES hosts,
    state         text        NOT NULL CHECK (state IN ('creating', 'running', 'pausing', 'paused', 'resuming',
                                                        'destroying', 'destroyed', 'failed', 'missing')),
    -- Counts the changes of state. Whoever changes it says which one they saw.
    version       bigint      NOT NULL DEFAULT 1,
    -- While something is being done with it: until when whoever does it is believed to live.
    lease_until   timestamptz,
    -- Why it is in that state, where that is not plain.
    reason        text,
    -- What it was made of, as it was asked for.
    template      text        NOT NULL,
    parent        text,
    vcpus         integer     NOT NULL,
    memory_mib    integer     NOT NULL,
    metadata      jsonb       NOT NULL DEFAULT '{}',
    -- How long it may be idle; null: for ever.
    timeout_ms    bigint,
    on_timeout    text        NOT NULL CHECK (on_timeout IN ('destroy', 'pause')),
    created_at    timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    -- Whether the host was seen without it after its end. Until then the row is kept.
    cleared       boolean     NOT NULL DEFAULT false
);
CREATE INDEX sandboxes_by_team ON sandboxes (team_id, created_at DESC, id DESC);
CREATE INDEX sandboxes_by_host ON sandboxes (host, state);
CREATE INDEX sandboxes_by_metadata ON sandboxes USING gin (metadata jsonb_path_ops);

-- A template that was made of a running sandbox. It lies on that sandbox's host.
CREATE TABLE snapshots (
    id          uuid        PRIMARY KEY,
    team_id     uuid        NOT NULL REFERENCES teams,
    host        text        NOT NULL REFERENCES hosts,
    -- As the team calls it; the host knows it by its id.
    name        text        NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    state       text        NOT NULL CHECK (state IN ('creating', 'ready', 'deleting', 'failed')),
    lease_until timestamptz,
    sandbox     text        NOT NULL,
    vcpus       integer     NOT NULL,
    memory_mib  integer     NOT NULL,
    size_bytes  bigint      NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX snapshots_by_name ON snapshots (team_id, name) WHERE state <> 'failed';
CREATE INDEX snapshots_by_host ON snapshots (host);

-- What was made by requests that carried an Idempotency-Key, so that the same request makes nothing twice.
CREATE TABLE idempotency_keys (
    team_id      uuid        NOT NULL REFERENCES teams ON DELETE CASCADE,
    key          text        NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea       NOT NULL CHECK (octet_length(request_hash) = 32),
    resource     text        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
