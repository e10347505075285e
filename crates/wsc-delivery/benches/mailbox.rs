//! What a letter costs in a mailbox: time of a cycle, time of a deadline, memory while it is pending.
//!
//! `cargo bench -p wsc-delivery`. Bodies are static, so memory is what the machine itself takes.

#![expect(clippy::disallowed_methods, reason = "a bench looks at the clock; the mailboxes do not")]
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use uuid::Uuid;
use wsc_delivery::mailbox::{Effect, Input, Kind, Letter, Mailbox, MailboxConfig, Place, Transmission};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const LETTERS: u64 = 1_000_000;

fn main() {
    let config = config();
    match std::env::args().nth(1).and_then(|mailboxes| mailboxes.parse().ok()) {
        Some(mailboxes) => pending(&config, mailboxes),
        None => {
            cycle(&config);
            for mailboxes in [1, 1_000, 10_000, 100_000] {
                pending_in_a_process_of_its_own(mailboxes);
            }
        }
    }
}

/// What one measurement leaves in the allocator must not count in the next.
fn pending_in_a_process_of_its_own(mailboxes: u64) {
    let ran = std::env::current_exe()
        .and_then(|this| std::process::Command::new(this).arg(mailboxes.to_string()).status())
        .is_ok_and(|status| status.success());
    assert!(ran, "the measurement with {mailboxes} mailboxes failed");
}

fn config() -> MailboxConfig {
    let mut config = MailboxConfig::default();
    config.window_messages = usize::MAX;
    config.window_bytes = u64::MAX;
    config
}

/// Like a UUIDv7 of one millisecond: equal in front, random at the end.
fn id(n: u64) -> Uuid {
    let mut z = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    Uuid::from_u64_pair(0x0192_1234_5678_7000, (z ^ (z >> 27)) | 1 << 63)
}

fn letter(n: u64) -> Letter {
    let body = Bytes::from_static(&[b'x'; 200]);
    Letter { id: id(n), kind: Kind::Reliable, body, expires_at: None, only: None, except: None }
}

fn conn() -> Uuid {
    Uuid::from_u128(7)
}

fn online(config: &MailboxConfig, effects: &mut Vec<Effect>) -> Mailbox {
    let mut mailbox = Mailbox::new();
    mailbox.handle(0, config, Input::Connected { conn: conn(), nothing_rests: true }, effects);
    mailbox
}

/// Accepts, commits and transmits a letter.
fn send(mailbox: &mut Mailbox, n: u64, now: u64, config: &MailboxConfig, effects: &mut Vec<Effect>) {
    let id = id(n);
    mailbox.handle(now, config, Input::Accept(letter(n)), effects);
    mailbox.handle(now, config, Input::Committed { id, place: Place(n) }, effects);
    let sent = Input::Transmitted { conn: conn(), id, result: Transmission::Written };
    mailbox.handle(now, config, sent, effects);
    black_box(&effects);
    effects.clear();
}

fn per(start: Instant, count: u64) -> f64 {
    start.elapsed().as_nanos() as f64 / count as f64
}

/// One letter after the other: accepted, committed, written, acknowledged.
fn cycle(config: &MailboxConfig) {
    let mut effects = Vec::new();
    let mut mailbox = online(config, &mut effects);
    let start = Instant::now();
    for n in 0..LETTERS {
        send(&mut mailbox, n, n / 1000, config, &mut effects);
        mailbox.handle(n / 1000, config, Input::Acked { id: id(n) }, &mut effects);
        black_box(&effects);
        effects.clear();
    }
    println!("accept, commit, transmit, ack: {:.0} ns a letter, one pending", per(start, LETTERS));
}

/// A million letters pending, then acknowledged or timed out.
fn pending(config: &MailboxConfig, count: u64) {
    let mut effects = Vec::new();
    let mut mailboxes: Vec<_> = (0..count).map(|_| online(config, &mut effects)).collect();
    effects.clear();
    let before = resident();
    let start = Instant::now();
    for n in 0..LETTERS {
        send(&mut mailboxes[(n % count) as usize], n, n / 1000, config, &mut effects);
    }
    println!("\n{LETTERS} pending in {count} mailboxes");
    println!("  to send them: {:.0} ns a letter", per(start, LETTERS));
    println!("  memory: {} bytes a letter", (resident() - before) / LETTERS);

    // All that is due is due at once: the worst moment of a timer.
    let start = Instant::now();
    let mut timeouts = 0_u64;
    for mailbox in &mut mailboxes {
        assert!(mailbox.next_wake().is_some());
        mailbox.handle(1_000_000, config, Input::Wake, &mut effects);
        timeouts += effects.iter().filter(|effect| matches!(effect, Effect::AckTimeout { .. })).count() as u64;
        effects.clear();
    }
    assert_eq!(timeouts, LETTERS);
    println!("  to expire all deadlines: {:.0} ns a letter", per(start, LETTERS));

    let start = Instant::now();
    for n in 0..LETTERS {
        mailboxes[(n % count) as usize].handle(1_000_001, config, Input::Acked { id: id(n) }, &mut effects);
        effects.clear();
    }
    println!("  to acknowledge them: {:.0} ns a letter", per(start, LETTERS));
    assert!(mailboxes.iter().all(|mailbox| mailbox.in_flight() == 0));
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default();
    pages * 4096
}
