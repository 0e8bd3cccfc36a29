-- Users, the teams that own everything, and what people and programs prove themselves with.

CREATE TABLE users (
    id            uuid        PRIMARY KEY,
    -- Lower case, as people do not keep to one spelling.
    email         text        NOT NULL UNIQUE CHECK (email = lower(email) AND length(email) <= 254),
    name          text        NOT NULL CHECK (length(name) <= 100),
    -- Argon2id, as a PHC string with its own parameters.
    password_hash text        NOT NULL,
    -- Operators see and drain hosts, which belong to no team.
    operator      boolean     NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE teams (
    id         uuid        PRIMARY KEY,
    name       text        NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE memberships (
    team_id    uuid        NOT NULL REFERENCES teams ON DELETE CASCADE,
    user_id    uuid        NOT NULL REFERENCES users ON DELETE CASCADE,
    role       text        NOT NULL CHECK (role IN ('member', 'admin', 'owner')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, user_id)
);
CREATE INDEX memberships_by_user ON memberships (user_id);

-- A code that lets whoever has it join a team, once.
CREATE TABLE invitations (
    id          uuid        PRIMARY KEY,
    team_id     uuid        NOT NULL REFERENCES teams ON DELETE CASCADE,
    role        text        NOT NULL CHECK (role IN ('member', 'admin')),
    code_hash   bytea       NOT NULL UNIQUE CHECK (octet_length(code_hash) = 32),
    created_by  uuid        REFERENCES users ON DELETE SET NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    accepted_at timestamptz
);
CREATE INDEX invitations_by_team ON invitations (team_id);

-- A log-in, and all the refresh tokens that followed from it.
CREATE TABLE sessions (
    id         uuid        PRIMARY KEY,
    user_id    uuid        NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE refresh_tokens (
    token_hash bytea       PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    session_id uuid        NOT NULL REFERENCES sessions ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Set when it was traded for the next one. Shown again after that, it was stolen, or its successor was.
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);

CREATE TABLE api_keys (
    id           uuid        PRIMARY KEY,
    team_id      uuid        NOT NULL REFERENCES teams ON DELETE CASCADE,
    name         text        NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    -- The first characters of the key, for people to tell keys apart by.
    prefix       text        NOT NULL,
    -- A key is random, so a plain hash of it tells nothing.
    key_hash     bytea       NOT NULL UNIQUE CHECK (octet_length(key_hash) = 32),
    created_by   uuid        REFERENCES users ON DELETE SET NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX api_keys_by_team ON api_keys (team_id, created_at);

-- Who did what. Rows outlive what they speak of, so nothing here refers to other tables.
CREATE TABLE audit_log (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    team_id    uuid,
    -- user:…, key:… or system
    actor      text        NOT NULL,
    action     text        NOT NULL,
    subject    text        NOT NULL,
    detail     jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_by_team ON audit_log (team_id, id);
