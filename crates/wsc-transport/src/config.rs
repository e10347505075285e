//! What the layer above may tune.

use std::time::Duration;

/// What happens to a plain message when a connection's queue is full (protocol §4, *Slow consumers*). Replies and
/// notices are never dropped: where they do not fit, even after messages made room as far as the policy lets them, the
/// connection is closed with 3008.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum QueuePolicy {
    /// The connection is closed with 3008.
    #[default]
    Disconnect,
    /// The oldest messages that are not begun make room.
    DropOldest,
    /// The new message is not taken.
    DropNewest,
    /// A message to one user is not taken, and those that wait can make room: whoever tracks them puts them away.
    /// Those of fan-outs are treated as under [`DropOldest`](Self::DropOldest).
    Spill,
}

/// Settings of a [`Transport`](crate::Transport). All of them can be changed while it runs, see
/// [`Transport::reconfigure`](crate::Transport::reconfigure).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TransportConfig {
    /// Largest message in bytes, whole or in fragments; default 64 KiB. A larger one is closed with 1009.
    /// Each connection that is in the middle of a message may hold this much.
    pub max_message_size: usize,
    /// How long a request head and the decision about it may take; default 10 s.
    pub handshake_timeout: Duration,
    /// Most handshakes at a time; the oldest is cut first; default 4096.
    pub pending_handshakes: usize,
    /// How long a peer may take no byte at all before it is cut off; default 10 s.
    pub write_timeout: Duration,
    /// Time between two pings; default 25 s.
    pub ping_interval: Duration,
    /// How much longer than `ping_interval` a peer may be silent; default 10 s.
    pub pong_timeout: Duration,
    /// Most bytes that wait in one connection's queue; default 1 MiB. An empty queue takes one batch of any size.
    pub queue_max_bytes: usize,
    /// What happens at overflow; default [`QueuePolicy::Disconnect`].
    pub queue_policy: QueuePolicy,
    /// How many bytes may wait in all queues together; default 1 GiB. Beyond it the connections with the largest queues
    /// are closed with 3008 until less than 7/8 of it waits; before that, newcomers should be refused, see
    /// [`Transport::is_pressed`](crate::Transport::is_pressed). Until the largest are closed it may become an eighth
    /// more: there a queue that is not empty takes nothing, as if it were full itself.
    pub queue_total_bytes: usize,
    /// Most bytes that wait in one [`Fanout`](crate::Fanout) before publishers are refused; default 4 MiB. Counted
    /// uncompressed: where members agreed to compression the compressed form comes on top.
    pub fanout_max_bytes: usize,
    /// Whether new connections may agree on compression (permessage-deflate), and the smallest message in bytes that
    /// is compressed for those that did; default `None`: not offered.
    pub compression_threshold: Option<usize>,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            max_message_size: 64 << 10,
            handshake_timeout: Duration::from_secs(10),
            pending_handshakes: 4096,
            write_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            queue_max_bytes: 1 << 20,
            queue_policy: QueuePolicy::Disconnect,
            queue_total_bytes: 1 << 30,
            fanout_max_bytes: 4 << 20,
            compression_threshold: None,
        }
    }
}
