-- What the E2B-compatible routes know of sandboxes beyond what every sandbox has.

CREATE TABLE e2b_sandboxes (
    sandbox      text        PRIMARY KEY REFERENCES sandboxes ON DELETE CASCADE,
    -- Which change of the sandbox's state `ends_at` is about. After another one it says nothing.
    version      bigint      NOT NULL,
    -- When it is ended or paused, however busy it is; null: that was begun.
    ends_at      timestamptz,
    -- Whether a request to one of its ports resumes it.
    auto_resume  boolean     NOT NULL DEFAULT false
);
CREATE INDEX e2b_sandboxes_by_end ON e2b_sandboxes (ends_at) WHERE ends_at IS NOT NULL;
