//! How a hub parts with everybody without hurting who takes them over.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::{Instant, sleep},
};
use wsc_protocol::DisconnectReason;
use wsc_transport::{Drain, TransportConfig};

use crate::support::{Client, Hub, REQUEST, client_frame, server_frame, within};

/// When somebody was told to go, and for how long.
#[derive(Debug)]
struct Told {
    at: Duration,
    retry_after_ms: u64,
}

fn plan(change: impl FnOnce(&mut Drain)) -> Drain {
    let mut plan = Drain::default();
    change(&mut plan);
    plan
}

fn retry_after_ms(close: &[u8]) -> u64 {
    let json = std::str::from_utf8(&close[2..]).unwrap();
    let (_, number) = json.split_once("\"retry_after_ms\":").expect("a time to stay away");
    number.trim_end_matches('}').parse().unwrap()
}

/// Reads until it is told to go, and goes as a client does.
async fn leave<S: AsyncRead + AsyncWrite + Unpin>(mut client: Client<S>, begin: Instant) -> Told {
    // It may take longer than anything else in a test.
    let frame = loop {
        match client.frame_at_leisure().await.expect("a farewell") {
            (0x89, _) => client.write(&client_frame(0x8A, b"")).await,
            frame => break frame,
        }
    };
    assert_eq!((frame.0, &frame.1[..2]), (0x88, &3001_u16.to_be_bytes()[..]));
    let told = Told { at: begin.elapsed(), retry_after_ms: retry_after_ms(&frame.1) };
    client.write(&client_frame(0x88, &3001_u16.to_be_bytes())).await;
    assert_eq!(client.frame().await, None);
    told
}

fn crowd(hub: &Hub, size: usize, begin: Instant) -> Vec<JoinHandle<Told>> {
    (0..size).map(|_| tokio::spawn(leave(hub.adopted(256), begin))).collect()
}

async fn all_told(crowd: Vec<JoinHandle<Told>>) -> Vec<Told> {
    let mut told = Vec::new();
    for member in crowd {
        told.push(member.await.unwrap());
    }
    told.sort_by_key(|told| told.at);
    told
}

#[tokio::test(start_paused = true)]
async fn connections_are_closed_evenly_at_the_rate() {
    const SIZE: usize = 3000;
    let hub = Hub::start(&TransportConfig::default());
    let begin = Instant::now();
    let crowd = crowd(&hub, SIZE, begin);
    hub.transport.drain(plan(|p| p.rate = 1000)).await;
    let took = begin.elapsed();
    assert!((Duration::from_millis(2900)..Duration::from_millis(3200)).contains(&took), "{took:?}");
    let told = all_told(crowd).await;
    assert_eq!(told.len(), SIZE);
    for tenth in 0..30 {
        let closed = told.iter().filter(|t| t.at.as_millis() / 100 == tenth).count();
        assert!((80..=120).contains(&closed), "{closed} in tenth of a second {tenth}");
    }
    // No bursts within it either.
    for moment in told.chunk_by(|a, b| a.at == b.at) {
        assert!(moment.len() <= 20, "{} at once at {:?}", moment.len(), moment[0].at);
    }
    // They come back all over the time that it took.
    for quarter in 0..4 {
        let back = told.iter().filter(|t| t.retry_after_ms.min(2999) / 750 == quarter).count();
        assert!((SIZE / 5..=SIZE * 3 / 10).contains(&back), "{back} in quarter {quarter}");
    }
    assert!(told.iter().all(|t| t.retry_after_ms <= 3000));
    assert_eq!(hub.ended(SIZE).await, vec![DisconnectReason::ServerShutdown; SIZE]);
    hub.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_raised_where_the_deadline_asks_for_it() {
    let hub = Hub::start(&TransportConfig::default());
    let begin = Instant::now();
    let crowd = crowd(&hub, 900, begin);
    hub.transport
        .drain(plan(|p| {
            p.rate = 10;
            p.deadline = Duration::from_secs(10);
        }))
        .await;
    let told = all_told(crowd).await;
    // A tenth of the deadline is left for the last: 100 per second, still evenly.
    let last = told.last().unwrap().at;
    assert!((Duration::from_millis(8900)..Duration::from_millis(9200)).contains(&last), "{last:?}");
    for second in 0..8 {
        let closed = told.iter().filter(|t| t.at.as_secs() == second).count();
        assert!((80..=120).contains(&closed), "{closed} in second {second}");
    }
    assert!(told.iter().all(|t| t.retry_after_ms <= 9000));
    hub.finish().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_rate_all_go_at_once() {
    let hub = Hub::start(&TransportConfig::default());
    let begin = Instant::now();
    let crowd = crowd(&hub, 500, begin);
    hub.transport.drain(plan(|p| p.rate = 0)).await;
    let told = all_told(crowd).await;
    assert!(told.iter().all(|t| t.at < Duration::from_millis(20) && t.retry_after_ms <= 1000));
    assert!(told.iter().any(|t| t.retry_after_ms > 500) && told.iter().any(|t| t.retry_after_ms < 500));
    hub.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_written_first_and_who_never_reads_is_cut_off() {
    const BACKLOG: usize = 500;
    let hub = Hub::with(|c| c.write_timeout = Duration::from_secs(4));
    let message = server_frame(0x81, &[b'm'; 100]);
    let mut slow = hub.adopted(256);
    let to_slow = hub.newest();
    let _deaf = hub.adopted(256);
    let to_deaf = hub.newest();
    for _ in 0..BACKLOG {
        to_slow.send(&message);
        to_deaf.send(&message);
    }
    let begin = Instant::now();
    let reads = tokio::spawn(async move {
        for _ in 0..BACKLOG {
            // Two seconds in all.
            sleep(Duration::from_millis(4)).await;
            assert_eq!(slow.frame().await.map(|f| f.1.len()), Some(100));
        }
        leave(slow, begin).await
    });
    hub.transport.drain(Drain::default()).await;
    // A write timeout, and what the sweep is late.
    let took = begin.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_millis(5500)).contains(&took), "{took:?}");
    assert!(reads.await.unwrap().at < Duration::from_secs(4));
    assert_eq!(hub.ended(2).await, [DisconnectReason::ServerShutdown; 2]);
    hub.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds() {
    let hub = Hub::with(|c| c.write_timeout = Duration::from_secs(3600));
    let mut deaf = Vec::new();
    for _ in 0..50 {
        deaf.push(hub.adopted(16));
        hub.newest().send(&server_frame(0x81, &[b'm'; 1000]));
    }
    let begin = Instant::now();
    let polite = crowd(&hub, 50, begin);
    hub.transport.drain(plan(|p| p.deadline = Duration::from_secs(5))).await;
    let took = begin.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_millis(5200)).contains(&took), "{took:?}");
    assert_eq!(all_told(polite).await.len(), 50);
    assert_eq!(hub.ended(100).await, [DisconnectReason::ServerShutdown; 100]);
    assert_eq!(hub.transport.connections(), 0);
    hub.finish().await;
}

#[tokio::test(start_paused = true)]
async fn newcomers_are_closed_too() {
    let hub = Hub::start(&TransportConfig::default());
    let begin = Instant::now();
    let crowd = crowd(&hub, 10, begin);
    let transport = hub.transport.clone();
    let drain = tokio::spawn(async move { transport.drain(plan(|p| p.rate = 10)).await });
    sleep(Duration::from_millis(550)).await;
    assert!(!drain.is_finished());
    let newcomer = leave(hub.adopted(256), begin).await;
    assert!(newcomer.at < Duration::from_secs(2), "{newcomer:?}");
    drain.await.unwrap();
    assert_eq!(all_told(crowd).await.len(), 10);
    hub.finish().await;
}

#[tokio::test]
async fn requests_are_answered_until_the_last_one_has_gone() {
    let hub = Hub::start(&TransportConfig::default());
    let (mut first, mut second) = (hub.client().await, hub.client().await);
    let transport = hub.transport.clone();
    let drain = tokio::spawn(async move { transport.drain(plan(|p| p.rate = 1)).await });
    assert_eq!(first.close().await, 3001);
    // The second one's turn has not come.
    assert!(hub.transport.is_accepting());
    second.say("still here").await;
    assert_eq!(second.text().await, "still here");
    for (request, answer) in [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), "HTTP/1.1 200 "),
        (format!("GET /ws?refuse {REQUEST}"), "HTTP/1.1 200 "),
    ] {
        let mut asks = Client::new(hub.tcp().await);
        asks.write(request.as_bytes()).await;
        let head = asks.head().await;
        assert!(head.starts_with(answer), "{head}");
    }
    // A drain that is given up leaves the rest where they are, and any other end goes on from there.
    drain.abort();
    assert!(drain.await.unwrap_err().is_cancelled());
    second.say("and still").await;
    assert_eq!(second.text().await, "and still");
    let transport = hub.transport.clone();
    let drain = tokio::spawn(async move { transport.drain(Drain::default()).await });
    assert_eq!(second.close().await, 3001);
    drop((first, second));
    within("the drain", drain).await.unwrap();
    assert!(!hub.transport.is_accepting());
    assert!(tokio::net::TcpStream::connect(hub.addr).await.is_err());
    hub.finish().await;
}
