-- Accepted by SQLite and PostgreSQL alike. Times are milliseconds of the Unix clock.
CREATE TABLE conversations (
    bot_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    platform_conversation_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (bot_id, conversation_id, user_id)
);

CREATE TABLE messages (
    bot_id TEXT NOT NULL,
    message_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    content TEXT NOT NULL,
    -- received, answered, failed or cancelled
    status TEXT NOT NULL,
    -- which try the row is about, so that a late one does not overwrite its successor
    attempt BIGINT NOT NULL,
    answer TEXT NOT NULL,
    -- why it failed: the error's stable name
    reason TEXT NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL,
    PRIMARY KEY (bot_id, message_id)
);

CREATE INDEX messages_by_conversation ON messages (bot_id, conversation_id, user_id, received_at);

CREATE TABLE events (
    event_id TEXT PRIMARY KEY,
    app TEXT NOT NULL,
    event_type TEXT NOT NULL,
    body TEXT NOT NULL,
    received_at BIGINT NOT NULL
);

CREATE INDEX events_by_time ON events (received_at);
