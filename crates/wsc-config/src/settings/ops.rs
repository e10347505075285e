//! Sections for operation: cluster, drain, log, debug.

use std::time::Duration;

use crate::rules;
use crate::schema::section;
use crate::values::{BusType, LogFormat, LogLevel, RedisMode, Secret};

section! {
    /// Several nodes that act as one hub. Not built yet in this version.
    pub struct ClusterSettings [cluster] {
        /// Whether this node links up with others.
        enabled: bool = "false" => Restart;
        /// What links the nodes.
        bus_type: BusType = "noop" => Restart;
    }
    with {
        /// NATS, for `bus_type: nats`.
        nats: NatsSettings,
        /// Redis, for `bus_type: redis`.
        redis: RedisSettings,
    }
}

section! {
    /// NATS, for `bus_type: nats`.
    pub struct NatsSettings [cluster.nats] {
        /// Servers, without user and password.
        urls: Vec<String> = "nats://localhost:4222" where rules::nats_urls => Restart;
        /// Name under which the server lists this client.
        name: String = "wsc" => Restart;
        /// User name.
        username: Option<String> = "" => Restart;
        /// Password of the user.
        password: Option<Secret> = "" => Restart;
        /// Token, instead of user and password.
        token: Option<Secret> = "" => Restart;
        /// Time between two attempts to reconnect.
        reconnect_wait: Duration = "2s" in "1ms"..="10m" => Restart;
        /// Attempts to reconnect before the node gives up. -1 = no limit.
        max_reconnects: i64 = "-1" in "-1"..="1000000" => Restart;
        /// Time that connecting may take.
        connect_timeout: Duration = "5s" in "10ms"..="10m" => Restart;
        /// Time that one operation may take.
        op_timeout: Duration = "1s" in "10ms"..="10m" => Restart;
        /// Whether messages between nodes go through JetStream.
        use_jetstream: bool = "false" => Restart;
        /// Name of the JetStream stream.
        stream_name: String = "WSC" => Restart;
        /// Name of the JetStream consumer.
        consumer_name: String = "wsc-consumer" => Restart;
        /// Time for which JetStream keeps messages.
        message_retention: Duration = "1h" in "1s"..="30d" => Restart;
    }
}

section! {
    /// Redis, for `bus_type: redis`.
    pub struct RedisSettings [cluster.redis] {
        /// Servers as `host:port`: one, the sentinels, or some of a Redis Cluster.
        addrs: Vec<String> = "localhost:6379" where rules::host_ports => Restart;
        /// How the servers stand to each other.
        mode: RedisMode = "single" => Restart;
        /// Name of the primary that the sentinels watch.
        master_name: String = "" => Restart;
        /// User name.
        username: Option<String> = "" => Restart;
        /// Password.
        password: Option<Secret> = "" => Restart;
        /// Number of the database.
        db: u32 = "0" in "0"..="1000000" => Restart;
        /// Connections to a server, at most.
        pool_size: u32 = "10" in "1"..="10000" => Restart;
        /// Connections to a server that are kept open.
        min_conn: u32 = "2" in "0"..="10000" => Restart;
        /// Time that connecting may take.
        dial_timeout: Duration = "5s" in "10ms"..="10m" => Restart;
        /// Time that reading an answer may take.
        read_timeout: Duration = "3s" in "10ms"..="10m" => Restart;
        /// Time that writing a command may take.
        write_timeout: Duration = "3s" in "10ms"..="10m" => Restart;
        /// Time that one operation may take, retries included.
        op_timeout: Duration = "500ms" in "10ms"..="10m" => Restart;
        /// Retries of a failed operation.
        max_retries: u32 = "3" in "0"..="100" => Restart;
        /// Time between two retries.
        retry_interval: Duration = "200ms" in "1ms"..="10m" => Restart;
        /// What the names of all keys and channels begin with.
        key_prefix: String = "wsc:" => Restart;
    }
}

section! {
    /// Shutting down without a stampede.
    pub struct DrainSettings [drain] {
        /// Connections closed per second, with 3001. Clients are told to spread their return over as long.
        rate: u64 = "1000" in "1"..="10000000" => Live;
        /// Time between "not ready" and the moment when new connections and sends are refused with 503 and
        /// the first connection is closed, for the load balancer to notice.
        delay: Duration = "0s" in "0s"..="10m" => Live;
        /// Time from the signal on after which the process ends, done or not.
        deadline: Duration = "30s" in "10ms"..="1h" => Live;
    }
}

section! {
    /// Log lines.
    pub struct LogSettings [log] {
        /// The least important line that is still written.
        level: LogLevel = "info" => Live;
        /// The form of the lines.
        format: LogFormat = "text" => Live;
    }
}

section! {
    /// Help with finding faults.
    pub struct DebugSettings [debug] {
        /// Events that the node keeps in memory for the debug pages.
        events: u64 = "65536" in "0"..="10000000" => Restart;
    }
}
