//! Moments that a test over sockets cannot hit on purpose: what happens while somebody else is in the middle of it.

use std::{
    sync::atomic::AtomicUsize,
    task::{Wake, Waker},
};

use super::*;
use crate::{config::TransportConfig, outbound::Outbound};

/// Counts how often the connection's task is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// An open connection with a task that has been polled once, and nothing to write.
fn conn_with(config: &TransportConfig) -> (Arc<Conn>, Arc<Woken>) {
    let conn = Conn::held(Arc::new(Shared::new(config)), None, Vec::new(), Extensions::default());
    conn.release();
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    conn.attend(&Context::from_waker(&waker));
    assert!(matches!(conn.flush_once(|_| Ok(0)), Ok(Flush::Done)));
    (conn, woken)
}

fn conn() -> (Arc<Conn>, Arc<Woken>) {
    conn_with(&TransportConfig::default())
}

/// Takes all that is offered.
fn take_all(slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
    Ok(slices.iter().map(|s| s.len()).sum())
}

fn bye() -> CloseReason {
    CloseReason::new(CloseCode::KICKED, "bye")
}

#[test]
fn who_writes_the_farewell_wakes_the_task() {
    let (conn, woken) = conn();
    conn.state.lock().writing = true;
    conn.submit_with(|| Some(vec![0x81, 0]));
    conn.close(&bye(), DisconnectReason::KickOut);
    conn.state.lock().writing = false;
    // The task comes while another thread writes, and leaves it to that thread to wake it.
    let flush = conn.flush_once(|slices| {
        assert!(matches!(conn.flush_once(take_all), Ok(Flush::Busy)));
        take_all(slices)
    });
    assert!(matches!(flush, Ok(Flush::Progress)), "who waits for the farewell would never hear of it");
    assert!(conn.state.lock().queue.is_none());
    assert!(woken.0.load(Relaxed) > 0);
}

#[test]
fn a_sweep_that_is_late_does_not_take_a_fresh_backlog_for_an_old_one() {
    let (conn, _) = conn();
    let before = conn.shared.now().wrapping_sub(3);
    Outbound(Arc::clone(&conn)).send(&[0x81, 0]);
    conn.sweep(before);
    assert_eq!(conn.state.lock().phase, Phase::Open);
    conn.close(&bye(), DisconnectReason::KickOut);
    conn.sweep(before);
    assert_eq!(conn.state.lock().phase, Phase::Closing);
    conn.flush_once(take_all).unwrap();
    conn.linger();
    conn.sweep(before);
    assert_eq!(conn.state.lock().phase, Phase::Lingering);
}

#[test]
fn the_answer_to_the_handshake_goes_first_and_is_never_cut() {
    let config = TransportConfig { queue_max_bytes: 100, ..TransportConfig::default() };
    let conn =
        Conn::held(Arc::new(Shared::new(&config)), None, b"HTTP/1.1 101\r\n\r\n".to_vec(), Extensions::default());
    conn.send_control(&[0x8A, 0]);
    let outbound = Outbound(Arc::clone(&conn));
    assert_eq!(outbound.send(&[b'x'; 50]), Sent::Queued);
    assert_eq!(outbound.send(&[b'x'; 50]), Sent::Dropped);
    conn.release();
    // Nor where the kernel takes nothing at first.
    conn.flush_once(|_| Err(io::ErrorKind::WouldBlock.into())).unwrap();
    conn.send_control(&[0x8A, 0]);
    let mut wire = Vec::new();
    conn.flush_once(|slices| {
        slices.iter().for_each(|s| wire.extend_from_slice(s));
        take_all(slices)
    })
    .unwrap();
    assert!(wire.starts_with(b"HTTP/1.1 101\r\n\r\n\x88"), "{wire:?}");
}

#[test]
fn no_pong_passes_the_answer_to_the_handshake() {
    let shared = Arc::new(Shared::new(&TransportConfig::default()));
    let conn = Conn::held(shared, None, b"HTTP/1.1 101\r\n\r\n".to_vec(), Extensions::default());
    conn.release();
    conn.flush_once(|_| Err(io::ErrorKind::WouldBlock.into())).unwrap();
    conn.send_control(&[0x8A, 0]);
    assert_eq!(conn.first_queued().as_deref(), Some(&b"HTTP/1.1 101\r\n\r\n"[..]));
}

#[test]
fn a_gap_that_is_told_before_anything_was_written_is_told() {
    // Nothing but the gap waits: a queue that is not quite empty.
    let conn = Conn::held(Arc::new(Shared::new(&TransportConfig::default())), None, Vec::new(), Extensions::default());
    Outbound(Arc::clone(&conn)).tell_gap(7);
    conn.release();
    let mut wire = Vec::new();
    conn.flush_once(|slices| {
        slices.iter().for_each(|s| wire.extend_from_slice(s));
        take_all(slices)
    })
    .unwrap();
    assert!(String::from_utf8_lossy(&wire).contains("\"dropped\":1,\"bytes\":7,"), "{wire:?}");
}

#[test]
fn a_reply_makes_old_messages_go_where_the_policy_says_so() {
    let config =
        TransportConfig { queue_max_bytes: 100, queue_policy: QueuePolicy::DropOldest, ..TransportConfig::default() };
    let (conn, _) = conn_with(&config);
    let outbound = Outbound(Arc::clone(&conn));
    for _ in 0..4 {
        assert_eq!(outbound.deliver(&Encoded::new(&[0; 30]), &mut || None), Sent::Queued);
    }
    for _ in 0..3 {
        assert_eq!(outbound.send(&[1; 30]), Sent::Queued);
    }
    // Nothing but replies is left: they are never dropped.
    assert_eq!(outbound.send_with(|| Some(vec![1; 30])), Sent::Dropped);
    assert_eq!(conn.cause(), Some(DisconnectReason::SlowConsumer));
}

#[test]
fn a_handle_can_be_printed_while_its_connection_is_busy() {
    let (conn, _) = conn();
    let outbound = Outbound(Arc::clone(&conn));
    outbound.send_with(|| {
        let text = format!("{outbound:?}");
        assert!(text.starts_with("Outbound"));
        None
    });
}

#[test]
fn an_end_during_a_write_leaves_nothing_behind() {
    let (conn, _) = conn();
    let stats = &conn.shared.stats;
    conn.submit(Payload::Shared(&Bytes::from_static(&[0x81, 0])), Kind::shared(1), None, always);
    let flush = conn.flush_once(|_| {
        conn.end(DisconnectReason::ReadError);
        Ok(1)
    });
    assert!(flush.is_ok());
    assert_eq!(
        conn.submit(Payload::Shared(&Bytes::from_static(&[0x81, 0])), Kind::shared(1), None, always),
        Some(Sent::Closed)
    );
    assert_eq!((stats.queue_bytes(), stats.ledger().snapshot().conn_closed), (0, 1));
    assert!(conn.state.lock().queue.is_none());
}

/// Where nobody is cut fast enough: queues take nothing more, as their policy says, until there is room again.
#[test]
fn all_queues_together_have_a_last_limit_that_can_be_moved() {
    let mut config = TransportConfig {
        queue_max_bytes: 1000,
        queue_total_bytes: 1600,
        queue_policy: QueuePolicy::DropNewest,
        ..TransportConfig::default()
    };
    let shared = Arc::new(Shared::new(&config));
    let total = || shared.stats.queue_bytes();
    let conn = || {
        let conn = Conn::held(Arc::clone(&shared), None, Vec::new(), Extensions::default());
        conn.release();
        Outbound(conn)
    };
    let deliver = |to: &Outbound, len: usize| to.deliver(&Encoded::new(&vec![0; len]), &mut || None);
    let fill = |to: &Outbound| while deliver(to, 100) == Sent::Queued {};
    let (first, second, third) = (conn(), conn(), conn());
    fill(&first);
    assert_eq!(first.queued().0, 1000);
    // An eighth more than the budget.
    fill(&second);
    assert_eq!((second.queued().0, total()), (800, 1800));
    // An empty one takes one all the same.
    assert_eq!(deliver(&third, 5000), Sent::Queued);
    assert_eq!(deliver(&third, 100), Sent::Dropped);
    third.0.flush_once(take_all).unwrap();
    // There is as much room as the setting says now.
    config.queue_total_bytes = 16_000;
    shared.limits.set(&config);
    fill(&second);
    assert_eq!(second.queued().0, 1000);
    // It takes nothing more than what leaves: as the policy says, also where it drops.
    second.0.flush_once(|_| Ok(10)).unwrap();
    config.queue_total_bytes = 800;
    config.queue_policy = QueuePolicy::DropOldest;
    shared.limits.set(&config);
    assert_eq!(deliver(&second, 100), Sent::Dropped, "nothing is left that could make enough room");
    assert_eq!((second.queued().0, total()), (90, 1090));
}

/// What a connection that is closing already has not written yet counts as well, and nobody else goes for it.
#[test]
fn who_is_closing_keeps_nothing_but_its_farewell() {
    let (conn, _) = conn();
    let outbound = Outbound(Arc::clone(&conn));
    for _ in 0..10 {
        assert_eq!(outbound.deliver(&Encoded::new(&[0x81; 100]), &mut || None), Sent::Queued);
    }
    conn.flush_once(|_| Ok(10)).unwrap();
    conn.close(&bye(), DisconnectReason::KickOut);
    conn.shed();
    assert!(conn.shared.stats.queue_bytes() < 200);
    assert_eq!(conn.cause(), Some(DisconnectReason::KickOut));
    assert_eq!(conn.shared.stats.slow_consumers().map(|(_, times)| times), [0; 5]);
    // The message that is begun, and the farewell.
    let mut wire = Vec::new();
    conn.flush_once(|slices| {
        slices.iter().for_each(|s| wire.extend_from_slice(s));
        take_all(slices)
    })
    .unwrap();
    assert_eq!((wire[0], wire[90]), (0x81, 0x88));
}
