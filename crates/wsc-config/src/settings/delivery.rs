//! Sections about the way of a message: retries, inbox, storage, queues, rooms, failures.

use std::path::PathBuf;
use std::time::Duration;

use crate::schema::section;
use crate::values::{ByteSize, Durability, QueuePolicy, StorageKind};

section! {
    /// Retries as a share of all sends, so that a failing network is not made worse.
    pub struct RetryBudgetSettings [retry_budget] {
        /// Retries allowed per send, on the average.
        ratio: f64 = "0.2" in "0.0"..="10.0" => Live;
        /// Retries allowed per second whatever the ratio says.
        min_per_second: u32 = "10" in "0"..="1000000" => Live;
    }
}

section! {
    /// Flow control between a user's inbox and a connection.
    pub struct InboxSettings [inbox] {
        /// Messages on their way to one connection without an ACK, at most.
        window_messages: u32 = "128" in "1"..="100000" => Live;
        /// Bytes on their way to one connection without an ACK, at most.
        window_bytes: ByteSize = "256KiB" in "1KiB"..="1GiB" => Live;
        /// Time after which a resting message of a connected user is tried again.
        retry_interval: Duration = "60s" in "100ms"..="24h" => Live;
    }
}

section! {
    /// Where messages are kept that must survive or wait.
    pub struct StorageSettings [storage] {
        /// Kind of storage. Without one (`none`) there is no inbox, and `require_ack` is refused.
        kind: StorageKind = "embedded" => Restart;
        /// Directory of the database file.
        path: PathBuf = "./data" => Restart;
        /// When a commit counts as done: `fsync` survives a power cut, `os` only a crash of the hub.
        durability: Durability = "fsync" => Restart;
        /// Time for which messages are collected into one commit.
        commit_interval: Duration = "2ms" in "0s"..="1s" => Restart;
        /// Messages in one commit, at most.
        commit_batch: u32 = "1000" in "1"..="100000" => Restart;
        /// Messages in one user's inbox, at most; then new ones are refused.
        inbox_max_messages: u64 = "1000" in "1"..="100000000" => Live;
        /// Bytes in one user's inbox, at most; then new messages are refused.
        inbox_max_bytes: ByteSize = "16MiB" in "1KiB"..="1TiB" => Live;
        /// Bytes in all inboxes of this node, at most; then new messages are refused.
        max_bytes: ByteSize = "4GiB" in "1MiB"..="1024TiB" => Live;
        /// Time that a message may wait before it expires.
        message_ttl: Duration = "7d" in "1s"..="3650d" => Live;
    }
}

section! {
    /// How long the fate of a message can be asked for.
    pub struct OutcomeSettings [outcomes] {
        /// Time for which a fate is kept.
        retention: Duration = "1h" in "1s"..="30d" => Live;
        /// Fates kept, at most; the oldest go first.
        max: u64 = "100000" in "0"..="100000000" => Live;
    }
}

section! {
    /// How long an idempotency key is remembered.
    pub struct IdempotencySettings [idempotency] {
        /// Time in which a repeated key gets the first answer again.
        window: Duration = "5m" in "1s"..="7d" => Live;
        /// Keys remembered, at most; the oldest go first.
        max_keys: u64 = "100000" in "0"..="100000000" => Live;
    }
}

section! {
    /// Outbound queues: what waits for a socket to take it.
    pub struct QueueSettings [queue] {
        /// Bytes that may wait for one connection.
        max_bytes: ByteSize = "1MiB" in "1KiB"..="1GiB" => Live;
        /// What happens at overflow.
        policy: QueuePolicy = "disconnect" => Live;
        /// Bytes that may wait for all connections of this node together. Beyond seven eighths of it new
        /// connections are refused, beyond it the connections with the largest queues are closed.
        total_bytes: ByteSize = "1GiB" in "1MiB"..="1TiB" => Live;
    }
}

section! {
    /// Rooms.
    pub struct RoomSettings [rooms] {
        /// Whether joining a room that does not exist makes it.
        auto_create: bool = "true" => Live;
        /// Members of a room that names no limit of its own. 0 = no limit.
        max_clients: u64 = "0" in "0"..="10000000" => Live;
        /// Rooms on this node, at most.
        max_rooms: u64 = "100000" in "1"..="100000000" => Live;
        /// Bytes of a room that may wait to be handed to its members; then its publishers get 4003.
        max_pending_bytes: ByteSize = "4MiB" in "1KiB"..="1GiB" => Live;
        /// Users that one room message with `require_ack` may address.
        max_reliable_recipients: u64 = "1000" in "1"..="1000000" => Live;
    }
}

section! {
    /// What happens with a message that could not be sent.
    pub struct FailureHandlerSettings [failure_handlers] {
        /// Whether each failure is logged.
        enable_logging: bool = "true" => Live;
        /// Whether failures are counted in the metrics.
        enable_metrics: bool = "true" => Live;
        /// Whether many failures in a short time raise an alert.
        enable_alert: bool = "false" => Live;
        /// Failures within `alert_window` that raise an alert.
        alert_threshold: u64 = "100" in "1"..="100000000" => Live;
        /// Time over which failures are counted for an alert.
        alert_window: Duration = "1m" in "1s"..="24h" => Live;
        /// Where messages go whose queue was full.
        fallback_storage: StorageKind = "embedded" => Live;
        /// Where messages go whose receiver is away.
        offline_storage: StorageKind = "embedded" => Live;
        /// Handlers that run at the same time.
        workers: u32 = "4" in "1"..="1024" => Live;
        /// Failures that wait for a handler, at most; more are counted and dropped.
        queue: u64 = "1000" in "1"..="10000000" => Live;
        /// Time that one handler may take.
        timeout: Duration = "5s" in "10ms"..="10m" => Live;
    }
}
