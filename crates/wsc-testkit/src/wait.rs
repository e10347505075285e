//! The one time limit of this crate.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long any wait lasts before it fails the test: ten seconds, far more
/// than a loaded machine needs and far less than a hanging test run.
pub const WAIT: Duration = Duration::from_secs(10);

/// Waits for `future`, at most [`WAIT`].
///
/// # Panics
///
/// When the time is over, with `what` as the text.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(WAIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("still waiting after {WAIT:?}: {what}"),
    }
}

/// Asks again and again until `probe` gives a value.
///
/// For what the server does in its own time, such as forgetting a connection
/// whose socket was cut. The probe should be a round trip to the server: that
/// is what paces the loop.
///
/// # Panics
///
/// When there is no value after [`WAIT`], with `what` as the text.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < WAIT, "not so after {WAIT:?}: {what}");
        tokio::task::yield_now().await;
    }
}
