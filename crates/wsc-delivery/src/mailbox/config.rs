//! What can be tuned.

use std::time::Duration;

/// The settings of mailboxes; the same for all, and changed at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MailboxConfig {
    /// How long an acknowledgement may take, from the hand-over of the last byte to the kernel; default 5 s.
    pub ack_timeout: Duration,
    /// How often a letter is sent again in one stay on line; default 3.
    pub ack_max_retries: u32,
    /// How long after a timeout it is sent again; default 2 s.
    pub ack_retry_interval: Duration,
    /// Whether a letter that used up its attempts rests in the inbox, or fails; default true: it rests.
    pub enable_offline_ack: bool,
    /// Most letters that one connection has not acknowledged; default 128.
    pub window_messages: usize,
    /// Most bytes that one connection has not acknowledged, though always one letter; default 256 KiB.
    pub window_bytes: u64,
    /// How long a letter rests while its user is connected; default 60 s.
    pub retry_interval: Duration,
    /// Most bytes of plain letters that are held behind one connection's replay; default 1 MiB.
    pub held_bytes: usize,
}

impl Default for MailboxConfig {
    fn default() -> Self {
        Self {
            ack_timeout: Duration::from_secs(5),
            ack_max_retries: 3,
            ack_retry_interval: Duration::from_secs(2),
            enable_offline_ack: true,
            window_messages: 128,
            window_bytes: 256 << 10,
            retry_interval: Duration::from_secs(60),
            held_bytes: 1 << 20,
        }
    }
}
