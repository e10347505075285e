//! However a client's bytes are cut into reads, the same is heard and the same is answered.

use std::{
    collections::VecDeque,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use flate2::{Compress, Compression, FlushCompress};
use http::{Request, Response};
use parking_lot::Mutex;
use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    runtime::Runtime,
    sync::oneshot,
};
use wsc_transport::{Adopted, Extensions};

use crate::support::{Client, Frame, Hub, server_frame, within};

/// What a client says, and how it puts that into frames.
#[derive(Clone, Debug)]
struct Saying {
    is_text: bool,
    /// Length of the payload.
    len: usize,
    /// Where it is cut into fragments.
    cuts: Vec<Index>,
    /// Pings (`true`) and pongs of these lengths: before the first fragment, the second …
    controls: Vec<(bool, usize)>,
    /// Compressed, where the client may.
    is_packed: bool,
    mask: [u8; 4],
}

fn saying() -> impl Strategy<Value = Saying> {
    let len = prop_oneof![
        8 => 0_usize..40,
        2 => select(vec![124_usize, 125, 126, 127, 300]),
        1 => select(vec![65_535_usize, 65_536, 65_537]),
    ];
    let controls = prop::collection::vec((any::<bool>(), select(vec![0_usize, 1, 20, 125])), 0..4);
    (any::<bool>(), len, prop::collection::vec(any::<Index>(), 0..4), controls, any::<bool>(), any::<[u8; 4]>())
        .prop_map(|(is_text, len, cuts, controls, is_packed, mask)| Saying {
            is_text,
            len,
            cuts,
            controls,
            is_packed,
            mask,
        })
}

impl Saying {
    /// Text with characters of every width, so that each cut may go through one; or bytes that are no text.
    fn payload(&self) -> Vec<u8> {
        if !self.is_text {
            return (0..self.len).map(|n| (n * 7) as u8 | 0x80).collect();
        }
        let mut text: String = "aä€😀".chars().cycle().take(self.len * 2 / 5).collect();
        text.truncate(text.floor_char_boundary(self.len));
        text.extend(std::iter::repeat_n('x', self.len - text.len()));
        text.into_bytes()
    }

    /// Appends the client's frames to `stream`, and to `answers` the frames that answer them.
    fn write(&self, may_pack: bool, stream: &mut Vec<u8>, answers: &mut Vec<Frame>) {
        let opcode = if self.is_text { 1 } else { 2 };
        let is_packed = self.is_packed && may_pack;
        let payload = if is_packed { deflate(&self.payload()) } else { self.payload() };
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        cuts.extend([0, payload.len()]);
        cuts.sort_unstable();
        let mut controls = self.controls.iter();
        let last = cuts.len() - 2;
        for (at, cut) in cuts.windows(2).enumerate() {
            if let Some(&(is_ping, len)) = controls.next() {
                let payload = vec![answers.len() as u8; len];
                stream.extend(masked(if is_ping { 0x89 } else { 0x8A }, &payload, self.mask));
                answers.extend(is_ping.then_some((0x8A, payload)));
            }
            let is_final = if at == last { 0x80 } else { 0 };
            let first = if at == 0 { opcode | if is_packed { 0x40 } else { 0 } } else { 0 };
            stream.extend(masked(is_final | first, &payload[cut[0]..cut[1]], self.mask));
        }
        answers.push((0x80 | opcode, self.payload()));
    }
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(bytes.len() + 100);
    Compress::new(Compression::fast(), false).compress_vec(bytes, &mut packed, FlushCompress::Sync).unwrap();
    packed.truncate(packed.len() - 4);
    packed
}

/// A client's frame with a mask of its own.
fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = server_frame(first, payload);
    let payload_at = frame.len() - payload.len();
    frame[1] |= 0x80;
    frame[payload_at..].iter_mut().zip(mask.into_iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    frame.splice(payload_at..payload_at, mask);
    frame
}

/// A conversation that ends with the client's close: its bytes in pieces, and every frame that answers it.
#[derive(Debug)]
struct Conversation {
    pieces: Vec<Vec<u8>>,
    answers: Vec<Frame>,
}

impl Conversation {
    fn new(sayings: &[Saying], cuts: &Cuts, may_pack: bool) -> Self {
        let mut stream = Vec::new();
        let mut answers = Vec::new();
        for saying in sayings {
            saying.write(may_pack, &mut stream, &mut answers);
        }
        stream.extend(masked(0x88, &[0x03, 0xE8], [9, 8, 7, 6]));
        answers.push((0x88, vec![0x03, 0xE8]));
        let mut borders = match cuts {
            Cuts::Some(cuts) => cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect(),
            Cuts::Every(step) => (0..stream.len()).step_by((*step).max(stream.len() / 2_000)).collect::<Vec<_>>(),
        };
        borders.extend([0, stream.len()]);
        borders.sort_unstable();
        borders.dedup();
        let pieces = borders.windows(2).map(|border| stream[border[0]..border[1]].to_vec()).collect();
        Self { pieces, answers }
    }
}

/// Where the stream is cut into reads.
#[derive(Clone, Debug)]
enum Cuts {
    Some(Vec<Index>),
    /// Every so many bytes; further apart in long streams.
    Every(usize),
}

fn cuts() -> impl Strategy<Value = Cuts> {
    prop_oneof![
        3 => prop::collection::vec(any::<Index>(), 0..12).prop_map(Cuts::Some),
        1 => (1_usize..9).prop_map(Cuts::Every),
    ]
}

/// A stream whose every read gives one piece, now and then after it was not ready; it keeps what is written.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    /// Whether each read is first told to come again.
    hesitates: bool,
    is_ready: bool,
    written: Arc<Mutex<Vec<u8>>>,
    /// Dropped with the stream.
    _over: oneshot::Sender<()>,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.hesitates && !self.is_ready {
            self.is_ready = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_ready = false;
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buffer.remaining()));
            buffer.put_slice(&piece);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.lock().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A hub that takes compressed messages, but answers plainly.
fn hub() -> Hub {
    Hub::with(|config| {
        config.max_message_size = 100_000;
        config.compression_threshold = Some(1 << 20);
    })
}

/// What the side door agrees on with a client that offers compression.
fn agreed(hub: &Hub) -> Extensions {
    let request = Request::builder().header("sec-websocket-extensions", "permessage-deflate").body(()).unwrap();
    let extensions = hub.transport.agree(&request, &mut Response::new(()));
    assert_ne!(extensions, Extensions::default());
    extensions
}

/// Messages are answered one for one. Answers to pings may overtake messages that wait, and where several pings wait
/// the last one is answered (RFC 6455 §5.5.3).
fn check(heard: &[Frame], expected: &[Frame]) -> Result<(), TestCaseError> {
    let is_pong = |frame: &&Frame| frame.0 == 0x8A;
    let (pongs, messages): (Vec<&Frame>, Vec<&Frame>) = heard.iter().partition(is_pong);
    let (expected_pongs, expected): (Vec<&Frame>, Vec<&Frame>) = expected.iter().partition(is_pong);
    prop_assert!(messages == expected, "heard {} messages, not the {} expected", messages.len(), expected.len());
    prop_assert_eq!(pongs.last(), expected_pongs.last());
    let mut rest = expected_pongs.iter();
    prop_assert!(pongs.iter().all(|pong| rest.any(|expected| expected == pong)), "pongs of other pings");
    Ok(())
}

#[test]
fn any_split_gives_the_same_conversation() {
    let runtime = Runtime::new().unwrap();
    let hub = runtime.block_on(async { hub() });
    let packing = agreed(&hub);
    let cases = (prop::collection::vec(saying(), 0..7), cuts(), any::<bool>(), any::<bool>(), any::<bool>());
    TestRunner::new(Config::with_cases(256))
        .run(&cases, |(sayings, cuts, may_pack, hesitates, first_is_early)| {
            let Conversation { mut pieces, answers } = Conversation::new(&sayings, &cuts, may_pack);
            let written: Arc<Mutex<Vec<u8>>> = Arc::default();
            let (sender, over) = oneshot::channel();
            // The first bytes may have come with the request.
            let early = if first_is_early { pieces.remove(0) } else { Vec::new() };
            let stream = Pieces {
                pieces: pieces.into(),
                hesitates,
                is_ready: false,
                written: Arc::clone(&written),
                _over: sender,
            };
            let extensions = if may_pack { packing } else { Extensions::default() };
            runtime.block_on(async {
                hub.transport.adopt(Adopted::Stream(Box::new(stream)), early, extensions, ());
                let _ = within("the end", over).await;
            });
            let written = mem::take(&mut *written.lock());
            let written = tokio::io::join(&written[..], tokio::io::sink());
            check(&runtime.block_on(Client::new(written).rest()), &answers)
        })
        .unwrap();
    runtime.block_on(hub.finish());
}

#[test]
fn any_split_gives_the_same_messages_over_tcp() {
    let runtime = Runtime::new().unwrap();
    let hub = runtime.block_on(async { hub() });
    let cases = (prop::collection::vec(saying(), 0..12), cuts());
    TestRunner::new(Config::with_cases(48))
        .run(&cases, |(sayings, cuts)| {
            let Conversation { pieces, answers } = Conversation::new(&sayings, &cuts, false);
            let heard = runtime.block_on(async {
                let tcp = hub.tcp().await;
                tcp.set_nodelay(true).unwrap();
                let mut client = Client::new(tcp);
                client.upgrade("/ws").await;
                let (read, mut write) = tokio::io::split(client.stream);
                let mut client = Client::new(tokio::io::join(read, tokio::io::sink()));
                let say = async {
                    for piece in pieces {
                        write.write_all(&piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                };
                let ((), heard) = tokio::join!(say, client.rest());
                heard
            });
            check(&heard, &answers)
        })
        .unwrap();
    runtime.block_on(hub.finish());
}
