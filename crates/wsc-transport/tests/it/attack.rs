//! Clients that do their worst: each ends as the protocol says, and costs nobody else anything.

use std::{io::Write as _, time::Duration};

use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep},
};
use wsc_protocol::DisconnectReason;
use wsc_transport::{Adopted, TransportConfig};

use crate::{
    compression::deflate,
    handshake::failures,
    support::{Client, Hub, REQUEST, client_frame, close_code, eventually, most_between_turns, secure, text},
};

/// Writes byte by byte with pauses, until it is over or nobody takes them.
async fn drip(mut to: impl AsyncWrite + Unpin, bytes: impl IntoIterator<Item = u8>, pause: Duration) {
    for byte in bytes {
        if to.write_all(&[byte]).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

#[tokio::test(start_paused = true)]
async fn heads_that_drip_in_are_cut_at_the_timeout() {
    let plain = Hub::start(&TransportConfig::default());
    let encrypted = Hub::start(&TransportConfig::default());
    let mut established = Client::new(secure(&encrypted).await);
    established.upgrade("/ws").await;
    let head = b"GET /ws HTTP/1.1\r\nX: ".iter().copied().chain(std::iter::repeat(b'x'));
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03".iter().copied().chain(std::iter::repeat(0));
    let begin = Instant::now();
    let mut slow = Vec::new();
    for _ in 0..20 {
        for (hub, bytes) in
            [(&plain, head.clone().take(1000).collect()), (&encrypted, hello.clone().take(500).collect())]
        {
            let bytes: Vec<u8> = bytes;
            let (mut reader, writer) = hub.tcp().await.into_split();
            slow.push(tokio::spawn(async move {
                let drip = tokio::spawn(drip(writer, bytes, Duration::from_millis(500)));
                let end = reader.read(&mut [0; 16]).await.unwrap_or(0);
                drip.abort();
                (end, begin.elapsed())
            }));
        }
    }
    for client in slow {
        let (end, after) = client.await.unwrap();
        assert_eq!(end, 0);
        assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&after), "{after:?}");
    }
    assert_eq!((failures(&plain, "timeout"), failures(&encrypted, "timeout")), (20, 20));
    established.say("undisturbed").await;
    assert_eq!(established.text().await, "undisturbed");
    plain.finish().await;
    encrypted.finish().await;
}

/// It answers no ping, but sends a byte now and then.
#[tokio::test(start_paused = true)]
async fn who_never_ends_a_frame_is_as_good_as_silent() {
    let hub = Hub::start(&TransportConfig::default());
    let announced = client_frame(0x82, &[0; 60_000]);
    let control = client_frame(0x89, &[0; 125]);
    let fragment = [client_frame(0x01, b"begun"), announced.clone()].concat();
    // The last one has its header in pieces.
    for (bytes, seconds) in [(&announced, 1), (&control, 1), (&fragment, 1), (&announced, 20)] {
        let begin = Instant::now();
        let (reader, writer) = tokio::io::split(hub.adopted(1 << 10).stream);
        let drip = tokio::spawn(drip(writer, bytes.clone(), Duration::from_secs(seconds)));
        let mut client = Client::new(tokio::io::join(reader, tokio::io::sink()));
        let code = loop {
            match client.frame_at_leisure().await.expect("a farewell") {
                (0x89, _) => {}
                frame => break close_code(&frame),
            }
        };
        drip.abort();
        assert_eq!(code, Some(3012));
        // The fragment's beginning was a frame, and came within some seconds.
        let after = begin.elapsed();
        assert!((Duration::from_secs(35)..Duration::from_secs(50)).contains(&after), "{after:?}");
    }
    assert!(hub.ended(4).await.iter().all(|cause| *cause == DisconnectReason::HeartbeatTimeout));
    hub.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_frame_may_take_its_time_on_a_slow_line() {
    let hub = Hub::start(&TransportConfig::default());
    let (reader, mut writer) = tokio::io::split(hub.adopted(1 << 10).stream);
    let frame = client_frame(0x82, &[7; 60_000]);
    let begin = Instant::now();
    let upload = tokio::spawn(async move {
        for piece in frame.chunks(1000) {
            writer.write_all(piece).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        writer
    });
    let mut client = Client::new(tokio::io::join(reader, tokio::io::sink()));
    loop {
        match client.frame_at_leisure().await {
            Some((0x89, _)) => {}
            echo => break assert_eq!(echo, Some((0x82, vec![7; 60_000]))),
        }
    }
    assert!(begin.elapsed() > Duration::from_secs(59));
    drop(upload.await.unwrap());
    hub.finish().await;
}

#[tokio::test]
async fn a_message_has_no_more_fragments_than_it_may_have_bytes() {
    let hub = Hub::with(|c| c.max_message_size = 1000);
    // As many as there may be, and some empty ones.
    let mut client = hub.client().await;
    let most = [client_frame(0x01, b"x"), client_frame(0x00, b"y").repeat(900), client_frame(0x00, b"").repeat(90)];
    client.write(&[most.concat(), client_frame(0x80, b"z")].concat()).await;
    assert_eq!(client.text().await.len(), 902);
    for more in [client_frame(0x00, b"").repeat(1000), client_frame(0x00, b"y").repeat(1000)] {
        let mut client = hub.client().await;
        client.write(&[client_frame(0x01, b"x"), more].concat()).await;
        assert_eq!(client.close().await, 1009);
    }
    hub.finish().await;
}

#[tokio::test(start_paused = true)]
async fn pings_of_somebody_who_reads_no_pongs_do_not_pile_up() {
    let hub = Hub::start(&TransportConfig::default());
    let (_reader, mut writer) = tokio::io::split(hub.adopted(256).stream);
    let outbound = hub.newest();
    let begin = Instant::now();
    let pings = client_frame(0x89, &[b'p'; 125]).repeat(100);
    let flood = async {
        let mut most = 0;
        while writer.write_all(&pings).await.is_ok() {
            most = most.max(outbound.queued().0);
            // A hundred thousand before it is over.
            sleep(Duration::from_millis(10)).await;
        }
        most
    };
    let most = flood.await;
    // One that is begun, one that waits, and our own ping.
    assert!((127..=127 * 2 + 2).contains(&most), "{most}");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert_eq!(hub.ended(1).await, [DisconnectReason::WriteTimeout]);
    hub.finish().await;
}

/// A client that agreed to compression, with room for all that it sends at once.
fn compressing(hub: &Hub) -> Client<tokio::io::DuplexStream> {
    let offer = Request::builder().header("Sec-WebSocket-Extensions", "permessage-deflate").body(()).unwrap();
    let extensions = hub.transport.agree(&offer, &mut Response::new(()));
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    hub.transport.adopt(Adopted::Stream(Box::new(theirs)), Vec::new(), extensions, ());
    Client::new(ours)
}

#[tokio::test]
async fn little_that_would_become_much_is_refused() {
    let hub = Hub::with(|c| c.compression_threshold = Some(100));
    let bomb = deflate(&vec![b'0'; 16 << 20]);
    assert!(bomb.len() < 20_000);
    for frames in
        [client_frame(0xC2, &bomb), [client_frame(0x42, &bomb[..9_000]), client_frame(0x80, &bomb[9_000..])].concat()]
    {
        let mut client = compressing(&hub);
        client.write(&frames).await;
        assert_eq!(client.close().await, 1009);
    }
    hub.finish().await;
}

/// Empty messages cost the most for their size: the decompressor starts afresh for each.
#[tokio::test]
async fn nothing_compressed_many_times_does_not_keep_others_from_running() {
    const MESSAGES: u64 = 10_000;
    let hub = Hub::with(|c| c.compression_threshold = Some(100));
    let mut client = compressing(&hub);
    client.write(&client_frame(0xC2, &[0]).repeat(MESSAGES as usize)).await;
    assert_eq!(most_between_turns(&hub, MESSAGES, |hub| hub.stats().messages_in()).await, 64);
    hub.finish().await;
}

#[tokio::test]
async fn who_sends_without_pause_does_not_keep_others_from_running() {
    const MESSAGES: u64 = 100;
    for (len, at_a_time) in [(40_000, 2), (1_000, 64)] {
        let hub = Hub::start(&TransportConfig::default());
        let (ours, theirs) = tokio::io::duplex(8 << 20);
        hub.transport.adopt(Adopted::Stream(Box::new(theirs)), Vec::new(), Default::default(), ());
        let mut flood = Client::new(ours);
        flood.write(&client_frame(0x82, &vec![0; len]).repeat(MESSAGES as usize)).await;
        let mut other = hub.adopted(1 << 10);
        other.say("hello").await;
        let answer = tokio::spawn(async move {
            let answer = other.text().await;
            (other, answer)
        });
        let most = most_between_turns(&hub, MESSAGES + 1, |hub| hub.stats().messages_in()).await;
        assert!((1..=at_a_time + 1).contains(&most), "{most} of {len} bytes");
        assert_eq!(answer.await.unwrap().1, "hello");
        hub.finish().await;
    }
}

/// Everybody comes back at once.
#[tokio::test]
async fn a_storm_of_handshakes_lets_others_run() {
    const CLIENTS: u64 = 400;
    let hub = Hub::start(&TransportConfig::default());
    // Complete requests lie ready, all of them, before the hub looks for the first time.
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = std::net::TcpStream::connect(hub.addr).unwrap();
            client.write_all(format!("GET /ws {REQUEST}").as_bytes()).unwrap();
            client
        })
        .collect();
    let most = most_between_turns(&hub, CLIENTS, |hub| hub.connections() as u64).await;
    assert!((1..=16).contains(&most), "{most} at a time");
    drop(clients);
    hub.ended(CLIENTS as usize).await;
    hub.finish().await;
}

/// However many are half open, what they hold up is each other.
#[tokio::test]
async fn the_half_open_are_in_nobodys_way() {
    let hub = Hub::start(&TransportConfig::default());
    let mut half = Vec::new();
    for _ in 0..100 {
        let mut tcp = hub.tcp().await;
        tcp.write_all(format!("GET /ws?never {REQUEST}").as_bytes()).await.unwrap();
        half.push(tcp);
    }
    let mut client = hub.client().await;
    client.write(&text("let in")).await;
    assert_eq!(client.text().await, "let in");
    eventually("nobody else is", || hub.transport.connections() == 1).await;
    drop((client, half));
    hub.finish().await;
}
