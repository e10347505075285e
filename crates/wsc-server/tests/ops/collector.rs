//! A collector of traces: takes OTLP over HTTP and keeps what came.

use std::io;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

/// A collector on a free loopback port; it stops listening when this is dropped.
pub(crate) struct Collector {
    url: String,
    requests: mpsc::UnboundedReceiver<Request>,
    task: JoinHandle<()>,
}

/// One export as it came.
pub(crate) struct Request {
    /// `POST /v1/traces HTTP/1.1` and the headers, in lower case.
    pub(crate) head: String,
    /// What was in the body.
    pub(crate) export: ExportTraceServiceRequest,
}

impl Request {
    /// The spans.
    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.export.resource_spans.iter().flat_map(|of| &of.scope_spans).flat_map(|of| &of.spans)
    }

    /// A text that the resource says about itself.
    pub(crate) fn resource(&self, key: &str) -> Option<String> {
        let resource: &Resource = self.export.resource_spans.first()?.resource.as_ref()?;
        let value = resource.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
        text(&value)
    }
}

impl Collector {
    /// Starts one that answers every export with this status line, such as `200 OK`.
    pub(crate) async fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    // The client may go whenever it likes.
                    let _ = serve(stream, status, &sender).await;
                });
            }
        });
        Self { url, requests, task }
    }

    /// `http://address:port`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The next export.
    pub(crate) async fn next(&mut self) -> Request {
        wsc_testkit::within("an export", self.requests.recv()).await.expect("the collector runs")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A text attribute of a span.
pub(crate) fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    text(&value)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// Answers exports on one connection until it ends.
async fn serve(stream: TcpStream, status: &str, requests: &mpsc::UnboundedSender<Request>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.trim().parse().expect("a number")];
        stream.read_exact(&mut body).await?;
        let export = ExportTraceServiceRequest::decode(body.as_slice()).expect("protobuf as the standard says");
        let _ = requests.send(Request { head, export });
        stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
    }
}
