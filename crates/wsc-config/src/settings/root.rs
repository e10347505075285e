//! The keys directly below `wsc`, and the tree of all sections.

use std::net::SocketAddr;
use std::time::Duration;

use super::{
    AuthSettings, CallbackSettings, ClusterSettings, CompressionSettings, DebugSettings, DrainSettings,
    FailureHandlerSettings, HttpSettings, IdempotencySettings, InboxSettings, LimitSettings, LogSettings,
    OutcomeSettings, QueueSettings, RetryBudgetSettings, RoomSettings, StorageSettings, TlsSettings,
};
use crate::rules;
use crate::schema::section;
use crate::values::{ByteSize, IpRange, NodeName};

section! {
    /// All settings of one node.
    pub struct Settings [] {
        /// Address and port on which the hub listens. Port 0 takes any free one. Beyond loopback
        /// needs `auth.enabled` or `auth.allow_insecure`.
        listen: SocketAddr = "127.0.0.1:8080" => Restart;
        /// Name of this node in logs, metrics and answers, unique in a cluster.
        node_id: NodeName = "" => Restart;
        /// Connections that this node holds at most. A lower value applies to newcomers.
        max_connections: u64 = "100000" in "1"..="10000000" => Live;
        /// Largest message that a client may send; a larger one closes its connection with 1009.
        max_message_size: ByteSize = "64KiB" in "128B"..="64MiB" => Live;
        /// No effect in this version: connections are read through one buffer for each worker thread, and
        /// keep nothing but the part of a message that has come.
        read_buffer_size: ByteSize = "4KiB" in "512B"..="1MiB" => Restart;
        /// No effect in this version: messages are written from the queue, whose limit is
        /// `queue.max_bytes`.
        write_buffer_size: ByteSize = "4KiB" in "512B"..="1MiB" => Restart;
        /// Time that a client has for its whole upgrade request.
        handshake_timeout: Duration = "10s" in "10ms"..="10m" => Live;
        /// Time that one write may take before the connection is closed with 3009.
        write_timeout: Duration = "10s" in "10ms"..="10m" => Live;
        /// Interval between the pings that the server sends.
        ping_interval: Duration = "25s" in "10ms"..="24h" => Live;
        /// Time after a ping without any frame before the connection is closed with 3012.
        pong_timeout: Duration = "10s" in "10ms"..="1h" => Live;
        /// Time that a user must be away before the hub says so, so that a short loss is no news.
        presence_debounce: Duration = "3s" in "0s"..="10m" => Live;
        /// Retries of a failed send after the first attempt. 0 switches retries off.
        max_retries: u32 = "3" in "0"..="100" => Live;
        /// Delay before the first retry.
        base_delay: Duration = "100ms" in "1ms"..="1h" => Live;
        /// Longest delay between two retries, whatever the factor makes of it.
        max_delay: Duration = "5s" in "1ms"..="24h" => Live;
        /// Factor by which the delay grows from retry to retry.
        backoff_factor: f64 = "2.0" in "1.0"..="100.0" => Live;
        /// Share of the delay by which it is varied at random, up and down.
        jitter: f64 = "0.1" in "0.0"..="1.0" => Live;
        /// Failure reasons after which a send is tried again. `temporary` stands for any error whose
        /// text contains the word.
        retryable_errors: Vec<String> = "queue_full, pending_full, broadcast_full, timeout, send_timeout, connection_timeout, conn_error, conn_closed, channel_closed, network_unreachable" where rules::retryable => Live;
        /// Failure reasons after which a send is never tried again; they win over `retryable_errors`.
        non_retryable_errors: Vec<String> = "user_offline, permission, validation, authentication_failed, message_too_large, rate_limit_permanent, rejected, unknown" where rules::non_retryable => Live;
        /// Time that a receiver has for its ACK, from the moment the message left for its socket.
        ack_timeout: Duration = "5s" in "10ms"..="1h" => Live;
        /// Retransmissions of a message that is not acknowledged, per stay on line.
        ack_max_retries: u32 = "3" in "0"..="100" => Live;
        /// Time between a missed ACK and the retransmission.
        ack_retry_interval: Duration = "2s" in "1ms"..="1h" => Live;
        /// Whether a message that nobody acknowledged goes to the inbox rather than fails.
        enable_offline_ack: bool = "true" => Live;
        /// Addresses of proxies whose `X-Forwarded-For` is believed: the client's address is the last one in it
        /// that is no such proxy.
        trusted_proxies: Vec<IpRange> = "" => Live;
    }
    with {
        /// Retries as a share of all sends.
        retry_budget: RetryBudgetSettings,
        /// What waits for users who are away.
        inbox: InboxSettings,
        /// Where messages are kept.
        storage: StorageSettings,
        /// How long fates can be asked for.
        outcomes: OutcomeSettings,
        /// How long an idempotency key is remembered.
        idempotency: IdempotencySettings,
        /// Outbound queues.
        queue: QueueSettings,
        /// Rooms.
        rooms: RoomSettings,
        /// Limits per user, address and connection.
        limits: LimitSettings,
        /// What happens with failures.
        failure_handlers: FailureHandlerSettings,
        /// Webhooks.
        callbacks: CallbackSettings,
        /// Authentication.
        auth: AuthSettings,
        /// TLS.
        tls: TlsSettings,
        /// The HTTP API.
        http: HttpSettings,
        /// Compression on the wire.
        compression: CompressionSettings,
        /// Several nodes.
        cluster: ClusterSettings,
        /// Shutting down.
        drain: DrainSettings,
        /// Log lines.
        log: LogSettings,
        /// Help with finding faults.
        debug: DebugSettings,
    }
}
